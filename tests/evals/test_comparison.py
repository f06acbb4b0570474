"""Tables of one and of several dictionaries."""

import csv
import io

import pytest

from saetools.evals.comparison import comparison_csv, comparison_table
from saetools.evals.table import number, table
from saetools.records import EvalRecord


def record(name, value, **fields):
    return EvalRecord(name=name, value=value, unit="fraction", n=10, **fields)


NAMED = {
    "a": [record("fvu", 0.25, spread=(0.2, 0.3)), record("cost_x", 3.0), record("probe_top1", None)],
    "long-name-of-b": [record("fvu", 0.5), record("dead_fraction", 0.0)],
}


def test_every_figure_of_any_dictionary():
    lines = comparison_table(NAMED).splitlines()
    assert lines[1].split() == ["figure", "a", "long-name-of-b", "unit"]
    assert lines[2].split() == ["fvu", "0.2500", "0.5000", "fraction"]
    assert lines[3].split() == ["dead_fraction", "-", "0.0000", "fraction"]
    assert len(lines) == 4


@pytest.mark.parametrize("name", ["a_figure_of_an_evaluation_of_ones_own_" * 2, "\u65e5" * 40])
def test_long_names_cost_no_column(name):
    """Of a name of 60 letters the table had no room for the unit, and `n` was cut."""
    for text in (
        table([record(name, -1234567.0, spread=(-2e30, 1e30), n_unit="parent-child pairs")]),
        comparison_table({f"{i}/{name}": [record(name, 0.5)] for i in range(3)}),
    ):
        assert name in text and "fraction" in text and "\u2026" not in text
        assert "parent-child pairs" in text or f"2/{name}" in text


@pytest.mark.parametrize("changed", [{"heldout": "other text"}, {"config": {"n_tokens": 5}}])
def test_figures_judged_otherwise_are_marked(changed):
    alike = {"heldout": "text", "config": {"n_tokens": 9}}
    named = {"a": [record("fvu", 0.2, **alike)], "b": [record("fvu", 0.3, **alike | changed), record("l0", 3, **alike)]}
    lines = comparison_table(named).splitlines()
    assert lines[2].split()[0] == "fvu*" and lines[3].split()[0] == "l0"
    assert "same held-out rows" in lines[-1]
    assert "*" not in comparison_table({"a": named["a"], "b": [record("fvu", 0.3, **alike)]})


def test_csv_keeps_everything():
    rows = list(csv.DictReader(io.StringIO(comparison_csv(NAMED))))
    assert len(rows) == 5
    assert rows[0] == {
        "dictionary": "a",
        "figure": "fvu",
        "value": "0.25",
        "low": "0.2",
        "high": "0.3",
        "unit": "fraction",
        "n": "10",
        "n_unit": "tokens",
    }
    assert rows[2]["value"] == ""


def test_one_dictionary():
    lines = table([record("fvu", 0.25, spread=(0.2, 0.3)), record("x", None, note="skipped: why")]).splitlines()
    assert lines[2].split() == ["fvu", "0.2500", "0.2000", "..", "0.3000", "fraction", "10", "tokens"]
    assert lines[3].split()[:2] == ["x", "-"] and lines[-1] == "x: skipped: why"


def test_what_is_noted_of_many_figures_is_said_once():
    notes = {"a": "few documents", "b": "why", "c": "few documents", "d": None}
    lines = table([record(name, 0.5, note=note) for name, note in notes.items()]).splitlines()
    assert lines[-3:] == ["", "a, c: few documents", "b: why"]


def test_numbers():
    assert [number(v) for v in (0.0, 0.12345, -2.0, 1e-5, 12345.678, 5e6)] == [
        "0.0000",
        "0.1235",
        "-2.0000",
        "1.000e-05",
        "12,345.7",
        "5.000e+06",
    ]
