"""Matching pursuit: the encoder is the decoder; atoms are taken one by one, each for what the last ones left.

    r_0 = x - b_dec;  c = r_{t-1} W_dec^T;  i_t = argmax of the rule;  v_t = c[i_t];  r_t = r_{t-1} - v_t W_dec[i_t]
    code_i = sum of v_t over the steps that chose i;  recon = code W_dec + b_dec = x - r_k      [N, D]
    loss = ||target - recon||^2 / V + aux_weight * AuxK of dead atoms on r_k

Rules: `nonnegative` takes the largest positive c and stops where there is none, `signed` the largest c whatever its
sign, `absolute` the largest |c| with its sign. Atoms have unit norm, so that ||r_t||^2 = ||r_{t-1}||^2 - v_t^2. With
`reselect` an atom may be chosen again, so that a row may have fewer than k active features. A row stops early where
||r|| <= tolerance * sqrt(V), and with `stop_at_repeat` after the first atom that comes a second time (as in SAELens).
`inference_steps` may differ from k: a dictionary goes on improving with more steps.

Source: Costa et al. 2025, "From Flat to Hierarchical: Extracting Sparse Representations with Matching Pursuit", arXiv
2506.03093. Differs from it in: the gradient by running the pursuit backwards (kernels/matching_pursuit); a
bias b_dec; atoms renormalised after each step (their toy code normalises at the start only); dead atoms learn by AuxK
on the last residual, coded by their correlation with it (overcomplete subtracts 1e-2 of that correlation).
"""

from collections.abc import Mapping

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


class MatchingPursuit(Dictionary, kind="matching_pursuit"):
    """Matching pursuit: atoms are taken one by one, each for what the last ones left."""

    has_encoder = False
    scaled_with_x = ("b_dec_D",)

    class Config(WithK, WithAuxK):
        """Settings of matching pursuit; k is the number of steps."""

        rule: Rule = Field("nonnegative", description="which correlation is largest: positive, signed or absolute")
        reselect: bool = Field(True, description="whether a row may take an atom again")
        stop_at_repeat: bool = Field(False, description="whether a row ends with the first atom that it takes again")
        tolerance: float = Field(0.0, ge=0, description="norm of the residual at which a row stops, in sqrt(V)")
        inference_steps: int | None = Field(None, gt=0, description="steps of encoding; None: k, as in training")

        def validate_for(self, d_model: int) -> None:
            super().validate_for(d_model)
            if self.stop_at_repeat and not self.reselect:
                raise ConfigError("stop_at_repeat needs reselect: without it no atom comes a second time.")
            if not self.reselect and (self.inference_steps or 0) > self.n_features:
                raise ConfigError(
                    f"inference_steps = {self.inference_steps} without reselect is more than n_features = "
                    f"{self.n_features}."
                )

    config: Config

    def encode_chunk(self, x_ND: Tensor, fields: Mapping[str, Tensor]) -> SparseCode:
        return self._pursue(x_ND, self.config.inference_steps or self.config.k)[0]

    def encode_reference(self, x_ND: Tensor, fields: Mapping[str, Tensor] | None = None) -> Tensor:
        values_NK, indices_NK, _ = matching_pursuit(
            x_ND - self.b_dec_D,
            self.W_dec_FD,
            self.config.inference_steps or self.config.k,
            rule=self.config.rule,
            tolerance=self._tolerance(),
            reselect=self.config.reselect,
            impl="reference",
        )
        if self.config.stop_at_repeat:
            values_NK = values_NK * until_repeat(indices_NK)
        return scatter_rows(values_NK, indices_NK, self.config.n_features)

    def loss_terms(
        self, x_ND: Tensor, target_ND: Tensor, fields: Mapping[str, Tensor], state: State, progress: Progress
    ) -> Terms:
        code, left_ND = self._pursue(x_ND, self.config.k)
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
        ]

    def _pursue(self, x_ND: Tensor, n_steps: int) -> tuple[SparseCode, Tensor]:
        """The code of each row, one slot per atom, and what it leaves."""
        values_NK, indices_NK, left_ND = matching_pursuit(
            x_ND - self.b_dec_D,
            self.W_dec_FD,
            n_steps,
            rule=self.config.rule,
            tolerance=self._tolerance(),
            reselect=self.config.reselect,
        )
        if self.config.stop_at_repeat:
            values_NK = values_NK * until_repeat(indices_NK)
            used = slice(int((values_NK != 0).any(0).nonzero().max()) + 1 if values_NK.any() else 0)
            values_NK, indices_NK = values_NK[:, used], indices_NK[:, used]
            left_ND = x_ND - self.b_dec_D - gather_sum(values_NK, indices_NK, self.W_dec_FD)
        if self.config.reselect:
            values_NK = merged_slots(values_NK, indices_NK)
        code = SparseCode(values_NK, indices_NK, self.config.n_features)
        return code.to_ragged() if self.config.stop_at_repeat else code, left_ND

    def _tolerance(self) -> float:
        return self.config.tolerance * float(self.total_variance) ** 0.5

    def _auxk(self, residual_ND: Tensor, state: State, progress: Progress) -> Tensor:
        dead_A = dead_F(state.tokens_since_fired_F, progress.dead_after_tokens).nonzero()[:, 0]
        atoms_AD = self.W_dec_FD[dead_A]
        zeros_A, zeros_D = atoms_AD.new_zeros(len(dead_A)), torch.zeros_like(self.b_dec_D)
        signed = self.config.rule == "absolute"
        k_aux = self.config.k_aux_for(self.d_model)
        return auxk(residual_ND, residual_ND, atoms_AD, zeros_A, zeros_D, atoms_AD, k_aux, signed)
