"""Adam over named tensors, its state in plain tensors that a checkpoint or a fused step can hold."""

from collections.abc import Mapping

import torch
from torch import Tensor
from torch.optim.adam import adam

from saetools.kernels.backward_adam.problem import BETAS, EPS


class Adam:
    """m <- b1 m + (1 - b1) g;  v <- b2 v + (1 - b2) g^2;  p <- p - lr (m / (1 - b1^t)) / (sqrt(v / (1 - b2^t)) + eps)

    Bias-corrected Adam without weight decay (Kingma & Ba 2015, algorithm 1). `first` and `second` hold m and v by
    parameter name; `n_steps` is t, the updates applied so far.
    """

    def __init__(self, parameters: Mapping[str, Tensor], betas: tuple[float, float] = BETAS, eps: float = EPS) -> None:
        self.parameters = dict(parameters)
        self.betas, self.eps = betas, eps
        self.first = {name: torch.zeros_like(p) for name, p in self.parameters.items()}
        self.second = {name: torch.zeros_like(p) for name, p in self.parameters.items()}
        self.n_steps = 0

    @torch.no_grad()
    def step_(self, gradients: Mapping[str, Tensor], lr: float) -> None:
        """Update all parameters in place, by torch's fused kernel of their device."""
        adam(
            list(self.parameters.values()),
            [gradients[name] for name in self.parameters],
            list(self.first.values()),
            list(self.second.values()),
            [],
            [torch.tensor(float(self.n_steps), dtype=torch.float32, device=p.device) for p in self.parameters.values()],
            fused=True,
            amsgrad=False,
            beta1=self.betas[0],
            beta2=self.betas[1],
            lr=lr,
            weight_decay=0.0,
            eps=self.eps,
            maximize=False,
        )
        self.n_steps += 1

    def tensors(self) -> dict[str, Tensor]:
        """The moments by name, `first.<parameter>` and `second.<parameter>`; `n_steps` is saved beside them."""
        return {f"first.{name}": m for name, m in self.first.items()} | {
            f"second.{name}": v for name, v in self.second.items()
        }

    @torch.no_grad()
    def load_(self, tensors: Mapping[str, Tensor], n_steps: int) -> None:
        """Take over what `tensors` gave; ValueError where names or shapes are not those of the parameters."""
        own = self.tensors()
        if set(own) != set(tensors) or any(own[name].shape != tensors[name].shape for name in own):
            raise ValueError(f"the optimizer state has {sorted(tensors)}, the parameters need {sorted(own)}")
        for name, tensor in own.items():
            tensor.copy_(tensors[name])
        self.n_steps = n_steps
