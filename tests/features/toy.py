"""A toy corpus, plan, source and host with a few dozen windows, small enough for brute force."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from saetools.activations.base import ActivationBatch
from saetools.dictionaries.code import SparseCode
from saetools.records import PointSpec
from saetools.text.base import TokenBatch

WORDS = ["the ", "def", " é", "\n", "    ", "<b>", "x", "=", "1", "日本", "_name", '"']
D_MODEL = 8


class ToyPlan:
    """Windows of T columns: BOS, tokens of a document of its own, then padding in some windows.

    The last of a batch has the tokens of the first.
    """

    def __init__(self, n_batches: int = 5, host_batch: int = 4, width: int = 20, seed: int = 0) -> None:
        self.host_batch, self.width = host_batch, width
        random = np.random.default_rng(seed)
        self.made = [self._batch(number, random) for number in range(n_batches)]

    def _batch(self, number: int, random: np.random.Generator) -> TokenBatch:
        shape = (self.host_batch, self.width)
        ids, keep = np.zeros(shape, np.int64), np.zeros(shape, bool)
        position = np.full(shape, -1, np.int64)
        document = number * self.host_batch + np.arange(self.host_batch)
        for row in range(self.host_batch):
            n_tokens = int(random.integers(3, self.width))
            ids[row, 1 : 1 + n_tokens] = random.integers(1, len(WORDS), n_tokens)
            keep[row, 1 : 1 + n_tokens] = True
            position[row, 1 : 1 + n_tokens] = np.arange(n_tokens)
        for of_windows in (ids, keep, position):
            of_windows[-1] = of_windows[0]
        return TokenBatch(number, ids, keep, document, position)

    def batches(self, start: int = 0) -> Iterator[TokenBatch]:
        yield from self.made[start:]


class ToySource:
    """Random rows for the plan's kept tokens, longer in the second of equal windows; a few are left out as outliers."""

    def __init__(self, plan: ToyPlan, seed: int = 0, drop: float = 0.05) -> None:
        random = np.random.default_rng(seed)
        self.rows = [self._rows(tokens, random, drop) for tokens in plan.made]

    def _rows(self, tokens: TokenBatch, random: np.random.Generator, drop: float) -> ActivationBatch:
        window, column = np.nonzero(tokens.keep_BT)
        kept = random.random(len(window)) >= drop
        window, column = window[kept], column[kept]
        where = np.stack([tokens.document_B[window], tokens.position_BT[window, column]], axis=1)
        x_BTD = random.normal(size=(*tokens.ids_BT.shape, D_MODEL))
        x_BTD[-1] = 1.25 * x_BTD[0]
        x_ND = torch.from_numpy(x_BTD[window, column]).float()
        return ActivationBatch(x_ND, torch.from_numpy(where))

    def batches(self, start: int = 0) -> Iterator[tuple[int, ActivationBatch]]:
        yield from enumerate(self.rows[start:], start)

    def document_id(self, number: int) -> str:
        return f"doc{number}.py"

    def fingerprint(self) -> str:
        return "toy"


@dataclass(frozen=True)
class _Config:
    n_features: int


class SignedDictionary:
    """code = the k entries of greatest magnitude of W x, signed: what any dictionary offers to the collector."""

    kind = "signed"

    def __init__(self, n_features: int = 12, k: int = 3, seed: int = 0, n_dead: int = 1) -> None:
        self.config, self.k = _Config(n_features), k
        self.W_FD = torch.randn(n_features, D_MODEL, generator=torch.Generator().manual_seed(seed))
        self.W_FD[n_features - n_dead :] *= 1e-6
        self.device = torch.device("cpu")

    def encode(self, x_ND: Tensor, fields: object = None) -> SparseCode:
        pre_NF = (x_ND @ self.W_FD.T).mul(8).round().div(8)  # on a grid, so that ties are common
        index_NK = pre_NF.abs().topk(self.k, dim=1).indices
        return SparseCode(pre_NF.gather(1, index_NK), index_NK.int(), self.config.n_features)

    def directions(self) -> Tensor:
        return self.W_FD

    def encoder_directions(self) -> Tensor | None:
        return self.W_FD.flip(0)


class ToyHost:
    """Token texts and an unembedding."""

    def __init__(self, with_norm: bool = True) -> None:
        generator = torch.Generator().manual_seed(9)
        self.W_U_VD = torch.randn(len(WORDS), D_MODEL, generator=generator)
        self.norm_D = torch.rand(D_MODEL, generator=generator) + 0.5 if with_norm else None

    def in_stream(self, point: str) -> bool:
        return True

    def unembedding(self) -> tuple[Tensor, Tensor | None]:
        return self.W_U_VD, self.norm_D

    def token_texts(self, ids: Sequence[int]) -> list[str]:
        return [WORDS[token] for token in ids]


SPEC = PointSpec(host="toy", point="blocks.0.hook_out", d_model=D_MODEL)
