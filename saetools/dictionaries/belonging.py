"""Whether a dictionary is for the vectors at hand: one made for another host or point gives numbers without meaning."""

import logging
from collections.abc import Collection

from saetools.dictionaries.base import Dictionary
from saetools.errors import ConfigError, MismatchError, nearest
from saetools.records import PointSpec

PROPERTIES = ("host", "point", "prepend_bos", "compatibility_mode")
"""What may be allowed to differ, by name. Width never may."""

log = logging.getLogger(__name__)


def check_belongs(dictionary: Dictionary, spec: PointSpec, elsewhere: Collection[str] = ()) -> None:
    """MismatchError where the dictionary was made for other vectors than `spec` describes.

    `elsewhere` names the properties that are meant to differ. A directory and a packaged name of the same weights
    agree: the revision (a hash of the weights) decides, not the name under which the host was given. A dictionary that
    does not know its vectors, as one from another library, is held to their width. Another dtype of the host is a
    warning.
    """
    for name in elsewhere:
        if name not in PROPERTIES:
            raise ConfigError(f"{name!r} is nothing that may differ.{nearest(name, PROPERTIES)} {_allowed()}")
    if dictionary.d_model != spec.d_model:
        raise MismatchError(f"the dictionary is for width {dictionary.d_model}, these vectors have {spec.d_model}.")
    own = dictionary.spec
    if own is None:
        return
    pairs = {name: (getattr(own, name), getattr(spec, name)) for name in PROPERTIES}
    if own.revision and spec.revision:
        pairs["host"] = (f"{own.host} {own.revision[:12]}", f"{spec.host} {spec.revision[:12]}")
        same_host = own.revision == spec.revision and own.tokenizer_hash == spec.tokenizer_hash
    else:
        same_host = own.host == spec.host
    different = [name for name, (mine, theirs) in pairs.items() if mine != theirs and name != "host"]
    different += [] if same_host else ["host"]
    if wrong := [name for name in different if name not in elsewhere]:
        said = "; ".join(f"{name} is {pairs[name][0]!r} for it and {pairs[name][1]!r} here" for name in wrong)
        raise MismatchError(
            f"the dictionary does not fit these vectors: {said}. Use it on what it was made for, or say what is meant "
            f"to differ by name. {_allowed()}"
        )
    if own.host_dtype != spec.host_dtype and own.host_dtype and spec.host_dtype:
        log.warning("the dictionary is for a host in %s, this one runs in %s", own.host_dtype, spec.host_dtype)


def _allowed() -> str:
    return f"May differ: {', '.join(PROPERTIES)} (elsewhere=..., on the command line --elsewhere)."
