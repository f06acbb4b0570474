"""The hub, played by a server on this machine: saving with a card, fetching no more than needed, offline from cache."""

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
import yaml

import saetools
from saetools.dictionaries.base import make_dictionary
from saetools.dictionaries.topk import TopK
from saetools.errors import FormatError, RunError
from saetools.formats import pt, pt_sandbox
from saetools.formats.hub import Place, chosen, fetched, place_of, push
from saetools.formats.native import save_dictionary
from saetools.records import PointSpec
from tests.formats.hub_server import Hub, connect, disconnect, serving

GOLDEN = Path(__file__).parent / "golden"
SPEC = PointSpec(host="org/model", revision="abc", point="blocks.2.hook_out", d_model=6, prepend_bos=True)


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    with serving() as server:
        connect(server, monkeypatch, tmp_path / "cache")
        yield server


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """A finished and evaluated run."""
    path = tmp_path / "run"
    dictionary = make_dictionary(TopK.configure(n_features=11, k=3), 6, seed=1)
    config = {"dictionary": {"kind": "topk", "k": 3}, "run": {"seed": 0}}
    provenance = {"n_tokens": 600_064, "config": config, "git_commit": "c0ffee", "versions": {"torch": "2.13.0"}}
    save_dictionary(dictionary, path / "dictionary", SPEC, provenance=provenance, scale=0.5)
    figures = {"fvu": 0.1349, "l0_mean": 32.0, "ce_recovered_zero": 0.982, "dead_fraction": 0.0}
    records = [
        {"name": name, "value": value, "unit": "x", "n": 200_000, "spread": [0.9, 1.1] if name == "fvu" else None}
        for name, value in figures.items()
    ]
    (path / "eval.json").write_text(json.dumps(records))
    return path


def upload(hub: Hub, name: str, directory: Path, at: str = "") -> None:
    files = {at + f.relative_to(directory).as_posix(): f.read_bytes() for f in directory.rglob("*") if f.is_file()}
    hub.files.setdefault(name, {".gitattributes": b""}).update(files)


def test_a_file_of_checkpoints_comes_with_the_config_above(hub: Hub) -> None:
    upload(hub, "me/llama", GOLDEN / "llama-scope-f32", "L3/")
    whole = saetools.load("hf://me/llama/L3/checkpoints/final.safetensors")
    assert whole.W_dec_FD.equal(saetools.load(GOLDEN / "llama-scope-f32").W_dec_FD)
    names = ["t/checkpoints/ae_5.pt", "t/config.json", "t/ae.pt", "config.json"]
    assert chosen(names, Place("a/b", "t/checkpoints/ae_5.pt", None), allow_pt=True) == names[:2]


@pytest.mark.parametrize("source", ["hf://me/dl", "hf://me/dl@main", "hf://me/dl/ae.pt", "hf://me/dl/sub"])
def test_pickles_are_refused_before_they_are_fetched(hub: Hub, source: str) -> None:
    golden = GOLDEN / "dl-topk-f32"
    files = {name: (golden / name).read_bytes() for name in ("ae.pt", "config.json")}
    hub.files["me/dl"] = files | ({f"sub/{name}": data for name, data in files.items()} if "sub" in source else {})
    with pytest.raises(FormatError, match=r"pickle \(.*pt\)") as refused:
        saetools.load(source)
    assert "allow_pt=True" in str(refused.value)
    assert f"saetools convert --from-pt {source} --out DIRECTORY" in str(refused.value), "from where it is"
    assert not any("ae.pt" in request for request in hub.requests)


def test_a_run_under_way_and_files_are_pushed(hub: Hub, run: Path) -> None:
    """The newest checkpoint as it was trained, not with its scale folded in; a file stands for its directory."""
    (run / "checkpoints" / "7").mkdir(parents=True)
    (run / "dictionary").rename(run / "checkpoints" / "7" / "dictionary")
    push(run, "hf://me/sae")
    assert hub.files["me/sae"]["model.safetensors"] == (run / "checkpoints/7/dictionary/model.safetensors").read_bytes()
    assert json.loads(hub.files["me/sae"]["config.json"])["scale"] == 0.5
    push(GOLDEN / "sparsify-f32" / "sae.safetensors", "hf://me/other")
    expected = saetools.load(GOLDEN / "sparsify-f32").W_dec_FD
    assert saetools.load("hf://me/other").W_dec_FD.equal(expected)


def test_where_the_run_lay_is_not_published(hub: Hub, run: Path) -> None:
    """It is nobody's business, and a config that writes there is of no use on another machine."""
    dictionary = saetools.load(run)
    config = {**dictionary.provenance["config"], "run": {"seed": 0, "dir": "/home/me/secret/läuf"}}
    save_dictionary(dictionary, run.parent / "other", SPEC, provenance={**dictionary.provenance, "config": config})
    push(run.parent / "other", "hf://me/sae")
    files = hub.files["me/sae"]
    assert all(b"secret" not in content for content in files.values())
    assert "dir: runs/läuf\n" in files["README.md"].decode()
    assert saetools.load("hf://me/sae").provenance["config"]["run"] == {"seed": 0, "dir": "runs/läuf"}


def test_pushed_fetched_and_read_from_the_cache(
    hub: Hub, run: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    assert push(run, "hf://me/sae/layer2").startswith(f"{hub.address}/me/sae/commit/")
    assert hub.private["me/sae"] is True
    dictionary = saetools.load("hf://me/sae/layer2")
    local = saetools.load(run)
    x_ND = torch.randn(9, 6, generator=torch.Generator().manual_seed(0))
    assert torch.equal(dictionary(x_ND), local(x_ND)) and dictionary.spec == SPEC
    assert dictionary.provenance["source"] == "hf://me/sae/layer2" and dictionary.provenance["n_tokens"] == 600_064
    assert not any(".gitattributes" in request for request in hub.requests if "resolve" in request)

    disconnect(monkeypatch)
    assert torch.equal(saetools.load("hf://me/sae/layer2")(x_ND), local(x_ND))
    assert "is read from the cache" in caplog.text
    with pytest.raises(FormatError, match="no downloaded copy"):
        saetools.load("hf://me/other")
    with pytest.raises(RunError, match="could not be saved"):
        push(run, "hf://me/sae")


def test_a_download_that_was_cut_short(hub: Hub, run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without a network the error names what is missing; with one, that is fetched."""
    push(run, "hf://me/sae")
    saetools.load("hf://me/sae")
    (weights,) = (tmp_path / "cache").rglob("snapshots/*/model.safetensors")
    weights.resolve().unlink()
    weights.unlink()
    with monkeypatch.context() as patch:
        disconnect(patch)
        with pytest.raises(FormatError, match=r"model\.safetensors"):
            saetools.load("hf://me/sae")
    assert saetools.load("hf://me/sae").kind == "topk"


def test_the_card_says_what_the_records_say(hub: Hub, run: Path) -> None:
    push(run, "hf://me/sae", private=False)
    assert hub.private["me/sae"] is False
    card = hub.files["me/sae"]["README.md"].decode()
    _, front, text = card.split("---\n", 2)
    assert yaml.safe_load(front) == {
        "library_name": "saetools",
        "tags": ["saetools", "sparse-autoencoder", "mechanistic-interpretability", "topk"],
        "base_model": "org/model",
    }
    assert "# topk dictionary of 11 features at blocks.2.hook_out of org/model" in text
    assert 'saetools.load("hf://me/sae")' in text
    assert "| FVU, fraction of variance unexplained | 0.1349 (0.9 to 1.1) | 200,000 tokens |" in text
    assert "| dead features, share | 0 | 200,000 tokens |" in text and "| trained on | 600,064 tokens |" in text
    config = yaml.safe_load(text.split("```yaml\n")[1].split("```")[0])
    assert config == {"dictionary": {"kind": "topk", "k": 3}, "run": {"seed": 0}}


def test_the_card_takes_what_somebody_else_wrote_of_the_training(hub: Hub, tmp_path: Path) -> None:
    dictionary = saetools.load(GOLDEN / "sparsify-f32")
    save_dictionary(dictionary, tmp_path / "d", None, provenance={"n_tokens": "many", "versions": ["a", "b"]})
    push(tmp_path / "d", "hf://me/sae")
    card = hub.files["me/sae"]["README.md"].decode()
    assert "| trained on | many |" in card and "| versions | ['a', 'b'] |" in card


def test_a_dictionary_without_records_says_so(hub: Hub, tmp_path: Path) -> None:
    push(GOLDEN / "sparsify-f32", "hf://me/sae")
    card = hub.files["me/sae"]["README.md"].decode()
    assert "Not evaluated" in card and "| read from the layout of | sparsify |" in card
    assert saetools.load("hf://me/sae").kind == "topk"


def test_other_libraries_layouts_and_only_their_files(hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    upload(hub, "org/saes", GOLDEN / "saelens-topk-f32", "a/")
    upload(hub, "org/saes", GOLDEN / "llama-scope-f32", "b/")
    hub.files["org/saes"]["a/expected.safetensors"] = b"x"
    del hub.files["org/saes"]["a/expected.safetensors"], hub.files["org/saes"]["b/expected.safetensors"]
    assert saetools.load("hf://org/saes/a").kind == "topk"
    assert not any("/b/" in request for request in hub.requests)
    assert saetools.load("hf://org/saes/b@main").kind == "jumprelu"
    with pytest.raises(FormatError, match=r"holds several\. Name one of: a/, b/"):
        saetools.load("hf://org/saes")
    with pytest.raises(FormatError, match="does not exist, or holds no dictionary"):
        saetools.load("hf://org/saes/c")


def test_pickles_are_fetched_only_when_allowed(hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pt, "_run_sandbox", lambda path, out, objects: pt_sandbox.convert(str(path), str(out), objects))
    files = {f"layer{n}.sae.pt": (GOLDEN / "qwen-scope-f32" / "layer4.sae.pt").read_bytes() for n in range(3)}
    hub.files["Qwen/SAE-Res-X-W32K-L0_3"] = files
    with pytest.raises(FormatError, match=r"holds several. Name one of: layer0\.sae\.pt, layer1"):
        saetools.load("hf://Qwen/SAE-Res-X-W32K-L0_3", allow_pt=True)
    dictionary = saetools.load("hf://Qwen/SAE-Res-X-W32K-L0_3/layer1.sae.pt", allow_pt=True)
    assert dictionary.config.model_dump()["k"] == 3  # of the repository's name


def test_what_the_hub_does_not_have(hub: Hub) -> None:
    with pytest.raises(FormatError, match="the hub has no me/absent at its main revision"):
        fetched("hf://me/absent", False)
    hub.files["me/here"] = {}
    with pytest.raises(FormatError, match="no me/here at v9"):
        fetched("hf://me/here@v9", False)


@pytest.mark.parametrize(
    "source",
    [
        "hf://one",
        "hf://a/b/../../c",
        "hf://a/b@../x",
        "hf://a/b/./c",
        "hf://",
        "hf:///a/b",
        "hf://a/b c",
        "hf://a/b/\0",
    ],
)
def test_places_that_are_none(source: str) -> None:
    with pytest.raises(FormatError, match="Write hf://organisation/repository"):
        place_of(source)


def test_places() -> None:
    assert place_of("hf://a/b") == Place("a/b", "", None)
    assert place_of("hf://a/b/c/d.pt@v1.0/x") == Place("a/b", "c/d.pt", "v1.0/x")
    names = ["README.md", "x/dictionary/model.safetensors", "x/dictionary/config.json", "x/eval.json", "y/a.bin"]
    assert chosen(names, Place("a/b", "x", None), False) == [names[1], names[2], names[3]]
