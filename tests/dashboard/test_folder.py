"""The folder for thousands of features: opens from disk, reads itself alone, replaces only what it wrote."""

from pathlib import Path
from typing import Any

import pytest
from fixture_store import DEAD, N_FEATURES

from saetools.dashboard.export import Contents, export_folder, export_page
from saetools.errors import RunError
from saetools.features.store import FeatureStore


@pytest.fixture(scope="module")
def folder(store_path: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("folder") / "out"
    export_folder(Contents(FeatureStore.open(store_path), n_features=None), path)
    return path


def test_a_script_per_feature(folder: Path) -> None:
    scripts = {path.name for path in (folder / "features").iterdir()}
    assert scripts == {f"{feature}.js" for feature in range(N_FEATURES) if feature != DEAD}
    for path in (folder / "features").iterdir():
        text = path.read_text()
        assert text.isascii() and not set("<>&") & set(text), "a script that no parser takes for markup"


def test_only_its_own_folder_is_replaced(store_path: Path, tmp_path: Path) -> None:
    store = FeatureStore.open(store_path)
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.tex").write_text("x")
    with pytest.raises(RunError, match="Choose another folder"):
        export_folder(Contents(store, features=[1]), tmp_path / "mine")
    assert (tmp_path / "mine" / "thesis.tex").read_text() == "x"
    (tmp_path / "empty").mkdir()
    for features in ([1, 2], [3]):
        export_folder(Contents(store, features=features), tmp_path / "empty")
    assert [path.name for path in (tmp_path / "empty" / "features").iterdir()] == ["3.js"]
    for kept in (tmp_path / "empty" / ".git", tmp_path / "empty" / "features" / "notes.txt"):
        kept.write_text("x")
        with pytest.raises(RunError, match="Choose another folder"):
            export_folder(Contents(store, features=[1]), tmp_path / "empty")
        kept.unlink()
    (tmp_path / "a").write_text("x")
    with pytest.raises(RunError, match=r"is a file\. Name a folder"):
        export_folder(Contents(store, features=[1]), tmp_path / "a")
    export_page(Contents(store, features=[1]), tmp_path / "new" / "folder" / "page.html")
    assert (tmp_path / "new" / "folder" / "page.html").is_file()


@pytest.mark.browser
def test_it_opens_from_disk(watched: Any, folder: Path, store_path: Path) -> None:
    page, store = watched.page, FeatureStore.open(store_path)
    page.goto((folder / "index.html").as_uri())
    page.wait_for_selector(".sae-token")
    for feature in (0, 2, 46):
        page.evaluate(f"location.hash = '{feature}'")
        page.wait_for_selector(f"#sae-feature[data-feature='{feature}']")
        peak = page.locator("#sae-feature .sae-peak").first.evaluate("node => node.textContent")
        assert peak == store.examples(feature)[0].tokens[9]
    watched.check()
    (folder / "features" / "1.js").rename(folder / "features" / "gone.js")
    page.evaluate("location.hash = '1'")
    page.wait_for_selector("#sae-feature-title:has-text('is missing')")
