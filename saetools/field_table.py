"""The fields of a run's config as `--fields` lists them: what each may be, what it is for, its default."""

import argparse
import json
from pathlib import Path
from types import NoneType
from typing import Annotated, Any, Literal, get_args, get_origin

from pydantic.fields import FieldInfo

from saetools.config import RunConfigBase

WORDS = {bool: "{true,false}", int: "INTEGER", float: "NUMBER", str: "TEXT", Path: "PATH"}
BOUNDS = {"gt": ">", "ge": ">=", "lt": "<", "le": "<="}


def field_table(config_class: type[RunConfigBase], program: str) -> str:
    """All fields by section; those of the dictionary section are of the kind that the class was made for."""
    usage = "%(prog)s [config ...] [--section.field VALUE ...]"
    parser = argparse.ArgumentParser(prog=program, usage=usage, add_help=False)
    for section, outer in config_class.model_fields.items():
        assert outer.annotation is not None, "a section is a config class"
        group = parser.add_argument_group(outer.description)
        for name, field in outer.annotation.model_fields.items():
            notes = [*_bounds(field), "required" if field.is_required() else f"default: {_typed(field)}"]
            text = f"{field.description} ({', '.join(notes)})"
            group.add_argument(f"--{section}.{name}", metavar=_allowed(field.annotation), help=text.replace("%", "%%"))
    return parser.format_help()


def _allowed(annotation: Any) -> str:
    """What may be written: {fp32,bf16}, INTEGER, TEXT|null, [NUMBER,...]."""
    origin, parts = get_origin(annotation), get_args(annotation)
    if annotation in WORDS:
        return WORDS[annotation]
    if annotation is NoneType:
        return "null"
    if origin is Literal:
        return "{" + ",".join(str(part) for part in parts) + "}"
    if origin is Annotated:
        return _allowed(parts[0])
    if origin is tuple:
        return f"[{_allowed(parts[0])},...]"
    if origin is dict:
        return "{NAME: VALUE, ...}"
    return "|".join(_allowed(part) for part in parts)


def _bounds(field: FieldInfo) -> list[str]:
    limits = ((sign, getattr(part, name, None)) for part in field.metadata for name, sign in BOUNDS.items())
    found = [f"{sign} {limit}" for sign, limit in limits if limit is not None]
    return [" and ".join(found)] if found else []


def _typed(field: FieldInfo) -> str:
    """The default as it is written in YAML."""
    value = field.get_default(call_default_factory=True)
    return str(value) if isinstance(value, str | Path) else json.dumps(value)
