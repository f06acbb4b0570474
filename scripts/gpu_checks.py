"""The checks of single kernels of `gpu_suite.py`: each on its cases, random ones against float64."""

import torch

from saetools.kernels.auxk import cases as auxk_cases
from saetools.kernels.backward_adam import cases as backward_cases
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
from saetools.kernels.workspace import Workspace
from scripts.gpu_baselines import Dense, Gathered, Sparse, State
from scripts.gpu_measure import DEVICE, Checks, relative


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
        encode.select(pre, None, best, scratch, out, k, True, given=True)
    else:
        torch.mm(x, W.T, out=pre)
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


def kernel_checks() -> dict[str, Checks]:
    """By part of the suite, every check of single kernels by name."""
    return {
        "encode": {
            "cases": lambda: encode_cases.verify("triton", device=DEVICE),
            "cublas bf16": lambda: check_encode("cublas", torch.bfloat16),
            "cublas fp32": lambda: check_encode("cublas", torch.float32),
            "fused bf16": lambda: check_encode("fused", torch.bfloat16),
            "screened by bf16": check_screen,
        },
        "decode": {
            "cases": lambda: decode_cases.verify("triton", device=DEVICE),
            "cases of the loss": lambda: decode_loss_cases.verify("triton", device=DEVICE),
        },
        "backward": {
            "cases": lambda: backward_cases.verify("triton", device=DEVICE),
            "gradients": lambda: backward_cases.verify_gradients("triton", device=DEVICE),
        },
        "auxk": {"cases": lambda: auxk_cases.verify("triton", device=DEVICE)},
        "selections": {
            "cases over the batch": lambda: global_cases.verify("triton", device=DEVICE),
            "cases per feature": lambda: per_feature_cases.verify("triton", device=DEVICE),
            "over the batch, fp32": lambda: check_selection(False),
            "over the batch, screened by bf16": lambda: check_selection(True),
        },
        "pursuit": {
            f"cases, Gram {gram}": lambda g=gram: pursuit_cases.verify("triton", g, device=DEVICE)
            for gram in (True, False)
        },
        "other designs": {"first moments": check_baselines},
    }
