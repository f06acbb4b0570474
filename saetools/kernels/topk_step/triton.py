"""The TopK step on the GPU, without a synchronisation: every launch has a fixed shape, every decision is made there.

`DeviceStep` owns the buffers. `launch` does the step for the batch that was loaded; `capture` records it as a CUDA
graph that `replay` runs again. Statistics are written to a ring of two readings of `n_ahead` batches: `mark` has those
that were launched so far copied to the host beside whatever is launched next, and `read` waits for a mark's, or for
all. A batch whose record is `flagged` changed nothing and is to be done again by `launch` under `exactly()`. A flag
stays until then: after a flagged batch all are flagged, so that doing them again in turn gives what doing them one by
one would have given.

Selection over the batch (`choice.py`) differs in its slots alone, which have their rows beside them. In bf16 it chooses
by the rounded pre-activations too, and these are the code: the smallest value kept, from which a dictionary learns its
threshold, is then right to 2^-9 of itself.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from saetools.kernels.auxk import TRITON_CAPACITY
from saetools.kernels.auxk.triton import DeviceAuxK
from saetools.kernels.backward_adam.control import Control
from saetools.kernels.backward_adam.problem import Rule, Weights
from saetools.kernels.backward_adam.tiles import Tile
from saetools.kernels.backward_adam.triton import Backward, Problem
from saetools.kernels.branch import Branch, shared_stream
from saetools.kernels.by_feature.triton import Sorted, sort_slots
from saetools.kernels.decode.triton import gather_dot
from saetools.kernels.decode_loss.dense import DENSE_UP_TO, dense_decode_loss_into
from saetools.kernels.decode_loss.triton import decode_loss_into, n_blocks
from saetools.kernels.encode_topk.triton import encode_into
from saetools.kernels.topk_step import StepRecord, StepSettings
from saetools.kernels.topk_step.choice import BatchChoice
from saetools.kernels.topk_step.step_kernels import _centre, _record
from saetools.kernels.triton_parts import next_power
from saetools.kernels.workspace import Workspace

N_STATS = 9
"""Numbers of a record."""


@dataclass(frozen=True)
class Mark:
    """What will be known of the batches up to one, without waiting for those after it."""

    n_launched: int
    ring: Tensor  # on the host, once `copied`
    since_F: Tensor  # counters after that batch
    copied: torch.cuda.Event | None  # None: at once


class DeviceStep:
    """The step over fixed weights, moments and counters, which it updates in place.

    first and second: Adam's moments, of the matrices in float32 or (rounded stochastically) bf16. since_F: int64 tokens
    since each feature fired. n_steps: updates applied before.
    """

    def __init__(
        self,
        weights: Weights,
        first: Weights,
        second: Weights,
        since_F: Tensor,
        settings: StepSettings,
        n_rows: int,
        n_steps: int = 0,
        row_dtype: torch.dtype | None = None,
        tiles: tuple[Tile, Tile] | None = None,
    ) -> None:
        self.weights, self.settings, self.n_rows = weights, settings, n_rows
        (F, D), device = weights.W_enc_FD.shape, weights.W_enc_FD.device
        self.F, self.D, self.device, self.since_F = F, D, device, since_F
        low = settings.compute == "bf16"
        self.dtype = torch.bfloat16 if low else torch.float32
        s, k = settings, settings.k

        def empty(*shape: int, dtype: torch.dtype = self.dtype) -> Tensor:
            return torch.empty(shape, dtype=dtype, device=device)

        self.low = (weights.W_enc_FD.bfloat16(), weights.W_dec_FD.bfloat16()) if low else None
        self.dense = low and DENSE_UP_TO * k >= F  # whether to decode by a dense product
        self.x_ND = empty(n_rows, D, dtype=row_dtype or self.dtype)
        self.centred_ND, self.pull_NGD = empty(n_rows, D), empty(n_rows, 1, D)
        self.values_M = empty(n_rows * k, dtype=torch.float32)
        self.indices_M, self.keys_M = (empty(n_rows * k, dtype=torch.int32) for _ in range(2))
        self.choice = None
        if s.selection == "global":
            self.choice = BatchChoice.make(n_rows, F, k, self.dtype.itemsize, s.chunk_bytes, device)
        self.rows: Tensor | int = k if self.choice is None else self.choice.rows_M  # of slots
        self.loss_NGB = empty(n_rows, 1, n_blocks(D), dtype=torch.float32)
        self.ones = torch.ones(1, dtype=torch.float32, device=device)
        self.sum, self.aux_loss = (torch.zeros((), dtype=torch.float32, device=device) for _ in range(2))
        self.ring = torch.zeros(2 * s.n_ahead, N_STATS, dtype=torch.float32, device=device)
        self.side = torch.cuda.Stream(device) if device.type == "cuda" else None
        self.branch = Branch(device)
        self.workspace = Workspace()
        self.rule = Rule(0.0, n_steps, s.clip_norm, s.betas, s.eps)
        self.control = Control.make(self.rule, device, s.n_ahead)
        self.scale = 1 / (n_rows * s.variance)
        with_aux = s.aux_weight > 0 and s.capacity > 0
        self.auxk = self._auxk(s.capacity) if with_aux else None
        self.dots_M = empty(n_rows * k, dtype=torch.float32)
        problem = Problem(
            *(weights, first, second, self.centred_ND, self.pull_NGD),
            *(self.values_M, self.dots_M, empty(n_rows, dtype=torch.float32), self.loss_NGB),
            *(k if self.choice is None else 0, 2 * self.scale),
            rows_M=None if self.choice is None else self.choice.rows_M,
            low=self.low,
            extra=None if self.auxk is None else self.auxk.extra,
            since_F=since_F,
            dead_after=s.dead_after,
            workspace=self.workspace,
        )
        self.backward = Backward(problem, self.control, self.rule, tiles)
        self.graph: torch.cuda.CUDAGraph | None = None
        self.n_read = self.n_launched = 0
        self._flag_dead()

    @property
    def capacity(self) -> int:
        """How many dead features AuxK helps at once."""
        return 0 if self.auxk is None else self.auxk.capacity

    def _auxk(self, capacity: int) -> DeviceAuxK:
        s = self.settings
        sizes = self.n_rows, self.F, self.D, capacity, s.aux_k, s.aux_weight
        return DeviceAuxK(*sizes, self.dtype, self.device, encoded=s.selection == "per_row")

    @property
    def _flags(self) -> bool:
        """Whether more dead features than there is room for flag a batch: where more room could be had."""
        return self.settings.aux_weight > 0 and self.capacity < min(self.F, TRITON_CAPACITY)

    def _flag_dead(self) -> None:
        """The first batch's flag: later ones are set by the batch before."""
        n_dead = (self.since_F >= self.settings.dead_after).sum()
        self.control.flag.copy_(n_dead > (self.capacity if self._flags else self.F))

    @property
    def _matrices(self) -> tuple[Tensor, Tensor]:
        """Rows of the encoder and atoms as they are multiplied and gathered."""
        return self.low or (self.weights.W_enc_FD, self.weights.W_dec_FD)

    def set_rates(self, rates: Sequence[float]) -> None:
        """Learning rates of the next batches, at most n_ahead of them; not waiting, as setting an element would."""
        for ahead, lr in enumerate(rates):
            place = (self.n_launched + ahead) % self.settings.n_ahead
            self.control.lr[place : place + 1].fill_(lr)

    def load(self, x_ND: Tensor) -> None:
        """Take over the rows of the next batch; not waiting."""
        if x_ND.shape != self.x_ND.shape:
            raise ValueError(f"the batch is {tuple(x_ND.shape)}; this step was made for {tuple(self.x_ND.shape)}")
        self.x_ND.copy_(x_ND, non_blocking=True)

    def encode(self, found: Callable[[], object] = lambda: None) -> None:
        """Values, indices and sort keys of the batch; `found` waits for AuxK's list."""
        w, s, N, a = self.weights, self.settings, self.n_rows, self.auxk
        _centre[(N,)](
            self.x_ND, w.b_dec_D, self.centred_ND, self.backward.p.x_norm_N, self.D, BLOCK=next_power(self.D),
            num_warps=max(1, min(8, next_power(self.D) // 256)),
        )  # fmt: skip
        product = self.centred_ND, self._matrices[0], w.b_enc_F
        slots = self.values_M, self.indices_M, self.keys_M
        if self.choice is not None:
            self.choice.run(*product, slots, self.workspace, s.chunk_bytes, self.control.flag)
        else:
            out = slots[0].view(N, s.k), slots[1].view(N, s.k), slots[2].view(N, s.k)

            def taken(part: slice, pre_CF: Tensor, biased: bool) -> None:
                found()
                a.take(part, pre_CF, w.b_enc_F, biased)  # type: ignore[union-attr]

            seen = taken if a is not None and a.takes else None
            encode_into(*product, s.k, out, self.workspace, route=s.route, chunk_bytes=s.chunk_bytes, seen=seen)
        if s.exact_values:
            x_ND = self.x_ND.float() - w.b_dec_D
            again_M = gather_dot(self.indices_M, self.rows, x_ND, w.W_enc_FD, w.b_enc_F, self.values_M)
            self.values_M.copy_(torch.where(self.values_M != 0, again_M.relu(), 0))
            if self.choice is not None:
                self.choice.label(*slots, self.F)
            else:
                self.keys_M.copy_(torch.where(self.values_M > 0, self.indices_M, self.F))

    def residuals(self) -> None:
        """Residuals and their squares, in parts."""
        b_dec_D, dec = self.weights.b_dec_D, self._matrices[1]
        values, indices, offsets_N1 = self.values_M, self.indices_M, None
        if self.choice is None:
            values, indices = values.view(self.n_rows, -1), indices.view(self.n_rows, -1)
        else:
            offsets_N1 = self.choice.offsets_N1
        code, out = (values, indices, offsets_N1), (self.pull_NGD, self.loss_NGB)
        if self.dense:
            chunk_bytes = self.settings.chunk_bytes
            dense_decode_loss_into(self.x_ND, *code, dec, b_dec_D, out, self.workspace, chunk_bytes)
        else:
            decode_loss_into(self.x_ND, *code, dec, b_dec_D, None, self.ones, out)

    def dots(self) -> None:
        """<residual, atom> of every slot."""
        dec = self._matrices[1]
        gather_dot(self.indices_M, self.rows, self.pull_NGD, dec, used_M=self.values_M, out=self.dots_M)

    def find_dead(self) -> None:
        """AuxK's list of dead features and their rows; nothing of the batch."""
        enc, dec = self._matrices
        if self.auxk is not None:
            self.auxk.prepare(enc, self.weights.b_enc_F, dec, self.since_F, self.settings.dead_after)

    def sums(self) -> None:
        """Sums of the residuals: over rows, and of their squares, which is the loss but for AuxK's."""
        self.backward.column_sums()
        torch.sum(self.loss_NGB.view(-1), dim=0, out=self.sum)
        torch.mul(self.sum, self.scale, out=self.control.loss[0])

    def choose_dead(self) -> None:
        """AuxK's code; nothing of the residual."""
        if self.auxk is not None:
            self.auxk.choose(self.centred_ND)

    def help_dead(self) -> None:
        """AuxK's gradients, where it takes part, and its share of the loss."""
        if self.auxk is not None:
            columns = self.backward.columns
            sums = columns, self.sum, self.control, self.aux_loss
            self.auxk.run(self.centred_ND, self.pull_NGD[:, 0], *sums, self.branch)

    def launch(self) -> Sorted:
        """The whole step for the batch that was loaded, launch by launch; its slots by feature."""
        with self.branch.joined_after_errors():
            return self._launch()

    def _launch(self) -> Sorted:
        s, back, start = self.settings, self.backward, self.branch.start
        found = start(self.find_dead)
        self.encode(found)
        chosen = start(self.choose_dead)
        in_order = start(lambda: sort_slots(self.keys_M, self.F, self.workspace))
        self.residuals()
        summed = start(self.sums)
        self.dots()
        for join in (found, chosen, summed):
            join()
        self.help_dead()
        if s.clip == "lagged":
            torch.amax(self.values_M, dim=0, out=self.control.values[Control.LARGEST])
        slots = in_order()
        back.run(slots, lagged=s.clip == "lagged")
        a, c, none = self.auxk, self.choice, self.sum
        P = len(back.dead_parts)
        _record[(1,)](
            self.ring, len(self.ring), self.control.values, self.control.counts, self.sum, self.aux_loss,
            self.control.flag, slots.offsets_F1, back.dead_parts, P, none if a is None else a.n_dead, self.scale,
            self.n_rows, self.F, self.capacity, *((none,) * 3 if c is None else (c.least_N1, c.threshold, c.bound)),
            s.guess, WIDTH=N_STATS, PARTS=next_power(P), AUX=a is not None, HELP=self._flags, CHOICE=c is not None,
            num_warps=16,
        )  # fmt: skip
        self.n_launched += 1
        return slots

    def capture(self) -> None:
        """Record the step as a CUDA graph; the batch that is loaded is not trained on."""
        small = self._small()
        kept = [t.clone() for t in small]
        stream = shared_stream(self.device)
        stream.wait_stream(torch.cuda.current_stream())
        n_launched = self.n_launched
        with torch.cuda.stream(stream):
            self.rehearse()
        torch.cuda.current_stream().wait_stream(stream)
        self.graph = torch.cuda.CUDAGraph()
        own = torch.cuda.stream(torch.cuda.current_stream())  # after a capture that fails its own would be left behind
        mode = "thread_local"  # a host read ahead may allocate
        with own, torch.cuda.graph(self.graph, None, stream, mode):
            self.launch()
        self.n_launched = n_launched
        for tensor, value in zip(small, kept, strict=True):
            tensor.copy_(value)

    def prime(self) -> None:
        """Give a selection over the batch the threshold of the batch that was loaded to begin with; waits."""
        if self.choice is not None:
            with self._choosing_exactly():
                self.encode()
            self.choice.prime(self.settings.guess)

    def rehearse(self) -> None:
        """Compile, choose routes and tiles, fill caches; flagged, so that no weight, moment or counter changes."""
        self.prime()
        for _ in range(2):
            self.control.flag.fill_(1)
            self.backward.choose_tiles(self.launch())

    def _small(self) -> list[Tensor]:
        c = self.control
        return [c.values, c.counts, c.powers, c.flag, self.ring]

    def replay(self) -> None:
        """The recorded step for the batch that was loaded."""
        assert self.graph is not None, "capture first"
        self.graph.replay()
        self.n_launched += 1

    def mark(self) -> Mark:
        """Have the records of all batches so far copied to the host when they are done; not waiting."""
        since_F = self.since_F.clone()
        if self.side is None:
            return Mark(self.n_launched, self.ring.clone(), since_F, None)
        ring = torch.empty(self.ring.shape, dtype=torch.float32, device="cpu", pin_memory=True)
        self.side.wait_stream(torch.cuda.current_stream(self.device))
        with torch.cuda.stream(self.side):
            ring.copy_(self.ring, non_blocking=True)
            return Mark(self.n_launched, ring, since_F, self.side.record_event())

    def read(self, mark: Mark | None = None) -> list[StepRecord]:
        """Wait, and give the records of the batches since the last reading, up to the mark or all (of the last
        2 n_ahead)."""
        if mark is not None and mark.copied is not None:
            mark.copied.synchronize()
        rows, end = (self.ring, self.n_launched) if mark is None else (mark.ring, mark.n_launched)
        numbers = range(max(self.n_read, end - len(rows)), end)
        lines, self.n_read = rows.tolist(), end
        return [
            StepRecord(r[0], r[1], r[2], int(r[3]), r[4], r[5] != 0, int(r[6]), r[7] != 0, r[8])
            for r in (lines[number % len(lines)] for number in numbers)
        ]

    @contextmanager
    def exactly(self) -> Iterator[None]:
        """Launch by launch with the exact clip, room for every dead feature and every candidate: for a batch that was
        flagged."""
        settings, auxk, problem = self.settings, self.auxk, self.backward.p
        n_dead = int((self.since_F >= settings.dead_after).sum())
        if settings.aux_weight > 0 and n_dead:
            self.auxk = self._auxk(min(n_dead, TRITON_CAPACITY))
        extra = None if self.auxk is None else self.auxk.extra
        self.settings = replace(settings, clip="exact")
        self.backward.p = replace(problem, extra=extra)
        self.control.flag.zero_()
        try:
            with self._choosing_exactly():
                yield
        finally:
            self.settings, self.auxk, self.backward.p = settings, auxk, problem
            self._flag_dead()

    @contextmanager
    def _choosing_exactly(self) -> Iterator[None]:
        """A selection over the batch without a guess, and with all the room it takes: the graph's buffers stay as they
        are."""
        choice, workspace = self.choice, self.workspace
        if choice is not None:
            self.choice, self.workspace = choice.exact(), Workspace()
        try:
            yield
        finally:
            self.choice, self.workspace = choice, workspace
