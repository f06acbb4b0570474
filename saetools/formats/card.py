"""The model card of a dictionary: a README.md written from what its run recorded; no figure is typed by hand."""

from collections.abc import Mapping, Sequence
from typing import Any

import yaml

from saetools.dictionaries.base import Dictionary
from saetools.records import EvalRecord

FIGURES = {  # record: what a reader calls it
    "l0_mean": "L0, features per token",
    "fvu": "FVU, fraction of variance unexplained",
    "ce_recovered_zero": "CE recovered, against zeros",
    "ce_recovered_mean": "CE recovered, against the mean",
    "kl_recovered_zero": "KL recovered, against zeros",
    "dead_fraction": "dead features, share",
}


def model_card(dictionary: Dictionary, records: Sequence[EvalRecord], source: str) -> str:
    """The text of README.md: what it is for, how to load it from `source`, figures with their n, and its config."""
    spec, provenance = dictionary.spec, dictionary.provenance
    parts = [_front_matter(dictionary), f"# {_title(dictionary)}", _use(source)]
    if spec is not None:
        vectors = {
            "host": spec.host,
            "revision of its weights": spec.revision,
            "point": spec.point,
            "width": spec.d_model,
            "windows begin with BOS": spec.prepend_bos,
            "tokens per window": spec.context_tokens,
            "host ran in": spec.host_dtype,
            "weights folded and centred by transformer-lens": spec.compatibility_mode,
        }
        parts.append("## What it is for\n\nVectors of this host at this point, raw, as the host computes them.\n")
        parts.append(_table(("what", "value"), vectors.items()))
    parts.append("## Figures\n\n" + _figures(records))
    parts.append("## How it was made\n\n" + _origin(dictionary, provenance))
    return "\n\n".join(part.strip() for part in parts) + "\n"


def _front_matter(dictionary: Dictionary) -> str:
    spec = dictionary.spec
    data: dict[str, Any] = {
        "library_name": "saetools",
        "tags": ["saetools", "sparse-autoencoder", "mechanistic-interpretability", dictionary.kind],
    }
    if spec is not None and spec.host.count("/") == 1 and not spec.host.startswith((".", "/", "~")):
        data["base_model"] = spec.host
    return f"---\n{yaml.safe_dump(data, sort_keys=False, allow_unicode=True)}---"


def _title(dictionary: Dictionary) -> str:
    spec = dictionary.spec
    where = f" at {spec.point} of {spec.host}" if spec is not None else ""
    return f"{dictionary.kind} dictionary of {dictionary.config.n_features:,} features{where}"


def _use(source: str) -> str:
    return (
        "```python\nimport saetools\n\n"
        f'dictionary = saetools.load("{source}")\n'
        f"code = dictionary.encode(x_ND)  # sparse; x_ND: rows of raw activations\n"
        "recon_ND = dictionary.decode(code)\n```"
    )


def _figures(records: Sequence[EvalRecord]) -> str:
    found = {record.name: record for record in records}
    rows = []
    for name, label in FIGURES.items():
        if name in found:
            record = found[name]
            value = "undefined" if record.value is None else f"{record.value:.4g}"
            spread = f" ({record.spread[0]:.4g} to {record.spread[1]:.4g})" if record.spread else ""
            rows.append((label, value + spread, f"{record.n:,} {record.n_unit}"))
    if not rows:
        return "Not evaluated: `saetools evaluate` had not been run on it."
    return "On held-out data, 95 % bootstrap interval over documents in brackets.\n\n" + _table(
        ("figure", "value", "over"), rows
    )


def _origin(dictionary: Dictionary, provenance: Mapping[str, Any]) -> str:
    config, n_tokens, versions = (provenance.get(name) for name in ("config", "n_tokens", "versions"))
    if isinstance(versions, Mapping):
        versions = ", ".join(f"{name} {version}" for name, version in versions.items())
    facts = {
        "kind": dictionary.kind,
        "trained on": f"{n_tokens:,} tokens" if n_tokens and isinstance(n_tokens, int) else n_tokens,
        "read from the layout of": provenance.get("layout"),
        "data fingerprint": provenance.get("data_fingerprint"),
        "commit of saetools": provenance.get("git_commit"),
        "versions": versions,
    }
    text = _table(("what", "value"), facts.items())
    if not isinstance(config, Mapping):
        return text
    return (
        f"{text}\n\nTo make it again, write this to `config.yaml` and run `saetools train config.yaml`:\n\n"
        f"```yaml\n{yaml.safe_dump(dict(config), sort_keys=False, allow_unicode=True)}```"
    )


def _table(head: Sequence[str], rows: Any) -> str:
    lines = ["| " + " | ".join(head) + " |", "|" + "---|" * len(head)]
    said = [row for row in rows if row[1] not in (None, "")]
    return "\n".join([*lines, *("| " + " | ".join(_cell(value) for value in row) + " |" for row in said)])


def _cell(value: Any) -> str:
    return str(value).replace("|", "\\|").replace("\n", " ")
