"""From a run on the embedded host to panels, prompt firing and steering: what the live app and notebooks use."""

import gc
import random
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

import saetools
from saetools import exploring, pipeline
from saetools.cli import main
from saetools.dashboard.live.subject import Steering, Subject
from saetools.errors import ConfigError, DataError, FormatError, MismatchError
from saetools.exploring import live_subject
from saetools.features.store import sample_of_firing
from saetools.formats.load import save_as
from saetools.formats.native import save_dictionary
from saetools.safeio import verify_directory

pytestmark = pytest.mark.filterwarnings("ignore")
F = 64  # features; collecting them takes time in proportion


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("run") / "out"
    values = {
        "corpus.max_documents": "6",
        "corpus.context_tokens": "128",
        "activations.ring_rows": "4096",
        "activations.calibration_rows": "1000",
        "dictionary.n_features": str(F),
        "dictionary.k": "8",
        "training.n_tokens": "6000",
        "training.batch_rows": "512",
        "evaluation.n_tokens": "2500",
        "evaluation.n_features": "5",
        "logging.progress": "false",
        "run.threads": "1",
        "run.dir": str(out),
    }
    assert main(["train", "quickstart", *(part for k, v in values.items() for part in (f"--{k}", v))]) == 0
    return out


@pytest.fixture(scope="module")
def subject(run: Path) -> Subject:
    return live_subject(run, pipeline.config_of(run), compare=run)


def test_explore_collects_once_and_shows_text(run: Path, subject: Subject) -> None:
    explorer = saetools.explore(run)
    assert explorer.store.info.n_features == F and explorer.training()
    made = (run / "features" / "features.sqlite").stat().st_mtime_ns
    assert saetools.explore(run).store.info == explorer.store.info
    assert (run / "features" / "features.sqlite").stat().st_mtime_ns == made
    config = pipeline.config_of(run)
    plan = pipeline.Data(config).plan("heldout")
    names = {plan.document_id(number): number for number in range(6) if number < config.corpus.max_documents}
    n_checked = 0
    for row in explorer.store.table(limit=20).rows:
        for example in explorer.store.examples(row.feature):
            document = plan.document(names[example.document])
            assert document is not None and "".join(example.tokens) in document.text
            n_checked += 1
    assert n_checked > 100


def test_a_thousand_contexts_are_what_the_tokenizer_decodes(run: Path, subject: Subject) -> None:
    """Byte for byte, where they say they lie in their document; the marked token is the strongest that is shown."""
    store, config = subject.store, pipeline.config_of(run)
    assert store is not None
    data = pipeline.Data(config)
    plan, tokenize = data.plan("heldout"), data.host.tokenize
    numbers = range(config.corpus.max_documents)
    documents = {plan.document_id(n): plan.document(n) for n in numbers if plan.document(n) is not None}
    ids = {name: tokenize.encode([document.text])[0] for name, document in documents.items()}
    examples = [example for feature in range(F) for example in store.examples(feature)]
    chosen = random.Random(0).sample(examples, 1000)
    n_cut = 0
    for example in chosen:
        shown = "".join(example.tokens)
        span = ids[example.document][example.position : example.position + len(example.tokens)]
        decoded = tokenize.decode(span)
        if decoded.encode() != shown.encode():  # a character that the context cuts in two
            n_cut += 1
            assert "\ufffd" in decoded and decoded.strip("\ufffd") in shown
        assert shown in documents[example.document].text
        if example.band != "uniform":
            assert abs(example.values[example.peak]) == max(map(abs, example.values))
    assert n_cut < 20
    tops = [sum(example.band == "top" for example in store.examples(feature)) for feature in range(F)]
    assert max(tops) == 20, "as many as are asked for, where there are as many contexts"


def test_logits_are_those_of_the_weights(run: Path, subject: Subject) -> None:
    store = subject.store
    assert store is not None and "norm's weight" in store.info.logits_note
    loaded = pipeline.load_subject(str(run), pipeline.config_of(str(run)))
    W_U_VD, norm_D = loaded.host.unembedding()
    effect_FV = (loaded.dictionary.directions() * norm_D) @ W_U_VD.T
    for feature in range(0, F, 4):
        logits = store.feature(feature).logits
        assert logits is not None and len(logits.top) == len(logits.bottom) == 10
        for listed, descending in ((logits.top, True), (logits.bottom, False)):
            expected = effect_FV[feature].sort(descending=descending).values[:10]
            assert [weight.weight for weight in listed] == pytest.approx(expected.tolist(), rel=1e-4)


def test_prompt_firing_equals_encoding_the_prompt(run: Path, subject: Subject) -> None:
    text = "def load(path):\n    return open(path)\n"
    assert subject.fire is not None
    found = subject.fire(text)
    assert "".join(found.tokens) == text
    loaded = pipeline.load_subject(run, pipeline.config_of(run))
    host = loaded.host
    assert host is not None
    ids = [host.tokenize.bos_id, *host.tokenize.encode([text])[0]]
    point = loaded.spec.point
    x_ND = host.activations(torch.tensor([ids]), [point])[point][0, 1:]
    code_NF = loaded.dictionary.encode(x_ND).to_dense()
    strongest = [max(abs(value) for _, value in pairs) for _, pairs in found.features]
    assert strongest == sorted(strongest, reverse=True)
    assert {feature for feature, _ in found.features} == set(code_NF.nonzero()[:, 1].tolist())
    for feature, pairs in found.features:
        assert [at for at, _ in pairs] == code_NF[:, feature].nonzero()[:, 0].tolist()
        values = code_NF[[at for at, _ in pairs], feature].tolist()
        assert [value for _, value in pairs] == pytest.approx(values, rel=1e-4)
    with pytest.raises(DataError, match="1 to"):
        subject.fire("")


def test_steering_by_nothing_changes_nothing(subject: Subject) -> None:
    assert subject.steer is not None
    for how in ("add", "capped", "clamp", "ablate", "project"):
        for temperature in (0.0, 1.0):
            request = Steering("def f(", 3, how, 0.0, value=300.0, n_tokens=8, temperature=temperature)
            baseline, steered = subject.steer(request)
            assert baseline.encode() == steered.encode() and baseline
    baseline, steered = subject.steer(Steering("def f(", 3, strength=1.0, value=300.0, n_tokens=8))
    assert baseline != steered


def test_steering_takes_short_prompts_and_little_time(subject: Subject, monkeypatch: pytest.MonkeyPatch) -> None:
    assert subject.steer is not None and subject.fire is not None
    for call in (lambda: subject.steer(Steering("x = 1\n" * 5000, 3)), lambda: subject.fire("x = 1\n" * 5000)):
        with pytest.raises(DataError, match="tokens; 1 to"):
            call()
    monkeypatch.setattr(exploring, "MAX_STEERING_SECONDS", 0.0)
    with pytest.raises(DataError, match="time was up after 0 of 30"):
        subject.steer(Steering("def g(", 3, n_tokens=30))


def test_features_of_older_weights_are_collected_again(run: Path, tmp_path: Path) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(run, copy)
    collected = exploring.open_store(copy).info
    assert collected.dictionary_hash and collected.loss_effects == 0
    manifest = copy / "dictionary" / "manifest.json"
    manifest.write_text(manifest.read_text() + " ")  # another manifest stands for other weights
    again = exploring.open_store(copy, how=exploring.Collecting(loss_effects=2))
    assert again.info.dictionary_hash != collected.dictionary_hash and again.info.loss_effects == 2
    with_effects = [
        f for f in range(F) if any(example.loss_effects for example in again.examples(f) if example.band == "top")
    ]
    assert with_effects == sample_of_firing(again.columns("count")["count"], 2, 0)
    exploring.open_store(copy, how=exploring.Collecting(loss_effects=1)).close()
    for how, named in (({"loss_effects": 3}, "--loss-effects 3"), ({"map": "umap"}, "--map umap")):
        with pytest.raises(ConfigError, match=f"collected without {named}. Add --fresh"):  # not passed over
            exploring.open_store(copy, how=exploring.Collecting(**how))


def test_a_loaded_dictionary(run: Path) -> None:
    dictionary = saetools.load(run)
    with pytest.raises(ConfigError, match="config="):
        saetools.explore(dictionary)
    explorer = saetools.explore(dictionary, config=run)
    assert explorer.store.info.n_features == F and not explorer.store.path.is_relative_to(run)
    assert [cosine for _, _, cosine in explorer.partners(run)] == pytest.approx([1.0] * F, abs=1e-3)
    folder = explorer.store.path.parent
    assert folder.is_dir()
    del explorer
    gc.collect()
    assert not folder.exists(), "for this session alone"


def test_a_run_that_trains(run: Path, tmp_path: Path) -> None:
    """Before its first checkpoint it has curves; then the features of the newest checkpoint."""
    copy = tmp_path / "copy"
    shutil.copytree(run, copy, ignore=shutil.ignore_patterns("dictionary", "features", "checkpoints"))
    young = live_subject(copy, pipeline.config_of(copy))
    assert young.store is None and young.fire is None and young.metrics == copy / "metrics.jsonl"
    shutil.copytree(run / "checkpoints", copy / "checkpoints")
    newest = max(path.name for path in (copy / "checkpoints").iterdir())
    shown = exploring.explore(copy).store.info
    assert shown.n_features == F and shown.dictionary_hash
    assert exploring.live_subject(copy, pipeline.config_of(copy), compare=copy / "checkpoints" / newest).comparison
    verify_directory(copy / "checkpoints" / newest)
    assert (copy / "checkpoint_results" / newest / "features").is_dir()


def test_a_checkpoint_that_comes_later_is_not_mixed_in(run: Path, tmp_path: Path) -> None:
    """What fires is of the weights that the features are of, as long as these are there; then that is said."""
    copy, text = tmp_path / "copy", "def load(path):"
    shutil.copytree(run, copy, ignore=shutil.ignore_patterns("dictionary", "features", "checkpoints"))
    newest = max((run / "checkpoints").iterdir(), key=lambda path: int(path.name))
    shown = shutil.copytree(newest, copy / "checkpoints" / "1000000")
    subject, late = (live_subject(copy, pipeline.config_of(copy)) for _ in range(2))
    other = saetools.load(run)
    with torch.no_grad():
        other.get_parameter("W_enc_FD").neg_()
    later = shutil.copytree(newest, copy / "checkpoints" / "2000000", ignore=shutil.ignore_patterns("dictionary"))
    save_dictionary(other, later / "dictionary", other.spec, other.calibration, scale=1.0)
    assert subject.fire is not None and late.fire is not None
    found = subject.fire(text)
    assert found == live_subject(shown, pipeline.config_of(copy)).fire(text)
    assert found != live_subject(later, pipeline.config_of(copy)).fire(text)
    shutil.rmtree(shown)
    with pytest.raises(MismatchError, match="Open it again"):
        late.fire(text)
    assert subject.fire(text) == found, "loaded already"
    assert exploring.open_store(copy).info.dictionary_hash != subject.store.info.dictionary_hash


def test_dictionaries_that_belong_to_no_run(run: Path, tmp_path: Path) -> None:
    """Beside a run they are looked at on its text; alone by the config that they carry. Each has results of its own."""
    dictionary = saetools.load(run)
    save_as(dictionary, tmp_path / "theirs", "saelens")
    save_dictionary(dictionary, tmp_path / "bare", dictionary.spec, dictionary.calibration, scale=1.0)
    shutil.copytree(run / "dictionary", tmp_path / "ours")
    explorer = saetools.explore(run)
    for name in ("theirs", "bare"):
        assert [cosine for _, _, cosine in explorer.partners(tmp_path / name)] == pytest.approx([1.0] * F, abs=1e-3)
        with pytest.raises(FormatError, match="Name them with --config FILE"):
            pipeline.config_of(tmp_path / name)
    assert pipeline.config_of(tmp_path / "ours").corpus == pipeline.config_of(run).corpus
    assert saetools.explore(tmp_path / "ours").store.info.n_features == F
    assert {path.name for path in tmp_path.iterdir()} == {"theirs", "bare", "bare.results", "ours", "ours.results"}
    verify_directory(tmp_path / "bare")


def test_another_number_of_tokens_is_told(run: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(run, copy, ignore=shutil.ignore_patterns("features*"))
    for n, said in ((500, 0), (500, 0), (900, 1)):
        caplog.clear()
        store = exploring.open_store(copy, pipeline.read_config(copy, [f"--evaluation.n_tokens={n}"]))
        assert 500 <= store.info.n_tokens < 900
        assert caplog.text.count("was 500; --fresh collects them over 900 tokens") == said


def test_what_is_meant_to_differ(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Collecting, prompts, steering and the dictionary beside it go on where the difference is asked for by name."""
    save_as(saetools.load(run), tmp_path / "theirs", "saelens")
    config = pipeline.read_config(run, ["--activations.point=blocks.2.hook_out", "--evaluation.n_tokens=500"])
    for wrong in (
        lambda: saetools.explore(tmp_path / "theirs", config),
        lambda: saetools.explore(saetools.load(run), config),
    ):
        with pytest.raises(MismatchError, match="May differ: host, point"):
            wrong()
    explorer = saetools.explore(tmp_path / "theirs", config, elsewhere=["point"])
    assert explorer.store.info.spec.point == "blocks.2.hook_out" and explorer.prompt("def f(x):").firings.features
    assert saetools.explore(saetools.load(run), config, elsewhere=["point"]).prompt("def f(x):").firings.features
    subject = live_subject(tmp_path / "theirs", config, run, exploring.Collecting(elsewhere=["point"]))
    assert subject.steer is not None and subject.steer(Steering("def f(", 3, n_tokens=2, value=0.0))
    page = ["--export", str(tmp_path / "p.html"), "--config", str(run), "--features", "1", "--fresh"]
    page += ["--activations.point", "blocks.2.hook_out", "--evaluation.n_tokens", "500"]
    assert main(["dashboard", str(tmp_path / "theirs"), *page]) == 2
    assert "--elsewhere" in capsys.readouterr().err
    assert main(["dashboard", str(tmp_path / "theirs"), *page, "--elsewhere", "point"]) == 0


def test_features_of_another_librarys_older_weights(run: Path, tmp_path: Path) -> None:
    """A training that goes on elsewhere saves to the same place; its layout has no manifest of ours."""
    theirs, config = tmp_path / "theirs", pipeline.read_config(run, ["--evaluation.n_tokens=500"])
    save_as(saetools.load(run), theirs, "sparsify")
    first = exploring.open_store(theirs, config).info
    assert exploring.open_store(theirs, config).info == first
    changed = load_file(theirs / "sae.safetensors")
    changed["W_dec"] = changed["W_dec"].flip(0)
    save_file(changed, theirs / "sae.safetensors")
    again = exploring.open_store(theirs, config)
    assert again.info.dictionary_hash != first.dictionary_hash
    with pytest.raises(MismatchError, match="other weights than when it was opened"):
        weights = exploring._Weights.of(theirs / "sae.safetensors")
        save_file(changed | {"b_dec": changed["b_dec"] + 1}, theirs / "sae.safetensors")
        weights.dictionary()


def test_pages(run: Path, subject: Subject, tmp_path: Path) -> None:
    page = exploring.export(run, pipeline.config_of(run), tmp_path / "p.html", n_features=2)
    assert page == tmp_path / "p.html" and f"This page holds 2 of {F} features" in page.read_text()
    index = exploring.export(run, pipeline.config_of(run), tmp_path / "folder", n_features=3, compare=run)
    assert str(tmp_path) not in index.read_text() and str(run.parent) not in index.read_text()
    assert index == tmp_path / "folder" / "index.html" and len(list((tmp_path / "folder/features").iterdir())) == 3
    assert "tab-Training" in index.read_text() and "tab-Compare" in index.read_text()


def test_numbers_that_are_none(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for option in ("--features=0", "--features=-3", "--loss-effects=-1"):
        assert main(["dashboard", str(run), "--export", str(tmp_path / "p.html"), option]) == 2
        assert f"{option.split('=')[1]} features are to be" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


def test_a_dictionary_is_its_own_partner(subject: Subject) -> None:
    assert subject.comparison is not None
    assert subject.comparison.partner_F.tolist() == list(range(F))
    assert subject.comparison.title == "out", "the run's name, not where it lies"
    assert subject.comparison.cosine_F.min() > 0.999
