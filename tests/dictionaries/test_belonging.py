"""The guard of what vectors a dictionary is for: every property that gives them another meaning, and its way out."""

import logging

import pytest

from saetools.dictionaries.base import Dictionary, make_dictionary
from saetools.dictionaries.belonging import check_belongs
from saetools.dictionaries.topk import TopK
from saetools.errors import ConfigError, MismatchError
from saetools.records import PointSpec

SPEC = PointSpec(
    host="gpt2", revision="a" * 32, point="blocks.2.hook_out", d_model=6, prepend_bos=True, tokenizer_hash="t"
)


@pytest.fixture
def dictionary() -> Dictionary:
    made = make_dictionary(TopK.configure(n_features=11, k=3), 6)
    made.spec = SPEC
    return made


def test_the_same_vectors_under_another_name_of_the_host(dictionary: Dictionary) -> None:
    check_belongs(dictionary, SPEC)
    check_belongs(dictionary, SPEC.model_copy(update={"host": "/models/gpt2", "context_tokens": 64}))


@pytest.mark.parametrize(
    ("change", "name"),
    [
        ({"revision": "b" * 32}, "host"),
        ({"tokenizer_hash": "u"}, "host"),
        ({"revision": None, "host": "gpt3"}, "host"),
        ({"point": "blocks.3.hook_out"}, "point"),
        ({"prepend_bos": False}, "prepend_bos"),
        ({"compatibility_mode": True}, "compatibility_mode"),
    ],
)
def test_other_vectors_are_an_error_unless_asked_for_by_name(
    dictionary: Dictionary, change: dict[str, object], name: str
) -> None:
    other = SPEC.model_copy(update=change)
    with pytest.raises(MismatchError, match=f"{name} is .* for it and .* here.*--elsewhere"):
        check_belongs(dictionary, other)
    check_belongs(dictionary, other, [name])
    with pytest.raises(MismatchError):
        check_belongs(dictionary, other, ["point" if name != "point" else "host"])


def test_width_and_unknown_names(dictionary: Dictionary) -> None:
    wider = SPEC.model_copy(update={"d_model": 7})
    with pytest.raises(
        MismatchError, match=rf"width 6 \({SPEC.host}, {SPEC.point}\), these vectors have 7 .*\. Set host"
    ):
        check_belongs(dictionary, wider, ["host", "point"])
    with pytest.raises(ConfigError, match=r"'hots' is nothing that may differ\. Did you mean \"host\""):
        check_belongs(dictionary, SPEC, ["hots"])
    dictionary.spec = None
    check_belongs(dictionary, SPEC)
    with pytest.raises(MismatchError, match="width 6, these vectors have 7"):
        check_belongs(dictionary, wider)


def test_what_another_librarys_file_says(dictionary: Dictionary, caplog: pytest.LogCaptureFixture) -> None:
    """Points by either of their names; hosts have too many names for more than a warning."""
    dictionary.spec = None
    for point in ("blocks.2.hook_out", "blocks.2.hook_resid_post", "transformer.h.2"):
        dictionary.provenance = {"layout": "SAELens", "point": point, "host": "gpt2", "prepend_bos": True}
        check_belongs(dictionary, SPEC)
    assert not caplog.text
    dictionary.provenance = {"point": "blocks.3.hook_resid_post", "host": "gpt2-small", "prepend_bos": False}
    with pytest.raises(MismatchError, match=r"point is 'blocks\.3\.hook_resid_post' for it .*prepend_bos is False"):
        check_belongs(dictionary, SPEC)
    check_belongs(dictionary, SPEC, ["point", "prepend_bos"])
    assert "says that it is for the host 'gpt2-small'" in caplog.text


def test_another_dtype_of_the_host_is_told(dictionary: Dictionary, caplog: pytest.LogCaptureFixture) -> None:
    dictionary.spec = SPEC.model_copy(update={"host_dtype": "float32"})
    with caplog.at_level(logging.WARNING):
        check_belongs(dictionary, SPEC.model_copy(update={"host_dtype": "bfloat16"}))
    assert "float32, this one runs in bfloat16" in caplog.text
