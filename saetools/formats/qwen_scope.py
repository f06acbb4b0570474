"""Qwen Scope: layer<n>.sae.pt.

    pre = x W_enc^T + b_enc, b_dec not subtracted            W_enc [F, D]
    code = ReLU of the k largest pre;  recon = code W_dec^T + b_dec          W_dec [D, F]

k is in no file: the repositories are named after it (`...-L0_50`), and it is taken from the name of the directory where
that says so, else from k= of load.
"""

import re
from dataclasses import replace
from pathlib import Path

from saetools.dictionaries.base import Dictionary
from saetools.formats.base import USUAL, Format, Reading
from saetools.formats.foreign import bias_of_centre, build, check_keys, check_tensors, k_of, placed
from saetools.formats.pt import PtContent, mentions, read_pt

TENSORS = {"W_enc": "FD", "W_dec": "DF", "b_enc": "F", "b_dec": "D"}


class QwenScopeFormat(
    Format, name="Qwen Scope", layout="a .pt file with W_enc, W_dec, b_enc and b_dec (needs allow_pt)"
):
    """The .pt file of one layer."""

    @classmethod
    def recognises(cls, path: Path) -> bool:
        return mentions(path, *TENSORS, without=("threshold",))

    @classmethod
    def read(cls, path: Path, how: Reading) -> Dictionary:
        content = read_pt(path, how.allow_pt, cls.name)
        layer = re.match(r"layer(\d+)\.", path.name)
        point = f"blocks.{layer.group(1)}.hook_resid_post" if layer else None
        return placed(from_qwen_scope(content, path, how), how, {"layout": cls.name, "point": point})


def from_qwen_scope(content: PtContent, path: Path, how: Reading = USUAL) -> Dictionary:
    """The TopK dictionary of the file's tensors; `path` also says k where it is named after it. Raises FormatError."""
    check_keys(content.values, (), (), path, how.strict)
    named = re.findall(r"-L0_(\d+)", path.absolute().parent.as_posix())
    if how.k is None and named:
        how = replace(how, k=int(named[-1]))
    found = check_tensors(content.tensors, TENSORS, {}, path, how.strict)
    weights = {
        "W_enc_FD": found["W_enc"],
        "b_enc_F": found["b_enc"] + bias_of_centre(found["W_enc"], found["b_dec"]),
        "W_dec_FD": found["W_dec"].T,
        "b_dec_D": found["b_dec"],
    }
    return build("topk", {"k": k_of({}, how, path, "Qwen Scope")}, weights, path)
