"""The command line end to end on a rows file, and what bad input gets: one paragraph, exit code 2, nothing written."""

import io
import json
import logging
import shutil
import subprocess
import sys
from collections.abc import Mapping
from importlib import metadata
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from tqdm import tqdm

import saetools
from saetools import encoding, exploring, pipeline
from saetools.cli import _AboveBars, main
from saetools.dictionaries import base as dictionaries
from saetools.dictionaries.code import SparseCode
from saetools.evals import base as evals
from saetools.records import EvalRecord

pytestmark = pytest.mark.filterwarnings("ignore")


@pytest.fixture(scope="module")
def rows(tmp_path_factory: pytest.TempPathFactory) -> Path:
    generator = torch.Generator().manual_seed(0)
    atoms = torch.nn.functional.normalize(torch.randn(64, 16, generator=generator), dim=1)
    codes = torch.rand(6000, 64, generator=generator) * (torch.rand(6000, 64, generator=generator) < 0.05)
    path = tmp_path_factory.mktemp("rows") / "x.safetensors"
    save_file({"x": codes @ atoms}, path)
    return path


def arguments(rows: Path, out: Path, **changes: str) -> list[str]:
    values = {
        "activations.source": "rows",
        "activations.path": str(rows),
        "activations.ring_rows": "2048",
        "activations.calibration_rows": "2000",
        "dictionary.n_features": "64",
        "dictionary.k": "4",
        "training.n_tokens": "20000",
        "training.batch_rows": "256",
        "logging.progress": "false",
        "run.threads": "1",
        "run.dir": str(out),
    } | {name.replace("__", "."): value for name, value in changes.items()}
    return ["train", "quickstart", *(part for name, value in values.items() for part in (f"--{name}", value))]


@pytest.fixture(scope="module")
def run(rows: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("run") / "out"
    assert main(arguments(rows, out)) == 0
    return out


def test_what_was_trained_can_be_loaded(run: Path, rows: Path) -> None:
    from safetensors.torch import load_file

    dictionary = saetools.load(run)
    x_ND = load_file(rows)["x"][-600:]
    fvu = ((x_ND - dictionary(x_ND)) ** 2).sum() / ((x_ND - x_ND.mean(0)) ** 2).sum()
    assert fvu < 0.6, "held-out rows are explained"
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert lines[-1]["step"] == 70
    assert {"config.yaml", "run.json", "calibration.json"} <= {path.name for path in run.iterdir()}


@pytest.mark.parametrize("config", sorted((Path(__file__).parents[1] / "configs").glob("*.yaml")), ids=lambda p: p.stem)
def test_every_config_trains_on_a_rows_file(config: Path, rows: Path, tmp_path: Path) -> None:
    values = {
        "activations.source": "rows",
        "activations.path": rows,
        "activations.ring_rows": 2048,
        "activations.calibration_rows": 1000,
        "dictionary.n_features": 64,
        "training.n_tokens": 1024,
        "training.batch_rows": 256,
        "logging.progress": "false",
        "run.threads": "1",
        "run.dir": tmp_path / "run",
    }
    if "k: " in config.read_text():
        values["dictionary.k"] = 4
    assert main(["train", str(config), *(part for name, v in values.items() for part in (f"--{name}", str(v)))]) == 0
    dictionary = saetools.load(tmp_path / "run")
    x_ND = torch.randn(5, 16)
    assert dictionary(x_ND).shape == (5, 16) and len(dictionary.encode(x_ND)) == 5
    atoms_FD = dictionary.directions()[dictionary.directions().any(dim=1)]
    torch.testing.assert_close(atoms_FD.norm(dim=1), torch.ones(len(atoms_FD)))
    if dictionary.kind == "gradient":
        assert dictionary.gradient_share == 0, "rows without gradients are recorded as such"


def test_a_finished_run_is_left_as_it_is(run: Path, rows: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = (run / "dictionary" / "model.safetensors").read_bytes()
    assert main(arguments(rows, run)) == 0
    assert f"dictionary: {run / 'dictionary'}   (20,224 tokens in 79 steps)" in capsys.readouterr().out
    assert (run / "dictionary" / "model.safetensors").read_bytes() == before


def test_a_run_that_was_moved_goes_on_where_it_is(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copytree(run, tmp_path / "moved")
    shutil.rmtree(tmp_path / "moved" / "dictionary")
    assert main(["train", str(tmp_path / "moved")]) == 0
    assert f"dictionary: {tmp_path / 'moved' / 'dictionary'} " in capsys.readouterr().out
    assert (tmp_path / "moved" / "dictionary").is_dir()


def test_evaluation_without_a_host_lists_what_it_skipped(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["evaluate", str(run)]) == 0
    assert "fvu" in capsys.readouterr().out
    records = {record["name"]: record for record in json.loads((run / "eval.json").read_text())}
    assert 0 < records["fvu"]["value"] < 0.6 and 0 < records["l0_mean"]["value"] <= 4
    assert any(record["value"] is None and "host" in (record["note"] or "") for record in records.values())


def test_a_kind_and_an_evaluation_in_a_file_of_ones_own(
    rows: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for room in (dictionaries, evals):
        monkeypatch.setattr(room, "_REGISTRY", dict(room._REGISTRY))

    class Mine(dictionaries.Dictionary, kind="mine"):
        class Config(dictionaries.Dictionary.Config):
            k: int = 4

        config: Config

        def encode_chunk(self, x_ND: torch.Tensor, fields: Mapping[str, torch.Tensor]) -> SparseCode:
            pre_NF = (x_ND - self.b_dec_D) @ self.W_enc_FD.T + self.b_enc_F
            values_NK, indices_NK = pre_NF.topk(self.config.k)
            return SparseCode(values_NK.relu(), indices_NK.int(), self.config.n_features)

        def loss_terms(self, x_ND, target_ND, fields, state, progress) -> dictionaries.Terms:
            code = self.encode_chunk(x_ND, fields)
            residual_ND = target_ND - self.decode(code)
            return dictionaries.Terms(code, residual_ND, {"reconstruction": residual_ND.square().mean()}, state)

    class Largest(evals.Evaluation, name="largest"):
        def run(self, subject: evals.Subject, tick: evals.Tick = evals.no_tick) -> list[EvalRecord]:
            _, batch = next(subject.heldout.batches(0))
            largest = float(subject.dictionary.encode(batch.x_ND).values.max())
            return [self.record("largest", largest, "code", len(batch), n_unit="rows")]

    out = tmp_path / "out"
    assert main(arguments(rows, out, dictionary__kind="mine", training__n_tokens="1000")) == 0
    assert main(["evaluate", str(out), "--evaluation.run", "[largest]"]) == 0
    assert isinstance(saetools.load(out), Mine)
    assert json.loads((out / "eval.json").read_text())[0]["value"] > 0


def test_jobs_take_paths_as_text(run: Path, rows: Path, tmp_path: Path) -> None:
    """Notebooks call them so."""
    run = Path(shutil.copytree(run, tmp_path / "run"))
    given = pipeline.read_config(run, ["--evaluation.n_tokens=2000", "--logging.progress=false"])
    assert "fvu" in pipeline.evaluate(str(run), given, others=[str(run)])
    assert "fvu" in pipeline.compare([str(run), str(run / "dictionary")], str(tmp_path / "beside"))
    assert pipeline.run_directory(str(run / "dictionary")) == run
    exploring.open_store(str(run), given).close()
    assert exploring.export(str(run), given, str(tmp_path / "page.html")) == tmp_path / "page.html"
    assert exploring.live_subject(str(run), given, compare=str(run)).comparison is not None
    found = encoding.encode_rows(run, str(rows), str(tmp_path / "codes"), n_rows=9)
    assert (found.n_rows, found.source) == (9, str(run))


@pytest.mark.parametrize("option", ["train X", "harvest X --out o", "harvest quickstart --out X", "evaluate X"])
def test_a_home_directory_that_is_not_there(option: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(option.replace("X", "~nobody-of-this-name/x").split()) == 2
    assert "there is no such home directory. Write the path in full." in capsys.readouterr().err


def test_jobs_do_not_ask_for_torchs_default_device(run: Path, rows: Path, tmp_path: Path) -> None:
    """What lies on the device `meta` has no numbers."""
    run = Path(shutil.copytree(run, tmp_path / "run"))
    given = pipeline.read_config(run, ["--evaluation.n_tokens=2000", "--logging.progress=false"])
    expected = pipeline.evaluate(run, given, fresh=True)
    torch.set_default_device("meta")
    try:
        found = pipeline.evaluate(run, given, fresh=True)
        exploring.export(run, given, tmp_path / "page.html")
        assert main(arguments(rows, tmp_path / "again")) == 0
    finally:
        torch.set_default_device(None)
    assert [line for line in found.splitlines() if "cost" not in line] == [
        line for line in expected.splitlines() if "cost" not in line
    ]
    weights = [run_ / "dictionary" / "model.safetensors" for run_ in (run, tmp_path / "again")]
    assert weights[0].read_bytes() == weights[1].read_bytes()


def test_several_dictionaries_are_compared(
    run: Path, rows: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    other, out = tmp_path / "other", tmp_path / "both"
    assert main(arguments(rows, other, run__seed="1")) == 0
    names = "--evaluation.run=[reconstruction, stability]"
    assert main(["evaluate", str(run), str(other), names, "--out", str(out)]) == 0
    shown = capsys.readouterr().out
    assert "comparison" in shown and "shared_features_chance" in shown
    assert "<title>Comparison of dictionaries</title>" in (out / "comparison.html").read_text()
    lines = (out / "comparison.csv").read_text().splitlines()
    assert sum(line.split(",")[1] == "fvu" for line in lines) == 2
    records = {record["name"]: record for record in json.loads((other / "eval.json").read_text())}
    assert list(records["matched_cosine"]["series"]) == [str(run)]


def test_several_dictionaries_on_one_stream_equal_each_alone(rows: Path, run: Path, tmp_path: Path) -> None:
    one, two = tmp_path / "one.yaml", tmp_path / "two.yaml"
    for path, k in ((one, 4), (two, 8)):
        assert main([*arguments(rows, tmp_path / path.stem, dictionary__k=str(k)), "--print-config"]) == 0
    from saetools.arguments import to_yaml
    from saetools.pipeline import read_config

    for path, k in ((one, 4), (two, 8)):
        overrides = arguments(rows, tmp_path / path.stem, dictionary__k=str(k))[2:]
        path.write_text(to_yaml(read_config("quickstart", overrides)))
    assert main(["train", str(one), str(two)]) == 0
    alone, beside = (d / "dictionary" / "model.safetensors" for d in (run, tmp_path / "one"))
    assert alone.read_bytes() == beside.read_bytes()


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"dictionary__k": "65"}, "k = 65 is more than n_features = 64"),
        ({"activations__ring_rows": "100"}, "ring"),
        ({"activations__path": "/nowhere/x.npy"}, "/nowhere/x.npy"),
        ({"training__lrr": "1"}, "training.lr"),
        ({"training__init_from": "/nowhere"}, "/nowhere does not exist"),
        ({"evaluation__run": "[reconstructoin]"}, 'Did you mean "reconstruction"?'),
        ({"run__device": "cuda"}, "run.device is cuda")
        if not torch.cuda.is_available()
        else ({"run__device": "x"}, "auto"),
        ({"dictionary__kind": "topkk"}, "topk"),
    ],
)
def test_bad_input(
    rows: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], changes: dict[str, str], expected: str
) -> None:
    out = tmp_path / "out"
    assert main(arguments(rows, out, **changes)) == 2
    error = capsys.readouterr().err
    assert expected in error and error.count("\n") <= 3 and "Traceback" not in error
    assert not (out / "dictionary").exists() and not (out / "config.yaml").exists(), "nothing half-written"


def test_a_config_that_is_not_there(capsys: pytest.CaptureFixture[str]) -> None:
    for name, expected in (
        ("quickstar", 'Did you mean "quickstart"? Shipped:'),
        ("a/b.yaml", "there is no config a/b"),
    ):
        assert main(["train", name]) == 2
        assert expected in capsys.readouterr().err
    assert main(["train"]) == 2
    assert "Name a config" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["train", "quickstart", "--lr", "3"], "Did you mean --training.lr?"),
        (["train", "quickstart", "--n-tokens=3"], "Did you mean --training.n_tokens or --evaluation.n_tokens?"),
        (["doctor", "x"], "unknown argument 'x'. `saetools doctor --help` lists"),
        (["doctor", "--run.device", "cpu"], "reads no config, so --run.device says nothing"),
        (["convert", "x", "--out", "y", "--dictionary.k=3"], "reads no config, so --dictionary.k=3 says nothing"),
        (["encode", "x", "--rows", "y.npy", "--out", "z", "--run.device", "cpu"], "no config, field or --elsewhere"),
    ],
)
def test_unknown_arguments(capsys: pytest.CaptureFixture[str], words: list[str], expected: str) -> None:
    assert main(words) == 2
    assert expected in capsys.readouterr().err


def test_a_message_stands_above_a_progress_bar(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stderr", io.StringIO())
    handler = _AboveBars()
    with tqdm(total=9, desc="bar", file=sys.stderr):
        handler.emit(logging.makeLogRecord({"msg": "said"}))
        before, after = sys.stderr.getvalue().split("said\n")
    assert before.endswith("\r") and "bar:" in before and "bar:" in after


def test_no_rows_to_harvest(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for n in ("0", "-5"):
        assert main(["harvest", "quickstart", "--out", str(tmp_path / "out"), f"--rows={n}"]) == 2
        assert f"{n} rows are to be stored" in capsys.readouterr().err and not (tmp_path / "out").exists()


def test_rows_that_are_not_finite(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    x_ND = np.random.default_rng(0).normal(size=(5000, 16)).astype(np.float32)
    x_ND[1234, 3] = np.nan
    np.save(tmp_path / "x.npy", x_ND)
    assert main(arguments(tmp_path / "x.npy", tmp_path / "out")) == 2
    assert "1234" in capsys.readouterr().err


def test_an_output_directory_that_cannot_be_written(
    rows: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "file").write_text("")
    assert main(arguments(rows, tmp_path / "file" / "out")) == 2
    assert str(tmp_path / "file") in capsys.readouterr().err


def test_dry_run_writes_nothing(rows: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([*arguments(rows, tmp_path / "out"), "--dry-run"]) == 0
    out = capsys.readouterr().out
    assert "20,000 in 79 steps" in out and "estimated time" in out and not (tmp_path / "out").exists()


def test_a_dry_run_refuses_what_the_run_refuses(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    values = ["--dictionary.kind=topk", "--dictionary.n_features=8", "--dictionary.k=2", f"--run.dir={tmp_path}"]
    assert main(["train", *values, "--activations.source=rows", "--dry-run"]) == 2
    assert "activations.source rows needs activations.path" in capsys.readouterr().err


def test_a_dry_run_looks_at_the_dictionary_that_the_run_starts_from(
    run: Path, rows: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    start = {"training__init_from": str(run)}
    assert main([*arguments(rows, tmp_path / "out", **start), "--dry-run"]) == 0
    assert "64 features of width" in capsys.readouterr().out
    for changes, expected in (
        (start | {"dictionary__n_features": "80"}, "its n_features is 64, and dictionary.n_features is 80"),
        ({"training__init_from": "/nowhere"}, "/nowhere does not exist"),
    ):
        assert main([*arguments(rows, tmp_path / "out", **changes), "--dry-run"]) == 2
        assert expected in capsys.readouterr().err
    assert main([*arguments(rows, run, training__init_from="/nowhere"), "--dry-run"]) == 0, "a run that has begun"
    assert not (tmp_path / "out").exists()


def test_fields_and_doctor(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["train", "--fields", "topk"]) == 0 and main(["doctor"]) == 0
    assert "--training.n_tokens" in capsys.readouterr().out


def test_convert(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    golden = Path(__file__).parent / "formats" / "golden"
    assert main(["convert", str(golden / "sparsify-f32"), "--out", str(tmp_path / "d")]) == 0
    assert "(sparsify) -> " in capsys.readouterr().out
    assert main(["convert", str(tmp_path / "d"), "--to", "saelens", "--out", str(tmp_path / "s")]) == 0
    assert (tmp_path / "s" / "sae_weights.safetensors").is_file()
    assert main(["convert", str(tmp_path / "d"), "--to", "saelens", "--out", str(tmp_path / "s")]) == 2
    assert "already exists" in capsys.readouterr().err
    pickled = ["convert", str(golden / "dl-topk-f32"), "--out", str(tmp_path / "p")]
    assert main(pickled) == 2 and "--from-pt" in capsys.readouterr().err
    assert main([*pickled, "--from-pt"]) == 0 and (tmp_path / "p" / "model.safetensors").is_file()


def test_encode_a_rows_file(run: Path, rows: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from safetensors.torch import load_file

    from saetools.features.codes import read_codes, read_info

    bad = tmp_path / "bad.safetensors"
    assert main(["encode", str(run), "--rows", str(rows), "--out", str(tmp_path / "c"), "--n-rows", "5000"]) == 0
    assert "5,000 rows" in capsys.readouterr().out
    info = read_info(tmp_path / "c")
    assert (info.source, info.rows, info.n_features) == (str(run), str(rows), 64)
    expected = saetools.load(run).encode(load_file(rows)["x"][:5000]).to_dense()
    assert torch.equal(torch.cat([part.code.to_dense() for part in read_codes(tmp_path / "c")]), expected)
    save_file({"x": torch.zeros(3, 5)}, tmp_path / "narrow.safetensors")
    assert main(["encode", str(run), "--rows", str(tmp_path / "narrow.safetensors"), "--out", str(tmp_path / "d")]) == 2
    assert "rows of width 5" in capsys.readouterr().err and not (tmp_path / "d").exists()
    save_file({"x": torch.ones(3, 16).index_put((torch.tensor(1), torch.tensor(2)), torch.tensor(torch.nan))}, bad)
    assert main(["encode", str(run), "--rows", str(bad), "--out", str(tmp_path / "d")]) == 2
    assert "Row 1 of `x`" in capsys.readouterr().err and not (tmp_path / "d").exists()
    assert main(["encode", str(run), "--corpus", "stdlib", "--out", str(tmp_path / "d")]) == 2
    assert "does not know its host and point" in capsys.readouterr().err, "of a file's rows: no model of that name"
    for what in (["--rows", str(rows)], ["--corpus", "stdlib"]):
        for n in ("0", "-3"):
            assert main(["encode", str(run), *what, "--out", str(tmp_path / "d"), f"--n-rows={n}"]) == 2
            assert f"{n} rows are to be encoded" in capsys.readouterr().err and not (tmp_path / "d").exists()


def test_a_checkout_runs_without_being_installed(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    found = metadata.version

    def version(name: str) -> str:
        if name == "saetools":
            raise metadata.PackageNotFoundError(name)
        return found(name)

    monkeypatch.setattr(metadata, "version", version)
    assert main(["doctor"]) == 0
    assert saetools.__version__ in capsys.readouterr().out


def test_the_package_runs_as_a_module() -> None:
    done = subprocess.run([sys.executable, "-m", "saetools", "--version"], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == saetools.__version__
