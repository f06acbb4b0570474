"""OpenAI's sparse autoencoders of GPT-2 small (v5, TopK; and the ReLU ones before): one .pt file per point.

    TopK: y = (x - mean(x)) / (std(x) + 1e-5) row by row
          code = ReLU of the k largest of (y - pre_bias) W^T + latent_bias
          recon = (code decoder.weight^T + pre_bias) std(x) + mean(x)      encoder.weight [F, D], decoder.weight [D, F]
    ReLU: code = ReLU((x - pre_bias) W^T + latent_bias), of x as it is;  recon = code decoder.weight^T + pre_bias

The rows of TopK files are normalised one by one, so they become our `normalised_topk`, whose two last features carry
mean and scale (see there). Source: Gao et al. 2024, arXiv 2406.04093, and the model.py published with the weights,
which normalises exactly where the activation is TopK.
"""

from pathlib import Path

from saetools.dictionaries.base import Dictionary
from saetools.dictionaries.normalised_topk import CARRIERS, with_mean_and_bias
from saetools.formats.base import USUAL, Format, Reading
from saetools.formats.foreign import build, check_keys, check_tensors, placed, positive_int, require
from saetools.formats.pt import PtContent, mentions, read_pt

TENSORS = {"encoder.weight": "FD", "decoder.weight": "DF", "pre_bias": "D", "latent_bias": "F"}
IGNORED = ("stats_last_nonzero", "latents_activation_frequency", "latents_mean_square")  # statistics of training


class OpenAIFormat(
    Format, name="OpenAI", layout="a .pt file with encoder.weight, pre_bias and latent_bias (needs allow_pt)"
):
    """One .pt file of OpenAI's GPT-2 autoencoders."""

    @classmethod
    def recognises(cls, path: Path) -> bool:
        return mentions(path, "encoder.weight", "pre_bias", "latent_bias", without=("model_state_dict",))

    @classmethod
    def read(cls, path: Path, how: Reading) -> Dictionary:
        content = read_pt(path, how.allow_pt, cls.name)
        return placed(from_openai(content, path, how), how, {"layout": cls.name, "host": "gpt2"})


def from_openai(content: PtContent, path: Path, how: Reading = USUAL) -> Dictionary:
    """The dictionary of the file's tensors and texts; `path` is for messages. Raises FormatError."""
    settings = content.values
    check_keys(
        settings, ("activation", "activation_state_dict.k", "activation_state_dict.postact_fn"), (), path, how.strict
    )
    activation = require(settings, "activation", ("TopK", "ReLU"), "Others have no counterpart here.", path) or "ReLU"
    require(settings, "activation_state_dict.postact_fn", ("ReLU",), "Negative codes are not readable.", path)
    weights = {name: tensor for name, tensor in content.tensors.items() if name not in IGNORED}
    found = check_tensors(weights, TENSORS, {}, path, how.strict)
    own = {
        "W_enc_FD": found["encoder.weight"],
        "b_enc_F": found["latent_bias"],
        "W_dec_FD": found["decoder.weight"].T,
        "b_dec_D": found["pre_bias"],
    }
    if activation == "ReLU":
        return build("relu_l1", {}, own, path)
    k = positive_int(settings, "activation_state_dict.k", path)
    return build("normalised_topk", {"k": k + CARRIERS}, with_mean_and_bias(own), path)
