"""Our dictionaries as SAEBench wants them, so that its evaluations run on ours.

    from saetools.evals.saebench import SAEBenchAdapter
    sae = SAEBenchAdapter(saetools.load("runs/mine"), hook_layer=8, model_name="pythia-160m-deduped")
    sae_bench.evals.core.main.multiple_evals([("mine", sae)], ...)

SAEBench 0.6 takes dense features of whole batches: B * L * F numbers are held, which is its memory, not ours. Its
matrices are W_enc [D, F] and W_dec [F, D]. What is not linear in a kind (selection, thresholds, pursuit) happens in
`encode`, so that W_enc is only looked at, never multiplied with. A kind without encoder matrix shows its atoms there.
"""

from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from saetools.dictionaries.base import Dictionary
from saetools.errors import MismatchError


@dataclass
class SAEBenchConfig:
    """The fields that SAEBench 0.6 reads of `sae.cfg` (its CustomSAEConfig)."""

    model_name: str
    d_in: int
    d_sae: int
    hook_layer: int
    hook_name: str
    architecture: str
    dtype: str
    device: str
    context_size: int | None = None
    prepend_bos: bool = True
    hook_head_index: int | None = None
    activation_fn_str: str = ""
    activation_fn_kwargs: dict[str, Any] = field(default_factory=dict)
    apply_b_dec_to_input: bool | None = None
    finetuning_scaling_factor: bool | None = None
    normalize_activations: str = "none"
    dataset_path: str = ""
    dataset_trust_remote_code: bool = True
    seqpos_slice: list[int | None] = field(default_factory=lambda: [None])
    training_tokens: int = -100_000
    sae_lens_training_version: str | None = None
    neuronpedia_id: str | None = None
    model_from_pretrained_kwargs: dict[str, Any] = field(default_factory=dict)

    def to_dict(self) -> dict[str, Any]:
        """The fields by name."""
        return asdict(self)


class SAEBenchAdapter(nn.Module):
    """A dictionary (for raw rows) behind SAEBench's interface: dense features in the shape of x, last axis F."""

    def __init__(
        self, dictionary: Dictionary, hook_layer: int, model_name: str | None = None, hook_name: str | None = None
    ) -> None:
        """Model and hook names are SAEBench's (transformer-lens' HookedTransformer); by default those of the spec."""
        super().__init__()
        spec = dictionary.spec
        if spec is None and (model_name is None or hook_name is None):
            raise MismatchError(
                "this dictionary does not know its host and point, which SAEBench asks for: give model_name= and "
                "hook_name= as transformer-lens' HookedTransformer calls them."
            )
        self.dictionary = dictionary
        encoder_FD = dictionary.encoder_directions()
        atoms_FD = dictionary.directions()
        self.W_enc = nn.Parameter((atoms_FD if encoder_FD is None else encoder_FD).T.clone(), requires_grad=False)
        self.W_dec = nn.Parameter(atoms_FD.clone(), requires_grad=False)
        b_enc_F = dict(dictionary.named_parameters()).get("b_enc_F", torch.zeros(len(atoms_FD), dtype=torch.float32))
        self.b_enc = nn.Parameter(b_enc_F.detach().clone().to(atoms_FD), requires_grad=False)
        self.b_dec = nn.Parameter(dictionary.b_dec_D.detach().clone(), requires_grad=False)
        self.device, self.dtype = self.W_dec.device, self.W_dec.dtype
        self.cfg = SAEBenchConfig(
            model_name=model_name or (spec.host if spec else ""),
            d_in=dictionary.d_model,
            d_sae=len(atoms_FD),
            hook_layer=hook_layer,
            hook_name=hook_name or (spec.hooked_point if spec else ""),
            architecture=dictionary.kind,
            dtype=str(self.dtype).removeprefix("torch."),
            device=str(self.device),
            context_size=spec.context_tokens if spec else None,
            prepend_bos=True if spec is None or spec.prepend_bos is None else spec.prepend_bos,
        )

    @torch.no_grad()
    def encode(self, x: Tensor) -> Tensor:
        """[..., D] -> dense features [..., F] in the adapter's dtype."""
        code = self.dictionary.encode(x.reshape(-1, x.shape[-1]).to(self.device, torch.float32))
        return code.to_dense().to(self.dtype).reshape(*x.shape[:-1], -1)

    @torch.no_grad()
    def decode(self, features: Tensor) -> Tensor:
        """[..., F] -> [..., D]: features W_dec + b_dec, as SAEBench's interventions need for edited features."""
        return features.to(self.dtype) @ self.W_dec + self.b_dec

    def forward(self, x: Tensor) -> Tensor:
        """The reconstruction of x [..., D]."""
        return self.decode(self.encode(x))

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> "SAEBenchAdapter":
        """What `to`, `half`, `cuda` ... come to: W_*, b_*, device, dtype and cfg follow; the dictionary moves, no more.

        It is the caller's, and with rounded weights it would give other codes; it computes in float32 all the same.
        """
        super()._apply(fn, recurse=False)
        self.dictionary.to(self.W_dec.device)
        self.device, self.dtype = self.W_dec.device, self.W_dec.dtype
        self.cfg.device, self.cfg.dtype = str(self.device), str(self.dtype).removeprefix("torch.")
        return self
