"""The round over many dictionaries keeps what is there, and nothing that was made of something else."""

import json
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from saetools.activations.planted import Planted, PlantedConfig, PlantedSource
from saetools.dictionaries.topk import TopK
from saetools.evals.base import Subject

ANALYSIS = str(Path(__file__).parents[1] / "analysis")


@pytest.fixture
def rounds(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.syspath_prepend(ANALYSIS)
    before = set(sys.modules)
    import evaluate_dictionaries

    yield evaluate_dictionaries
    for name in set(sys.modules) - before:
        if ANALYSIS in str(getattr(sys.modules[name], "__file__", "")):
            sys.modules.pop(name)


@pytest.fixture
def suite(rounds: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    source = PlantedSource(
        Planted(PlantedConfig(n_features=8, d_model=4, mean_active=2)), "heldout", calibration_rows=1024
    )
    subject = Subject(TopK(TopK.configure(n_features=8, k=2), 4), source.spec, source)
    facts = {"label": "topk", "target_l0": rounds.MAIN_TARGET, "seed": 0}
    made = rounds.Suite([rounds.Unit(tmp_path / "topk", facts)], tmp_path)
    monkeypatch.setattr(made, "subject", lambda unit: subject)
    return made


def test_a_measure_is_taken_again_where_its_definition_changed(
    rounds: Any, suite: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    taken: list[int] = []
    monkeypatch.setattr(rounds, "MEASURES", {"steps": (("topk",), lambda _: taken.append(1) or len(taken))})
    suite._measure()
    suite._measure()
    assert len(taken) == 1
    definition = tmp_path / "measures.py"
    definition.write_text("another")
    monkeypatch.setattr(rounds, "MEASURES_FILE", definition)
    suite._measure()
    assert json.loads((tmp_path / "seed0-topk" / "steps.json").read_text())["found"] == 2


def test_layers_are_matched_again_where_the_code_or_the_host_changed(
    rounds: Any, suite: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def host(revision: str) -> Any:
        spec = SimpleNamespace(model_dump=lambda: {"revision": revision})
        points = ["blocks.0.hook_out", "blocks.1.hook_out"]
        return SimpleNamespace(points=lambda: points, spec=lambda point: spec)

    tokens = SimpleNamespace(fingerprint=lambda: "text")
    monkeypatch.setattr(suite, "subject", lambda unit: SimpleNamespace(host=host("a"), tokens=tokens))
    matched: list[int] = []
    monkeypatch.setattr(rounds, "match_layers", lambda *_: matched.append(1) or [])
    for revision, expected in (("b", 1), ("b", 1), ("c", 2)):
        monkeypatch.setattr(rounds, "make_host", lambda *_, revision=revision: host(revision))
        suite._layers()
        assert len(matched) == expected
    monkeypatch.setattr(rounds, "sources_fingerprint", lambda *_: "another")
    suite._layers()
    assert len(matched) == 3
    (tmp_path / "layers.json").write_text('{"points": [], "records": []}')
    suite._layers()
    assert len(matched) == 4, "one that does not say what it was made of is not kept"
