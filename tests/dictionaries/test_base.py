"""The registry, and what every kind inherits."""

import pytest
import torch

from saetools.dictionaries.base import Dictionary, available_dictionaries, dictionary_class, make_dictionary
from saetools.dictionaries.code import SparseCode
from saetools.dictionaries.topk import TopK
from saetools.errors import ConfigError, DataError, MismatchError
from saetools.records import Calibration


def small(**settings: float) -> Dictionary:
    return make_dictionary(TopK.configure(n_features=12, k=3, **settings), 4)


def test_registry() -> None:
    assert available_dictionaries()["topk"] is TopK
    with pytest.raises(ConfigError, match='Did you mean "topk"'):
        dictionary_class("tpk")
    with pytest.raises(ValueError, match="already taken by TopK"):
        type("Other", (Dictionary,), {}, kind="topk")
    assert dictionary_class("topk") is TopK


def test_calibration_sets_variance_and_bias() -> None:
    dictionary = small()
    start = (1.0, 2.0, 3.0, 4.0)
    dictionary.calibrate_(Calibration(scale=2.0, total_variance=3.5, median_norm=1.0, b_dec_start=start, n_rows=10))
    assert dictionary.total_variance.item() == 3.5 and tuple(dictionary.b_dec_D.tolist()) == start


def test_equal_seeds_give_equal_weights() -> None:
    config = TopK.configure(n_features=12, k=3)
    one, same, other = (make_dictionary(config, 4, seed) for seed in (1, 1, 2))
    assert torch.equal(one.W_dec_FD, same.W_dec_FD) and not torch.equal(one.W_dec_FD, other.W_dec_FD)


def test_a_foreign_code_is_refused() -> None:
    code = SparseCode(torch.zeros(2, 1), torch.zeros(2, 1, dtype=torch.int32), 13)
    with pytest.raises(MismatchError, match="13 features"):
        small().decode(code)


def test_rows_that_are_no_tensor_are_refused() -> None:
    for rows in (torch.zeros(5, 4).numpy(), torch.zeros(5, 4).tolist()):
        with pytest.raises(MismatchError, match=rf"got a {type(rows).__name__}: torch\.as_tensor\(x\) makes one"):
            small().encode(rows)  # type: ignore[arg-type]


def test_a_foreign_state_is_refused() -> None:
    with pytest.raises(DataError, match="tokens_since_fired_F"):
        small().initial_state().with_tensors({"tokens_since_fired_F": torch.zeros(13, dtype=torch.int64)})
    with pytest.raises(DataError):
        small().initial_state().with_tensors({})


def test_half_precision_rows_are_taken_as_they_come() -> None:
    dictionary, x = small(), torch.randn(5, 4).bfloat16()
    assert dictionary(x).dtype == torch.bfloat16
    assert torch.equal(dictionary.encode(x).values, dictionary.encode(x.float()).values)


@pytest.mark.parametrize(
    "cls",
    [
        pytest.param(cls, id=cls.kind, marks=() if cls.kind in ("topk", "matching_pursuit") else pytest.mark.slow)
        for cls in dict.fromkeys(available_dictionaries().values())
    ],
)
def test_every_kind_under_compile(cls: type[Dictionary]) -> None:
    """Reconstruction and gradients of a compiled dictionary are the same bits."""
    dictionary = make_dictionary(cls.examples()[0], 8)
    torch._dynamo.reset()
    compiled = torch.compile(dictionary, backend="eager")
    found = []
    for module in (dictionary, compiled):
        x = torch.randn(20, 8, generator=torch.Generator().manual_seed(0)).requires_grad_()
        recon = module(x)
        if recon.requires_grad:
            recon.square().sum().backward()
        found.append((recon, torch.tensor(0.0) if x.grad is None else x.grad))
        with torch.no_grad():
            assert torch.equal(module(x), recon)
    assert torch.equal(found[0][0], found[1][0])
    assert torch.equal(found[0][1], found[1][1])
