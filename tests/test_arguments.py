"""The command line: overrides, switching kinds, and errors that name the nearest key."""

import re
from pathlib import Path
from typing import Literal

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import Field

from saetools.arguments import help_text, parse_run, to_yaml
from saetools.errors import ConfigError
from saetools.records import FrozenModel


class Top(FrozenModel):
    kind: Literal["topk"] = Field(description="kind")
    n_features: int = Field(gt=0, description="F")
    k: int = Field(32, description="kept per row")


class Relu(FrozenModel):
    kind: Literal["relu"] = Field(description="kind")
    n_features: int = Field(gt=0, description="F")
    l1: float = Field(0.1, description="penalty")


KINDS = {"topk": Top, "relu": Relu}


@pytest.fixture
def config(tmp_path: Path) -> Path:
    path = tmp_path / "a.yaml"
    path.write_text("dictionary: {kind: topk, n_features: 12, k: 4}\nrun: {dir: runs/x}\n")
    return path


def test_precedence_default_yaml_command_line(config: Path) -> None:
    parsed = parse_run(config, ["--dictionary.k", "5", "--training.lr=1e-3"], KINDS)
    assert (parsed.dictionary.n_features, parsed.dictionary.k, parsed.training.lr) == (12, 5, 1e-3)
    assert parsed.training.batch_rows == 2048


def test_a_reading_leaves_nothing_to_the_next(config: Path) -> None:
    """Though both are read by one parser."""
    first = parse_run(config, [], KINDS)
    changed = parse_run(config, ["--dictionary.k", "7", "--training.lr", "1e-3", "--host.revision", "abc"], KINDS)
    assert changed != first and parse_run(config, [], KINDS) == first


def test_kind_switches_over_a_yaml_of_another_kind(config: Path, capsys: pytest.CaptureFixture[str]) -> None:
    parsed = parse_run(config, ["--dictionary.l1", "0.5", "--dictionary.kind", "relu"], KINDS)
    assert isinstance(parsed.dictionary, Relu) and parsed.dictionary.l1 == 0.5 and parsed.dictionary.n_features == 12
    assert "kind relu does not have are left out: k" in capsys.readouterr().err


def test_an_override_keeps_the_kind_of_the_yaml(tmp_path: Path) -> None:
    path = tmp_path / "b.yaml"
    path.write_text("dictionary: {kind: relu, n_features: 12, l1: 0.3}\nrun: {dir: runs/x}\n")
    parsed = parse_run(path, ["--dictionary.n_features", "77"], KINDS)
    assert isinstance(parsed.dictionary, Relu) and (parsed.dictionary.n_features, parsed.dictionary.l1) == (77, 0.3)


@pytest.mark.parametrize(
    ("overrides", "expected"),
    [
        (["--training.lrr", "1"], 'Did you mean "--training.lr"?'),
        (["--dictionary.l1", "1"], "Kind topk has dictionary.kind, dictionary.n_features, dictionary.k."),
        (["--training.lr", "abc"], "training.lr: input should be a valid number"),
        (["--training.lr", "inf"], "--training.lr: input should be a finite number; got 'inf'"),
        (["--training.clip_norm=.inf"], "--training.clip_norm: input should be a finite number; got inf"),
        (["--run.seed", "-1"], "run.seed: input should be greater than or equal to 0; got -1"),
        (["--dictionary.kind", "rellu"], 'Did you mean "relu"?'),
        (["--run.seed"], "--run.seed has no value"),
        (["foo"], "unexpected argument 'foo'"),
        (["--dictionary.n_features", "0"], "dictionary.n_features: input should be greater than 0"),
        (["--evaluation.run", "[sparsity"], "evaluation.run: input should be a list: [a, b]; got '[sparsity'"),
        (["--training.lr", "{"], "--training.lr: input should be a valid number"),
        (["--evaluation.run", "sparsity"], "evaluation.run: input should be a list: [a, b]; got 'sparsity'"),
        (["--training.n_tokens", "1e6"], "training.n_tokens: input should be a whole number in digits: 1000000 or"),
        (["--activations.source", "disk"], "activations.source: input should be 'live', 'cached', 'rows' or 'planted'"),
    ],
)
def test_errors_say_what_came_and_what_is_allowed(config: Path, overrides: list[str], expected: str) -> None:
    with pytest.raises(ConfigError) as caught:
        parse_run(config, overrides, KINDS)
    assert expected in str(caught.value) and "\n" not in str(caught.value)
    assert str(config) not in str(caught.value), "the file is not at fault"


def test_a_wrong_value_in_the_file_names_the_file(config: Path) -> None:
    config.write_text(config.read_text() + "training: {lr: -1}\n")
    with pytest.raises(ConfigError, match=r"a\.yaml: training\.lr: input should be greater than 0; got -1"):
        parse_run(config, ["--run.seed", "1"], KINDS)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("dictionary: {kind: topk, n_feature: 3}\nrun: {dir: x}", "dictionary.n_features"),
        ("dictionary: {kind: topk, n_features: 3}\nrun: {dir: x}\ntrainin: {lr: 1}", "training"),
        ("dictionary: {n_features: 3}\nrun: {dir: x}", "no dictionary.kind"),
        ("dictionary: {kind: [topk], n_features: 3}\nrun: {dir: x}", "unknown kind ['topk']"),
        ("dictionary: {kind: topk, n_features: 3}", "run is missing: set --run.dir."),
        ("dictionary: {kind: topk, n_features: 3}\nrun: {}", "run.dir is missing: set --run.dir."),
        (
            "dictionary: {kind: topk, n_features: 3}\nrun: {dir: x}\ntraining: {lr: .inf}",
            "training.lr: input should be a finite",
        ),
        ("dictionary: {kind: topk, n_features: 3}\nrun: x", "run: input should be a mapping of fields"),
        ("host: {name: a}\nrun: {dir: x}\nhost: {dtype: bfloat16}", 'host stands twice in "<unicode string>", line 3'),
        ("- 1", "holds a list; a config is a mapping"),
        ("", "is empty"),
        ("a: [", "not valid YAML"),
        ("a: !!python/object/apply:os.getcwd []", "not valid YAML"),
    ],
)
def test_wrong_yaml(tmp_path: Path, text: str, expected: str) -> None:
    path = tmp_path / "wrong.yaml"
    path.write_text(text)
    with pytest.raises(ConfigError) as caught:
        parse_run(path, [], KINDS)
    assert expected in str(caught.value)


@pytest.mark.parametrize(
    ("section", "override"),
    [("host: gpt2", "--host.dtype=bfloat16"), ("training: 5", "--training.lr=1"), ("corpus:", "--corpus.split=x")],
)
def test_a_section_that_is_no_mapping_is_not_replaced_by_an_override(config: Path, section: str, override: str) -> None:
    config.write_text(f"{config.read_text()}{section}\n")
    name, _, value = section.partition(":")
    with pytest.raises(
        ConfigError, match=rf"a\.yaml: {name}: input should be a mapping of fields.*; got .?{value[1:]}"
    ):
        parse_run(config, [override], KINDS)


def test_a_dictionary_section_that_is_no_mapping(config: Path) -> None:
    config.write_text("dictionary: topk\nrun: {dir: x}\n")
    with pytest.raises(ConfigError, match="dictionary: input should be a mapping of fields"):
        parse_run(config, ["--dictionary.kind", "topk", "--dictionary.n_features", "9"], KINDS)


NAMES = st.text(st.characters(exclude_categories=("Cs", "Cc")), min_size=1)


@settings(max_examples=20)  # jsonargparse takes a fifth of a second to read a config, so each holds many values
@given(
    k=st.integers(1, 10**6),
    lr=st.none() | st.floats(1e-8, 10, allow_nan=False),
    names=st.tuples(NAMES, NAMES, NAMES, NAMES, NAMES),
    dtype=st.sampled_from(["float32", "bfloat16", "float16"]),
)
def test_a_resolved_config_reads_back_equal(
    tmp_path_factory: pytest.TempPathFactory, k: int, lr: float | None, names: tuple[str, ...], dtype: str
) -> None:
    host, corpus, split, point, project = names
    values = {
        "dictionary": {"kind": "topk", "n_features": 9, "k": k},
        "training": {"lr": lr},
        "host": {"name": host},
        "corpus": {"name": corpus, "split": split},
        "activations": {"dtype": dtype, "point": point},
        "logging": {"wandb_project": project},
        "run": {"dir": "runs/x"},
    }
    path = tmp_path_factory.mktemp("c") / "c.yaml"
    path.write_text(yaml.safe_dump(values))
    first = parse_run(path, [], KINDS)
    assert (first.dictionary.k, first.training.lr, first.host.name) == (k, lr, host)
    assert (first.corpus.name, first.corpus.split) == (corpus, split)
    assert (first.activations.point, first.logging.wandb_project) == (point, project)
    path.write_text(to_yaml(first))
    assert parse_run(path, [], KINDS) == first


@pytest.mark.parametrize("name", ["1e100", "null", "yes", "0x1f", "2024-01-01", "[a]", "a: b", " x ", "\u2028"])
def test_names_that_look_like_something_else(config: Path, tmp_path: Path, name: str) -> None:
    values = {"dictionary": {"kind": "topk", "n_features": 9}, "host": {"name": name}, "run": {"dir": "x"}}
    (tmp_path / "c.yaml").write_text(yaml.safe_dump(values))
    assert parse_run(tmp_path / "c.yaml", [], KINDS).host.name == name


def test_help_lists_every_field_with_its_description() -> None:
    text = help_text("saetools train", KINDS)
    for expected in ("--training.n_tokens", "--dictionary.k", "kept rows to train on", "--run.dir"):
        assert expected in text
    words = " ".join(text.split())
    assert "--training.lr NUMBER|null peak learning rate; null: 2e-4 / sqrt(F / 2^14) (> 0, default: null)" in words
    assert "--host.dtype {float32,bfloat16,float16} dtype in which the host runs (default: float32)" in words
    assert "--run.dir PATH run" in words and "--activations.path PATH|null store" in words
    assert "--evaluation.run [TEXT,...]" in words and '(default: ["reconstruction", ' in words


@pytest.mark.parametrize("kind", KINDS)
def test_help_is_written_as_one_types_it(kind: str) -> None:
    """No words of Python's, and none of jsonargparse's own options, which no command takes."""
    text = help_text("saetools train", KINDS, kind)
    assert not re.search(r"None|True|False|Annotated|Optional|Literal|<class|print_config|CONFIG", text)
    assert text.count("  --dictionary.") == len(KINDS[kind].model_fields)


def test_a_tilde_is_the_home_directory(config: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nobody wants a directory of the name `~`, nor removes one without fear."""
    monkeypatch.setenv("HOME", "/home/me")
    config.write_text(
        "dictionary: {kind: topk, n_features: 9}\nrun: {dir: ~/runs/x}\ntraining: {init_from: ~/runs/w}\n"
    )
    parsed = parse_run(config, ["--activations.path=~/rows.npy"], KINDS)
    assert (parsed.run.dir, parsed.training.init_from) == (Path("/home/me/runs/x"), "/home/me/runs/w")
    assert parsed.activations.path == Path("/home/me/rows.npy")
    hub = "hf://organisation/repository"
    assert parse_run(config, [f"--training.init_from={hub}"], KINDS).training.init_from == hub, "a path has no //"
    with pytest.raises(ConfigError, match="no such home directory"):
        parse_run(config, ["--run.dir=~nobody-of-this-name/x"], KINDS)
