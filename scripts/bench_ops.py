"""Benchmarks of single operations, of matching pursuit and of the loader, for `bench.py`."""

import argparse
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from bench_measure import Setting, Timing, interleaved
from bench_turns import in_turn
from torch.nn.functional import embedding_bag, normalize

from saetools.activations.base import ActivationBatch
from saetools.activations.shuffle import ShuffledRows
from saetools.kernels import auxk as auxk_op
from saetools.kernels.auxk import cases as auxk_cases
from saetools.kernels.backward_adam import Batch, Rule, Weights, backward_adam
from saetools.kernels.backward_adam import cases as backward_adam_cases
from saetools.kernels.decode import cases as decode_cases
from saetools.kernels.decode import decode
from saetools.kernels.decode_loss import cases as decode_loss_cases
from saetools.kernels.decode_loss import decode_loss
from saetools.kernels.encode_topk import cases as encode_topk_cases
from saetools.kernels.encode_topk import encode_topk
from saetools.kernels.encode_topk.cpu import select
from saetools.kernels.global_topk import cases as global_topk_cases
from saetools.kernels.global_topk import global_topk
from saetools.kernels.matching_pursuit import Gram, matching_pursuit
from saetools.kernels.matching_pursuit import cases as pursuit_cases
from saetools.kernels.omp import cases as omp_cases
from saetools.kernels.omp import omp
from saetools.kernels.per_feature_topm import cases as per_feature_cases
from saetools.kernels.per_feature_topm import per_feature_topm
from saetools.kernels.sparse import Sparse
from saetools.kernels.swap_rows import cases as swap_rows_cases
from saetools.kernels.workspace import Workspace

Variants = dict[str, Callable[[int], Any]]


def lying_apart(n: int, n_features: int) -> torch.Tensor:
    """n features that lie apart, as dead ones do: rows side by side would be read faster."""
    return torch.linspace(0, n_features - 1, n, dtype=torch.float64).long()


def run_ops(a: argparse.Namespace, setting: Setting) -> list[Timing]:
    """Each operation beside what plain torch offers for it. Times of selection include the matmul that feeds it."""
    g = torch.Generator().manual_seed(0)
    x = torch.randn(a.batch, a.d, generator=g)
    W = torch.randn(a.features, a.d, generator=g) / a.d**0.5
    b, b_dec, pre = torch.zeros(a.features), torch.zeros(a.d), torch.empty(a.batch, a.features)
    W_dec, n_kept, budget = normalize(W, dim=1), a.k * a.batch, torch.full((a.features,), a.k * a.batch // a.features)
    values, indices = encode_topk(x, W, b, a.k)
    code, workspace = Sparse.fixed(values, indices), Workspace()
    _, threshold = global_topk(x, W, b, n_kept)
    _, pull, dots = decode_loss(x, code, W_dec, b_dec)
    weights = [W, W_dec, b, b_dec]
    four = [Weights(*(f(t) for t in weights)) for f in (torch.clone, torch.zeros_like, torch.zeros_like)]
    batch = Batch(x, code, pull, dots, 2 / a.batch)
    dead, low, scores = lying_apart(a.features // 10, a.features), W.bfloat16(), x @ W.T
    groups: dict[str, Variants] = {
        "encode": {
            "gemm": lambda n: torch.mm(x, W.T, out=pre),
            "gemm + torch.topk": lambda n: torch.topk(torch.mm(x, W.T, out=pre), a.k, sorted=False),
            "encode_topk fp32": lambda n: encode_topk(x, W, b, a.k, workspace=workspace),
            "encode_topk bf16-screen": lambda n: encode_topk(
                x, W, b, a.k, precision="bf16-screen", workspace=workspace
            ),
            "gemm bf16": lambda n: torch.mm(x.bfloat16(), low.T),
        },
        "selection alone": {
            "torch.topk": lambda n: torch.topk(scores, a.k, sorted=False),
            "select": lambda n: select(scores, a.k),
        },
        "global": {
            "gemm + flat torch.topk": lambda n: torch.topk(torch.mm(x, W.T, out=pre).flatten(), n_kept, sorted=False),
            "global_topk warm": lambda n: global_topk(x, W, b, n_kept, guess=threshold * 0.9, workspace=workspace),
            "global_topk cold": lambda n: global_topk(x, W, b, n_kept, workspace=workspace),
        },
        "per feature": {
            "gemm + torch.topk(dim=0)": lambda n: torch.topk(torch.mm(x, W.T, out=pre), int(budget[0]), dim=0),
            "per_feature_topm": lambda n: per_feature_topm(x, W, b, budget, workspace=workspace),
        },
        "decode": {
            "dense product": lambda n: torch.zeros(a.batch, a.features).scatter_(1, indices.long(), values) @ W_dec,
            "embedding_bag": lambda n: embedding_bag(indices, W_dec, per_sample_weights=values, mode="sum"),
            "decode": lambda n: decode(values, indices, W_dec),
            "decode_loss": lambda n: decode_loss(x, code, W_dec, b_dec, workspace=workspace),
        },
        "back": {
            "backward_adam": lambda n: backward_adam(*four, batch, Rule(1e-4, n), workspace=workspace),
            "backward_adam stock torch": lambda n: backward_adam(*four, batch, Rule(1e-4, n), impl="torch"),
            "auxk, 10 % dead": lambda n: auxk_op.auxk(x, x, W, b, W_dec, dead, a.d // 2, 1 / 32, workspace=workspace),
        },
    }
    groups |= crossover(a, W_dec)
    config = {name: getattr(a, name) for name in ("d", "features", "k", "batch")}
    results = []
    for op, variants in groups.items():
        times = interleaved({"gemm": groups["encode"]["gemm"], **variants}, a.repeats, a.clock)
        gemm = times["gemm"]
        alone = {name: ms for name, ms in times.items() if name != "gemm" or op == "encode"}
        for name, ms in alone.items():
            selects = op in ("encode", "global", "per feature")
            without = {"ms_less_gemm": round(min(ms) - min(gemm), 2)} if selects else {}
            results.append(Timing(op, name, config, ms, gemm, a.batch, without))
    return results


def crossover(a: argparse.Namespace, W_dec: torch.Tensor) -> dict[str, Variants]:
    """Decoding 256 rows of many kept features by gathers and by a dense product: what `DENSE_BELOW` is read from."""
    found: dict[str, Variants] = {}
    for share in (4, 6, 8):
        n_kept = a.features // share
        indices = torch.rand(256, a.features).argsort(1)[:, :n_kept].int()
        code = torch.rand(256, n_kept), indices, W_dec
        found[f"decode, F / K = {share}"] = {
            "gather": lambda n, code=code: decode(*code, impl="numba"),
            "dense product": lambda n, code=code: decode(*code, impl="reference"),
        }
    return found


def pursuit(a: argparse.Namespace) -> Callable[[int], Any]:
    """Encoding by matching pursuit as in training, where the Gram matrix is that of atoms just updated."""
    x, W, workspace = torch.randn(a.batch, a.d), normalize(torch.randn(a.features, a.d), dim=1), Workspace()
    return torch.no_grad()(lambda n: matching_pursuit(x, W, a.k, gram="auto", workspace=workspace))


def run_mp(a: argparse.Namespace, setting: Setting) -> list[Timing]:
    """Matching pursuit of k steps: encoding, and encoding with the way back of 256 rows; with --peers in turn."""
    x = torch.randn(a.batch, a.d)
    W = normalize(torch.randn(a.features, a.d), dim=1)
    gram, workspace, out = Gram(W), Workspace(), torch.empty(a.batch, a.features)
    some = x[:256]

    def train(impl: str, gram: Any) -> None:
        atoms = W.clone().requires_grad_()
        residual = matching_pursuit(some, atoms, a.k, gram=gram, impl=impl, workspace=workspace)[2]
        residual.square().sum().backward()

    encode: Variants = {
        "gemm": lambda n: torch.mm(x, W.T, out=out),
        "plain torch": lambda n: matching_pursuit(x, W, a.k, gram=None, impl="reference"),
        "Gram built each time": lambda n: matching_pursuit(x, W, a.k, gram="auto", workspace=workspace),
        "Gram kept": lambda n: matching_pursuit(x, W, a.k, gram=gram, workspace=workspace),
        "recomputed": lambda n: matching_pursuit(x, W, a.k, gram=None, workspace=workspace),
        "OMP, Gram kept": lambda n: omp(x, W, a.k, gram=gram, workspace=workspace),
    }
    steps: Variants = {
        "gemm": lambda n: torch.mm(some, W.T, out=out[: len(some)]),
        "plain torch": lambda n: train("reference", None),
        "auto": lambda n: train("auto", "auto"),
        "recomputed": lambda n: train("auto", None),
    }
    config = {name: getattr(a, name) for name in ("d", "features", "k")}
    results = []
    for op, variants, n_rows in (("mp encode", encode, a.batch), ("mp step", steps, len(some))):
        with torch.set_grad_enabled(op == "mp step"):
            times = interleaved(variants, max(3, a.repeats // 5), a.clock, warmup=1)
        results += [
            Timing(op, name, config | {"batch": n_rows}, ms, times["gemm"], n_rows) for name, ms in times.items()
        ]
    if a.peers:
        results += in_turn(a, setting, "mp-encode", a.batch) + in_turn(a, setting, "mp-step", len(some))
    return results


class MemoryRows:
    """An endless source that gives one block of rows again and again: what is left is the shuffle's own time."""

    def __init__(self, d: int) -> None:
        where = torch.stack([torch.zeros(4096, dtype=torch.int64), torch.arange(4096)], 1)
        self.block = ActivationBatch(torch.randn(4096, d).bfloat16(), where)

    def batches(self, start: int = 0) -> Any:
        number = start
        while True:
            yield number, self.block
            number += 1


def run_loader(a: argparse.Namespace, setting: Setting) -> list[Timing]:
    """Mixing rows in the shuffle ring (D = 768, bf16), beside a whole permutation of a buffer."""
    d, ring_rows, n_blocks = 768, 1 << 18, 16
    ring = ShuffledRows(MemoryRows(d), ring_rows, seed=0)  # type: ignore[arg-type]
    ring.next_block()
    buffer = torch.randn(ring_rows, d).bfloat16()
    rng = np.random.default_rng(0)

    def permute(number: int) -> None:
        index = torch.from_numpy(rng.permutation(ring_rows)[: n_blocks * 1024])
        buffer[index].clone()

    def mix(number: int) -> None:
        for _ in range(n_blocks):
            ring.next_block()

    times = interleaved({"shuffle ring": mix, "gather from a permutation": permute}, a.repeats, a.clock)
    config = {"d": d, "dtype": "bfloat16", "ring_rows": ring_rows}
    return [Timing("loader", name, config, ms, [], n_blocks * 1024) for name, ms in times.items()]


def gate_ops() -> None:
    """AssertionError where an operation is wrong, alone or as a part of a step."""
    for module in (
        *(encode_topk_cases, global_topk_cases, per_feature_cases, decode_cases),
        *(decode_loss_cases, backward_adam_cases, auxk_cases),
    ):
        module.verify("auto")
        module.verify("torch")  # beside which they are timed
    encode_topk_cases.verify("auto", "bf16-screen")
    global_topk_cases.verify("auto", "bf16-screen")
    decode_cases.verify("numba")


def gate_loader() -> None:
    """AssertionError where rows are exchanged wrongly."""
    swap_rows_cases.verify("auto")


def gate_mp() -> None:
    """AssertionError where a pursuit is wrong."""
    for with_gram in (False, True):
        pursuit_cases.verify("auto", with_gram)
        omp_cases.verify("auto", with_gram)


RUN = {"ops": run_ops, "mp": run_mp, "loader": run_loader}
GATES = {"ops": gate_ops, "mp": gate_mp, "loader": gate_loader}
