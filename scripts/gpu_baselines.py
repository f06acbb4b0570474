"""Training steps of other designs, written from their formulas, that `gpu_suite.py` times beside ours.

Each keeps float32 weights and moments and uses torch's fused Adam; none copies code. Gradients of `Dense` come from
autograd, which is what they are all checked against.
"""

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import linear

from saetools.kernels.by_feature.triton import sort_slots
from saetools.kernels.decode.triton import gather_dot, gather_sum
from saetools.training.optim import Adam

AUX_WEIGHT = 1 / 32


@dataclass
class State:
    """Parameters by name, as leaves."""

    parameters: dict[str, Tensor]

    @staticmethod
    def random(F: int, D: int, device: str) -> "State":
        W = torch.nn.functional.normalize(torch.randn(F, D, device=device), dim=1)
        return State(
            {
                "W_enc": W.clone(),
                "W_dec": W,
                "b_enc": torch.zeros(F, device=device),
                "b_dec": torch.zeros(D, device=device),
            }
        )


class Step:
    """What all have: parameters, Adam, the projection before it and unit rows after it."""

    name = ""

    def __init__(self, state: State, k: int, aux_k: int = 0, dead_F: Tensor | None = None) -> None:
        self.p, self.k, self.aux_k, self.dead_F = state.parameters, k, aux_k, dead_F
        self.adam = Adam(self.p)

    def update(self, gradients: dict[str, Tensor]) -> None:
        """Project, Adam, renormalise: one pass each."""
        W, g = self.p["W_dec"], gradients["W_dec"]
        g.addcmul_((g * W).sum(1, keepdim=True), W, value=-1)
        self.adam.step_(gradients, 1e-4)
        W.div_(W.norm(dim=1, keepdim=True))


class Dense(Step):
    """Dense products under bf16 autocast, torch.topk, autograd: what most libraries do."""

    name = "dense bf16 autocast"

    def __call__(self, x: Tensor) -> Tensor:
        leaves = {name: t.detach().requires_grad_() for name, t in self.p.items()}
        with torch.autocast(x.device.type, torch.bfloat16):
            pre = linear(x - leaves["b_dec"], leaves["W_enc"], leaves["b_enc"])
            values, indices = pre.topk(self.k, dim=1)
            code = torch.zeros_like(pre).scatter(1, indices, values.relu())
            recon = code @ leaves["W_dec"] + leaves["b_dec"]
            error = x - recon
            loss = error.float().square().sum(1).mean() / x.shape[1]
            if self.dead_F is not None:
                masked = pre.masked_fill(~self.dead_F, -torch.inf)
                values, indices = masked.topk(self.aux_k, dim=1)
                helped = torch.zeros_like(pre).scatter(1, indices, values.relu())
                residual = error.detach()
                missed = (residual - helped @ leaves["W_dec"]).float().square().sum(1).mean()
                loss = loss + AUX_WEIGHT * missed / (residual - residual.mean(0)).float().square().sum(1).mean()
        loss.backward()
        with torch.no_grad():
            self.update({name: t.grad for name, t in leaves.items()})  # type: ignore[misc]
        return loss.detach()


class Sparse(Step):
    """Dense encode, torch.topk on the whole row, sparse decode in float32 rows, sparse weight gradients into dense
    [F, D] tensors, separate passes for projection, Adam and norms: the design of OpenAI's kernels."""

    name = "OpenAI-style"

    @torch.no_grad()
    def __call__(self, x: Tensor) -> Tensor:
        p, (N, D) = self.p, x.shape
        F = len(p["b_enc"])
        x32 = x.float() - p["b_dec"]
        pre = linear(x32.bfloat16(), p["W_enc"].bfloat16(), p["b_enc"].bfloat16())
        values, indices = torch.topk(pre, self.k, dim=1, sorted=True)
        error, gradients = self.branch(x32, x32, values.float().relu(), indices, 2 / (N * D))
        loss = error.square().sum() / (N * D)
        if self.dead_F is not None:
            pre.masked_fill_(~self.dead_F, -torch.inf)
            values, indices = torch.topk(pre, self.aux_k, dim=1, sorted=True)
            variance = (error - error.mean(0)).square().sum()
            missed, more = self.branch(
                x32, error, values.float().relu(), indices, 2 * AUX_WEIGHT / float(variance), through_bias=False
            )
            loss = loss + AUX_WEIGHT * missed.square().sum() / variance
            for name, g in more.items():
                gradients[name] += g
        assert len(gradients["b_enc"]) == F
        self.update(gradients)
        loss.item()  # as they report it each step
        return loss

    def branch(
        self, x: Tensor, target: Tensor, values: Tensor, indices: Tensor, scale: float, through_bias: bool = True
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """error_ND of decoding a code (centred target) and the gradients of scale / 2 * its square."""
        p, (N, k) = self.p, values.shape
        flat, slots = values.reshape(-1), indices.reshape(-1).int()
        offsets = torch.arange(0, N * k + 1, k, device=x.device)
        error = target - gather_sum(flat, slots, offsets, p["W_dec"])
        rows = torch.arange(N * k, device=x.device) // k
        dvalues = gather_dot(slots, rows, error, p["W_dec"]).mul_(-scale) * (flat > 0)
        gradients = self.weight_gradients(x, error, flat * -scale, dvalues, slots, rows)
        direct = -scale * error.sum(0) if through_bias else 0
        gradients["b_dec"] = direct - gradients["b_enc"] @ p["W_enc"]
        return error, gradients

    def weight_gradients(
        self, x: Tensor, error: Tensor, values: Tensor, dvalues: Tensor, slots: Tensor, rows: Tensor
    ) -> dict[str, Tensor]:
        """Both by sorted segments."""
        F = len(self.p["b_enc"])
        by_feature = sort_slots(torch.where(values != 0, slots, F).int(), F)
        order, offsets = by_feature.order_M, by_feature.offsets_F1
        where = rows[order].int()
        return {
            "W_enc": gather_sum(dvalues[order], where, offsets, x),
            "W_dec": gather_sum(values[order], where, offsets, error),
            "b_enc": torch.zeros(F, device=x.device).index_add_(0, slots.long(), dvalues),
        }


class Gathered(Sparse):
    """As before, but the encoder's gradient by [N k, D] contributions and index_add: the design of sparsify."""

    name = "sparsify-style"

    def weight_gradients(
        self, x: Tensor, error: Tensor, values: Tensor, dvalues: Tensor, slots: Tensor, rows: Tensor
    ) -> dict[str, Tensor]:
        F, D = self.p["W_enc"].shape
        by_feature = sort_slots(torch.where(values != 0, slots, F).int(), F)
        order, offsets = by_feature.order_M, by_feature.offsets_F1
        dW_enc = torch.zeros(F, D, device=x.device)
        per_row = len(rows) // len(x)
        contributions = dvalues.view(-1, per_row, 1).bfloat16() * x.bfloat16()[:, None, :]
        dW_enc.index_add_(0, slots.long(), contributions.view(-1, D).float())
        return {
            "W_enc": dW_enc,
            "W_dec": gather_sum(values[order], rows[order].int(), offsets, error),
            "b_enc": torch.zeros(F, device=x.device).index_add_(0, slots.long(), dvalues),
        }


__all__ = ["AUX_WEIGHT", "Dense", "Gathered", "Sparse", "State", "Step"]
