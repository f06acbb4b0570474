"""Tiny random language models as Hugging Face directories, with a byte-level tokenizer of 300 tokens."""

from pathlib import Path

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import (
    GPT2Config,
    GPT2LMHeadModel,
    GPTNeoXConfig,
    GPTNeoXForCausalLM,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedTokenizerFast,
)

VOCABULARY, WIDTH, LAYERS, HEADS, CONTEXT = 300, 32, 3, 2, 64
SPECIAL = {"bos_token_id": 0, "eos_token_id": 1, "pad_token_id": 0}
ROTARY = {
    "vocab_size": VOCABULARY,
    "hidden_size": WIDTH,
    "intermediate_size": 48,
    "num_hidden_layers": LAYERS,
    "num_attention_heads": HEADS,
    "max_position_embeddings": CONTEXT,
    **SPECIAL,
}


def tiny_tokenizer() -> PreTrainedTokenizerFast:
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY,
        special_tokens=["<|bos|>", "<|eos|>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(["def function(argument):\n    return argument + 1\n"] * 4, trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, bos_token="<|bos|>", eos_token="<|eos|>", pad_token="<|bos|>"
    )


def tiny_models() -> dict[str, torch.nn.Module]:
    """Weights are larger than at the usual start, so that layers do something."""
    torch.manual_seed(0)
    wide = {"initializer_range": 0.3}
    gpt2 = GPT2Config(
        vocab_size=VOCABULARY, n_positions=CONTEXT, n_embd=WIDTH, n_layer=LAYERS, n_head=HEADS, **SPECIAL, **wide
    )
    llama = LlamaConfig(num_key_value_heads=1, tie_word_embeddings=True, **ROTARY, **wide)
    return {
        "gpt2": GPT2LMHeadModel(gpt2),
        "llama": LlamaForCausalLM(llama),
        "neox": GPTNeoXForCausalLM(GPTNeoXConfig(**ROTARY, **wide)),
    }


def write_tiny_hosts(root: Path) -> dict[str, Path]:
    tokenizer = tiny_tokenizer()
    for name, model in tiny_models().items():
        model.eval().save_pretrained(root / name)
        tokenizer.save_pretrained(root / name)
    return {name: root / name for name in ("gpt2", "llama", "neox")}
