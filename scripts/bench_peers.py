"""Another library's training step or matching pursuit, timed by itself; run by `bench.py --peers`.

Runs under the interpreter of an environment that has the peers (they pin transformer-lens < 4), so it imports nothing
of saetools. Prints one JSON line: milliseconds of each call and of the encode matmul beside it, peak memory, and the
FVU on held-out rows after the steps.
"""

import argparse
import ctypes
import importlib.util
import inspect
import json
import resource
import sys
import time
import types
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch

PEERS = ("sae-lens", "dictionary-learning", "eai-sparsify", "overcomplete", "naive-dense")
PURSUITS = ("sae-lens", "overcomplete")
CLOCKS = {"wall": time.perf_counter, "cpu": time.process_time}
"""cpu: the time that a process of one thread has computed, which other processes on a busy machine change less."""
DATA_SEED = 1_000_000
Step = Callable[[int, torch.Tensor], object]
Recon = Callable[[torch.Tensor], torch.Tensor]


def sae_lens(a: argparse.Namespace) -> tuple[Step, Recon]:
    from sae_lens.saes.topk_sae import TopKTrainingSAE, TopKTrainingSAEConfig

    return _trained_by_sae_lens(a, TopKTrainingSAE(TopKTrainingSAEConfig(d_in=a.d, d_sae=a.features, k=a.k)))


def _trained_by_sae_lens(a: argparse.Namespace, sae: torch.nn.Module) -> tuple[Step, Recon]:
    from sae_lens.config import LoggingConfig, SAETrainerConfig
    from sae_lens.training.sae_trainer import SAETrainer

    settings = {
        "total_training_samples": a.batch * 10**6,
        "train_batch_size_samples": a.batch,
        "device": "cpu",
        "autocast": False,
        "lr": a.lr,
        "lr_end": a.lr,
        "lr_scheduler_name": "constant",
        "lr_warm_up_steps": 0,
        "lr_decay_steps": 0,
        "n_restart_cycles": 1,
        "adam_beta1": 0.9,
        "adam_beta2": 0.999,
        "dead_feature_window": 1000,
        "feature_sampling_window": 2000,
        "logger": LoggingConfig(log_to_wandb=False),
        "n_checkpoints": 0,
        "checkpoint_path": None,
        "save_final_checkpoint": False,
        "n_batches_for_norm_estimate": 1,
    }
    known = inspect.signature(SAETrainerConfig).parameters
    config = SAETrainerConfig(**{name: value for name, value in settings.items() if name in known})
    trainer = SAETrainer(cfg=config, sae=sae, data_provider=iter([]))

    def step(number: int, x: torch.Tensor) -> None:
        trainer.step(x)
        trainer.n_training_steps += 1

    return step, sae


def dictionary_learning(a: argparse.Namespace) -> tuple[Step, Recon]:
    from dictionary_learning.trainers.top_k import TopKTrainer

    trainer = TopKTrainer(
        steps=10**6, activation_dim=a.d, dict_size=a.features, k=a.k, layer=0, lm_name="x", lr=a.lr, warmup_steps=0,
        device="cpu", seed=0,
    )  # fmt: skip
    return trainer.update, trainer.ae


def sparsify(a: argparse.Namespace) -> tuple[Step, Recon]:
    from sparsify.config import SparseCoderConfig
    from sparsify.sparse_coder import SparseCoder

    sae = SparseCoder(a.d, SparseCoderConfig(num_latents=a.features, k=a.k), dtype=torch.float32)
    optimizer = torch.optim.Adam(sae.parameters(), lr=a.lr)

    def step(number: int, x: torch.Tensor) -> None:
        sae(x).fvu.backward()
        if sae.cfg.normalize_decoder:
            sae.remove_gradient_parallel_to_decoder_directions()
        torch.nn.utils.clip_grad_norm_(sae.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        if sae.cfg.normalize_decoder:
            sae.set_decoder_norm_to_unit_norm()

    return step, lambda x: sae(x).sae_out


def _overcomplete() -> types.ModuleType:
    """overcomplete.sae alone: what else the package imports (models, plots) asks for builds that may not be there."""
    spec = importlib.util.find_spec("overcomplete")
    if spec is None:
        raise ModuleNotFoundError("overcomplete is not installed")
    package = types.ModuleType("overcomplete")
    package.__path__ = list(spec.submodule_search_locations or ())
    sys.modules["overcomplete"] = package
    return importlib.import_module("overcomplete.sae")


def overcomplete(a: argparse.Namespace) -> tuple[Step, Recon]:
    sae = _overcomplete().TopKSAE(a.d, nb_concepts=a.features, top_k=a.k)
    optimizer = torch.optim.Adam(sae.parameters(), lr=a.lr)

    def step(number: int, x: torch.Tensor) -> None:
        (x - sae(x)[2]).square().mean().backward()
        torch.nn.utils.clip_grad_norm_(sae.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()

    return step, lambda x: sae(x)[2]


def naive_dense(a: argparse.Namespace) -> tuple[Step, Recon]:
    """The step as one writes it first: dense codes, autograd, torch.optim.Adam."""
    W = torch.nn.functional.normalize(torch.randn(a.features, a.d), dim=1)
    parameters = [W.clone(), W.clone(), torch.zeros(a.features), torch.zeros(a.d)]
    W_enc, W_dec, b_enc, b_dec = (p.requires_grad_() for p in parameters)
    optimizer = torch.optim.Adam(parameters, lr=a.lr)

    def recon(x: torch.Tensor) -> torch.Tensor:
        values, indices = torch.topk((x - b_dec) @ W_enc.T + b_enc, a.k)
        return torch.zeros(len(x), a.features).scatter(1, indices, values.relu()) @ W_dec + b_dec

    def step(number: int, x: torch.Tensor) -> None:
        optimizer.zero_grad()
        (x - recon(x)).square().sum(1).mean().backward()
        with torch.no_grad():
            W_dec.grad.sub_((W_dec.grad * W_dec).sum(1, keepdim=True) * W_dec)
        torch.nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        with torch.no_grad():
            W_dec.div_(W_dec.norm(dim=1, keepdim=True))

    return step, recon


def sae_lens_pursuit(a: argparse.Namespace) -> tuple[Step, Recon]:
    """k steps, none left out: the tests for an early end, which a training run may turn off, are turned off."""
    from sae_lens.saes.matching_pursuit_sae import MatchingPursuitTrainingSAE, MatchingPursuitTrainingSAEConfig

    stop = {"max_iterations": a.k, "residual_threshold": 0.0, "stop_on_duplicate_support": False}
    config = MatchingPursuitTrainingSAEConfig(d_in=a.d, d_sae=a.features, decoder_init_norm=1.0, **stop)
    sae = MatchingPursuitTrainingSAE(config)
    if a.task == "mp-step":
        return _trained_by_sae_lens(a, sae)
    return torch.no_grad()(lambda number, x: sae.encode(x)), sae


def overcomplete_pursuit(a: argparse.Namespace) -> tuple[Step, Recon]:
    sae = _overcomplete().MpSAE(a.d, nb_concepts=a.features, k=a.k)
    optimizer = torch.optim.Adam(sae.parameters(), lr=a.lr)

    def step(number: int, x: torch.Tensor) -> None:
        (x - sae(x)[2]).square().mean().backward()
        torch.nn.utils.clip_grad_norm_(sae.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()

    encode = torch.no_grad()(lambda number, x: sae.encode(x))
    return step if a.task == "mp-step" else encode, lambda x: sae(x)[2]


STEPS = dict(zip(PEERS, (sae_lens, dictionary_learning, sparsify, overcomplete, naive_dense)))
PURSUING = dict(zip(PURSUITS, (sae_lens_pursuit, overcomplete_pursuit)))
MAKE = {"step": STEPS, "mp-encode": PURSUING, "mp-step": PURSUING}


def rows(n: int, d: int, seed: int) -> torch.Tensor:
    """Sparse superpositions of 4 D directions that fire by a Zipf law: about 20 per row.

    The seeds are far from 0, which `main` gives torch: with it the directions would be among the first weights.
    """
    hidden = torch.Generator().manual_seed(DATA_SEED)
    directions = torch.nn.functional.normalize(torch.randn(4 * d, d, generator=hidden), dim=1)
    firing = torch.arange(1, 4 * d + 1) ** -0.7
    firing = (20 * firing / firing.sum()).clamp(max=1)
    generator = torch.Generator().manual_seed(DATA_SEED + 1 + seed)
    code = (torch.rand(n, 4 * d, generator=generator) < firing) * (torch.rand(n, 4 * d, generator=generator) + 0.5)
    return code @ directions + 0.05 * torch.randn(n, d, generator=generator)


def at_least_one(text: str) -> int:
    """A whole number above 0."""
    if int(text) < 1:
        raise ValueError
    return int(text)


def rows_of(path: Path, more_than: int, d: int) -> torch.Tensor:
    """The rows of a file; ends the program where they do not do."""
    if not path.is_file():
        sys.exit(f"--data: there is no file {path}")
    found = np.load(path)
    if found.ndim != 2 or len(found) <= more_than or found.shape[1] != d:
        sys.exit(f"--data: {path} holds {found.shape}, it must hold more than {more_than} rows of width {d}")
    return torch.from_numpy(found).float()


class Batches:
    """Batches of the synthetic rows, or of a file's in order; `held` are the last 4096 rows, which no batch has."""

    def __init__(self, data: str | None, batch: int, d: int) -> None:
        self.batch, self.d = batch, d
        self.file = None if data is None else rows_of(Path(data), 4096 + batch, d)
        rows_of_file = None if self.file is None else self.file[:-4096]
        sample = rows(4096, d, 0) if rows_of_file is None else rows_of_file[:4096]
        self.scale = float((d / (sample - sample.mean(0)).square().sum(1).mean()).sqrt())
        self.held = (rows(4096, d, 0) if self.file is None else self.file[-4096:]) * self.scale

    def __call__(self, number: int) -> torch.Tensor:
        if self.file is None:
            return rows(self.batch, self.d, 1 + number) * self.scale
        start = number * self.batch % (len(self.file) - 4096 - self.batch)
        return self.file[start : start + self.batch] * self.scale


def peak_rss_mb() -> float:
    """The most memory that this process has held. On Linux from /proc: getrusage counts what started it, too."""
    status = Path("/proc/self/status")
    if status.exists():
        return next(int(line.split()[1]) for line in status.read_text().splitlines() if line[:6] == "VmHWM:") / 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


@torch.no_grad()
def fvu(recon: Recon, held: torch.Tensor) -> float:
    """Fraction of the variance of held-out rows that the reconstruction leaves."""
    left = sum(float((x - recon(x)).double().square().sum()) for x in held.split(1024))
    return left / float((held - held.mean(0)).double().square().sum())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("peer", choices=PEERS)
    parser.add_argument("--task", default="step", choices=tuple(MAKE))
    parser.add_argument("--d", type=at_least_one, default=512)
    parser.add_argument("--features", type=at_least_one, default=8192)
    parser.add_argument("--k", type=at_least_one, default=32)
    parser.add_argument("--batch", type=at_least_one, default=2048)
    parser.add_argument("--steps", type=at_least_one, default=8, help="in all; the first two are not timed")
    parser.add_argument("--data", help=".npy of rows [N, D] instead of synthetic ones")
    parser.add_argument("--lr", type=float, default=3e-4)
    parser.add_argument("--threads", type=at_least_one, default=2)
    parser.add_argument("--clock", choices=tuple(CLOCKS), default="wall")
    parser.add_argument("--allocator", choices=("default", "keep-freed"), default="keep-freed")
    a = parser.parse_args()
    if a.allocator == "keep-freed" and sys.platform.startswith("linux"):
        libc = ctypes.CDLL(None)
        libc.mallopt(-3, 1 << 30)
        libc.mallopt(-1, (1 << 31) - 1)
    torch.manual_seed(0)
    torch.set_num_threads(a.threads)
    step, recon = MAKE[a.task][a.peer](a)
    batches = Batches(a.data, a.batch, a.d)
    weights, out = torch.randn(a.features, a.d), torch.empty(a.batch, a.features)
    ms, gemm_ms, now = [], [], CLOCKS[a.clock]
    for number in range(a.steps):
        x = batches(number)
        times = []
        for call in (lambda x=x: torch.mm(x, weights.T, out=out), lambda n=number, x=x: step(n, x)):
            start = now()
            call()
            times.append((now() - start) * 1e3)
        if number >= min(2, a.steps - 1):
            gemm_ms.append(times[0])
            ms.append(times[1])
    found = {
        "ms": ms,
        "gemm_ms": gemm_ms,
        "peak_rss_mb": round(peak_rss_mb(), 1),
        "fvu": round(fvu(recon, batches.held), 5),
    }
    print(json.dumps({"peer": a.peer} | found))


if __name__ == "__main__":
    main()
