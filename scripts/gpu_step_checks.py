"""The checks of whole steps of `gpu_suite.py`: fifty against plain ones by autograd, in every form a run takes."""

from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor

from saetools.kernels.backward_adam import Weights
from saetools.kernels.backward_adam.control import Control
from saetools.kernels.backward_adam.tiles import other_tiles, tiles
from saetools.kernels.topk_step import StepSettings
from saetools.kernels.topk_step.triton import DeviceStep
from saetools.training.captured import CapturedStep
from saetools.training.optim import Adam
from scripts.gpu_measure import DEVICE, Checks, Counters, Trained, relative


def check_step(
    compute: str,
    clip: str,
    graphed: bool,
    aux: bool,
    hot: bool = False,
    selection: str = "per_row",
    guessed: bool = False,
    clip_norm: float = 0.05,
    updating: int | None = None,
    n_steps: int = 50,
    sizes: tuple[int, int, int, int] = (1024, 640, 4096, 16),  # D is no multiple of a tile's columns
) -> str:
    """Fifty device steps against fifty plain ones by autograd in float32; `hot`: some features fire in most rows;
    `guessed`: a selection over the batch in chunks, some batches being much smaller or larger than those before;
    `updating`: by which of the tiles that a capture tries."""
    N, D, F, k = sizes
    g = torch.Generator(DEVICE).manual_seed(1)
    W = torch.nn.functional.normalize(torch.randn(F, D, generator=g, device=DEVICE), dim=1)
    planted = torch.nn.functional.normalize(torch.randn(512, D, generator=g, device=DEVICE), dim=1)

    def batch() -> Tensor:
        code = torch.rand(N, 512, generator=g, device=DEVICE)
        return torch.where(code > 0.97, code, 0.0) @ planted * 8 + 0.1 * torch.randn(N, D, generator=g, device=DEVICE)

    bias, enc = torch.zeros(F, device=DEVICE), W.clone()
    enc[: F // 8] *= 0.3  # dead soon, and half of them positive
    if hot:
        bias[F // 2 : F // 2 + 6] += 20
    weights = [Weights(enc.clone(), W.clone(), bias.clone(), torch.zeros(D, device=DEVICE)) for _ in range(2)]
    moments = [Weights(*(torch.zeros_like(t) for t in weights[0])) for _ in range(4)]
    since = [torch.zeros(F, dtype=torch.int64, device=DEVICE) for _ in range(2)]
    settings = StepSettings(
        k=k, variance=float(D), clip_norm=clip_norm, clip=clip, compute=compute, aux_k=32,  # type: ignore[arg-type]
        aux_weight=1 / 32 if aux else 0.0, dead_after=4 * N, capacity=F if aux else 0, n_ahead=4,
        selection=selection, chunk_bytes=256 * F * 4 if guessed else 512 << 20,  # type: ignore[arg-type]
    )  # fmt: skip
    chosen = tiles(F, D, torch.device(DEVICE))  # given, so that no others are compiled
    if updating is not None:
        measuring, every = other_tiles(F, D, torch.device(DEVICE))
        chosen = measuring[updating % len(measuring)], every[updating]
    step = DeviceStep(weights[0], *moments[:2], since[0], settings, N, row_dtype=torch.float32, tiles=chosen)
    step.load(batch())
    if graphed:
        step.capture()
    last_norm, n_flagged, helped = 0.0, 0, False
    for n in range(n_steps):
        x, lr = batch() * ({20: 0.3, 30: 4.0}.get(n, 1.0) if guessed else 1.0), 2e-4
        step.set_rates([lr])
        step.load(x)
        if graphed:
            step.replay()
        else:
            step.launch()
        norm, least = plain_step(weights[1], moments[2], moments[3], since[1], x, n, lr, settings, last_norm)
        record = step.read()[-1]
        helped |= step.auxk is not None and bool(step.auxk.code_NC.any())
        if record.flagged and guessed:
            n_flagged += 1
            step.set_rates([lr])
            with step.exactly():
                step.launch()
            record = step.read()[-1]
        last_norm = norm
        if not record.applied:
            return f"step {n} was not applied"
        near = 0.05 if compute == "bf16" else 1e-3
        if abs(record.norm - norm) > near * norm:
            return f"step {n}: norm {record.norm}, plain {norm}"
        if selection == "global" and abs(record.least - least) > near * least:
            return f"step {n}: least value {record.least}, plain {least}"
    if aux and not helped:
        return "AuxK had no feature to help"
    if clip == "exact" and clip_norm > 1 and step.control.values[Control.NEEDED]:
        return "the norm was measured without need"
    if guessed and not 2 <= n_flagged < n_steps // 2:
        return f"{n_flagged} batches were flagged; at least 2 guesses were wrong, and most should be right"
    bound = 0.05 if compute == "bf16" else 2e-3
    for name, got, plain in zip(("W_enc", "W_dec", "b_enc", "b_dec"), weights[0], weights[1], strict=True):
        if not (error := relative(got, plain)) < (bound if name.startswith("W") else 20 * bound):
            return f"{name} is off by {error:.2e} after {n_steps} steps"
    if compute == "fp32" and (since[0] != since[1]).float().mean() > 0.01:
        return "the counters of tokens since firing differ"
    return ""


def plain_step(
    w: Weights, m: Weights, v: Weights, since: Tensor, x: Tensor, n: int, lr: float, s: StepSettings, last_norm: float
) -> tuple[float, float]:
    """As training/step.PlainStep, by autograd in float32: the norm of the gradient, the least value kept."""
    leaves = [t.detach().requires_grad_() for t in w]
    W_enc, W_dec, b_enc, b_dec = leaves
    pre = (x - b_dec) @ W_enc.T + b_enc
    shared = s.selection == "global"
    indices = pre.flatten().topk(s.k * len(x)).indices if shared else pre.topk(s.k, dim=1).indices
    chosen = torch.zeros_like(pre.flatten() if shared else pre).scatter(-1, indices, 1.0).view_as(pre)
    code = pre.relu() * chosen
    error = x - (code @ W_dec + b_dec)
    loss = error.square().sum(1).mean() / s.variance
    dead = (since >= s.dead_after).nonzero()[:, 0]
    if s.aux_weight and len(dead):
        values_a, places = pre[:, dead].topk(min(s.aux_k, len(dead)), dim=1)
        helped = torch.zeros_like(pre[:, dead]).scatter(1, places, values_a.relu()) @ W_dec[dead]
        residual = error.detach()
        variance = (residual - residual.mean(0)).square().sum(1).mean()
        missed = (residual - helped).square().sum(1).mean()
        loss = loss + s.aux_weight * min(len(dead) / s.aux_k, 1.0) * missed / variance
    gradients = list(torch.autograd.grad(loss, leaves))
    with torch.no_grad():
        gradients[1] -= (gradients[1] * W_dec).sum(1, keepdim=True) * W_dec
        norm = float(torch.stack([g.double().square().sum() for g in gradients]).sum().sqrt())
        clip = s.clip_norm / max(norm if s.clip == "exact" else last_norm, s.clip_norm)
        b1, b2 = s.betas
        for p, first, second, g in zip(w, m, v, gradients, strict=True):
            first.mul_(b1).add_(g * clip, alpha=1 - b1)
            second.mul_(b2).addcmul_(g * clip, g * clip, value=1 - b2)
            denominator = (second / (1 - b2 ** (n + 1))).sqrt() + s.eps
            p.data.addcdiv_(first, denominator, value=-lr / (1 - b1 ** (n + 1)))
        w.W_dec_FD.data.div_(w.W_dec_FD.norm(dim=1, keepdim=True))
        since.copy_(torch.where((code > 0).any(0), 0, since + len(x)))
    return norm, float(code.detach()[code > 0].min())


def check_refusal() -> str:
    """A batch that is not finite changes nothing, under either clip, and its record says so."""
    N, D, F, k = 256, 64, 512, 8
    for clip in ("exact", "lagged"):
        W = torch.nn.functional.normalize(torch.randn(F, D, device=DEVICE), dim=1)
        weights = Weights(W.clone(), W.clone(), torch.zeros(F, device=DEVICE), torch.zeros(D, device=DEVICE))
        moments = [Weights(*(torch.zeros_like(t) for t in weights)) for _ in range(2)]
        settings = StepSettings(k=k, variance=float(D), clip=clip)  # type: ignore[arg-type]
        since = torch.zeros(F, dtype=torch.int64, device=DEVICE)
        step = DeviceStep(weights, *moments, since, settings, N, row_dtype=torch.float32)
        for bad in (None, torch.nan, torch.inf, None):
            x = torch.randn(N, D, device=DEVICE)
            if bad is not None:
                x[N // 2, D // 3] = bad
            before = [t.clone() for t in (*weights, *moments[0], *moments[1], since)]
            step.set_rates([1e-3])
            step.load(x)
            step.launch()
            applied = step.read()[-1].applied
            same = all(torch.equal(a, b) for a, b in zip(before, (*weights, *moments[0], *moments[1], since)))
            if applied != (bad is None) or same != (bad is not None):
                return f"{clip} clip, {bad}: applied {applied}, unchanged {same}"
    return ""


def check_captured(selection: str = "per_row", N: int = 512, D: int = 256, F: int = 2048, k: int = 16) -> str:
    """The trainer's step: features die within a reading; what was begun after that is done again in a larger graph."""
    W = torch.nn.functional.normalize(torch.randn(F, D, device=DEVICE), dim=1)
    bias, enc = torch.zeros(F, device=DEVICE), W.clone()
    enc[: F // 4] *= 0.3
    bias[F // 4 : F // 2] -= torch.linspace(0, 4, F // 4, device=DEVICE)
    plain, ours = (Weights(enc.clone(), W.clone(), bias.clone(), torch.zeros(D, device=DEVICE)) for _ in range(2))
    moments = [Weights(*(torch.zeros_like(t) for t in plain)) for _ in range(2)]
    since = torch.zeros(F, dtype=torch.int64, device=DEVICE)
    dictionary = Trained(ours, k, float(D), selection, aux_k=32)
    step = CapturedStep(dictionary, Adam(dictionary.parameters), 0.05, "fp32")  # type: ignore[arg-type]
    settings = StepSettings(
        k=k, variance=float(D), clip_norm=0.05, compute="fp32", aux_k=32, aux_weight=1 / 32, dead_after=5 * N,
        selection=selection,  # type: ignore[arg-type]
    )  # fmt: skip
    counters, rooms, results = Counters.fresh(F), set(), []
    progress = SimpleNamespace(dead_after_tokens=5 * N)
    for n in range(48):
        x = torch.randn(N, D, device=DEVICE) * (1 if n < 20 else 0.5)
        plain_step(plain, *moments, since, x, n, 2e-4, settings, 0.0)
        step.begin(x, counters, progress, 2e-4)  # type: ignore[arg-type]
        results += step.known()
        rooms.add(step.room)
    results += step.collect()
    if len(results) != 48 or not all(bool(result.applied) for result in results):
        return "not every step was applied"
    if selection == "global" and int(results[-1].state.threshold_weight) != 48:  # type: ignore[attr-defined]
        return "not every batch's threshold was learnt"
    if not max(rooms):
        return "nothing died"
    for name, got, wanted in zip(dictionary.parameters, ours, plain, strict=True):
        if not (error := relative(got, wanted)) < (2e-3 if name.startswith("W") else 4e-2):
            return f"{name} is off by {error:.2e}"
    return ""


def check_branches(N: int = 4096, D: int = 768, F: int = 24576, k: int = 32, n_steps: int = 20) -> str:
    """What runs beside other launches changes nothing: weights, moments and counters to the last bit."""
    states = []
    for beside in (True, False):
        g = torch.Generator(DEVICE).manual_seed(2)
        W = torch.nn.functional.normalize(torch.randn(F, D, generator=g, device=DEVICE), dim=1)
        weights = Weights(W.clone(), W, torch.zeros(F, device=DEVICE), torch.zeros(D, device=DEVICE))
        weights.W_enc_FD[: F // 10] *= 0.3
        moments = [Weights(*(torch.zeros_like(t) for t in weights)) for _ in range(2)]
        since = torch.zeros(F, dtype=torch.int64, device=DEVICE)
        since[: F // 10] = 1 << 30
        settings = StepSettings(
            k=k, variance=float(D), aux_k=64, aux_weight=1 / 32, dead_after=1 << 29, capacity=F // 8
        )
        step = DeviceStep(weights, *moments, since, settings, N, tiles=tiles(F, D, torch.device(DEVICE)))
        if not beside:
            step.branch.stream = None
        for n in range(n_steps):
            step.set_rates([1e-3])
            step.load(torch.randn(N, D, generator=g, device=DEVICE).to(step.dtype))
            if n == 0 and DEVICE == "cuda":
                step.capture()
            step.launch() if step.graph is None else step.replay()
        if not all(record.applied for record in step.read()):
            return "not every step was applied"
        if step.auxk is None or not step.auxk.code_NC.any():
            return "AuxK had no feature to help"
        states.append([*weights, *moments[0], *moments[1], since])
    return "" if all(torch.equal(a, b) for a, b in zip(*states, strict=True)) else "beside other launches it differs"


def check_rehearsal(N: int = 512, D: int = 256, F: int = 2048, k: int = 16) -> str:
    """Recording steps before a run begins changes no weight, no moment and no random number."""
    for selection in ("per_row", "global"):
        W = torch.nn.functional.normalize(torch.randn(F, D, device=DEVICE), dim=1)
        weights = Weights(W.clone(), W, torch.zeros(F, device=DEVICE), torch.zeros(D, device=DEVICE))
        dictionary = Trained(weights, k, float(D), selection, aux_k=32)
        optimizer = Adam(dictionary.parameters)
        kept = [*weights, *optimizer.first.values(), *optimizer.second.values()]
        before = [*(t.clone() for t in kept), torch.get_rng_state(), *torch.cuda.get_rng_state_all()]
        step = CapturedStep(dictionary, optimizer, 1.0, "bf16")  # type: ignore[arg-type]
        step.rehearse(N, SimpleNamespace(dead_after_tokens=N))  # type: ignore[arg-type]
        after = [*kept, torch.get_rng_state(), *torch.cuda.get_rng_state_all()]
        if not all(torch.equal(a, b) for a, b in zip(before, after, strict=True)):
            return f"{selection}: a rehearsal changed something"
    return ""


def step_checks() -> dict[str, Checks]:
    """By part of the suite, every check of whole steps by name."""
    few = (1024, 640, 1024, 16)
    plain: Checks = {
        f"{compute} {clip} graph AuxK": lambda c=compute, q=clip: check_step(c, q, True, True)
        for compute in ("fp32", "bf16")
        for clip in ("exact", "lagged")
    }
    tried: Checks = {
        f"bf16 exact graph AuxK, {tile}": lambda n=number: check_step("bf16", "exact", True, True, updating=n)
        for number, tile in enumerate(other_tiles(4096, 640, torch.device(DEVICE))[1])
    }
    shared: dict[str, Any] = {"graphed": True, "aux": True, "selection": "global"}
    return {
        "step": plain
        | tried
        | {
            "fp32 exact eager, hot features": lambda: check_step("fp32", "exact", False, False, hot=True),
            "bf16 exact graph AuxK, decoded by a dense product": lambda: check_step(
                "bf16", "exact", True, True, sizes=few
            ),
            "fp32 exact graph AuxK, the norm never needed": lambda: check_step(
                "fp32", "exact", True, True, clip_norm=1e3
            ),
            "bad batches are refused": check_refusal,
            "branches change nothing": check_branches,
        },
        "mutual choice": {
            "fp32 exact graph AuxK": lambda: check_step("fp32", "exact", **shared),
            "bf16 exact graph AuxK": lambda: check_step("bf16", "exact", **shared),
            "bf16 exact graph AuxK, decoded by a dense product": lambda: check_step(
                "bf16", "exact", **shared, sizes=few
            ),
            "fp32 lagged graph, hot features": lambda: check_step(
                "fp32", "lagged", **shared | {"aux": False, "hot": True}
            ),
            "fp32 exact graph, by guesses, some wrong": lambda: check_step("fp32", "exact", **shared, guessed=True),
        },
        "trainer": {
            "features dying": check_captured,
            "mutual choice, features dying": lambda: check_captured("global"),
            "mutual choice, many features kept": lambda: check_captured("global", k=64),
            "a rehearsal changes nothing": check_rehearsal,
        },
    }
