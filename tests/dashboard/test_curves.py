"""Training curves equal the lines of metrics.jsonl, also while it is being written."""

import json
from pathlib import Path

import pytest

from saetools.dashboard.curves import MAX_POINTS, read_metrics, training_curves
from saetools.errors import FormatError


def lines(n: int) -> list[dict]:
    return [
        {"step": i, "n_tokens": 100 * (i + 1), "loss": 2.0 / (i + 1), "l0": 8.0, "grad_norm": "nan"} for i in range(n)
    ]


def test_a_line_that_is_being_written_is_left_out(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    path.write_text("".join(json.dumps(line) + "\n" for line in lines(3)) + '{"step": 3, "lo')
    assert read_metrics(path) == lines(3)
    path.write_text('{"step": 0}\nbroken\n{"step": 2}\n')
    with pytest.raises(FormatError, match="not JSON"):
        read_metrics(path)
    with pytest.raises(FormatError, match="cannot read"):
        read_metrics(tmp_path / "none")
    path.write_bytes(b"\xff\xfe\n")
    with pytest.raises(FormatError, match="cannot read"):
        read_metrics(path)


def test_curves_hold_the_numbers() -> None:
    panels = training_curves(lines(5))
    assert [panel.columns[1] for panel in panels] == ["Loss", "L0, features per token", "Gradient norm"]
    assert panels[0].rows == tuple((100 * (i + 1), 2.0 / (i + 1)) for i in range(5))
    assert panels[0].figure.layout.yaxis.type == "log" and panels[1].figure.layout.yaxis.type == "linear"
    assert panels[2].rows == (), "what is not a number is not drawn"
    assert training_curves([]) == []


@pytest.mark.parametrize(
    ("values", "axis"), [((0.0433, 0.0198), "linear"), ((9.99, 2.01), "linear"), ((10.05, 2.01), "log")]
)
def test_an_axis_has_at_least_two_ticks(values: tuple[float, float], axis: str) -> None:
    (panel,) = training_curves([{"n_tokens": n, "grad_norm": value} for n, value in enumerate(values)])
    assert panel.layout["yaxis"]["type"] == axis
    ticks = [step * 10.0**power for power in range(-3, 3) for step in (1, 2, 5)]
    assert axis == "linear" or sum(min(values) <= tick <= max(values) for tick in ticks) >= 2


def test_long_runs_are_thinned_but_keep_their_end() -> None:
    (loss, *_) = training_curves(lines(3 * MAX_POINTS + 1))
    assert len(loss.rows) <= MAX_POINTS + 1 and loss.rows[-1][0] == 100 * (3 * MAX_POINTS + 1)
