"""The whole way on a tiny host: harvest, train live and from the store, evaluate, page; and what does not belong."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import pytest
import torch

import saetools
from saetools.cli import main
from saetools.pipeline import config_of, local_source, read_config, run_directory
from tests.lm.second_device import DEVICE as SECOND
from tests.lm.second_device import SecondDevice

pytestmark = pytest.mark.filterwarnings("ignore")


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("corpus")
    for i in range(60):
        words = " ".join(f"def f{(i * 31 + j * 7) % 97}(x): return x + {j % 13}" for j in range(60))
        (directory / f"document{i:02}.txt").write_text(words)
    return directory


@pytest.fixture(scope="module")
def common(tiny_hosts: dict[str, Path], corpus: Path) -> list[str]:
    values = {
        "host.name": tiny_hosts["llama"],
        "corpus.name": corpus,
        "corpus.context_tokens": 32,
        "activations.point": "blocks.0.hook_out",
        "activations.host_batch": 8,
        "activations.ring_rows": 2048,
        "activations.calibration_rows": 1024,
        "dictionary.n_features": 64,
        "dictionary.k": 4,
        "training.n_tokens": 6000,
        "training.batch_rows": 512,
        "evaluation.n_tokens": 1500,
        "evaluation.n_ce_tokens": 800,
        "evaluation.n_features": 5,
        "logging.progress": "false",
        "run.threads": 1,
    }
    return [part for name, value in values.items() for part in (f"--{name}", str(value))]


@pytest.fixture(scope="module")
def live(common: list[str], tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("live") / "run"
    assert main(["train", "quickstart", *common, "--run.dir", str(out)]) == 0
    return out


@pytest.fixture(scope="module")
def store(common: list[str], tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("store")
    assert main(["harvest", "quickstart", "--out", str(out), *common, "--run.dir", "unused"]) == 0
    (path,) = out.iterdir()
    return path


@pytest.mark.slow
def test_a_host_on_a_device_without_float64(
    common: list[str], corpus: Path, live: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As Apple's GPUs are: the host runs there, all else on the CPU, and the figures are the same."""
    run, evaluations = tmp_path / "run", "--evaluation.run=[all]"
    with SecondDevice(), monkeypatch.context() as patch:
        for module in ("environment", "opening"):
            patch.setattr(f"saetools.training.{module}.resolve_device", lambda name: SECOND)
        assert main(["train", "quickstart", *common, "--run.dir", str(run)]) == 0
        assert main(["evaluate", str(run), evaluations]) == 0
        assert main(["dashboard", str(run), "--export", str(tmp_path / "page.html"), "--loss-effects", "4"]) == 0
        assert main(["encode", str(run), "--corpus", str(corpus), "--out", str(tmp_path / "codes")]) == 0
    weights = [(path / "dictionary" / "model.safetensors").read_bytes() for path in (run, live)]
    assert weights[0] == weights[1]
    assert main(["evaluate", str(live), evaluations, "--fresh"]) == 0
    there, here = (
        {r["name"]: r["value"] for r in json.loads((path / "eval.json").read_text()) if "cost_" not in r["name"]}
        for path in (run, live)
    )
    assert there == here and "ce_recovered_zero" in here


def cached(common: list[str], store: Path, out: Path) -> list[str]:
    changes = ["--activations.source", "cached", "--activations.path", str(store), "--run.dir", str(out)]
    return ["train", "quickstart", *common, *changes]


def test_a_run_on_the_store_equals_the_live_run(common: list[str], live: Path, store: Path, tmp_path: Path) -> None:
    older = ["--activations.point", "blocks.0.hook_resid_post"]  # another name of the point that was harvested
    assert main([*cached(common, store, tmp_path / "run"), *older]) == 0
    for name in ("dictionary/model.safetensors", "metrics.jsonl"):
        assert (tmp_path / "run" / name).read_bytes() == (live / name).read_bytes()


def test_planted_rows_are_trained_on_and_judged_by_their_truth(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Without a host or a file; a run of another seed is judged by the same atoms."""
    law = {"d_model": 16, "n_features": 24, "mean_active": 1.5, "zipf_exponent": 0}
    settings = {f"planted.{name}": value for name, value in law.items()} | {
        "activations.source": "planted",
        "activations.ring_rows": 4096,
        "dictionary.n_features": 48,
        "dictionary.k": 2,
        "training.n_tokens": 60_000,
        "training.batch_rows": 256,
        "training.lr": 0.01,
        "evaluation.run": "[ground_truth, reconstruction, loss_recovered]",
        "logging.progress": "false",
        "run.threads": 1,
    }
    values = [part for name, value in settings.items() for part in (f"--{name}", str(value))]
    assert main(["train", "topk", *values, "--run.dir", str(tmp_path / "run"), "--dry-run"]) == 0
    found = {}
    for seed in (0, 1):
        run = tmp_path / f"seed{seed}"
        assert main(["train", "topk", *values, "--run.dir", str(run), "--run.seed", str(seed)]) == 0
        assert main(["evaluate", str(run)]) == 0
        records = json.loads((run / "eval.json").read_text())
        found[seed] = {record["name"]: record["value"] for record in records}
        assert found[seed]["recovered_fraction"] > 0.8 and found[seed]["fvu"] < 0.2
        assert found[seed]["loss_recovered"] is None
    assert found[0]["fvu"] != found[1]["fvu"] and found[0]["matched_cosine"] != found[1]["matched_cosine"]
    capsys.readouterr()
    assert main(["harvest", "topk", *values, "--run.dir", "unused", "--out", str(tmp_path / "store")]) == 2
    assert "rows that no host makes" in capsys.readouterr().err and not (tmp_path / "store").exists()
    configs = []
    for seed in (0, 1):
        printed = ["train", "topk", *values, "--planted.seed", str(seed), "--run.dir", str(tmp_path / f"law{seed}")]
        assert main([*printed, "--print-config"]) == 0
        configs.append(tmp_path / f"law{seed}.yaml")
        configs[-1].write_text(capsys.readouterr().out)
    assert main(["train", *map(str, configs)]) == 2
    assert "differ in planted.seed" in capsys.readouterr().err
    refused = ["--activations.dtype", "bfloat16", "--run.dir", str(tmp_path / "refused")]
    assert main(["train", "topk", *values, *refused]) == 2
    assert "planted rows are float32" in capsys.readouterr().err


def test_gradients_train_a_run_live_and_from_a_store_alike(common: list[str], tmp_path: Path) -> None:
    settings = [*common, "--training.n_tokens", "2000"]
    assert main(["train", "gradient", *settings, "--run.dir", str(tmp_path / "live")]) == 0
    assert main(["harvest", "gradient", "--out", str(tmp_path / "store"), *settings, "--run.dir", "unused"]) == 0
    (path,) = (tmp_path / "store").iterdir()
    changes = ["--activations.source", "cached", "--activations.path", str(path), "--run.dir", str(tmp_path / "cached")]
    assert main(["train", "gradient", *settings, *changes]) == 0
    first, second = (tmp_path / run / "dictionary" / "model.safetensors" for run in ("live", "cached"))
    assert first.read_bytes() == second.read_bytes()
    dictionary = saetools.load(tmp_path / "cached")
    assert dictionary.gradient_share == 1
    assert dictionary.gradient_rms == dictionary.calibration.gradient_rms > 0
    assert main(["evaluate", str(tmp_path / "cached")]) == 0


def test_evaluation_and_page(live: Path) -> None:
    assert main(["evaluate", str(live)]) == 0
    records = {record["name"]: record["value"] for record in json.loads((live / "eval.json").read_text())}
    expected = {"fvu", "l0_mean", "dead_fraction", "ce_recovered_zero", "ce_recovered_mean", "kl_recovered_zero"}
    assert expected <= set(records) and 0 < records["fvu"] < 1 and records["l0_mean"] <= 4
    assert main(["dashboard", str(live), "--export", str(live / "page.html"), "--features", "3"]) == 0
    assert "document" in (live / "page.html").read_text()
    assert saetools.load(live).spec.point == "blocks.0.hook_out"


@pytest.mark.slow
def test_an_evaluation_that_was_killed_goes_on_with_what_is_missing(live: Path, tmp_path: Path) -> None:
    """kill -9 as soon as one is on disk: what was finished is left as it was, and the end is the same."""
    runs = [Path(shutil.copytree(live, tmp_path / name)) for name in ("killed", "straight")]
    arguments = ["--evaluation.run=[geometry, loss_recovered, steering]", "--fresh"]
    for run in runs:
        shutil.rmtree(run / "evaluations", ignore_errors=True)
        (run / "eval.json").unlink(missing_ok=True)
    program = subprocess.Popen([sys.executable, "-m", "saetools.cli", "evaluate", str(runs[0]), *arguments])
    while not (done := list(runs[0].glob("evaluations/*.json"))) and program.poll() is None:
        time.sleep(0.01)
    program.kill()
    program.wait()
    written = {path: path.stat().st_mtime_ns for path in done}
    assert written and not (runs[0] / "eval.json").exists()
    for run in runs:
        assert main(["evaluate", str(run), arguments[0]]) == 0
    assert written == {path: path.stat().st_mtime_ns for path in written}, "it was not computed again"
    killed, straight = (json.loads((run / "eval.json").read_text()) for run in runs)
    values = [
        [(r["name"], r["value"]) for r in found if not r["name"].startswith("cost_")] for found in (killed, straight)
    ]
    assert values[0] == values[1] and len(values[0]) > 30


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        (["--training.n_tokens", "9000"], "harvest with --rows"),
        (["--host.name", "pycode"], "the run has 'pycode'"),
        (["--activations.point", "blocks.1.hook_out"], "blocks.0.hook_out"),
        (["--activations.point", "blocks.1.hook_out", "--training.n_tokens", "9000"], "the run has 'blocks.1"),
    ],
)
def test_a_store_that_does_not_fit(
    common: list[str],
    store: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    changes: list[str],
    expected: str,
) -> None:
    assert main([*cached(common, store, tmp_path / "run"), *changes]) == 2
    assert expected in capsys.readouterr().err and not (tmp_path / "run" / "dictionary").exists()


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        (["--activations.point", "blocks.0.hook_oot"], "blocks.0.hook_out"),
        (["--host.name", "no-such-organisation/no-such-model"], "no-such-model"),
        (["--corpus.name", "/nowhere/at/all.json"], "/nowhere/at/all.json"),
    ],
)
def test_bad_names(
    common: list[str],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    changes: list[str],
    expected: str,
) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    assert main(["train", "quickstart", *common, "--run.dir", str(tmp_path / "run"), *changes]) == 2
    error = capsys.readouterr().err
    assert expected in error and "Traceback" not in error and not (tmp_path / "run" / "config.yaml").exists()


def test_a_dictionary_of_another_point_is_refused(
    live: Path, common: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["evaluate", str(live), "--activations.point", "blocks.1.hook_out"]) == 2
    assert "does not fit these vectors: point is 'blocks.0.hook_out'" in capsys.readouterr().err


def test_from_within_a_directory(live: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(live / "dictionary")
    assert run_directory(Path()) == run_directory(Path("..")) == local_source("..") == live.resolve()
    assert config_of(".") == config_of(live / "dictionary")
    shutil.copytree(live / "dictionary", tmp_path / "bare")
    monkeypatch.chdir(tmp_path / "bare")
    assert run_directory(local_source(".")) == tmp_path.resolve() / "bare.results"


def test_an_empty_corpus(common: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "corpus").mkdir()
    changes = ["--corpus.name", str(tmp_path / "corpus"), "--run.dir", str(tmp_path / "run")]
    assert main(["train", "quickstart", *common, *changes]) == 2
    assert str(tmp_path / "corpus") in capsys.readouterr().err


# --- kill -9 from outside ------------------------------------------------------------------------------------

LONG = ("--training.n_tokens=40000", "--training.checkpoint_every_tokens=1500", "--logging.every_steps=1")


def kill_while_training(arguments: Sequence[str], run: Path) -> None:
    """Start the command line in a process of its own, and kill it once a few steps are logged."""
    child = subprocess.Popen(
        [sys.executable, "-m", "saetools.cli", *arguments],
        env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[1])},
        stderr=subprocess.PIPE,
    )
    metrics = run / "metrics.jsonl"
    while child.poll() is None and (not metrics.exists() or metrics.read_bytes().count(b"\n") < 7):
        time.sleep(0.01)
    child.send_signal(signal.SIGKILL)
    _, error = child.communicate()
    assert child.returncode == -signal.SIGKILL, error


@pytest.fixture(scope="module")
def straight(common: list[str], tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("straight") / "run"
    assert main(["train", "quickstart", *common, *LONG, "--run.dir", str(out)]) == 0
    return out


@pytest.mark.slow
@pytest.mark.parametrize("source", ["live", "prefetched", "cached"])
def test_killed_on_a_transformer_and_resumed(common: list[str], straight: Path, tmp_path: Path, source: str) -> None:
    arguments = ["train", "quickstart", *common, *LONG, "--run.dir", str(tmp_path / "run")]
    if source == "prefetched":
        arguments += ["--activations.prefetch", "2"]
    if source == "cached":
        harvest = ["harvest", "quickstart", *common, *LONG, "--out", str(tmp_path / "store"), "--run.dir", "unused"]
        assert main(harvest) == 0
        (store,) = (tmp_path / "store").iterdir()
        arguments += ["--activations.source", "cached", "--activations.path", str(store)]
    kill_while_training(arguments, tmp_path / "run")
    assert not (tmp_path / "run" / "dictionary").exists()
    assert main(arguments) == 0
    for name in ("dictionary/model.safetensors", "metrics.jsonl"):
        assert (tmp_path / "run" / name).read_bytes() == (straight / name).read_bytes()


def test_encode_a_corpus(live: Path, corpus: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Every token of every document, whatever its split, once; host and point are those of the dictionary."""
    from saetools.features.codes import read_codes, read_info

    out = tmp_path / "codes"
    assert main(["encode", str(live), "--corpus", str(corpus), "--out", str(out)]) == 0
    info = read_info(out)
    assert len(info.documents) == 60 and info.spec == saetools.load(live).spec
    places = {(int(d), int(p)) for part in read_codes(out) for d, p in part.where_N2}
    assert len(places) == info.n_rows
    assert {d for d, _ in places} == set(info.documents)
    n_by_document = Counter(d for d, _ in places)
    assert all(p < n_by_document[d] for d, p in places)
    assert 0 < info.n_values / info.n_rows <= 4
    other = ["encode", str(live), "--corpus", str(corpus), "--out", str(tmp_path / "other"), "--n-rows", "50"]
    elsewhere = [*other, "--activations.point", "blocks.1.hook_out"]
    assert main(elsewhere) == 2 and "point is 'blocks.0.hook_out' for it" in capsys.readouterr().err
    assert main([*elsewhere, "--elsewhere", "point"]) == 0 and read_info(tmp_path / "other").n_rows == 50


def test_a_tilde_is_the_home_directory(live: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(live.parent))
    source = f"~/{live.name}"
    assert local_source(source) == live and config_of(source) == read_config(source) == read_config(live)
    assert torch.equal(saetools.load(source).W_dec_FD, saetools.load(live).W_dec_FD)
    monkeypatch.setenv("HOME", str(tmp_path))
    assert main(["convert", str(live), "--out=~/converted"]) == 0 and (tmp_path / "converted").is_dir()


def test_jobs_of_a_host_do_not_ask_for_torchs_default_device(
    common: list[str], live: Path, corpus: Path, store: Path, tmp_path: Path
) -> None:
    """What lies on the device `meta` has no numbers."""
    encode = ["encode", str(live), "--corpus", str(corpus), "--n-rows", "50", "--out"]
    assert main([*encode, str(tmp_path / "expected")]) == 0
    torch.set_default_device("meta")
    try:
        assert main([*encode, str(tmp_path / "codes")]) == 0
        assert main(["harvest", "quickstart", "--out", str(tmp_path), *common, "--run.dir", "unused"]) == 0
    finally:
        torch.set_default_device(None)
    for one, two in ((tmp_path / "codes", tmp_path / "expected"), (tmp_path / store.name, store)):
        for path in two.rglob("*.*"):
            assert path.read_bytes() == (one / path.relative_to(two)).read_bytes(), path
