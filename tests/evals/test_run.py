"""Running, keeping and listing evaluations."""

import importlib
import json
import math
import shutil
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from small_hosts import D_MODEL, Listed, by_name, host_subject, row_subject

import saetools
from saetools.activations.calibration import calibrate
from saetools.activations.planted import Planted, PlantedConfig, PlantedSource
from saetools.activations.rows import RowsSource
from saetools.arguments import parse_run
from saetools.config import EvaluationConfig
from saetools.dictionaries.itda import ITDA
from saetools.dictionaries.topk import TopK
from saetools.errors import ConfigError, FormatError
from saetools.evals.base import Subject, available_evaluations, make_evaluation
from saetools.evals.comparison import comparison_table
from saetools.evals.run import default_evaluations, read_records, run_evaluations, sources_fingerprint
from saetools.evals.table import table
from saetools.pipeline import dictionary_configs, load_subject
from saetools.records import EvalRecord, PointSpec

MAIN = {"fvu", "l0_mean", "dead_fraction", "ce_recovered_zero", "ce_recovered_mean", "kl_recovered_zero"}


def small():
    return default_evaluations(EvaluationConfig(n_tokens=100, n_ce_tokens=50))


def test_all_figures_are_written_and_shown(tmp_path):
    outcomes = []
    records = run_evaluations(host_subject(), small(), str(tmp_path), outcomes.append)
    assert set(by_name(records)) >= MAIN
    assert read_records(tmp_path / "eval.json") == records
    assert [o.status for o in outcomes] == ["computed"] * 3
    assert all("tokens/s" in o.cost and "peak memory" in o.cost for o in outcomes)
    assert "one pass for reconstruction, sparsity" in by_name(records)["cost_sparsity"].note
    shown = table(records)
    assert all(name in shown for name in MAIN) and all(len(line) <= 110 for line in shown.splitlines()[:20])


@pytest.mark.parametrize("text", ["", "{}", "5", '[{"name": "fvu"}]', '[{"nam', "\u00e4"])
def test_damaged_figures_are_named(tmp_path, text):
    (tmp_path / "eval.json").write_text(text, encoding="latin-1")
    with pytest.raises(FormatError, match=r"eval\.json"):
        read_records(tmp_path / "eval.json")
    with pytest.raises(FormatError, match=r"none\.json"):
        read_records(tmp_path / "none.json")


def test_together_equals_alone():
    subject = host_subject()
    together = by_name(run_evaluations(subject, small()))
    for evaluation in small():
        for record in evaluation.run(subject):
            settings = {**record.config, "seed": 0}
            assert together[record.name] == record.model_copy(
                update={"heldout": subject.heldout.fingerprint(calibrated=False), "config": settings}
            )


def test_runs_of_different_seeds_are_judged_by_one_seed_which_is_recorded(tmp_path, gaussian):
    np.save(tmp_path / "rows.npy", gaussian.numpy())
    dictionary = TopK(TopK.configure(n_features=8, k=2), 5)
    dictionary.spec = PointSpec(host="rows", point="rows", d_model=5)

    def subject(run_seed, **evaluation):
        values = {
            "run": {"dir": str(tmp_path), "seed": run_seed},
            "activations": {"source": "rows", "path": str(tmp_path / "rows.npy")},
            "dictionary": {"kind": "topk", "n_features": 8, "k": 2},
            "evaluation": evaluation,
        }
        return load_subject(dictionary, parse_run(values, [], dictionary_configs()))

    assert subject(3).seed == 0 and subject(3, seed=4).seed == 4
    found = run_evaluations(subject(3, seed=4), [make_evaluation("reconstruction")], tmp_path)
    assert {record.config["seed"] for record in found} == {4}


def test_finished_evaluations_are_kept_and_an_interruption_loses_only_the_rest(tmp_path, monkeypatch):
    from saetools.evals.loss_recovered import LossRecovered

    with monkeypatch.context() as patched:
        patched.setattr(LossRecovered, "run", lambda *a, **k: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            run_evaluations(host_subject(), small(), tmp_path)
    assert {record.config["evaluation"] for record in read_records(tmp_path / "eval.json")} == {
        "reconstruction",
        "sparsity",
    }
    outcomes = []
    first = run_evaluations(host_subject(), small(), tmp_path, outcomes.append)
    assert {o.name: o.status for o in outcomes} == {
        "reconstruction": "kept",
        "sparsity": "kept",
        "loss_recovered": "computed",
    }
    outcomes.clear()
    assert run_evaluations(host_subject(), small(), tmp_path, outcomes.append) == first
    assert {o.status for o in outcomes} == {"kept"}
    outcomes.clear()
    run_evaluations(host_subject(), small(), tmp_path, outcomes.append, fresh=True)
    assert {o.status for o in outcomes} == {"computed"}


KILLED = """
import os, signal, sys
from pathlib import Path
sys.path.insert(0, {here!r})
from small_hosts import host_subject
from test_run import small
from saetools.evals.loss_recovered import LossRecovered
from saetools.evals.run import run_evaluations
LossRecovered.run = lambda *_: os.kill(os.getpid(), signal.SIGKILL)
run_evaluations(host_subject(), small(), Path(sys.argv[1]))
"""


def test_what_a_kill_left_finished_is_kept(tmp_path):
    program = KILLED.format(here=str(Path(__file__).parent))
    assert subprocess.run([sys.executable, "-c", program, str(tmp_path)]).returncode == -signal.SIGKILL
    outcomes = []
    records = run_evaluations(host_subject(), small(), tmp_path, outcomes.append)
    assert [o.status for o in outcomes] == ["kept", "kept", "computed"]
    straight = by_name(run_evaluations(host_subject(), small()))
    for record in records:
        assert record.name.startswith("cost_") or record == straight[record.name]


def test_other_weights_data_or_settings_are_computed_again(tmp_path):
    def statuses(subject, evaluations):
        outcomes = []
        run_evaluations(subject, evaluations, tmp_path, outcomes.append)
        return {o.status for o in outcomes}

    subject = host_subject()
    assert statuses(subject, small()) == {"computed"}
    assert statuses(subject, [make_evaluation("sparsity", n_tokens=99)]) == {"computed"}
    assert statuses(host_subject(n=13), small()) == statuses(replace(subject, seed=1), small()) == {"computed"}
    with torch.no_grad():
        subject.dictionary.b_dec_D[0] += 1
    assert statuses(subject, small()) == {"computed"}


def test_runs_calibrated_on_rows_of_their_own_are_comparable_and_computed_each(tmp_path):
    def calibrated(factor, drop_outliers):
        subject = host_subject(drop_outliers=drop_outliers)
        record = subject.heldout.calibration
        other = record.model_copy(update={"median_norm": factor * record.median_norm})
        return replace(subject, heldout=subject.heldout.with_calibration(other))

    for drops in (True, False):
        outcomes, found = [], {}
        for factor in (1.0, 1.1):
            subject = calibrated(factor, drops)
            found[str(factor)] = run_evaluations(subject, small(), tmp_path / str(drops), outcomes.append)
        assert {o.status for o in outcomes} == {"computed"}, "outliers, or doses of steering, may differ"
        assert "*" not in comparison_table(found)
        kept = found["1.0"]
    dropped = run_evaluations(calibrated(1.0, True), small())
    assert "fvu*" in comparison_table({"drops": dropped, "keeps": kept})


def test_a_changed_formula_is_computed_again(tmp_path, monkeypatch):
    for room in ("evals", "features", "functional"):
        shutil.copytree(Path(saetools.__file__).parent / room, tmp_path / "saetools" / room)
    monkeypatch.setattr(saetools, "__file__", str(tmp_path / "saetools" / "__init__.py"))

    def statuses():
        sources_fingerprint.cache_clear()  # as in another process
        outcomes = []
        run_evaluations(host_subject(), small(), tmp_path, outcomes.append)
        return {o.status for o in outcomes}

    assert [statuses(), statuses()] == [{"computed"}, {"kept"}]
    for formula in ("evals/sparsity.py", "functional/statistics.py"):
        path = tmp_path / "saetools" / formula
        path.write_text(path.read_text() + "\n")
        assert [statuses(), statuses()] == [{"computed"}, {"kept"}]
    sources_fingerprint.cache_clear()


def test_a_changed_formula_in_a_file_of_ones_own_is_computed_again(tmp_path, monkeypatch):
    path, subject = tmp_path / "mine.py", host_subject()

    def statuses():
        sources_fingerprint.cache_clear()  # as in another process
        outcomes = []
        run_evaluations(subject, [sys.modules["mine"].Mine()], tmp_path, outcomes.append)
        return [o.status for o in outcomes]

    path.write_text(
        "from saetools.evals.base import Evaluation\n\n\n"
        "class Mine(Evaluation):\n    name = 'mine'\n\n    def run(self, subject, tick=None):\n"
        "        return [self.record('mine', 1.0, 'ratio', 1)]\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setitem(sys.modules, "mine", importlib.import_module("mine"))
    assert [statuses(), statuses()] == [["computed"], ["kept"]]
    path.write_text(path.read_text().replace("1.0", "2.0"))
    assert [statuses(), statuses()] == [["computed"], ["kept"]]
    monkeypatch.delattr(sys.modules["mine"], "__file__")  # as what is defined in a notebook
    assert [statuses(), statuses()] == [["computed"], ["computed"]]
    sources_fingerprint.cache_clear()


def test_only_what_compares_is_computed_again_beside_others(tmp_path):
    subject, evaluations = host_subject(), [make_evaluation(name) for name in ("sparsity", "stability")]

    def statuses(**others):
        outcomes = []
        run_evaluations(replace(subject, others=others), evaluations, tmp_path, outcomes.append)
        return {o.name: o.status for o in outcomes}

    other, third = (TopK(TopK.configure(n_features=24, k=3), D_MODEL, seed=seed) for seed in (1, 2))
    assert statuses() == {"sparsity": "computed", "stability": "skipped"}
    assert statuses(other=other) == {"sparsity": "kept", "stability": "computed"}
    assert statuses(other=other) == {"sparsity": "kept", "stability": "kept"}
    assert statuses(other=third) == {"sparsity": "kept", "stability": "computed"}


def test_text_without_predictions_skips_what_needs_them(tmp_path):
    subject = host_subject(corpus=Listed(["a", "b", "c", "d", "e"] * 3))
    names = ("loss_recovered", "steering", "sparsity")
    found = by_name(run_evaluations(subject, [make_evaluation(name) for name in names], tmp_path))
    for name in names[:2]:
        assert found[name].note == "skipped: no held-out window has two tokens in a row to predict from; add text"
    assert found["l0_mean"].value == 3


def strict(path):
    def refuse(name):
        raise AssertionError(f"{name} in {path}")

    return json.loads(path.read_text(), parse_constant=refuse)


@pytest.mark.parametrize("spoiled", ["no atoms", "an atom of nan", "a row of nan"])
def test_what_is_not_finite_is_null_with_a_note(tmp_path, gaussian, spoiled):
    dictionary = TopK(TopK.configure(n_features=8, k=2), 5)
    if spoiled == "no atoms":
        dictionary = ITDA(ITDA.examples()[0], 5)
    if spoiled == "an atom of nan":
        dictionary.W_dec_FD.data[3] = torch.nan
    subject = row_subject(dictionary, gaussian)
    if spoiled == "a row of nan":
        subject.heldout.x_ND[5] = torch.nan
    evaluations = [make_evaluation(name) for name in ("reconstruction", "sparsity", "geometry")]
    run_evaluations(subject, evaluations, tmp_path)
    found = strict(tmp_path / "eval.json")
    assert all(record["note"] for record in found if record["value"] is None)
    assert any(record["value"] is None for record in found)
    for path in (tmp_path / "evaluations").iterdir():
        strict(path)


def test_rows_without_documents_have_intervals_too(tmp_path):
    law = PlantedConfig(d_model=5, n_features=8, mean_active=2)
    np.save(tmp_path / "rows.npy", Planted(law).block(0, 8000).x_ND.numpy())
    record = calibrate(RowsSource(tmp_path / "rows.npy"), 1000)
    file = RowsSource(tmp_path / "rows.npy", tmp_path / "rows.npy", "heldout", calibration=record)
    for source in (PlantedSource(Planted(law), "heldout", 8, 1000), file):
        where = torch.cat([rows.where_N2 for _, rows in source.batches()])
        assert where[:, 0].unique().tolist() == list(range(8)) and where[:, 1].equal(torch.arange(8000))
        subject = Subject(TopK(TopK.configure(n_features=8, k=2), 5), source.spec, source)
        found = by_name(run_evaluations(subject, [make_evaluation("reconstruction")]))["fvu"]
        assert found.spread[0] < found.value < found.spread[1]


def test_a_record_is_finite():
    record = make_evaluation("sparsity").record
    found = record("x", 1.0, "ratio", 2, spread=(0.0, math.inf), series={"a": [1.0, math.nan], "b": [2.0]}, note="why")
    assert (found.value, found.spread, found.series) == (1.0, None, {"a": [1.0, None], "b": [2.0]})
    assert found.note == "why; an end of its interval is not finite; a is not finite everywhere"
    assert record("x", math.inf, "ratio", 2).note == "undefined on these data: it came to inf"
    assert record("x", None, "ratio", 2).note == "undefined on these data"
    assert record("x", None, "ratio", 2, note="why").note == "why"


def test_what_cannot_be_run_is_said(tmp_path, gaussian):
    subject = row_subject(TopK(TopK.configure(n_features=8, k=2), 5), gaussian)
    records = by_name(run_evaluations(subject, small(), tmp_path))
    assert records["loss_recovered"].value is None
    assert "skipped" in records["loss_recovered"].note and "host" in records["loss_recovered"].note
    assert "fvu" in records
    assert any(e["name"] == "loss_recovered" for e in json.loads((tmp_path / "eval.json").read_text()))


def test_names_in_the_config():
    every = default_evaluations(EvaluationConfig(run=("all",)))
    assert {evaluation.name for evaluation in every} == set(available_evaluations())
    assert [e.name for e in default_evaluations(EvaluationConfig(run=("geometry",)))] == ["geometry"]
    with pytest.raises(ConfigError, match="geometry"):
        default_evaluations(EvaluationConfig(run=("geometri",)))


def test_n_tokens_bounds_what_every_evaluation_reads():
    for n_tokens in (3000, 50_000, 1_000_000):
        made = {
            e.name: e.config.model_dump()
            for e in default_evaluations(EvaluationConfig(run=("all",), n_tokens=n_tokens, n_ce_tokens=9))
        }
        assert made["loss_recovered"].pop("n_tokens") == 9
        read = {(name, f): v for name, config in made.items() for f, v in config.items() if f.endswith("tokens")}
        assert len({name for name, _ in read}) == len(made) - 1, "all but stability, which reads none"
        for field in [("sparsity", "n_tokens"), ("loss_recovered", "n_mean_tokens"), ("steering", "n_read_tokens")]:
            assert read[field] == n_tokens
        assert read["interpretability", "n_tokens"] == min(100_000, n_tokens)
        assert max(read.values()) == n_tokens


def test_any_field_of_an_evaluation_is_set_in_the_config():
    def made(settings, **fields):
        values = {"run": {"dir": "unused"}, "dictionary": {"kind": "topk", "n_features": 8, "k": 2}}
        overrides = [f"--evaluation.{key}={value}" for key, value in {"settings": settings, **fields}.items()]
        section = parse_run(values, overrides, dictionary_configs()).evaluation
        return {e.name: e.config for e in default_evaluations(section)}

    found = made(
        "{steering: {doses: [0.2, 0.4]}, loss_recovered: {error_term: 0.5}, probing: {n_tokens: 7}}",
        run="[steering, loss_recovered, probing]",
        n_tokens=3000,
    )
    assert found["steering"].doses == (0.2, 0.4) and found["steering"].n_read_tokens == 3000
    assert found["loss_recovered"].error_term == 0.5 and found["probing"].n_tokens == 7
    for settings, message in (
        ("{sparsty: {}}", 'unknown evaluation .sparsty.. Did you mean "sparsity"'),
        ("{sparsity: {dens_above: 0.1}}", 'unknown key evaluation.settings.sparsity.dens_above. Did you mean "dense_'),
        ("{sparsity: {dense_above: 2}}", "evaluation.settings.sparsity.dense_above: .*less than 1; got 2"),
        ("{steering: {doses: [0.2]}}", "has steering, which evaluation.run does not name .reconstruction, sparsity"),
    ):
        with pytest.raises(ConfigError, match=message):
            made(settings)
    for settings in ("{steering: {kl_limit: .inf}}", "{disentangling: {n_ablated: []}}", "{probing: {ks: [0]}}"):
        with pytest.raises(ConfigError, match=r"evaluation\.settings"):
            made(settings, run="[all]")


def test_every_evaluation_runs_or_says_why_not():
    outcomes = []
    run_evaluations(host_subject(), default_evaluations(EvaluationConfig(run=("all",))), on_done=outcomes.append)
    assert {o.name for o in outcomes} == set(available_evaluations())
    assert {o.name for o in outcomes if o.status == "computed"} >= {"geometry", "sparsity", "steering"}
    assert all("skipped: " in o.records[0].note for o in outcomes if o.status == "skipped")


def test_registry():
    assert {"reconstruction", "sparsity", "loss_recovered"} <= set(available_evaluations())
    for name, kind in available_evaluations().items():
        assert kind.cost and kind.name == name and kind.__module__.startswith("saetools.evals.")
    with pytest.raises(ConfigError, match='Did you mean "sparsity"'):
        make_evaluation("sparsty")
    with pytest.raises(ValueError, match="n_token"):
        make_evaluation("sparsity", n_token=3)


def test_the_table_is_text_in_a_notebook_too(monkeypatch, capsys):
    """rich shows what it prints there instead of writing it to the file that it was given."""
    monkeypatch.setattr("rich.console._is_jupyter", lambda: True)
    assert "fvu" in table([EvalRecord(name="fvu", value=0.5, unit="fraction", n=7)]) and not capsys.readouterr().out
