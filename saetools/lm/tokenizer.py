"""A host's tokenizer: text to ids, ids to texts that concatenate to the whole.

Text is only ever text: `<|endoftext|>` in a document is encoded as those characters, not as the special token.
"""

import codecs
import hashlib
import json
from collections.abc import Sequence
from functools import cached_property
from itertools import pairwise, takewhile
from pathlib import Path

from tokenizers import Tokenizer
from transformers import AutoTokenizer, PreTrainedTokenizerBase

from saetools.errors import FormatError

PIECE, CONTEXT = 32, 8
"""Tokens that are decoded together, one more at a time, and those before them that are decoded with them."""


class HfTokenize:
    """The fast tokenizer of a Hugging Face directory, without special tokens of its own accord."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase) -> None:
        self._tokenizer = Tokenizer.from_str(tokenizer.backend_tokenizer.to_str())
        self._tokenizer.no_padding()
        self._tokenizer.no_truncation()
        self._serialised = self._tokenizer.to_str()
        self._tokenizer.encode_special_tokens = True
        self.bos_id: int | None = tokenizer.bos_token_id
        self.eos_id: int | None = tokenizer.eos_token_id
        known = (tokenizer.pad_token_id, self.eos_id, self.bos_id)
        self.pad_id: int = next((token for token in known if token is not None), 0)

    @classmethod
    def from_directory(cls, directory: Path) -> "HfTokenize":
        """Read the tokenizer's files; FormatError where there are none or no fast tokenizer comes out of them."""
        try:
            tokenizer = AutoTokenizer.from_pretrained(str(directory), local_files_only=True, trust_remote_code=False)
        except (OSError, ValueError, KeyError, ImportError) as error:
            cause = " ".join(str(error).split())[:300]
            raise FormatError(
                f"No tokenizer could be read from {directory}, which should hold tokenizer.json. {cause} ..."
            ) from error
        if not tokenizer.is_fast:
            raise FormatError(f"The tokenizer in {directory} has no tokenizer.json, which is needed.")
        if not set(tokenizer.get_vocab()) - set(tokenizer.all_special_tokens):  # what transformers makes of no files
            raise FormatError(
                f"No tokenizer could be read from {directory}, which should hold tokenizer.json: save it there with "
                "its save_pretrained."
            )
        return cls(tokenizer)

    def encode(self, texts: list[str]) -> list[list[int]]:
        """Token ids of each text; no BOS, no EOS."""
        return [encoding.ids for encoding in self._tokenizer.encode_batch_fast(texts, add_special_tokens=False)]

    def decode(self, ids: Sequence[int]) -> str:
        """The text of all tokens, special ones included; bytes that are not UTF-8 become U+FFFD."""
        return self._tokenizer.decode(list(ids), skip_special_tokens=False)

    def fingerprint(self) -> str:
        """sha256 of the serialised tokenizer."""
        return hashlib.sha256(self._serialised.encode()).hexdigest()

    def token_texts(self, ids: Sequence[int]) -> list[str]:
        """The text that each token adds; the texts concatenate to `decode(ids)`.

        A character whose bytes are spread over several tokens belongs to the token that completes it, and the
        earlier ones add nothing (an empty text).
        """
        if not self._is_byte_level:
            return self._token_texts_by_pieces(ids)
        decoder = codecs.getincrementaldecoder("utf-8")("replace")
        texts = [decoder.decode(self._bytes_of(token)) for token in ids]
        if texts:
            texts[-1] += decoder.decode(b"", final=True)
        return texts

    def token_texts_reference(self, ids: Sequence[int]) -> list[str]:
        """`token_texts` for any tokenizer, by decoding every prefix: quadratic in the number of tokens."""
        whole, ends = self.decode(ids), [0]
        for n in range(1, len(ids)):
            ends.append(max(ends[-1], _common_length(self.decode(ids[:n]), whole)))
        ends.append(len(whole))
        return [whole[begin:end] for begin, end in pairwise(ends)][: len(ids)]

    def _token_texts_by_pieces(self, ids: Sequence[int]) -> list[str]:
        """`token_texts_reference`, but that of what came before a piece only a few tokens are decoded again.

        A piece begins where the text before it is whole: no character waits for further bytes. Where that does not
        give the decoding of all, the reference does it.
        """
        whole, ends, first = self.decode(ids), [0], 0
        while first < len(ids):
            before = max(first - CONTEXT, 0)
            known, begin = len(self.decode(ids[before:first])), ends[first]
            complete = first
            for n in range(first + 1, min(first + PIECE, len(ids)) + 1):
                text = self.decode(ids[before:n])[known:]
                end = begin + len(text)
                if whole.startswith(text, begin):
                    complete = n
                else:
                    end = begin + _common_length(text, whole[begin:end])
                ends.append(max(ends[-1], end))
            if complete == first:
                return self.token_texts_reference(ids)
            first, ends = complete, ends[: complete + 1]
        if ends[-1] != len(whole):
            return self.token_texts_reference(ids)
        return [whole[begin:end] for begin, end in pairwise(ends)]

    @cached_property
    def _is_byte_level(self) -> bool:
        decoder = json.loads(self._serialised)["decoder"] or {}
        return decoder.get("type") == "ByteLevel"

    @cached_property
    def _byte_of_character(self) -> dict[str, int]:
        """Byte-level BPE writes a printable byte as itself and the n-th other one as the character 256 + n."""
        printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
        others = [byte for byte in range(256) if byte not in printable]
        return {chr(byte): byte for byte in printable} | {chr(256 + n): byte for n, byte in enumerate(others)}

    @cached_property
    def _known_bytes(self) -> dict[int, bytes]:
        return {}

    def _bytes_of(self, token: int) -> bytes:
        """The bytes of one token; those of added tokens with other characters are their UTF-8 form."""
        found = self._known_bytes.get(token)
        if found is None:
            characters = self._tokenizer.id_to_token(token) or ""
            table = self._byte_of_character
            is_mapped = all(character in table for character in characters)
            found = bytes(table[c] for c in characters) if is_mapped else characters.encode()
            self._known_bytes[token] = found
        return found


def _common_length(first: str, second: str) -> int:
    """Length of the longest common beginning."""
    return sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], zip(first, second, strict=False)))
