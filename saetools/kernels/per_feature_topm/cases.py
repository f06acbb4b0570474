"""Inputs on which every implementation of `per_feature_topm` is judged: by the tests, and by the benchmark's gate."""

import torch

from saetools.kernels.backend import Impl
from saetools.kernels.global_topk.cases import assert_same, cases
from saetools.kernels.per_feature_topm import per_feature_topm
from saetools.kernels.workspace import Workspace


def verify(impl: Impl) -> None:
    """AssertionError at the first case where `impl` does not equal the plain reference bit for bit."""
    for case in cases():
        N, F = len(case.x_ND), len(case.W_FD)
        mixed = torch.arange(F).remainder(min(N, 6) + 1)
        for name, budget_F in (("none", mixed * 0), ("mixed", mixed), ("all", torch.full((F,), N))):
            results = [
                per_feature_topm(
                    *(case.x_ND, case.W_FD, case.b_F, budget_F),
                    score=case.score,
                    impl=which,
                    workspace=Workspace(poison=True),
                )
                for which in (impl, "reference")
            ]
            assert_same(f"{case.name}, {impl}, budget {name}", *results)
