"""scripts/bench.py: what a line of it holds, the rows that it keeps, and its silence where a kernel is wrong."""

import csv
import json
import sys
from pathlib import Path

import pytest

SCRIPTS = Path(__file__).parents[1] / "scripts"
SMALL = [
    "--d",
    "16",
    "--features",
    "96",
    "--k",
    "4",
    "--batch",
    "40",
    "--threads",
    "1",
    "--repeats",
    "2",
    "--allocator",
    "default",
]
FIELDS = {"ms_min", "ms_median", "gemm_ms_min", "ratio_to_gemm", "tokens_per_s", "peak_rss_mb", "provider"}
COLUMNS = [
    "op",
    "provider",
    "config",
    "metric",
    "unit",
    "min",
    "median",
    "device",
    "threads",
    "versions",
    "commit",
    "date",
]


@pytest.fixture
def bench(monkeypatch: pytest.MonkeyPatch):  # type: ignore[no-untyped-def]
    monkeypatch.syspath_prepend(str(SCRIPTS))
    import bench

    def run(*arguments: str) -> None:
        monkeypatch.setattr(sys, "argv", ["bench.py", *arguments])
        bench.main()

    return run


def test_a_step_as_json_and_as_rows(
    bench, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    import bench_measure

    monkeypatch.setattr(bench_measure, "CSV_DIR", tmp_path / "bench")
    bench("step", *SMALL, "--providers", "fused fp32", "--dead", "0.25", "--json", "--record")
    lines = {line["provider"]: line for line in map(json.loads, capsys.readouterr().out.splitlines())}
    assert set(lines) == {"gemm fp32", "gemm bf16", "fused fp32"}
    step = lines["fused fp32"]
    assert set(step) >= FIELDS
    assert step["tokens_per_s"] == pytest.approx(40 / step["ms_min"] * 1e3, rel=0.01)
    assert step["ratio_to_gemm"] == pytest.approx(step["ms_min"] / step["gemm_ms_min"], rel=0.05)
    with (tmp_path / "bench" / "step.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert list(rows[0]) == COLUMNS
    assert {row["metric"] for row in rows if row["provider"] == "fused fp32"} == {
        "time",
        "ratio to gemm",
        "peak_rss_mb",
    }
    assert json.loads(rows[0]["config"])["allocator"] == "default"


def test_nothing_is_timed_where_a_kernel_is_wrong(
    bench, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from saetools.kernels.decode_loss import cases

    right = cases.decode_loss

    def wrong(*args: object, **kwargs: object) -> tuple[object, ...]:
        loss, pull, dots = right(*args, **kwargs)
        return loss, pull, dots * (1.0 if kwargs["impl"] == "reference" else 1.001)

    monkeypatch.setattr(cases, "decode_loss", wrong)
    with pytest.raises(SystemExit, match="gate is red, so nothing is timed: plain, auto: dots"):
        bench("step", *SMALL)
    assert capsys.readouterr().out == ""


def test_peers_need_their_interpreter(bench, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        bench("step", "--peers")
    assert "--peers-python" in capsys.readouterr().err


def test_the_cpu_clock_is_that_of_one_thread(bench) -> None:
    with pytest.raises(SystemExit, match="--threads 1"):
        bench("step", "--clock", "cpu", "--threads", "2")


def test_slopes() -> None:
    sys.path.insert(0, str(SCRIPTS))
    try:
        from bench_steps import slope
    finally:
        sys.path.remove(str(SCRIPTS))
    assert slope([(1.0, 5.0), (2.0, 7.0), (4.0, 11.0)]) == pytest.approx(2.0)
