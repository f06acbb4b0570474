"""Matching pursuit: the encoder is the decoder; atoms are taken one by one, each for what the last ones left.

    r_0 = x - b_dec;  c = r_{t-1} W_dec^T;  i_t = argmax of the rule;  v_t = c[i_t];  r_t = r_{t-1} - v_t W_dec[i_t]
    code_i = sum of v_t over the steps that chose i;  recon = code W_dec + b_dec = x - r_k      [N, D]
    loss = ||target - recon||^2 / V + aux_weight * AuxK of dead atoms on r_k

Rules: `nonnegative` takes the largest positive c and stops where there is none, `signed` the largest c whatever its
sign, `absolute` the largest |c| with its sign. Atoms have unit norm, so that ||r_t||^2 = ||r_{t-1}||^2 - v_t^2. With
`reselect` an atom may be chosen again, so that a row may have fewer than k active features. A row stops early where
||r|| <= tolerance * sqrt(V), and with `stop_at_repeat` after the first atom that comes a second time (as in SAELens);
codes are ragged with either.
Inference may take other steps than training: `inference_steps` at most, and until
`inference_tolerance`, so that each row has as many as it needs; `with_inference` changes them for given atoms.

`coefficients: least_squares` is orthogonal matching pursuit: after each choice all coefficients are fitted anew,
code_S = argmin ||x - b_dec - code_S W_S||^2, so that the residual is orthogonal to every atom chosen, not to the last
alone, and none is chosen again. Its coefficients can be negative under every rule.

Source: Costa et al. 2025, "From Flat to Hierarchical: Extracting Sparse Representations with Matching Pursuit", arXiv
2506.03093. Differs from it in: the gradient by running the pursuit backwards (kernels/matching_pursuit); a
bias b_dec; atoms renormalised after each step (their toy code normalises at the start only); dead atoms learn by AuxK
on the last residual, coded by their correlation with it (overcomplete subtracts 1e-2 of that correlation). Least
squares: Pati, Rezaiifar, Krishnaprasad 1993 (overcomplete's variant solves for nonnegative coefficients by projected
gradients, and passes no gradient to the code).
"""

from collections.abc import Mapping
from copy import copy
from typing import Any, Literal

import torch
from pydantic import Field
from torch import Tensor

from saetools.dictionaries.base import Dictionary, Progress, SparseCode, State, Terms
from saetools.dictionaries.settings import WithAuxK, WithK
from saetools.errors import ConfigError
from saetools.functional.linear import gather_sum, scatter_rows
from saetools.functional.losses import auxk, reconstruction
from saetools.functional.selection import merged_slots, until_repeat
from saetools.functional.statistics import dead_F
from saetools.kernels.matching_pursuit import Rule, matching_pursuit
from saetools.kernels.omp import omp


class MatchingPursuit(Dictionary, kind="matching_pursuit"):
    """Matching pursuit: atoms are taken one by one, each for what the last ones left."""

    has_encoder = False
    scaled_with_x = ("b_dec_D",)

    class Config(WithK, WithAuxK):
        """Settings of matching pursuit; k is the number of steps."""

        rule: Rule = Field("nonnegative", description="which correlation is largest: positive, signed or absolute")
        reselect: bool = Field(True, description="whether a row may take an atom again")
        stop_at_repeat: bool = Field(False, description="whether a row ends with the first atom that it takes again")
        coefficients: Literal["pursuit", "least_squares"] = Field(
            "pursuit", description="as each step found them, or fitted anew after each step (OMP; reselects nothing)"
        )
        tolerance: float = Field(0.0, ge=0, description="norm of the residual at which a row stops, in sqrt(V)")
        inference_steps: int | None = Field(None, gt=0, description="most steps of encoding; null: k, as in training")
        inference_tolerance: float | None = Field(None, ge=0, description="tolerance of encoding; null: as in training")

        @property
        def selects_once(self) -> bool:
            """Whether no atom is taken twice for a row."""
            return not self.reselect or self.coefficients == "least_squares"

        def validate_for(self, d_model: int) -> None:
            super().validate_for(d_model)
            if self.stop_at_repeat and self.selects_once:
                raise ConfigError("stop_at_repeat needs reselect and coefficients pursuit: else no atom comes twice.")
            if self.selects_once and (self.inference_steps or 0) > self.n_features:
                raise ConfigError(
                    f"inference_steps = {self.inference_steps} without reselecting is more than n_features = "
                    f"{self.n_features}."
                )
            if self.coefficients == "least_squares" and self.rule == "signed":
                raise ConfigError(
                    "rule signed has no meaning with coefficients least_squares. Use absolute or nonnegative."
                )

    config: Config

    def __init__(self, config: Config, d_model: int, seed: int = 0) -> None:
        super().__init__(config, d_model, seed)
        self.signed = config.rule == "absolute"

    def encode_chunk(self, x_ND: Tensor, fields: Mapping[str, Tensor]) -> SparseCode:
        n_steps, tolerance = self._inference()
        values_NK, indices_NK, _ = self._pursue(x_ND, n_steps, tolerance)
        return self._code(values_NK, indices_NK, tolerance)

    def encode_reference(self, x_ND: Tensor, fields: Mapping[str, Tensor] | None = None) -> Tensor:
        values_NK, indices_NK, _ = self._steps(x_ND, *self._inference(), impl="reference")
        if self.config.stop_at_repeat:
            values_NK = values_NK * until_repeat(indices_NK)
        return scatter_rows(values_NK, indices_NK, self.config.n_features)

    def with_inference(self, steps: int, tolerance: float = 0.0) -> "MatchingPursuit":
        """The same dictionary, weights shared, that encodes by up to `steps` steps, until ||r|| <= tolerance sqrt(V).

        Raises ConfigError for more steps than there are atoms where none is taken twice, ValueError for none.
        """
        other, changes = copy(self), {"inference_steps": steps, "inference_tolerance": tolerance}
        other.config = type(self.config).model_validate(self.config.model_dump() | changes)
        other.config.validate_for(self.d_model)
        return other

    def loss_terms(
        self, x_ND: Tensor, target_ND: Tensor, fields: Mapping[str, Tensor], state: State, progress: Progress
    ) -> Terms:
        values_NK, indices_NK, left_ND = self._pursue(x_ND, self.config.k, self.config.tolerance)
        code = self._code(values_NK.detach(), indices_NK, self.config.tolerance)  # losses see the residual alone
        residual_ND = target_ND - x_ND + left_ND
        losses = {"reconstruction": reconstruction(residual_ND, self.total_variance)}
        if self.config.aux_weight:
            losses["residual_auxk"] = self._auxk(residual_ND.detach(), state, progress)
        return Terms(code, residual_ND, losses, self.next_state(state, code))

    def loss_weights(self, progress: Progress) -> dict[str, float]:
        auxiliary = {"residual_auxk": self.config.aux_weight} if self.config.aux_weight else {}
        return {"reconstruction": 1.0} | auxiliary

    @classmethod
    def examples(cls) -> list[Dictionary.Config]:
        return [
            cls.configure(n_features=40, k=4),
            cls.configure(n_features=40, k=6, rule="absolute", reselect=False, tolerance=0.3),
            cls.configure(n_features=24, k=3, rule="signed", inference_steps=6, aux_weight=0),
            cls.configure(n_features=20, k=16, stop_at_repeat=True, aux_weight=0),
            cls.configure(n_features=40, k=4, coefficients="least_squares", inference_steps=8, inference_tolerance=0.4),
            cls.configure(n_features=40, k=4, coefficients="least_squares", rule="absolute", tolerance=0.2),
        ]

    def _inference(self) -> tuple[int, float]:
        """(most steps, tolerance in sqrt(V)) of encoding."""
        config = self.config
        tolerance = config.tolerance if config.inference_tolerance is None else config.inference_tolerance
        return config.inference_steps or config.k, tolerance

    def _pursue(self, x_ND: Tensor, n_steps: int, tolerance: float) -> tuple[Tensor, Tensor, Tensor]:
        """values_NK and indices_NK of each row step by step, as far as it goes, and what they leave."""
        values_NK, indices_NK, left_ND = self._steps(x_ND, n_steps, tolerance)
        if self.config.stop_at_repeat:
            values_NK = values_NK * until_repeat(indices_NK)
            used = slice(int((values_NK != 0).any(0).nonzero().max()) + 1 if values_NK.any() else 0)
            values_NK, indices_NK = values_NK[:, used], indices_NK[:, used]
            left_ND = x_ND - self.b_dec_D - gather_sum(values_NK, indices_NK, self.W_dec_FD)
        return values_NK, indices_NK, left_ND

    def _code(self, values_NK: Tensor, indices_NK: Tensor, tolerance: float) -> SparseCode:
        """The code of steps: one slot per atom; ragged where rows may end before the last step."""
        if not self.config.selects_once:
            values_NK = merged_slots(values_NK, indices_NK)
        code = SparseCode(values_NK, indices_NK, self.config.n_features)
        return code.to_ragged() if self.config.stop_at_repeat or tolerance else code

    def _steps(self, x_ND: Tensor, n_steps: int, tolerance: float, **options: Any) -> tuple[Tensor, Tensor, Tensor]:
        """values_NK and indices_NK step by step, and the last residual."""
        x_ND, config = x_ND - self.b_dec_D, self.config
        options |= {"rule": config.rule, "tolerance": tolerance * float(self.total_variance) ** 0.5}
        if config.coefficients == "least_squares":
            return omp(x_ND, self.W_dec_FD, n_steps, **options)
        return matching_pursuit(x_ND, self.W_dec_FD, n_steps, reselect=config.reselect, **options)

    def _auxk(self, residual_ND: Tensor, state: State, progress: Progress) -> Tensor:
        dead_A = dead_F(state.tokens_since_fired_F, progress.dead_after_tokens).nonzero()[:, 0]
        atoms_AD = self.W_dec_FD[dead_A]
        zeros_A, zeros_D = atoms_AD.new_zeros(len(dead_A)), torch.zeros_like(self.b_dec_D)
        k_aux = self.config.k_aux_for(self.d_model)
        return auxk(residual_ND, residual_ND, atoms_AD, zeros_A, zeros_D, atoms_AD, k_aux, self.signed)
