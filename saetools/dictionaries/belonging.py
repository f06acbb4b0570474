"""Whether a dictionary is for the vectors at hand: one made for another host or point gives numbers without meaning."""

import logging
from collections.abc import Collection, Mapping

from saetools.dictionaries.base import Dictionary
from saetools.errors import ConfigError, MismatchError, nearest
from saetools.records import PointSpec

PROPERTIES = ("host", "point", "prepend_bos", "compatibility_mode")
"""What may be allowed to differ, by name. Width never may."""

log = logging.getLogger(__name__)


def check_belongs(dictionary: Dictionary, spec: PointSpec, elsewhere: Collection[str] = ()) -> None:
    """MismatchError where the dictionary was made for other vectors than `spec` describes.

    `elsewhere` names the properties that are meant to differ. A directory and a packaged name of the same weights
    agree: the revision (a hash of the weights) decides, not the name under which the host was given. A dictionary from
    another library is held to their width, and to what its file says of point and BOS, where that is in the names of
    transformer-lens; of the host a name alone says little, so another one is a warning, as is another dtype of it.
    """
    for name in elsewhere:
        if name not in PROPERTIES:
            raise ConfigError(f"{name!r} is nothing that may differ.{nearest(name, PROPERTIES)} {_allowed()}")
    if dictionary.d_model != spec.d_model:
        raise MismatchError(
            f"the dictionary is for width {dictionary.d_model}{_of(dictionary.spec)}, these vectors have "
            f"{spec.d_model}{_of(spec)}. Set host and point, or the file of rows, to what it was made for."
        )
    own = dictionary.spec
    if own is None:
        _refuse({name: pair for name, pair in _said(dictionary, spec).items() if name not in elsewhere})
        return
    pairs = {name: (getattr(own, name), getattr(spec, name)) for name in PROPERTIES}
    if own.revision and spec.revision:
        pairs["host"] = (f"{own.host} {own.revision[:12]}", f"{spec.host} {spec.revision[:12]}")
        same_host = own.revision == spec.revision and own.tokenizer_hash == spec.tokenizer_hash
    else:
        same_host = own.host == spec.host
    different = [name for name, (mine, theirs) in pairs.items() if mine != theirs and name != "host"]
    different += [] if same_host else ["host"]
    _refuse({name: pairs[name] for name in different if name not in elsewhere})
    if own.host_dtype != spec.host_dtype and own.host_dtype and spec.host_dtype:
        log.warning("the dictionary is for a host in %s, this one runs in %s", own.host_dtype, spec.host_dtype)


def _said(dictionary: Dictionary, spec: PointSpec) -> dict[str, tuple[object, object]]:
    """(what another library's file says, what these vectors are) of each property in which the two differ."""
    said = dictionary.provenance
    point, host, bos = (said.get(name) for name in ("point", "host", "prepend_bos"))
    if isinstance(host, str) and host != spec.host:
        log.warning("the dictionary's file says that it is for the host %r, this one is %r", host, spec.host)
    different: dict[str, tuple[object, object]] = {}
    if str(point).startswith("blocks.") and point not in (spec.point, spec.hooked_point):
        different["point"] = (point, spec.point)
    if isinstance(bos, bool) and spec.prepend_bos is not None and bos != spec.prepend_bos:
        different["prepend_bos"] = (bos, spec.prepend_bos)
    return different


def _refuse(wrong: Mapping[str, tuple[object, object]]) -> None:
    """MismatchError naming what differs, unless nothing does."""
    if wrong:
        said = "; ".join(f"{name} is {its!r} for it and {here!r} here" for name, (its, here) in wrong.items())
        raise MismatchError(
            f"the dictionary does not fit these vectors: {said}. Use it on what it was made for, or say what is meant "
            f"to differ by name. {_allowed()}"
        )


def _of(spec: PointSpec | None) -> str:
    return f" ({spec.host}, {spec.point})" if spec and spec.host != "rows" else ""


def _allowed() -> str:
    return f"May differ: {', '.join(PROPERTIES)} (elsewhere=..., on the command line --elsewhere)."
