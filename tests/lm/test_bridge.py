"""Hosts against plain transformers on tiny random GPT-2, Llama and GPT-NeoX models."""

from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest
import torch
import torch.nn.functional as nnf
from torch import Tensor
from transformers import AutoModelForCausalLM

from saetools.config import HostConfig
from saetools.errors import ConfigError, DataError, MismatchError, PointError
from saetools.lm.bridge import BridgeHost
from saetools.lm.hosts import make_host
from tests.lm.tiny import CONTEXT, LAYERS, VOCABULARY, WIDTH

KINDS = ["gpt2", "llama", "neox"]
IDS_BT = torch.randint(2, VOCABULARY, (3, 20), generator=torch.Generator().manual_seed(0))
KEEP_BT = torch.arange(20).expand(3, 20) < torch.tensor([[20], [13], [1]])
MIDDLE = "blocks.1.hook_out"


@pytest.fixture(scope="module", params=KINDS)
def kind(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture(scope="module")
def open_host(tiny_hosts: dict[str, Path]):
    return cache(lambda kind, **settings: BridgeHost(HostConfig(name=kind, **settings), tiny_hosts[kind], "cpu"))


@pytest.fixture(scope="module")
def host(open_host, kind: str) -> BridgeHost:
    return open_host(kind)


@pytest.fixture(scope="module")
def plain(tiny_hosts: dict[str, Path], kind: str):
    return AutoModelForCausalLM.from_pretrained(tiny_hosts[kind], attn_implementation="eager").eval()


@pytest.fixture(autouse=True)
def no_hook_is_left(request: pytest.FixtureRequest) -> Iterator[None]:
    yield
    if "host" in request.fixturenames:
        hooks = request.getfixturevalue("host")._bridge.hook_dict.values()
        assert not any(hook.has_hooks() for hook in hooks)
        assert not any(hook._forward_hooks for hook in hooks)


def close(a: Tensor, b: Tensor) -> bool:
    return torch.allclose(a, b, rtol=1e-5, atol=1e-5 * float(b.abs().max()))


# --- the same as plain transformers ---------------------------------------------------------------------------


def test_residual_stream_and_logits_equal_hidden_states(host: BridgeHost, plain) -> None:
    with torch.no_grad():
        expected = plain(IDS_BT, output_hidden_states=True)
    points = ["blocks.0.hook_in", *(f"blocks.{layer}.hook_out" for layer in range(LAYERS)), "ln_final.hook_out"]
    found = host.activations(IDS_BT, points)
    assert list(found) == points
    for point, hidden_BTD in zip(points[:LAYERS], expected.hidden_states, strict=False):
        assert close(found[point], hidden_BTD), point
    assert close(found["ln_final.hook_out"], expected.hidden_states[-1])
    assert close(host.logits(IDS_BT), expected.logits)
    assert not host.logits(IDS_BT).requires_grad and not found[MIDDLE].requires_grad


def test_parts_of_a_block_equal_those_of_plain_modules(host: BridgeHost, plain, kind: str) -> None:
    block = {"gpt2": "transformer.h.1", "llama": "model.layers.1", "neox": "gpt_neox.layers.1"}[kind]
    attention = {"gpt2": "attn", "llama": "self_attn", "neox": "attention"}[kind]
    mlp_out = {"gpt2": "mlp.c_proj", "llama": "mlp.down_proj", "neox": "mlp.dense_4h_to_h"}[kind]
    attention_out = {"gpt2": "attn.c_proj", "llama": "self_attn.o_proj", "neox": "attention.dense"}[kind]
    seen: dict[str, Tensor] = {}
    for point, name, take_input in (
        ("blocks.1.mlp.hook_out", "mlp", False),
        ("blocks.1.mlp.out.hook_in", mlp_out, True),
        ("blocks.1.attn.hook_out", attention, False),
        ("blocks.1.attn.o.hook_in", attention_out, True),
    ):

        def keep(module, inputs, output, point=point, take_input=take_input) -> None:
            value = inputs[0] if take_input else output
            seen[point] = value[0] if isinstance(value, tuple) else value

        plain.get_submodule(f"{block}.{name}").register_forward_hook(keep)
    with torch.no_grad():
        plain(IDS_BT)
    found = host.activations(IDS_BT, list(seen))
    assert len(seen) == 4
    for point, expected_BTD in seen.items():
        assert close(found[point], expected_BTD), point
        assert host.spec(point).d_model == expected_BTD.shape[2]


def test_gradients_equal_those_of_plain_transformers(host: BridgeHost, plain) -> None:
    with torch.no_grad():
        x_BTD, g_BTD = host.activations_and_gradients(IDS_BT, [MIDDLE], KEEP_BT)[MIDDLE]
    output = plain(IDS_BT, output_hidden_states=True)
    losses_BT = nnf.cross_entropy(output.logits[:, :-1].transpose(1, 2), IDS_BT[:, 1:], reduction="none")
    (expected_BTD,) = torch.autograd.grad(losses_BT[KEEP_BT[:, 1:]].sum(), output.hidden_states[2])
    assert expected_BTD.abs().max() > 1e-3
    assert close(g_BTD, expected_BTD)
    assert not x_BTD.requires_grad and torch.equal(x_BTD, host.activations(IDS_BT, [MIDDLE])[MIDDLE])
    assert not g_BTD[2].any(), "no target of this window is kept"
    assert all(parameter.grad is None for parameter in host._bridge.parameters())


def test_gradients_under_inference_mode(host: BridgeHost) -> None:
    """Functions that judge models are often decorated by it; steering ended in an error of autograd's."""
    expected = host.activations_and_gradients(IDS_BT, [MIDDLE], KEEP_BT)[MIDDLE]
    with torch.inference_mode():
        found = host.activations_and_gradients(IDS_BT.clone(), [MIDDLE], KEEP_BT.clone())[MIDDLE]
    assert all(map(torch.equal, found, expected)) and found[1].any()
    assert not any(t.requires_grad for t in found)


def test_gradients_of_several_points_come_from_one_pass_and_do_not_depend_on_each_other(host: BridgeHost) -> None:
    points = ["blocks.2.hook_out", "blocks.1.attn.o.hook_in", MIDDLE, "blocks.2.mlp.hook_out"]
    together = host.activations_and_gradients(IDS_BT, points, KEEP_BT)
    assert list(together) == points
    activations = host.activations(IDS_BT, points)
    for point in points:
        x_BTD, g_BTD = host.activations_and_gradients(IDS_BT, [point], KEEP_BT)[point]
        assert g_BTD.any() and torch.equal(together[point][1], g_BTD), point
        assert torch.equal(together[point][0], x_BTD) and torch.equal(x_BTD, activations[point]), point
    assert host.activations_and_gradients(IDS_BT, [], KEEP_BT) == {}


# --- hooks ----------------------------------------------------------------------------------------------------


def test_stopping_at_the_deepest_point_equals_the_full_pass(host: BridgeHost) -> None:
    everything = host.activations(IDS_BT, host.points())
    for points in ([MIDDLE], ["blocks.0.mlp.hook_out", MIDDLE], [MIDDLE, "blocks.0.hook_out"]):
        found = host.activations(IDS_BT, points)
        assert list(found) == points
        assert all(torch.equal(found[point], everything[point]) for point in points)
    reached: list[str] = []

    def note(x: Tensor) -> Tensor:
        reached.append("above")
        return x

    with host.editing({"blocks.2.hook_out": note}):
        host.activations(IDS_BT, [MIDDLE])
        assert reached == []
        host.activations(IDS_BT, ["blocks.2.hook_out"])
        assert reached == ["above"]
    assert host.activations(IDS_BT, []) == {}


def test_splicing_the_identity_changes_no_bit_and_zero_does(host: BridgeHost) -> None:
    logits_BTV = host.logits(IDS_BT)
    for point in [MIDDLE, "blocks.1.attn.o.hook_in", "blocks.0.mlp.hook_out", "embed.hook_out"]:
        assert torch.equal(host.logits(IDS_BT, {point: lambda x: x.clone()}), logits_BTV), point
        assert not close(host.logits(IDS_BT, {point: torch.zeros_like}), logits_BTV), point
    stored = host.activations(IDS_BT, [MIDDLE])[MIDDLE]
    assert torch.equal(host.logits(IDS_BT, {MIDDLE: lambda x: stored}), logits_BTV)
    assert torch.equal(host.logits(IDS_BT), logits_BTV)


def test_edits_nest_and_end_with_their_block(host: BridgeHost) -> None:
    before = host.activations(IDS_BT, [MIDDLE])[MIDDLE]
    with host.editing({MIDDLE: lambda x: x + 1}), host.editing({"blocks.1.hook_resid_post": lambda x: x * 2}):
        edited = host.activations(IDS_BT, [MIDDLE])[MIDDLE]
        x_BTD, _ = host.activations_and_gradients(IDS_BT, [MIDDLE], KEEP_BT)[MIDDLE]
    assert torch.equal(edited, (before + 1) * 2) and torch.equal(x_BTD, edited)
    assert torch.equal(host.activations(IDS_BT, [MIDDLE])[MIDDLE], before)


def test_hooks_are_gone_after_an_exception(host: BridgeHost) -> None:
    logits_BTV = host.logits(IDS_BT)

    def fail(x: Tensor) -> Tensor:
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        host.logits(IDS_BT, {MIDDLE: fail, "blocks.2.hook_out": torch.zeros_like})
    with pytest.raises(ZeroDivisionError), host.editing({MIDDLE: torch.zeros_like}):
        raise ZeroDivisionError
    with pytest.raises(PointError), host.editing({MIDDLE: torch.zeros_like, "blocks.9.hook_out": torch.zeros_like}):
        pass
    for wrong in (lambda x: x[:, :1], lambda x: x.double()):
        with pytest.raises(MismatchError, match="must return the same"):
            host.logits(IDS_BT, {MIDDLE: wrong})
    assert torch.equal(host.logits(IDS_BT), logits_BTV)


# --- points ---------------------------------------------------------------------------------------------------


def test_points_are_vectors_per_token_in_order(host: BridgeHost) -> None:
    points = host.points()
    found = host.activations(IDS_BT, points)
    for point in points:
        assert found[point].shape == (3, 20, host.spec(point).d_model) and host.canonical(point) == point
    assert not any(point.endswith(("pattern", "scores", "scale", "cos", "sin")) for point in points)
    assert host.spec("blocks.0.attn.q.hook_out").d_model == WIDTH, "heads are flattened"
    order = [points.index(f"blocks.{layer}.{part}") for layer in range(LAYERS) for part in ("hook_in", "hook_out")]
    assert order == sorted(order)


def test_other_names_of_a_point(host: BridgeHost) -> None:
    assert host.canonical("blocks.1.hook_resid_post") == MIDDLE
    assert host.canonical("blocks.1.hook_mlp_out") == "blocks.1.mlp.hook_out"
    assert list(host.activations(IDS_BT, ["blocks.1.hook_resid_post", MIDDLE])) == [MIDDLE]
    older = {point: host.spec(point).hooked_point for point in host.points()}
    assert older[MIDDLE] == "blocks.1.hook_resid_post"
    assert all(host.canonical(name) == point for point, name in older.items()), "and exports find their way back"
    for unknown in ("blocks.1.hook_resid_pos", "blocks.3.hook_out", "blocks.1.attn.hook_pattern"):
        with pytest.raises(PointError, match=r"blocks\.0\.hook_out \.\.\. blocks\.2\.hook_out"):
            host.canonical(unknown)
    with pytest.raises(PointError, match=r'Did you mean "blocks\.1\.hook_resid_post"'):
        host.activations(IDS_BT, ["blocks.1.hook_resid_pos"])


def test_points_of_the_residual_stream(host: BridgeHost) -> None:
    """What is of the stream, or is added to it, and nothing else that happens to have its width."""
    added = ("hook_in", "hook_out", "attn.hook_out", "mlp.hook_out", "ln1.hook_in", "hook_resid_post")
    inner = ("attn.q.hook_out", "attn.o.hook_in", "ln1.hook_out", "mlp.in.hook_in", "mlp.out.hook_in")
    assert [host.in_stream(f"blocks.1.{part}") for part in added] == [True] * len(added)
    assert [host.in_stream(f"blocks.1.{part}") for part in inner] == [False] * len(inner)
    assert host.in_stream("ln_final.hook_in") and not host.in_stream("ln_final.hook_out")


def test_the_spec_says_what_the_vectors_are(open_host) -> None:
    spec = open_host("llama").spec("blocks.1.hook_resid_post", 128)
    assert (spec.host, spec.point, spec.d_model, spec.context_tokens) == ("llama", MIDDLE, WIDTH, 128)
    assert spec.prepend_bos and spec.host_dtype == "float32" and not spec.compatibility_mode
    assert spec.revision and spec.tokenizer_hash == open_host("gpt2").spec(MIDDLE).tokenizer_hash
    assert spec.revision != open_host("gpt2").spec(MIDDLE).revision
    assert not open_host("llama", prepend_bos=False).spec(MIDDLE).prepend_bos


def test_dtype_and_compatibility_mode(open_host) -> None:
    half = open_host("llama", dtype="bfloat16")
    assert half.activations(IDS_BT, [MIDDLE])[MIDDLE].dtype == torch.bfloat16
    raw, folded = open_host("gpt2"), open_host("gpt2", compatibility_mode=True)
    assert folded.spec(MIDDLE).compatibility_mode and folded.unembedding()[1] is None
    log_probabilities = [h.logits(IDS_BT).log_softmax(-1) for h in (raw, folded)]
    assert torch.allclose(*log_probabilities, atol=1e-4), "the same model"
    assert not close(folded.activations(IDS_BT, [MIDDLE])[MIDDLE], raw.activations(IDS_BT, [MIDDLE])[MIDDLE])


# --- what comes out -------------------------------------------------------------------------------------------


def test_the_unembedding_gives_the_logits(host: BridgeHost, plain) -> None:
    W_U_VD, weight_D = host.unembedding()
    assert W_U_VD.shape == (VOCABULARY, WIDTH) and weight_D is not None
    last = host.activations(IDS_BT, ["ln_final.hook_out"])["ln_final.hook_out"]
    assert close(last @ W_U_VD.T, host.logits(IDS_BT))
    assert torch.equal(W_U_VD, plain.get_output_embeddings().weight)
    (norm,) = (
        module for name, module in plain.named_modules() if name.endswith(("ln_f", "model.norm", "final_layer_norm"))
    )
    assert torch.equal(weight_D, norm.weight)


def test_greedy_generation_equals_plain_transformers(host: BridgeHost, plain) -> None:
    ids = [host.tokenize.bos_id, *host.tokenize.encode(["def f"])[0]]
    expected = plain.generate(
        torch.tensor([ids]), attention_mask=torch.ones(1, len(ids)), max_new_tokens=12, do_sample=False, pad_token_id=0
    )[0].tolist()
    new = expected[len(ids) :]
    new = new[: new.index(1)] if 1 in new else new
    assert host.generate("def f", 12) == "".join(host.token_texts([*ids, *new])[len(ids) :])


def test_generation_takes_edits_and_seeds(host: BridgeHost) -> None:
    first = host.generate("x = ", 10, temperature=1.0, seed=1)
    assert first == host.generate("x = ", 10, temperature=1.0, seed=1)
    assert first != host.generate("x = ", 10, temperature=1.0, seed=2)
    greedy = host.generate("x = ", 10)
    with host.editing({MIDDLE: lambda x: -3 * x}):
        assert host.generate("x = ", 10) != greedy
    with host.editing({MIDDLE: lambda x: x + 0}):
        assert host.generate("x = ", 10) == greedy
    assert host.generate("x", 0) == ""
    assert len(host.generate("x = y\n" * CONTEXT, 3)) > 0, "long prompts slide"


def test_prompts_and_windows_that_do_not_fit(open_host, host: BridgeHost) -> None:
    with pytest.raises(ConfigError, match="takes at most 64"):
        host.logits(torch.zeros(1, CONTEXT + 1, dtype=torch.long))
    with pytest.raises(DataError, match="begins without BOS"):
        open_host("llama", prepend_bos=False).generate("", 3)


def test_two_hosts_of_one_directory_do_not_touch_each_other(tiny_hosts: dict[str, Path]) -> None:
    first, second = (make_host(HostConfig(name=str(tiny_hosts["llama"])), "cpu") for _ in range(2))
    with first.editing({MIDDLE: torch.zeros_like}):
        assert not close(first.logits(IDS_BT), second.logits(IDS_BT))
    assert torch.equal(first.logits(IDS_BT), second.logits(IDS_BT))
