"""Every Triton launch at a given size, on tensors without memory: for compiling them offline."""

import torch

from saetools.kernels.backward_adam.problem import Rule, Weights
from saetools.kernels.backward_adam.triton import Backward, Control, Problem, Sorted
from saetools.kernels.decode_loss import triton as decode_loss
from saetools.kernels.encode_topk import triton as encode
from saetools.kernels.workspace import Workspace

META = torch.device("meta")


def empty(*shape: int, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    return torch.empty(shape, dtype=dtype, device=META)


def run_everything(N: int, D: int, F: int, k: int) -> None:
    bf16, i32 = torch.bfloat16, torch.int32
    x, W = empty(N, D, dtype=bf16), empty(F, D, dtype=bf16)
    workspace = Workspace()
    out = empty(N, k), empty(N, k, dtype=i32), empty(N, k, dtype=i32)
    for route in ("cublas", "fused"):
        encode.encode_into(x, W, empty(F), k, out, workspace, route=route)
    pull, loss = empty(N, 1, D, dtype=bf16), empty(N, 1, decode_loss.n_blocks(D))
    decode_loss.decode_loss_into(x, out[0], out[1], None, W, empty(D), None, empty(1), (pull, loss))
    for moments in (torch.float32, bf16):
        weights = Weights(empty(F, D), empty(F, D), empty(F), empty(D))
        first, second = (Weights(*(empty(F, D, dtype=moments) for _ in "ed"), empty(F), empty(D)) for _ in "mv")
        problem = Problem(
            *(weights, first, second, x, pull, out[0].view(-1), k, 1e-4),
            low=(W, W),
            since_F=empty(F, dtype=torch.int64),
            dead_after=1000,
            workspace=workspace,
        )
        slots = Sorted(empty(N * k, dtype=i32), empty(N * k, dtype=torch.int64), empty(F + 1, dtype=i32))
        rule = Rule(1e-3, 0)
        back = Backward(problem, Control.make(rule, META), rule)
        for lagged in (False, True):
            back.run(slots, lagged=lagged)
