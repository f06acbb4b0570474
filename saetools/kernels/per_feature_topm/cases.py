"""Inputs on which every implementation of `per_feature_topm` is judged: by the tests, and by the benchmark's gate."""

import torch

from saetools.kernels.backend import Impl
from saetools.kernels.global_topk.cases import assert_same, cases
from saetools.kernels.oracle import on
from saetools.kernels.per_feature_topm import per_feature_topm
from saetools.kernels.workspace import Workspace


def verify(impl: Impl, device: str = "cpu", most: int | None = None) -> None:
    """AssertionError at the first case where `impl` does not equal the plain reference bit for bit."""
    for case in on(device, cases(), most):
        N, F = len(case.x_ND), len(case.W_FD)
        mixed = torch.arange(F).remainder(min(N, 6) + 1)
        threshold_F = torch.arange(F).remainder(9).double() - 2
        for name, budget_F in (("none", mixed * 0), ("mixed", mixed), ("all", torch.full((F,), N))):
            results = [
                per_feature_topm(
                    *(case.x_ND, case.W_FD, case.b_F, budget_F),
                    score=case.score,
                    threshold_F=threshold_F,
                    impl=which,
                    workspace=Workspace(poison=True),
                )
                for which in (impl, "reference")
            ]
            (got, reached), (expected, all_reached) = results
            assert_same(f"{case.name}, {impl}, budget {name}", got, expected)
            assert reached is not None and all_reached is not None
            assert torch.equal(reached, all_reached), f"{case.name}, {impl}: counts differ from plain PyTorch's"
