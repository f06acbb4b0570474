"""A whole TopK training step on the GPU: encode, select, decode, AuxK, the way back and Adam, in one CUDA graph.

`triton.py` holds the step (`DeviceStep`), this file what it is told. The plain counterpart is `training/fused.py`
with `impl="reference"`, and `training/step.PlainStep`; the tests compare fifty steps.
"""

from dataclasses import dataclass
from typing import Literal

from saetools.kernels.backward_adam.problem import BETAS, EPS

Compute = Literal["bf16", "fp32"]
Clip = Literal["exact", "lagged"]


@dataclass(frozen=True)
class StepSettings:
    """What a device step does with each batch; constants of a run.

    selection: "per_row" keeps the k largest pre-activations of each row, "global" the k N largest of the batch.
    compute: "bf16" multiplies and gathers bf16 copies of rows, weights and residuals, with float32 sums, float32
    master weights and float32 update; "fp32" uses the float32 tensors throughout.
    clip: "exact" clips by this step's norm: where a bound of it exceeds clip_norm the gradient is made twice, first for
    its norm; "lagged" clips by the last step's norm.
    capacity: dead features that AuxK helps at once; 0 leaves AuxK out. A batch with more dead features is flagged, but
    where the capacity is the largest that there is: then the longest dead are helped, and the others counted.
    guess: the share of the last batch's threshold that candidates of a selection over the batch must reach, where its
    pre-activations come in several chunks. A batch of which too few do is flagged.
    n_ahead: batches of a reading of statistics and flags, of which there is room for two; learning rates are given for
    as many.
    """

    k: int  # kept per row, on average where the batch shares them
    variance: float  # V, by which the reconstruction loss is divided
    selection: Literal["per_row", "global"] = "per_row"
    clip_norm: float = 1.0
    clip: Clip = "exact"
    compute: Compute = "bf16"
    aux_k: int = 0
    aux_weight: float = 0.0
    dead_after: int = 10_000_000
    capacity: int = 0
    guess: float = 0.95
    n_ahead: int = 16
    betas: tuple[float, float] = BETAS
    eps: float = EPS
    route: Literal["auto", "cublas", "fused"] = "auto"
    exact_values: bool = False  # bf16: compute the values of selected features again from float32 rows and weights
    chunk_bytes: int = 512 << 20  # of pre-activations held at once


@dataclass(frozen=True)
class StepRecord:
    """What the device noted of one batch."""

    reconstruction: float
    auxk: float
    l0: float
    n_dead: int  # after this batch
    norm: float  # of the gradient, before clipping
    applied: bool
    n_not_helped: int  # dead features beyond AuxK's capacity
    flagged: bool  # a capacity or a bound did not hold: the step is to be done again
    least: float  # the smallest positive value kept by a selection over the batch; 0: none


__all__ = ["Clip", "Compute", "StepRecord", "StepSettings"]
