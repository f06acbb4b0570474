"""Calibration: known answers, its definition, and what it refuses."""

import math

import numpy as np
import pytest
import torch

from saetools.activations.base import ActivationBatch
from saetools.activations.calibration import calibrate, calibrate_all, drop_outliers, geometric_median, measure
from saetools.activations.live import LiveSource, live_sources
from saetools.errors import DataError


def test_constants_follow_their_definition():
    x = torch.randn(5000, 6, generator=torch.Generator().manual_seed(0)).exp() * 3 + 5
    record = measure(x)
    y = record.scale * x.double()
    assert math.isclose(float(y.square().sum(1).mean()), 6, rel_tol=1e-12)
    assert math.isclose(record.total_variance, float((y - y.mean(0)).square().sum(1).mean()), rel_tol=1e-9)
    assert math.isclose(record.median_norm, float(torch.quantile(x.double().norm(dim=1), 0.5)), rel_tol=1e-9)
    assert record.n_rows == 5000
    assert record.b_dec_start == pytest.approx((record.scale * geometric_median(x)).tolist(), rel=1e-9)


def test_geometric_median_has_a_zero_gradient_and_resists_outliers():
    x = torch.randn(2000, 4, generator=torch.Generator().manual_seed(1))
    median = geometric_median(x)
    away = x.double() - median
    assert float((away / away.norm(dim=1, keepdim=True)).sum(0).norm()) < 1e-3
    x[:100] += 1e6
    assert float((geometric_median(x) - median).norm()) < 0.2
    assert float(x.double().mean(0).norm()) > 1e4


def test_geometric_median_of_a_triangle_and_of_coinciding_rows():
    corners = torch.tensor([[math.cos(a), math.sin(a)] for a in (0.3, 0.3 + 2 * math.pi / 3, 0.3 + 4 * math.pi / 3)])
    assert float(geometric_median(corners).norm()) < 1e-6
    rows = torch.tensor([[1.0, 2.0]] * 9 + [[5.0, 5.0]])
    assert torch.allclose(geometric_median(rows), torch.tensor([1.0, 2.0]).double(), atol=1e-4)


def test_uses_the_first_rows_only_and_all_of_a_short_source(make_list_source):
    many, few = make_list_source([10, 10, 10]), make_list_source([10, 5])
    assert calibrate(many, 15) == calibrate(few, 1000)
    assert calibrate(few, 1000).n_rows == 15
    assert many.closed == 1


def test_zero_rows_and_equal_rows_are_refused(make_list_source):
    with pytest.raises(DataError, match="no rows"):
        calibrate(make_list_source([]), 10)
    with pytest.raises(DataError, match="are equal"):
        measure(torch.ones(5, 3))
    with pytest.raises(DataError, match="are equal"):
        measure(torch.zeros(5, 3))


def test_where_most_rows_are_zero_the_others_are_no_outliers():
    x = torch.randn(100, 3, generator=torch.Generator().manual_seed(0))
    norms = x.norm(dim=1)
    x = x.where((torch.arange(100) % 5 == 0)[:, None], 0)
    record = measure(x, drops_outliers=True)
    assert record == measure(x) and record.n_rows == 100
    assert record.median_norm == pytest.approx(float(np.median(norms[::5].numpy())), rel=1e-6)
    assert len(drop_outliers(ActivationBatch(x, torch.arange(200).view(100, 2)), record)) == 100


def test_several_points_are_calibrated_by_one_pass(host, make_plan):
    sources = live_sources(host, make_plan(), ["embed", "mixed"], "float32")
    together = calibrate_all(list(sources.values()), 60)
    passes = sources["embed"].host_pass.n_passes
    alone = [calibrate(LiveSource(host, make_plan(), point, "float32"), 60) for point in ("embed", "mixed")]
    assert together == alone
    assert passes <= 4  # 60 rows are less than four windows batches of 4 x 11


def test_outliers_are_above_ten_medians():
    record = measure(torch.randn(100, 3, generator=torch.Generator().manual_seed(0)))
    record = record.model_copy(update={"median_norm": 2.0})
    norms = torch.tensor([0.0, 10.0, 10.01, 50.0]) * record.median_norm
    x = torch.tensor([1.0, 0.0, 0.0]) * norms[:, None]
    kept = drop_outliers(ActivationBatch(x, torch.arange(8).view(4, 2)), record)
    assert kept.where_N2.tolist() == [[0, 1], [2, 3]]
