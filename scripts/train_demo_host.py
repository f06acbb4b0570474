"""Train the embedded subject model: a small Llama-architecture language model of Python code.

    python scripts/train_demo_host.py --out saetools/assets/pycode --work build/pycode
    python scripts/train_demo_host.py --out analysis/assets/pycode-b --work build/pycode-b --seed 1 \
        --width 192 --layers 3 --tokens 20000000

Training text: the train split of the `stdlib` corpus, and the Python sources of the installed packages, less
every file that shares many lines with a held-out document (vendored copies and backports). Held-out text: the
held-out split of `stdlib` only. The work directory holds the tokenizer, the token arrays and a checkpoint; the
same command run again goes on from it. A lower `--tokens` on resume only brings the final decay forward.
"""

import argparse
import json
import lzma
import math
import sys
import time
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import save_file
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from saetools.text.base import Document
from saetools.text.stdlib import SKIPPED_DIRECTORIES, StdlibCorpus

BOS = "<|bos|>"
EXCLUDED_PACKAGES = frozenset({"pip", "setuptools", "pkg_resources", "plotly", "saetools", "_distutils_hack"})
LINE_OVERLAP_LIMIT = 0.1
MIN_LINE_LENGTH = 20
STDLIB_SHARE = 0.25
DECAY_FRACTION = 0.4
SETTINGS = ("seed", "vocab", "width", "layers", "context", "batch")
"""What a work directory is for; tokens, threads and checkpoints may change from call to call."""


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, required=True, help="directory for the Hugging Face files")
    parser.add_argument("--work", type=Path, required=True, help="directory for tokens and checkpoints")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--tokens", type=int, default=50_000_000, help="training tokens in all")
    parser.add_argument("--vocab", type=int, default=4096)
    parser.add_argument("--width", type=int, default=256)
    parser.add_argument("--layers", type=int, default=4)
    parser.add_argument("--context", type=int, default=1024, help="tokens per training window")
    parser.add_argument("--batch", type=int, default=8, help="windows per step")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--checkpoint-every", type=int, default=200, help="steps")
    return parser.parse_args()


# --- text ---------------------------------------------------------------------------------------------------


def long_lines(text: str) -> list[int]:
    return [hash(line.strip()) for line in text.splitlines() if len(line.strip()) >= MIN_LINE_LENGTH]


def package_documents(heldout: list[Document]) -> Iterator[Document]:
    """Python sources of the installed packages that do not repeat held-out text."""
    seen = {line for document in heldout for line in long_lines(document.text)}
    root = Path(metadata.distribution("torch").locate_file(""))
    for path in sorted(root.rglob("*.py")):
        relative = path.relative_to(root)
        if relative.parts[0] in EXCLUDED_PACKAGES or not SKIPPED_DIRECTORIES.isdisjoint(relative.parts[:-1]):
            continue
        if {"_vendor", "_distutils", "third_party"} & set(relative.parts):
            continue
        try:
            text = path.read_text(encoding="utf-8")
        except (UnicodeDecodeError, OSError):
            continue
        lines = long_lines(text)
        if not 200 <= len(text) <= 400_000 or not lines:
            continue
        if sum(line in seen for line in lines) <= LINE_OVERLAP_LIMIT * len(lines):
            yield Document(relative.as_posix(), text)


def licence_lines() -> list[str]:
    """`name version: licence` of every installed package whose sources may be used."""
    lines = set()
    for distribution in metadata.distributions():
        meta = distribution.metadata
        licence = meta.get("License-Expression") or next(
            (c.rsplit("::", 1)[1].strip() for c in meta.get_all("Classifier") or [] if c.startswith("License")),
            (meta.get("License") or "not stated").splitlines()[0][:60],
        )
        if meta["Name"].lower() not in EXCLUDED_PACKAGES:
            lines.add(f"{meta['Name']} {distribution.version}: {licence}")
    return sorted(lines, key=str.lower)


def build_tokenizer(documents: list[Document], vocab: int, path: Path) -> Tokenizer:
    """Byte-level BPE; every byte is in the alphabet, so every text round-trips."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab,
        special_tokens=[BOS],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator((d.text for d in documents), trainer)
    tokenizer.save(str(path))
    return tokenizer


def encode(tokenizer: Tokenizer, documents: list[Document], path: Path) -> np.ndarray:
    """All documents in one uint16 array, BOS before each."""
    parts, bos = [], np.zeros(1, np.uint16)
    for start in range(0, len(documents), 256):
        for encoding in tokenizer.encode_batch([d.text for d in documents[start : start + 256]]):
            parts += [bos, np.asarray(encoding.ids, np.uint16)]
    tokens = np.concatenate(parts)
    whole = path.with_suffix(".tmp.npy")
    np.save(whole, tokens)
    whole.replace(path)
    return tokens


def check_settings(arguments: argparse.Namespace) -> None:
    """Leave in the work directory what model it is for; end where it is for another."""
    path = arguments.work / "settings.json"
    settings = {name: getattr(arguments, name) for name in SETTINGS}
    if not path.exists():
        path.write_text(json.dumps(settings) + "\n")
    for name, before in json.loads(path.read_text()).items():
        if before != settings[name]:
            sys.exit(f"{arguments.work} is that of another model: {name} is {before} there, {settings[name]} here")


def prepare(arguments: argparse.Namespace) -> tuple[Tokenizer, np.ndarray, np.ndarray]:
    work, a_step = arguments.work, arguments.batch * arguments.context
    if arguments.tokens < a_step:
        sys.exit(f"--tokens is {arguments.tokens}; a step has {a_step}")
    work.mkdir(parents=True, exist_ok=True)
    check_settings(arguments)
    paths = work / "tokenizer.json", work / "stdlib.npy", work / "packages.npy"
    if all(path.exists() for path in paths):
        return Tokenizer.from_file(str(paths[0])), np.load(paths[1]), np.load(paths[2])
    corpus = StdlibCorpus()
    train, heldout = list(corpus.documents("train")), list(corpus.documents("heldout"))
    packages = list(package_documents(heldout))
    say(f"{len(train)} stdlib and {len(packages)} package documents for training")
    sample = train + packages[:: max(1, len(packages) // 1500)]
    tokenizer = build_tokenizer(sample, arguments.vocab, paths[0])
    return tokenizer, encode(tokenizer, train, paths[1]), encode(tokenizer, packages, paths[2])


# --- training -----------------------------------------------------------------------------------------------


def make_model(arguments: argparse.Namespace) -> LlamaForCausalLM:
    torch.manual_seed(arguments.seed)
    return LlamaForCausalLM(
        LlamaConfig(
            vocab_size=arguments.vocab,
            hidden_size=arguments.width,
            intermediate_size=round(arguments.width * 8 / 3 / 64) * 64,
            num_hidden_layers=arguments.layers,
            num_attention_heads=arguments.width // 64,
            num_key_value_heads=arguments.width // 64,
            max_position_embeddings=arguments.context,
            tie_word_embeddings=True,
            bos_token_id=0,
            eos_token_id=0,
            pad_token_id=0,
        )
    )


def batch_of(step: int, arguments: argparse.Namespace, stdlib: np.ndarray, packages: np.ndarray) -> torch.Tensor:
    """Batch `step` is a function of the seed and the step: windows at random offsets, BOS before each."""
    generator = np.random.default_rng((arguments.seed, step))
    rows = []
    for _ in range(arguments.batch):
        source = stdlib if generator.random() < STDLIB_SHARE else packages
        start = generator.integers(0, len(source) - arguments.context)
        rows.append(np.concatenate([[0], source[start : start + arguments.context - 1]]))
    return torch.from_numpy(np.stack(rows).astype(np.int64))


def make_optimizers(model: LlamaForCausalLM) -> list[torch.optim.Optimizer]:
    """Muon for the matrices inside the layers, Adam for embeddings and norms."""
    inside = [p for name, p in model.named_parameters() if p.ndim == 2 and "embed" not in name]
    chosen = {id(p) for p in inside}
    others = [p for p in model.parameters() if id(p) not in chosen]
    return [
        torch.optim.Muon(inside, lr=0.01, weight_decay=0.05, adjust_lr_fn="original"),
        torch.optim.AdamW(others, lr=3e-3, betas=(0.9, 0.98), weight_decay=0.0),
    ]


def train(model: LlamaForCausalLM, arguments: argparse.Namespace, stdlib: np.ndarray, packages: np.ndarray) -> int:
    optimizers = make_optimizers(model)
    base_rates = [group["lr"] for o in optimizers for group in o.param_groups]
    tokens_per_step = arguments.batch * arguments.context
    n_steps = arguments.tokens // tokens_per_step
    checkpoint, first = arguments.work / "checkpoint.pt", 0
    if checkpoint.exists():
        state = torch.load(checkpoint, weights_only=True)
        model.load_state_dict(state["model"])
        for optimizer, saved in zip(optimizers, state["optimizers"], strict=True):
            optimizer.load_state_dict(saved)
        first = state["step"]
        say(f"going on from step {first}")
    began, average = time.time(), None
    for step in range(first, n_steps):
        rate = min(1.0, (step + 1) / 100, max(n_steps - step, 1) / (DECAY_FRACTION * n_steps))
        for group, base in zip((g for o in optimizers for g in o.param_groups), base_rates, strict=True):
            group["lr"] = base * rate
        ids = batch_of(step, arguments, stdlib, packages)
        with torch.autocast("cpu", torch.bfloat16):
            loss = model(ids, labels=ids).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        for optimizer in optimizers:
            optimizer.step()
            optimizer.zero_grad()
        average = loss.item() if average is None else 0.98 * average + 0.02 * loss.item()
        if (step + 1) % 25 == 0:
            speed = (step + 1 - first) * tokens_per_step / (time.time() - began)
            say(f"step {step + 1}/{n_steps} loss {average:.3f} rate {rate:.2f} {speed:.0f} tokens/s")
        if (step + 1) % arguments.checkpoint_every == 0 or step + 1 == n_steps:
            saved = {"model": model.state_dict(), "step": step + 1, "optimizers": [o.state_dict() for o in optimizers]}
            torch.save(saved, checkpoint.with_suffix(".tmp"))
            checkpoint.with_suffix(".tmp").replace(checkpoint)
    return max(first, n_steps) * tokens_per_step


# --- result -------------------------------------------------------------------------------------------------


@torch.no_grad()
def heldout_loss(model: LlamaForCausalLM, tokenizer: Tokenizer, documents: list[Document], context: int):
    """Nats per token and bits per byte on whole documents, in windows that overlap by half.

    Each window starts with BOS; in all but a document's first window only the second half is counted, so that
    every token is counted once, with at least half a window before it.
    """
    nats, n_tokens, n_bytes, width = 0.0, 0, 0, context - 1
    for document in documents:
        ids = tokenizer.encode(document.text).ids
        n_bytes += len(document.text.encode("utf-8", "surrogatepass"))
        counted = 0
        while counted < len(ids):
            start = 0 if counted == 0 else max(0, counted - width // 2)
            window = torch.tensor([[0, *ids[start : start + width]]])
            losses = torch.nn.functional.cross_entropy(
                model(window).logits[0, :-1].float(), window[0, 1:], reduction="none"
            )
            nats += losses[counted - start :].double().sum().item()
            n_tokens += len(losses) - (counted - start)
            counted = start + len(losses)
    return nats / n_tokens, nats / math.log(2) / n_bytes, n_tokens, n_bytes


def continuations(model: LlamaForCausalLM, tokenizer: Tokenizer) -> list[str]:
    texts = []
    for prompt in ("def ", "class ", "import ", "    for "):
        ids = torch.tensor([[0, *tokenizer.encode(prompt).ids]])
        out = model.generate(ids, max_new_tokens=60, do_sample=False, repetition_penalty=1.1)
        texts.append(tokenizer.decode(out[0, 1:].tolist()))
    return texts


def write_model(model: LlamaForCausalLM, tokenizer: Tokenizer, arguments: argparse.Namespace, n_tokens: int) -> None:
    """The Hugging Face directory: config, bf16 weights, tokenizer, figures and model card."""
    model = model.to(torch.bfloat16).eval()
    out = arguments.out
    out.mkdir(parents=True, exist_ok=True)
    wrapped = PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token=BOS, eos_token=BOS, pad_token=BOS)
    wrapped.save_pretrained(out)
    model.config.dtype = "bfloat16"
    model.config.architectures = ["LlamaForCausalLM"]
    model.config.save_pretrained(out)
    weights = {k: v.contiguous() for k, v in model.state_dict().items() if k != "lm_head.weight"}
    save_file(weights, out / "model.safetensors", metadata={"format": "pt"})

    corpus = StdlibCorpus()
    heldout = list(corpus.documents("heldout"))
    model = model.float()
    per_token, per_byte, n_heldout, n_bytes = heldout_loss(model, tokenizer, heldout, arguments.context)
    joined = "".join(d.text for d in heldout).encode("utf-8", "surrogatepass")
    xz = 8 * len(lzma.compress(joined, preset=9 | lzma.PRESET_EXTREME)) / len(joined)
    figures = {
        "parameters": sum(p.numel() for p in model.parameters()),
        "train_tokens": n_tokens,
        "heldout_tokens": n_heldout,
        "heldout_bytes": n_bytes,
        "nats_per_token": round(per_token, 4),
        "bits_per_byte": round(per_byte, 4),
        "xz_bits_per_byte": round(xz, 4),
        "python": sys.version.split()[0],
        "corpus_fingerprint": corpus.fingerprint(),
        "seed": arguments.seed,
    }
    (out / "training.json").write_text(json.dumps(figures, indent=2) + "\n")
    say(json.dumps(figures))
    samples = "\n\n".join(f"```python\n{text}\n```" for text in continuations(model, tokenizer))
    command = "python scripts/train_demo_host.py " + " ".join(sys.argv[1:])
    (out / "README.md").write_text(model_card(figures, samples, command))


def model_card(figures: dict, samples: str, command: str) -> str:
    licences = "\n".join(f"- {line}" for line in licence_lines())
    return f"""---
license: apache-2.0
language: [code]
tags: [python, llama, interpretability]
---
# {figures["parameters"] / 1e6:.1f}M-parameter language model of Python code

A subject model for interpretability work that needs no download. It is small and knows only Python source text;
it is not meant to write programs.

| figure | value |
|---|---|
| training tokens | {figures["train_tokens"]:,} |
| held-out loss, nats per token | {figures["nats_per_token"]} |
| held-out loss, bits per byte | {figures["bits_per_byte"]} |
| `xz -9e` on the same held-out files, concatenated, bits per byte | {figures["xz_bits_per_byte"]} |
| held-out text | {figures["heldout_bytes"]:,} bytes, {figures["heldout_tokens"]:,} tokens |
| Python version of the corpus | {figures["python"]} |
| corpus fingerprint | `{figures["corpus_fingerprint"]}` |

Held-out: the documents of the `stdlib` corpus whose id hashes into its held-out 15 %; whole documents, windows
that overlap by half. Trained on the rest of that corpus (a quarter of the windows) and on the sources of the
packages below, without files that share more than {LINE_OVERLAP_LIMIT:.0%} of their lines with held-out text.

Command: `{command}`

## Greedy continuations (repetition penalty 1.1)

{samples}

## Sources and licences

- Python standard library {figures["python"]}: PSF-2.0
{licences}
"""


def say(text: str) -> None:
    sys.stderr.write(text + "\n")
    sys.stderr.flush()


def main() -> None:
    arguments = parse_arguments()
    torch.set_num_threads(arguments.threads)
    tokenizer, stdlib, packages = prepare(arguments)
    say(f"{len(stdlib):,} stdlib and {len(packages):,} package tokens")
    model = make_model(arguments)
    n_tokens = train(model, arguments, stdlib, packages)
    write_model(model, tokenizer, arguments, n_tokens)


if __name__ == "__main__":
    main()
