"""A small deterministic host under the real packing of random documents."""

from typing import Any

import pytest
import torch

from saetools import rng
from saetools.activations.base import ActivationBatch
from saetools.errors import PointError
from saetools.records import Calibration, PointSpec
from saetools.text.base import Document, ListedCorpus, Split
from saetools.text.packing import TokenPlan

VOCABULARY, D_MODEL, WINDOWS, CONTEXT = 50, 8, 4, 12


class FakeHost:
    """Two points: an embedding, and a causal mixture of it whose bits depend on the whole batch's shape."""

    name, prepend_bos, device = "fake", True, "cpu"
    tokenize: Any

    def __init__(self) -> None:
        generator = torch.Generator().manual_seed(0)
        self.tokenize = FakeTokenize()
        self.embedding = torch.randn(VOCABULARY, D_MODEL, generator=generator)
        self.mix = torch.randn(D_MODEL, D_MODEL, generator=generator)
        self.poison: dict[tuple[str, int], float] = {}  # (point, token id) -> value put into its row

    def canonical(self, point):
        if point not in ("embed", "mixed"):
            raise PointError(f"no point {point}")
        return point

    def spec(self, point, context_tokens=None):
        return PointSpec(
            host=self.name, revision="r0", point=point, d_model=D_MODEL, prepend_bos=True, context_tokens=context_tokens
        )

    def activations(self, ids_BT, points):
        x = self.embedding[ids_BT]
        x = x * torch.where(ids_BT == VOCABULARY - 1, 100.0, 1.0)[..., None]  # one token is an outlier
        y = torch.tanh(x.cumsum(1)) @ self.mix
        made = {"embed": x, "mixed": y}
        for (point, token), value in self.poison.items():
            made[point] = torch.where((ids_BT == token)[..., None], value, made[point])
        return {point: made[point] for point in points}

    def activations_and_gradients(self, ids_BT, points, keep_BT):
        """The loss of a target is a square of what stands before it, and the targets with keep count."""
        with torch.enable_grad():
            x = self.activations(ids_BT, ["embed"])["embed"].requires_grad_()
            made = {"embed": x, "mixed": torch.tanh(x.cumsum(1)) @ self.mix}
            losses_BT = made["mixed"][:, :-1].sum(-1).square() * keep_BT[:, 1:]
            gradients = torch.autograd.grad(losses_BT.sum(), [made[point] for point in points])
        return {point: (made[point].detach(), g) for point, g in zip(points, gradients, strict=True)}


class FakeCorpus(ListedCorpus):
    """Documents of random token numbers; each split makes 26 windows, so 6 full batches and one half full.

    In every fourth document the first token is the outlier.
    """

    description = "random numbers"

    def __init__(self, salt: int = 0, with_outliers: bool = True) -> None:
        self.salt, self.with_outliers = salt, with_outliers

    def document_ids(self, split: Split) -> list[str]:
        return [f"{split}/doc{i}" for i in range(13)]

    def document(self, document_id: str) -> Document:
        number = int(document_id.split("doc")[1])
        generator = rng.generator(self.salt, document_id)
        length = [3, 11, 12, 22, 30, 5, 25, 33, 2, 11, 40, 9, 31][number]  # 1 1 2 2 3 1 3 3 1 1 4 1 3 windows
        tokens = generator.integers(2, VOCABULARY - 1, length).tolist()
        if self.with_outliers and number % 4 == 0:
            tokens[0] = VOCABULARY - 1
        return Document(document_id, " ".join(map(str, tokens)))

    def fingerprint(self) -> str:
        return f"fake corpus {self.salt} {self.with_outliers}"


class FakeTokenize:
    bos_id, pad_id = 1, 0

    def encode(self, texts: list[str]) -> list[list[int]]:
        return [[int(word) for word in text.split()] for text in texts]

    def fingerprint(self) -> str:
        return "fake tokenizer"


def make_token_plan(
    split: Split = "train", seed: int = 0, with_outliers: bool = True, salt: int = 0, host_batch: int = WINDOWS
) -> TokenPlan:
    corpus = FakeCorpus(salt, with_outliers)
    return TokenPlan(corpus, FakeTokenize(), split, CONTEXT, host_batch, seed, prepend_bos=True)


class ListSource:
    """A finite RowSource of given batches."""

    drops_outliers = False
    spec = PointSpec(host="rows", point="rows", d_model=1)
    calibration = Calibration(scale=1.0, total_variance=1.0, median_norm=1.0, b_dec_start=(0.0,), n_rows=1)

    def __init__(self, sizes, d_model=1, fields=False, dtype=torch.float32):
        self.all, self.closed = [], 0
        first = 0
        for size in sizes:
            rows = torch.arange(first, first + size)
            x = rows[:, None].repeat(1, d_model).to(dtype)
            where = torch.stack([rows // 7, rows], dim=1)
            self.all.append(ActivationBatch(x, where, {"grad": -x} if fields else {}))
            first += size

    @property
    def n_batches(self):
        return len(self.all)

    def batches(self, start=0):
        try:
            for number in range(start, len(self.all)):
                yield number, self.all[number]
        finally:
            self.closed += 1

    def document_id(self, number):
        return str(number)

    def fingerprint(self):
        return f"list-{[len(b) for b in self.all]}"


def same_rows(a: ActivationBatch, b: ActivationBatch) -> bool:
    """Equal in every bit and every column."""
    left, right = a.tensors(), b.tensors()
    return left.keys() == right.keys() and all(
        left[n].dtype == right[n].dtype
        and left[n].shape == right[n].shape
        and left[n].contiguous().view(torch.uint8).equal(right[n].contiguous().view(torch.uint8))
        for n in left
    )


@pytest.fixture
def host():
    return FakeHost()


@pytest.fixture
def make_plan():
    return make_token_plan


@pytest.fixture
def make_list_source():
    return ListSource


@pytest.fixture
def same():
    return same_rows
