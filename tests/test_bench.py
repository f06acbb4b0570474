"""scripts/bench.py: what a line of it holds, the rows that it keeps, and its silence where a kernel is wrong."""

import argparse
import csv
import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
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
    with pytest.raises(SystemExit):
        bench("step", "--peers", "--peers-python", "no/such/python")
    assert "no/such/python" in capsys.readouterr().err


@pytest.mark.parametrize(("own", "dtype"), [("fused fp32", "float32"), ("fused bf16-screen", "bfloat16")])
def test_a_turn_of_our_own_is_set_against_the_product_of_its_dtype(
    bench, own: str, dtype: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    import bench_steps

    found = []
    monkeypatch.setattr(bench_steps, "encode_matmul", lambda a, dtype: found.append(str(dtype)) or (lambda n: None))
    bench("child", *SMALL, "--own", own)
    assert found == [f"torch.{dtype}"]


def test_a_library_that_ends_without_a_word_is_left_out(
    bench, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    from bench_turns import run_peer

    killed = tmp_path / "python"
    killed.write_text("#!/bin/sh\nkill -9 $$\n")
    killed.chmod(0o755)
    assert run_peer(str(killed), "naive-dense", "step", []) is None
    assert "naive-dense does not run there: it ended with -9" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("--repeats", "0"), "--repeats"),
        (("--batch", "0"), "--batch"),
        (("--threads", "0"), "--threads"),
        (("--dead", "1.5"), "--dead"),
        (("--k", "200"), "k = 200 is more than n_features = 96"),
        (("--dictionary", "topl"), 'Did you mean "topk"'),
        (("--dictionary", "itda"), "'itda' are not trained by gradients"),
        (("--dictionary", "matching_pursuit", "--dead", "0.1"), "no encoder"),
        (("--dictionary", "matching_pursuit", "--providers", "fused fp32"), "there is no fused step"),
        (("--data", "nothing.npy"), "nothing.npy"),
    ],
)
def test_what_cannot_be_timed_is_refused_in_one_sentence(
    bench, arguments: tuple[str, ...], said: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys.modules["bench"], "gate", lambda a: None)
    with pytest.raises(SystemExit) as ended:
        bench("step", *SMALL, "--no-rss", *arguments)
    shown = capsys.readouterr()
    assert said in f"{ended.value.code} {shown.err}" and shown.out == ""


@pytest.mark.parametrize("shape", [(5000, 7), (4100, 16), (16,)])
def test_rows_that_do_not_do_are_refused(bench, shape: tuple[int, ...], tmp_path: Path) -> None:
    np.save(tmp_path / "x.npy", np.zeros(shape, np.float32))
    with pytest.raises(SystemExit, match="more than 4136 rows of width 16"):
        bench("quality", *SMALL, "--steps", "3", "--data", str(tmp_path / "x.npy"))


def test_a_kind_without_a_fused_step_is_timed_by_autograd(
    bench, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    gated = []
    import bench_ops

    monkeypatch.setattr(bench_ops, "gate_mp", lambda: gated.append("mp"))
    bench("step", *SMALL, "--no-rss", "--dictionary", "matching_pursuit", "--json")
    found = [json.loads(line)["provider"] for line in capsys.readouterr().out.splitlines()]
    assert found == ["gemm fp32", "gemm bf16", "plain autograd"] and gated == ["mp"]


@pytest.mark.parametrize("impl", ["auto", "torch"])
def test_the_gate_of_a_step_knows_every_selection(bench, impl: str, monkeypatch: pytest.MonkeyPatch) -> None:
    from saetools.kernels.per_feature_topm import cases

    right = cases.per_feature_topm

    def wrong(*args: Any, **kwargs: Any) -> Any:
        return right(*args, **kwargs) if kwargs["impl"] != impl else right(args[0].flip(0), *args[1:], **kwargs)

    monkeypatch.setattr(cases, "per_feature_topm", wrong)
    with pytest.raises(SystemExit, match="gate is red, so nothing is timed"):
        bench("step", *SMALL)


def test_the_dead_of_a_step_have_codes_and_lie_apart(bench) -> None:
    """With biases that no row reaches, AuxK would be timed on codes of zeros."""
    import bench_steps

    parts = {"dictionary": "topk", "features": 96, "k": 4, "d": 16, "batch": 40, "data": None}
    runner = bench_steps.StepRunner(argparse.Namespace(**parts, clip_norm=1.0, dead=0.25, lr=3e-4), "fused fp32")
    for number in range(3):
        runner(number)
    dead = (runner.state.tokens_since_fired_F > 10**8).nonzero()[:, 0]
    assert len(dead) == 24 and int(dead.diff().min()) > 1
    pre = runner.few[0] @ runner.dictionary.W_enc_FD[dead].T
    assert 0.3 < float((pre > 0).float().mean()) < 0.7


def test_a_pursuit_is_set_against_a_product_of_as_many_rows(bench, monkeypatch: pytest.MonkeyPatch) -> None:
    import bench_ops

    rows = []

    def once(variants: Any, *rest: Any, **options: Any) -> dict[str, list[float]]:
        rows.append(len(variants["gemm"](0)))
        return {name: [1.0] for name in variants}

    monkeypatch.setattr(bench_ops, "interleaved", once)
    monkeypatch.setattr(bench_ops, "gate_mp", lambda: None)
    bench("mp", *SMALL, "--batch", "300")
    assert rows == [300, 256]


def test_another_library_takes_as_many_steps_as_it_is_told(
    bench, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    import bench_peers

    taken: list[int] = []
    made = (lambda number, x: taken.append(number)), (lambda x: x)
    monkeypatch.setitem(bench_peers.MAKE["step"], "naive-dense", lambda a: made)
    small = [f"--{name}={n}" for name, n in {"d": 8, "features": 16, "batch": 4, "k": 2, "threads": 1}.items()]
    monkeypatch.setattr(sys, "argv", ["bench_peers.py", "naive-dense", "--steps", "5", "--allocator=default", *small])
    bench_peers.main()
    assert taken == [0, 1, 2, 3, 4] and len(json.loads(capsys.readouterr().out)["ms"]) == 3


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
