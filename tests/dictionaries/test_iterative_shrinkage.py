"""Iterative shrinkage: what one pass of an encoder costs, and what is refused."""

from pathlib import Path
from typing import Any

import pytest
import torch

import saetools
from saetools.dictionaries.base import make_dictionary
from saetools.dictionaries.iterative_shrinkage import IterativeShrinkage
from saetools.dictionaries.topk import TopK
from saetools.errors import ConfigError
from saetools.formats.native import save_dictionary
from saetools.functional.statistics import l0_N
from saetools.records import Calibration
from saetools.training.construction import make_trainer
from saetools.training.schedule import Plan


def test_it_rebuilds_better_than_the_encoder_at_equal_l0(planted: Any) -> None:
    """On the planted atoms themselves, a tied encoder of which errs, and the optimiser nearly finds the true code."""
    topk = make_dictionary(TopK.configure(n_features=planted.N_ATOMS, k=planted.ACTIVE), planted.D)
    with torch.no_grad():
        topk.W_dec_FD.copy_(planted.atoms)
        topk.W_enc_FD.copy_(planted.atoms)
    topk.total_variance.fill_(4.0)
    x = planted.rows(400, seed=5)
    exact = IterativeShrinkage.over(topk, weight=0.05, n_steps=400)
    assert (exact.encode(x).values > 0).all()
    l0 = l0_N(exact.encode(x)).double().mean().item()
    assert l0 == pytest.approx(planted.ACTIVE, rel=0.15)
    gap = (x - topk(x)).square().sum() / (x - exact(x)).square().sum()
    assert gap > 5, f"amortisation gap {gap:.2f} at L0 {l0:.2f}"


@pytest.mark.parametrize("penalty", ["soft", "hard", "cel0"])
def test_more_weight_is_sparser_and_scale_changes_nothing(planted: Any, penalty: str) -> None:
    topk, x = make_dictionary(TopK.configure(n_features=48, k=3), planted.D).double(), planted.rows(200, seed=6)
    topk.total_variance.fill_(4.0)
    coders = [IterativeShrinkage.over(topk, penalty=penalty, weight=weight) for weight in (0.002, 0.01, 0.03)]
    sparsities = [l0_N(coder.encode(x)).double().mean().item() for coder in coders]
    assert sparsities[0] > sparsities[1] > sparsities[2] > 0
    expected = coders[1].encode(x).to_dense()
    coders[1].fold_scale_(0.01)
    torch.testing.assert_close(coders[1].encode(100 * x.double()).to_dense() / 100, expected, rtol=1e-9, atol=1e-9)


def test_it_is_saved_and_loaded_but_not_trained(planted: Any, tmp_path: Path) -> None:
    topk = make_dictionary(TopK.configure(n_features=48, k=3), planted.D)
    topk.b_dec_D.data.fill_(0.3)
    topk.total_variance.fill_(4.0)
    coder = IterativeShrinkage.over(topk, weight=0.05)
    assert coder.b_dec_D.equal(topk.b_dec_D) and coder.total_variance == 4
    save_dictionary(coder, tmp_path / "saved", spec=None, scale=1.0)
    loaded, x = saetools.load(tmp_path / "saved"), planted.rows(20, seed=7)
    assert torch.equal(loaded.encode(x).to_dense(), coder.encode(x).to_dense())
    plan = Plan(
        n_tokens=10,
        n_steps=1,
        batch_rows=10,
        peak_lr=1e-3,
        warmup_steps=0,
        decay_fraction=0,
        clip_norm=1,
        dead_after_tokens=1,
    )
    calibration = Calibration(scale=1, total_variance=1, median_norm=1, b_dec_start=(0.0,) * planted.D, n_rows=1)
    with pytest.raises(ConfigError, match="is not trained: it codes rows over given atoms"):
        make_trainer(coder, plan, calibration, "auto")
