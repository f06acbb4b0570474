"""The checks of `gpu_suite.py`: each kernel on its cases, random ones against float64, fifty steps by autograd."""

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor

from saetools.kernels.auxk import cases as auxk_cases
from saetools.kernels.backward_adam import Weights
from saetools.kernels.backward_adam import cases as backward_cases
from saetools.kernels.backward_adam.control import Control
from saetools.kernels.backward_adam.tiles import other_tiles, tiles
from saetools.kernels.decode import cases as decode_cases
from saetools.kernels.decode_loss import cases as decode_loss_cases
from saetools.kernels.encode_topk import cases as encode_cases
from saetools.kernels.encode_topk import encode_topk
from saetools.kernels.encode_topk import triton as encode
from saetools.kernels.global_topk import cases as global_cases
from saetools.kernels.global_topk import global_topk
from saetools.kernels.global_topk import triton as global_kernels
from saetools.kernels.matching_pursuit import cases as pursuit_cases
from saetools.kernels.per_feature_topm import cases as per_feature_cases
from saetools.kernels.topk_step import StepSettings
from saetools.kernels.topk_step.triton import DeviceStep
from saetools.kernels.workspace import Workspace
from saetools.training.captured import CapturedStep
from saetools.training.optim import Adam
from scripts.gpu_baselines import Dense, Gathered, Sparse, State
from scripts.gpu_measure import DEVICE, Counters, Trained, relative


def check_cases(name: str, work: Callable[[], None]) -> str:
    try:
        work()
    except Exception as error:
        return f"{type(error).__name__}: {str(error)[:300]}"
    return ""


def check_encode(route: str, dtype: torch.dtype, N: int = 777, D: int = 768, F: int = 24576, k: int = 32) -> str:
    """Selection equals torch.topk by value on the pre-activations it saw; those are right against float64."""
    x, W = torch.randn(N, D, device=DEVICE).to(dtype), (torch.randn(F, D, device=DEVICE) / D**0.5).to(dtype)
    b = torch.randn(F, device=DEVICE) * 0.1
    pre = torch.full((N, F), torch.nan, dtype=dtype, device=DEVICE)
    best = torch.full((N, F // 32), torch.nan, device=DEVICE)
    out = (torch.full((N, k), torch.nan, device=DEVICE), *(torch.full((N, k), -7, device=DEVICE).int() for _ in "ik"))
    scratch = torch.empty(N, encode.scratch_columns(k, F), dtype=torch.int32, device=DEVICE)
    if route == "fused":
        encode.encode_group_max(x, W, b, pre, best)
        seen = pre.float()
        encode.select(pre, None, best, scratch, out, k, True)
    else:
        torch.mm(x, W.T, out=pre)
        encode.group_max(pre, b, best)
        seen = pre.float() + b
        encode.select(pre, b, best, scratch, out, k, True)
    exact = x.double() @ W.double().T + b.double()
    wanted = seen.topk(k, dim=1).values.relu()
    bound = 1e-2 if dtype == torch.bfloat16 else 1e-5
    if not (error := relative(seen, exact)) < bound:
        return f"pre-activations are off by {error:.2e}"
    if not torch.equal(best, seen.view(N, -1, 32).amax(2)):
        return "group maxima differ"
    if not torch.equal(out[0].sort(1, descending=True).values, wanted):
        return "values differ from torch.topk's"
    if not torch.equal(seen.gather(1, out[1].long()), out[0]):
        return "indices do not belong to the values"
    return ""


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
    chosen = None
    if updating is not None:
        measuring, every = other_tiles(F, D, torch.device(DEVICE))
        chosen = measuring[0], every[updating]
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


def check_selection(low: bool, N: int = 1500, D: int = 256, F: int = 16384, k: int = 24) -> str:
    """Over the batch: exactly the largest pre-activations that a float32 product gives, in one chunk and in several."""
    x, W = torch.randn(N, D, device=DEVICE), torch.randn(F, D, device=DEVICE) / D**0.5
    b, n = torch.randn(F, device=DEVICE) * 0.1, N * k
    if low:
        got, _ = global_topk(x, W, b, n, precision="bf16-screen", workspace=Workspace(poison=True), impl="triton")
        wanted = (x @ W.T + b).view(-1).topk(n)
        missed = 1 - torch.isin(got.rows() * F + got.indices_M, wanted.indices).double().mean()
        exact = (x[got.rows()].double() * W[got.indices_M.long()].double()).sum(1) + b[got.indices_M.long()].double()
        error = relative(got.values_M, exact)
        return "" if error < 1e-5 and missed < 1e-3 else f"values off by {error:.2e}, {missed:.2e} of the slots missed"
    expected = (torch.mm(x, W.T) + b).view(-1).topk(n).values
    for chunk_bytes in (encode.CHUNK_BYTES, 384 * F * 4):
        workspace = Workspace(poison=True)
        kept = global_kernels.select(x, W, b, n, None, workspace, room=2 * n, chunk_bytes=chunk_bytes)
        if bool(kept.flag) or int(kept.offsets_N1[-1]) != n:
            return f"flagged, or not {n} slots"
        if not (error := relative(kept.values_M.sort(descending=True).values, expected)) < 1e-5:
            return f"values off by {error:.2e} in chunks of {chunk_bytes} bytes"
    return ""


def check_screen(N: int = 777, D: int = 768, F: int = 24576, k: int = 32) -> str:
    """Per row: candidates by bf16, values in float32; recall of the float32 top k."""
    x, W = torch.randn(N, D, device=DEVICE), torch.randn(F, D, device=DEVICE) / D**0.5
    b = torch.zeros(F, device=DEVICE)
    values, indices = encode_topk(x, W, b, k, precision="bf16-screen", impl="triton")
    wanted = (x @ W.T).topk(k, dim=1).indices
    flat = torch.arange(N, device=DEVICE)[:, None] * F
    recall = float(torch.isin(indices + flat, wanted + flat).double().mean())
    exact = torch.einsum("nd,nkd->nk", x.double(), W[indices.long()].double())
    error = relative(values, exact)
    return "" if recall > 0.9999 and error < 1e-5 else f"recall {recall:.5f}, values off by {error:.2e}"


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
        before = [*(t.clone() for t in kept), torch.get_rng_state(), torch.cuda.get_rng_state()]
        CapturedStep(dictionary, optimizer, 1.0, "bf16").rehearse(N)  # type: ignore[arg-type]
        after = [*kept, torch.get_rng_state(), torch.cuda.get_rng_state()]
        if not all(torch.equal(a, b) for a, b in zip(before, after, strict=True)):
            return f"{selection}: a rehearsal changed something"
    return ""


def check_baselines() -> str:
    """The designs compute the gradient of the same loss: their first updates of the moments agree with autograd's."""
    N, D, F, k = 512, 128, 2048, 16
    state = State.random(F, D, DEVICE)
    x = torch.randn(N, D, device=DEVICE)
    moments = []
    for design in (Dense, Sparse, Gathered):
        step = design(State({name: t.clone() for name, t in state.parameters.items()}), k)
        step(x)
        moments.append(step.adam.first)
    for name in ("W_enc", "W_dec"):
        for number in (1, 2):
            if not (error := relative(moments[number][name], moments[0][name])) < 0.1:
                return f"{name} of design {number} is off by {error:.2e}"
    return ""


def all_checks() -> dict[str, Callable[[], str]]:
    """Every check by name."""
    checks: dict[str, Callable[[], str]] = {}
    for name, module in (
        ("encode_topk", encode_cases),
        ("decode", decode_cases),
        ("decode_loss", decode_loss_cases),
        ("backward_adam", backward_cases),
        ("auxk", auxk_cases),
        ("global_topk", global_cases),
        ("per_feature_topm", per_feature_cases),
    ):
        checks[f"{name} cases"] = lambda m=module, n=name: check_cases(n, lambda: m.verify("triton", device=DEVICE))
    checks["gradients in backward_adam's cases"] = lambda: check_cases(
        "", lambda: backward_cases.verify_gradients("triton", device=DEVICE)
    )
    checks["encode cublas bf16"] = lambda: check_encode("cublas", torch.bfloat16)
    checks["encode cublas fp32"] = lambda: check_encode("cublas", torch.float32)
    checks["encode fused bf16"] = lambda: check_encode("fused", torch.bfloat16)
    for compute in ("fp32", "bf16"):
        for clip in ("exact", "lagged"):
            checks[f"50 steps {compute} {clip} graph AuxK"] = lambda c=compute, q=clip: check_step(c, q, True, True)
    checks["50 steps fp32 exact eager, hot features"] = lambda: check_step("fp32", "exact", False, False, hot=True)
    few = (1024, 640, 1024, 16)
    for selection in ("per_row", "global"):
        checks[f"50 steps bf16 exact graph AuxK {selection}, decoded by a dense product"] = lambda s=selection: (
            check_step("bf16", "exact", True, True, selection=s, sizes=few)
        )
    checks["50 steps fp32 exact graph AuxK, the norm never needed"] = lambda: check_step(
        "fp32", "exact", True, True, clip_norm=1e3
    )
    for number, tile in enumerate(other_tiles(4096, 640, torch.device(DEVICE))[1]):
        checks[f"50 steps bf16 exact graph AuxK, {tile}"] = lambda n=number: check_step(
            "bf16", "exact", True, True, updating=n
        )
    shared: dict[str, Any] = {"graphed": True, "aux": True, "selection": "global"}
    for compute in ("fp32", "bf16"):
        checks[f"50 steps {compute} exact graph AuxK, selection over the batch"] = lambda c=compute: check_step(
            c, "exact", **shared
        )
    checks["50 steps fp32 lagged graph, selection over the batch, hot features"] = lambda: check_step(
        "fp32", "lagged", **shared | {"aux": False, "hot": True}
    )
    checks["50 steps fp32 exact graph, selection over the batch by guesses, some wrong"] = lambda: check_step(
        "fp32", "exact", **shared, guessed=True
    )
    for gram in (True, False):
        checks[f"matching_pursuit cases, Gram {gram}"] = lambda g=gram: check_cases(
            "", lambda: pursuit_cases.verify("triton", g, device=DEVICE)
        )
    checks["encode screened by bf16"] = check_screen
    checks["selection over the batch fp32"] = lambda: check_selection(False)
    checks["selection over the batch screened by bf16"] = lambda: check_selection(True)
    checks["captured steps, features dying"] = check_captured
    checks["captured steps of mutual choice, features dying"] = lambda: check_captured("global")
    checks["captured steps of mutual choice, many features kept"] = lambda: check_captured("global", k=64)
    checks["branches change nothing"] = check_branches
    checks["a rehearsal changes nothing"] = check_rehearsal
    checks["bad batches are refused"] = check_refusal
    checks["other designs"] = check_baselines
    return checks
