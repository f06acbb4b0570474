"""The command line of a run: one YAML and `--section.field value` overrides -> one frozen RunConfig.

jsonargparse reads the arguments against the config classes. It is given the one dictionary class that `kind` names
(the last of the YAML's and the command line's), not the union: with a union of all kinds it drops fields silently or
lists the errors of every kind. What it refuses is explained by validating the same values with pydantic, which knows
the exact key.
"""

import json
import sys
from collections.abc import Collection, Mapping, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

import yaml
from pydantic import BaseModel, ValidationError

from saetools.config import RunConfigBase, run_config_class
from saetools.errors import ConfigError, nearest
from saetools.field_table import field_table
from saetools.records import FrozenModel

DictionaryConfigs = Mapping[str, type[FrozenModel]]
WRITTEN = {
    "int_parsing": "input should be a whole number in digits: 1000000 or 1_000_000, not 1e6",
    "tuple_type": "input should be a list: [a, b]",
    "dict_type": "input should be a mapping: {a: 1, b: 2}",
    "model_type": "input should be a mapping of fields: {a: 1, b: 2}",
}
"""How to write what pydantic calls a valid integer, tuple, dictionary or instance."""


def parse_run(
    source: Path | Mapping[str, Any] | None, overrides: Sequence[str], dictionary_configs: DictionaryConfigs
) -> Any:
    """The RunConfig of a YAML file, of values (or of none) under overrides such as `--training.lr 1e-3`.

    Raises ConfigError with the key, what came and the nearest known key.
    """
    config_path = source if isinstance(source, Path) else None
    values = read_yaml(source) if isinstance(source, Path) else dict(source or {})
    _check_sections(values, config_path)
    kind = _kind(values, overrides, dictionary_configs)
    values = _for_kind(values, kind, dictionary_configs)
    return _parse(run_config_class(dictionary_configs[kind]), kind, values, overrides, config_path)


class _Loader(yaml.SafeLoader):
    """Refuses a mapping that has a key twice, of which YAML's own reader keeps the last and drops the others."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        keys = [key.value for key, _ in node.value]
        if twice := [key for i, (key, _) in enumerate(node.value) if key.value in keys[:i]]:
            raise yaml.constructor.ConstructorError(None, None, f"{twice[0].value} stands twice", twice[0].start_mark)
        return super().construct_mapping(node, deep)


def read_yaml(path: Path) -> dict[str, Any]:
    """The mapping in a YAML file; ConfigError where it is missing, unreadable or not a mapping."""
    try:
        values = _Loader(path.read_text(encoding="utf-8")).get_single_data()
    except OSError as error:
        raise ConfigError(f"cannot read the config {path}: {error.strerror}. Give a YAML file.") from None
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path} is not valid YAML: {' '.join(str(error).split())}") from None
    if not isinstance(values, dict):
        found = "is empty" if values is None else f"holds a {type(values).__name__}"
        raise ConfigError(f"{path} {found}; a config is a mapping of sections to fields.")
    return values


def _check_sections(values: Mapping[str, Any], config_path: Path | None) -> None:
    """Refuse a section that is no mapping, as `host: gpt2`: an override within it would take its place unsaid."""
    for name, value in values.items():
        if name in {*RunConfigBase.model_fields, "dictionary"} and not isinstance(value, Mapping):
            where = f"{config_path}: " if config_path else ""
            raise ConfigError(f"{where}{name}: {WRITTEN['model_type']}; got {value!r}.")


def help_text(program: str, dictionary_configs: DictionaryConfigs, kind: str = "topk") -> str:
    """All fields with their descriptions and defaults; the dictionary section for one kind."""
    return field_table(run_config_class(dictionary_configs[kind]), program)


def unknown_argument(argument: str, command: str, dictionary_configs: DictionaryConfigs) -> str:
    """What to say of an argument that a command does not have; fields that end in its name are named whole."""
    name = argument.partition("=")[0].lstrip("-").replace("-", "_")
    paths = [path for kind in dictionary_configs.values() for path in _field_paths(run_config_class(kind))]
    fields = [f"--{path}" for path in dict.fromkeys(paths) if path.endswith(f".{name}")]
    meant = f" Did you mean {' or '.join(fields)}?" if fields else ""
    return f"unknown argument {argument!r}.{meant} `{command} --help` lists its arguments."


def to_yaml(config: RunConfigBase) -> str:
    """The resolved config as YAML that `parse_run` reads back to an equal one."""
    return yaml.safe_dump(config.model_dump(mode="json"), sort_keys=False, allow_unicode=True)


def _kind(values: dict[str, Any], overrides: Sequence[str], known: DictionaryConfigs) -> str:
    section = values.get("dictionary")
    kind = section.get("kind") if isinstance(section, dict) else None
    kind = _pairs(overrides).get("dictionary.kind", kind)
    if kind is None:
        raise ConfigError(
            "no dictionary.kind is given. Name a config (a YAML file, or a shipped one such as quickstart) or set "
            f"--dictionary.kind to one of {', '.join(known)}."
        )
    if not isinstance(kind, str) or kind not in known:
        raise ConfigError(
            f"dictionary.kind: unknown kind {kind!r}.{nearest(str(kind), known)} Known: {', '.join(known)}."
        )
    return kind


def _for_kind(values: dict[str, Any], kind: str, known: DictionaryConfigs) -> dict[str, Any]:
    """`values` with a dictionary section of `kind`: fields that only the YAML's own kind has are left out, aloud."""
    section = dict(values.get("dictionary") or {})
    previous = section.get("kind", kind)
    if previous == kind or not isinstance(previous, str) or previous not in known:
        return values
    old, new = (set(known[name].model_fields) for name in (previous, kind))
    dropped = sorted(set(section) & (old - new))
    if dropped:
        sys.stderr.write(
            f"note: fields of kind {previous} that kind {kind} does not have are left out: {', '.join(dropped)}\n"
        )
    kept = {key: value for key, value in section.items() if key not in dropped}
    return values | {"dictionary": kept | {"kind": kind}}


@lru_cache(8)
def _parser(config_class: type[RunConfigBase]) -> Any:
    import jsonargparse

    parser = jsonargparse.ArgumentParser(
        exit_on_error=False,
        add_help=False,
        default_env=False,
        print_config=None,
    )
    parser.add_argument("--config", action="config", help=jsonargparse.SUPPRESS)
    parser.add_class_arguments(config_class, None)
    return parser


def _parse(
    config_class: type[RunConfigBase],
    kind: str,
    values: dict[str, Any],
    overrides: Sequence[str],
    config_path: Path | None,
) -> RunConfigBase:
    import argparse

    parser = _parser(config_class)
    _refuse_unknown_options(overrides, config_class, kind)

    def explained(error: ValidationError) -> ConfigError:
        return ConfigError(_explain(error, config_class, set(_pairs(overrides)), config_path))

    try:
        namespace = parser.parse_args([f"--config={_quoted_yaml(values)}", *overrides])
        plain = json.loads(parser.dump(namespace, format="json", skip_unset=False))
        plain.pop("config", None)
        return config_class.model_validate(plain)
    except ValidationError as error:
        raise explained(error) from None
    except argparse.ArgumentError as error:
        merged = _merged(values, overrides)
        try:
            config_class.model_validate(merged)
        except ValidationError as cause:
            raise explained(cause) from None
        raise ConfigError(" ".join(str(error).split())) from None


class _QuotedDumper(yaml.SafeDumper):
    """Writes every string in quotes: other readers of YAML take a bare 1e100 for a number."""


_QuotedDumper.add_representer(str, lambda dumper, s: dumper.represent_scalar("tag:yaml.org,2002:str", s, style='"'))


def _quoted_yaml(values: dict[str, Any]) -> str:
    return yaml.dump(values, Dumper=_QuotedDumper)


def _pairs(overrides: Sequence[str]) -> dict[str, str]:
    """Dotted key -> text of its value, from `--a.b value` and `--a.b=value`."""
    pairs: dict[str, str] = {}
    items = iter(overrides)
    for item in items:
        if not item.startswith("--"):
            raise ConfigError(f"unexpected argument {item!r}: options are written --section.field value.")
        key, equals, value = item[2:].partition("=")
        if not equals:
            try:
                value = next(items)
            except StopIteration:
                raise ConfigError(f"--{key} has no value: write --{key} VALUE.") from None
        pairs[key] = value
    return pairs


def _refuse_unknown_options(overrides: Sequence[str], config_class: type[RunConfigBase], kind: str) -> None:
    known = _field_paths(config_class)
    leaves = [name for name in known if "." in name]
    for key in _pairs(overrides):
        if key not in known:
            similar = nearest(f"--{key}", [f"--{name}" for name in leaves])
            others = [name for name in leaves if name.startswith("dictionary.")]
            of_kind = f" Kind {kind} has {', '.join(others)}." if key.startswith("dictionary.") else ""
            raise ConfigError(f"unknown option --{key}.{similar}{of_kind} `saetools train --fields {kind}` lists all.")


def _field_paths(model: type[BaseModel], prefix: str = "", needed: bool = False) -> list[str]:
    """Dotted names of all sections and fields; where `needed`, of the fields alone that have no default."""
    paths: list[str] = []
    for name, field in model.model_fields.items():
        section = field.annotation
        if isinstance(section, type) and issubclass(section, BaseModel):
            inside = _field_paths(section, f"{prefix}{name}.", needed) if field.is_required() or not needed else []
            paths += inside if needed else [prefix + name, *inside]
        elif field.is_required() or not needed:
            paths.append(prefix + name)
    return paths


def _merged(values: dict[str, Any], overrides: Sequence[str]) -> dict[str, Any]:
    merged = json.loads(json.dumps(values, default=str))
    for key, text in _pairs(overrides).items():
        *sections, name = key.split(".")
        target = merged
        for section in sections:
            target = target.setdefault(section, {})
        try:
            target[name] = yaml.safe_load(text)
        except yaml.YAMLError:  # `[a`: a text, whatever its field is
            target[name] = text
    return merged


def _explain(
    error: ValidationError, config_class: type[RunConfigBase], given: Collection[str], config_path: Path | None
) -> str:
    """One sentence per wrong key: its path, what came, what is allowed or the nearest key.

    Keys `given` on the command line are written as options, others with the config's file.
    """
    known = _field_paths(config_class)
    sentences = []
    for item in sorted(error.errors(), key=lambda item: item["type"] != "extra_forbidden"):
        path = ".".join(str(part) for part in item["loc"])
        if item["type"] == "extra_forbidden":
            section = path.rpartition(".")[0]
            siblings = [k for k in known if k.rpartition(".")[0] == section]
            sentences.append(f"unknown key {path}.{nearest(path, siblings) or nearest(path, known)}")
        elif item["type"] == "missing":
            options = [
                f"--{name}" for name in _field_paths(config_class, needed=True) if f"{name}.".startswith(f"{path}.")
            ]
            sentences.append(f"{path} is missing: set {' and '.join(options)}.")
        else:
            name = f"--{path}" if path in given else path
            message = WRITTEN.get(item["type"], f"{item['msg'][0].lower()}{item['msg'][1:]}")
            sentences.append(f"{name}: {message}; got {item['input']!r}.")
    text = " ".join(sentences)
    return text if config_path is None or all(s.startswith("--") for s in sentences) else f"{config_path}: {text}"
