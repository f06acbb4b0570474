"""Token texts concatenate to the decoding, whatever the tokens; special tokens in texts are text."""

from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from saetools.errors import FormatError
from saetools.lm.tokenizer import HfTokenize
from tests.lm.tiny import VOCABULARY, tiny_tokenizer

TINY = HfTokenize(tiny_tokenizer())
SPACED = Tokenizer(models.WordLevel({"▁one": 0, "▁two": 1, "s": 2, "[UNK]": 3}, unk_token="[UNK]"))
SPACED.pre_tokenizer, SPACED.decoder = pre_tokenizers.Metaspace(), decoders.Metaspace()
WORDS = HfTokenize(PreTrainedTokenizerFast(tokenizer_object=SPACED))
PIECES = ["<unk>", *(f"<0x{byte:02X}>" for byte in range(256)), "▁", *"abcdef()\n", "é"]
FALLBACK = Tokenizer(
    models.BPE({piece: i for i, piece in enumerate(PIECES)}, [], unk_token="<unk>", byte_fallback=True)
)
FALLBACK.normalizer = normalizers.Replace(" ", "▁")
FALLBACK.decoder = decoders.Sequence(
    [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
)
BYTES = HfTokenize(PreTrainedTokenizerFast(tokenizer_object=FALLBACK, unk_token="<unk>"))  # as of Llama 2 and Gemma


@settings(max_examples=300, deadline=None)
@given(st.lists(st.integers(0, VOCABULARY - 1), max_size=12))
def test_token_texts_concatenate_to_the_decoding(ids: list[int]) -> None:
    texts = TINY.token_texts(ids)
    assert len(texts) == len(ids)
    assert "".join(texts) == TINY.decode(ids)
    reference = TINY.token_texts_reference(ids)
    assert len(reference) == len(ids) and "".join(reference) == TINY.decode(ids)


@settings(max_examples=200, deadline=None)
@given(st.text(max_size=20))
def test_valid_text_comes_back_and_both_ways_agree(text: str) -> None:
    (ids,) = TINY.encode([text])
    assert "".join(TINY.token_texts(ids)) == text
    assert TINY.token_texts(ids) == TINY.token_texts_reference(ids) or "\ufffd" in text


@settings(max_examples=100, deadline=None)
@given(st.lists(st.integers(0, 3), max_size=8))
def test_tokenizers_that_are_not_byte_level(ids: list[int]) -> None:
    assert "".join(WORDS.token_texts(ids)) == WORDS.decode(ids)
    assert len(WORDS.token_texts(ids)) == len(ids)


@settings(max_examples=60, deadline=None)
@given(st.text("abc é日𝒳\n()", max_size=150))
def test_pieces_of_a_long_text_give_what_whole_prefixes_give(text: str) -> None:
    for tokenize in (WORDS, BYTES):
        (ids,) = tokenize.encode([text])
        assert tokenize.token_texts(ids) == tokenize.token_texts_reference(ids)


@settings(max_examples=60, deadline=None)
@given(st.lists(st.integers(0, len(PIECES) - 1), max_size=80))
def test_pieces_of_any_tokens(ids: list[int]) -> None:
    """Bytes that are no text among them."""
    assert BYTES.token_texts(ids) == BYTES.token_texts_reference(ids)


@pytest.mark.parametrize("tokenize", [WORDS, BYTES], ids=["words", "bytes"])
def test_the_work_of_a_long_text_grows_with_its_length_alone(tokenize, monkeypatch: pytest.MonkeyPatch) -> None:
    """Labelled evaluations ask for whole documents: of 33,000 tokens every prefix took five minutes."""
    (ids,) = tokenize.encode(["one 日 two" * 200])
    decoded, decode = [], tokenize.decode
    monkeypatch.setattr(tokenize, "decode", lambda part: decoded.append(len(part)) or decode(part))
    assert "".join(tokenize.token_texts(ids)) == decode(ids)
    assert sum(decoded) < 50 * len(ids)


def test_a_split_character_belongs_to_the_token_that_completes_it() -> None:
    (ids,) = TINY.encode(["é€"])
    assert len(ids) == 5, "one token per byte here"
    assert TINY.token_texts(ids) == ["", "é", "", "", "€"]
    assert TINY.token_texts(ids[:4]) == ["", "é", "", "\ufffd"], "an unfinished one ends with the window"


def test_special_tokens_in_a_text_are_text() -> None:
    (ids,) = TINY.encode(["a<|bos|>b"])
    assert TINY.bos_id == 0 and TINY.bos_id not in ids
    assert TINY.decode(ids) == "a<|bos|>b"
    assert TINY.token_texts([0, *ids])[0] == "<|bos|>"
    assert TINY.encode(["", "a"])[0] == []


def test_the_fingerprint_is_of_the_tokenizer(tmp_path: Path) -> None:
    tiny_tokenizer().save_pretrained(tmp_path)
    assert HfTokenize.from_directory(tmp_path).fingerprint() == TINY.fingerprint() != WORDS.fingerprint()
    assert (WORDS.bos_id, WORDS.pad_id) == (None, 0)
    assert (TINY.bos_id, TINY.eos_id, TINY.pad_id) == (0, 1, 0)


@pytest.mark.parametrize("config", ["", '{"model_type": "gpt_neox"}', '{"model_type": "gpt2"}'])
def test_a_directory_without_tokenizer(tmp_path: Path, config: str) -> None:
    """Of a config alone transformers makes a tokenizer of special tokens, which finds none in any text."""
    if config:
        (tmp_path / "config.json").write_text(config)
    with pytest.raises(FormatError, match="No tokenizer could be read"):
        HfTokenize.from_directory(tmp_path)
