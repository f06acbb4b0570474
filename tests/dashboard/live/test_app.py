"""The live app: its callbacks, and the whole of it in a browser."""

import json
import re
import socket
from pathlib import Path
from typing import Any

import pytest
from gestures import go_to, lasso
from payloads import PAYLOADS

from saetools.dashboard.annotations import labels_csv, labels_json
from saetools.dashboard.live.app import listen, make_app, make_guarded
from saetools.dashboard.live.subject import MAX_PER_MINUTE, MAX_WAITING, OneAtATime, Subject
from saetools.dashboard.views import feature_view
from saetools.errors import DataError, RunError
from saetools.features.store import FeatureStore

ROW = ".ag-row[row-id]"  # one that has been loaded: rows that wait for the server have no id
SURROGATE = re.compile("[\ud800-\udfff]")  # SQLite's UTF-8 holds none


def test_a_page_of_rows(call: Any, subject: Subject) -> None:
    request = {"startRow": 10, "endRow": 15, "sortModel": [{"colId": "feature", "sort": "desc"}]}
    answer = call("table.getRowsResponse", table__getRowsRequest=request)
    response = answer["table"]["getRowsResponse"]
    n = subject.store.info.n_features
    assert [row["feature"] for row in response["rowData"]] == [n - 11 - i for i in range(5)]
    assert response["rowCount"] == n
    answer = call("table.getRowsResponse", table__getRowsRequest=request | {"startRow": 0}, search__data="7")
    assert [row["feature"] for row in answer["table"]["getRowsResponse"]["rowData"]] == [7]


def test_labels_are_kept(call: Any, subject: Subject) -> None:
    written = {"feature": 5, "label": "L", "note": "N"}
    assert call("label-status.children", to_save__data=written)["label-status"] == {"children": "saved"}
    assert subject.store.annotation(5) == ("L", "N")
    file = call("labels-file.data", labels_csv__n_clicks=1)["labels-file"]["data"]
    assert file["filename"] == "labels.csv" and '5,"L","N",""\n' in file["content"]
    subject.store.annotate(5, "")


def test_a_feature_is_handed_out_and_its_absence_told(subject: Subject) -> None:
    client = make_app(subject).server.test_client()
    answer = client.get("/view/5")
    assert answer.mimetype == "application/json" and answer.headers["Cache-Control"] == "no-store"
    assert answer.get_json() == json.loads(json.dumps(feature_view(subject.store, 5)))
    for feature in (-1, 10**6, 10**30):
        assert "there is no feature" in client.get(f"/view/{feature}").get_json()["error"]


def test_the_first_that_a_search_finds(subject: Subject) -> None:
    client = make_app(subject).server.test_client()
    for asked, feature in (
        ({"text": "count<=8", "sort": "-density"}, 1),
        ({"text": "count<=8", "sort": "feature"}, 0),
        ({"text": "", "sort": "-density", "features": [3, 5]}, 5),
        ({"text": "density>2"}, None),
        ({"text": "", "sort": "nothing; DROP TABLE features"}, None),
    ):
        assert client.post("/find", json={"sort": "-density", "features": None} | asked).get_json() == {
            "feature": feature
        }


def test_prompt_and_steering(call: Any) -> None:
    view = call("prompt-view.data", prompt_text__value="a b c d e f g", prompt_density__value=1)["prompt-view"]["data"]
    assert [feature["feature"] for feature in view["features"]] == [0, 1, 2, 3, 4]
    assert view["features"][1]["at"] == [1, 6] and view["features"][1]["values"] == [2.0, 7.0]
    assert view["features"][1]["token"] and view["tokens"][0] == "a "
    sparse = call("prompt-view.data", prompt_text__value="a b c", prompt_density__value=0.0001)
    assert [feature["feature"] for feature in sparse["prompt-view"]["data"]["features"]] == [0, 1]
    values = {
        "steer_prompt__value": "p",
        "steer_feature__value": 3,
        "steer_how__data": "add",
        "steer_tokens__value": 5,
    }
    for how in ("add", "capped", "clamp"):
        empty = call("steer-view.data", **values | {"steer_strength__value": 1, "steer_how__data": how})
        assert "steer-view" not in empty and empty["steer-status"]["children"] == "give a value", "0 is one of its own"
    removed = call("steer-view.data", **values | {"steer_strength__value": 1, "steer_how__data": "ablate"})
    assert removed["steer-view"]["data"][1]
    values["steer_value__value"] = 8
    answer = call("steer-view.data", steer_strength__value=1, **values)
    assert answer["steer-view"]["data"] == ["<b>p", "<b>p steered by 3"]
    answer = call("steer-view.data", steer_strength__value=0, **values)
    assert answer["steer-view"]["data"] == ["<b>p", "<b>p"]


def test_curves_and_partner(call: Any, subject: Subject) -> None:
    assert subject.metrics is not None
    first = call("curves-panels.data", tab__data="Training")
    assert len(first["curves-panels"]["data"]) == 2
    drawn = {"tab__data": "Training", "curves_drawn__data": first["curves-drawn"]["data"]}
    assert call("curves-panels.data", **drawn) == {}
    subject.metrics.write_text(subject.metrics.read_text())
    assert len(call("curves-panels.data", **drawn)["curves-panels"]["data"]) == 2, "written again with as many lines"
    found = call("partner-view.data", selected__data=4, tab__data="Compare")["partner-view"]["data"]
    assert found["feature"] == 4 and found["partner"]["view"]["feature"] == 3


def test_the_map_is_sent_again_with_new_labels(call: Any, subject: Subject) -> None:
    assert subject.store is not None
    drawn = None
    for label in ("", "mine", "theirs", ""):
        FeatureStore.open(subject.store.path).annotate(2, label)  # as another process would
        sent = call("map-points.data", tab__data="Map", map_drawn__data=drawn)["map-points"]["data"]
        assert sent["tokens"][2] == (label or subject.store.table("feature").rows[2].peak_token)
        drawn = sent["names"]
        assert call("map-points.data", tab__data="Map", map_drawn__data=drawn) == {}


def test_the_model_is_used_by_one_and_waited_for_by_few() -> None:
    queue = OneAtATime()
    with queue.turn():
        held = [queue._waiting.acquire(blocking=False) for _ in range(MAX_WAITING)]
        assert all(held)
        with pytest.raises(DataError, match="busy"), queue.turn():
            pass
    for _ in range(MAX_WAITING):
        queue._waiting.release()
    with queue.turn():
        pass


def test_few_requests_start_in_a_minute() -> None:
    now = [0.0]
    queue = OneAtATime(clock=lambda: now[0])
    for _ in range(MAX_PER_MINUTE):
        with queue.turn():
            now[0] += 0.1
    with pytest.raises(DataError, match="in a minute"), queue.turn():
        pass
    now[0] = 60.0
    with queue.turn():
        pass


@pytest.mark.parametrize(("port", "cause"), [(None, "in use"), (99999, "0 to 65535"), (-1, "0 to 65535")])
def test_a_port_that_cannot_be_had(subject: Subject, port: int | None, cause: str) -> None:
    guard = make_guarded(subject)
    with socket.create_server(("127.0.0.1", 0)) as taken, pytest.raises(RunError, match=rf"{cause}.*another --port"):
        listen(guard, "127.0.0.1", taken.getsockname()[1] if port is None else port)


# --- in a browser -------------------------------------------------------------------------------------------


@pytest.mark.browser
def test_every_tab_works(watched: Any, address: str, subject: Subject) -> None:
    page = watched.page
    page.goto(address)
    page.wait_for_selector(ROW)
    page.wait_for_selector("#sae-density svg")
    page.wait_for_selector("#sae-feature .sae-token")  # of the first in the table
    first = page.locator("#sae-feature-title").inner_text()
    assert first == f"Feature {subject.store.table('-density', limit=1).rows[0].feature}"
    page.click(f"{ROW}[row-index='2']")
    page.wait_for_selector(f"#sae-feature-title:not(:text-is({first!r}))")
    first = page.locator("#sae-feature-title").inner_text()
    page.locator("#sae-feature-title").click()
    page.keyboard.press("j")
    page.wait_for_selector(f"#sae-feature-title:not(:text-is({first!r}))")
    page.click("#tabs >> text=Map")
    page.wait_for_selector("#sae-map[data-points]")
    shown = page.locator("#sae-feature-title").text_content().removeprefix("Feature ")
    page.wait_for_selector(f".sae-map-canvas[data-current='{shown}']")  # has its ring, though the map came later
    page.locator(".sae-map-canvas").focus()
    page.keyboard.press("s")
    n_alive = subject.store.info.n_features - 1
    page.wait_for_selector(f"#sae-count:has-text('{n_alive} of {n_alive + 1}')")
    page.keyboard.press("Escape")
    page.wait_for_selector(f"#sae-count:has-text('{n_alive + 1} of {n_alive + 1}')")
    page.click("#tabs >> text=Prompt")
    page.click("#prompt-run")
    page.wait_for_selector("#prompt-result .sae-example")
    page.click(".sae-strip .sae-token >> nth=0")
    page.wait_for_selector("#prompt-result h3:has-text('fire at')")
    assert page.locator("#prompt-result .sae-example").count() == 1
    page.click("#tabs >> text=Steering")
    page.fill("#steer-feature", "3")
    page.click("#steer-run")
    page.wait_for_selector("#steer-steered:has-text('steered by 3')")
    page.click("#tabs >> text=Compare")
    page.click("#sae-compared tr[data-feature] >> nth=3")
    page.wait_for_selector("#sae-partner .sae-token")
    page.wait_for_selector("#sae-own .sae-token")
    page.click("#tabs >> text=Training")
    page.wait_for_selector("#sae-curves .main-svg")
    page.keyboard.press("?")
    assert page.locator("#sae-help").is_visible()
    page.keyboard.press("Escape")
    page.wait_for_selector("#sae-help", state="hidden")
    page.keyboard.press("1")
    page.wait_for_selector("#panel-Feature:not([hidden])")
    watched.check()
    assert page.locator("text=Share chart").count() == 0


@pytest.mark.browser
def test_labels_are_seen_where_they_are_shown(watched: Any, address: str, subject: Subject) -> None:
    """Above the contexts, in the table and in the form; the same label for two features too."""
    from playwright.sync_api import expect

    page, store = watched.page, subject.store
    page.goto(address)
    page.wait_for_selector(ROW)
    page.click("text=Label and note")
    for feature in (7, 8):
        page.evaluate(f"location.hash = '{feature}'")
        page.wait_for_selector(f"#sae-feature[data-feature='{feature}']")
        page.wait_for_selector("#label-shown:empty", state="attached")
        page.fill("#label", "twin <b>")
        page.fill("#note", f"note of {feature}")
        page.click("#save-label")
        page.wait_for_selector("#label-shown:has-text('twin <b>')")
        page.wait_for_selector(f".sae-annotation:has-text('note of {feature}')")
    page.fill("#sae-search", "twin")
    page.wait_for_selector("#sae-count:has-text('2 of')")
    page.wait_for_selector(".ag-row[row-id='8'] [col-id='label']:has-text('twin <b>')")
    page.evaluate("location.hash = '7'")
    page.wait_for_selector("#sae-feature[data-feature='7']")
    expect(page.locator("#note")).to_have_value("note of 7", timeout=90_000)
    page.click("#tab-Steering")
    expect(page.locator("#steer-feature")).to_have_value("7", timeout=90_000)
    watched.check()
    for feature in (7, 8):
        store.annotate(feature, "")


@pytest.mark.browser
def test_one_steps_on_from_the_feature_that_is_steered(watched: Any, address: str) -> None:
    """The fields' + and - go on from what the app filled in, and what they leave is what is steered by."""
    from playwright.sync_api import expect

    page = watched.page
    page.goto(f"{address}#7")
    page.wait_for_selector("#sae-feature[data-feature='7']")
    page.click("#tab-Steering")
    feature, less, more = (page.locator(f"#steer-feature{after}") for after in ("", " + button", " + button + button"))
    expect(feature).to_have_value("7", timeout=90_000)
    for button, left in ((less, "6"), (more, "7"), (less, "6")):
        button.click()
        expect(feature).to_have_value(left)
    page.click("#steer-seed + button + button")
    expect(page.locator("#steer-seed")).to_have_value("1")
    page.click("#steer-run")
    page.wait_for_selector("#steer-steered:has-text('steered by 6')")
    watched.check()


@pytest.mark.browser
def test_a_run_without_a_checkpoint_shows_its_curves(watched: Any, subject: Subject, serve: Any) -> None:
    with serve(Subject(None, metrics=subject.metrics, title="<b>young")) as address:
        page = watched.page
        page.goto(address)
        page.wait_for_selector("#sae-curves .main-svg")
        for key in "/gjk":
            page.keyboard.press(key)
        assert page.locator("h1").inner_text() == "<b>young" and page.locator("#tabs button").count() == 1
        watched.check()


@pytest.mark.slow
@pytest.mark.browser
def test_hostile_text_is_shown_and_never_run_live(watched: Any, address: str, subject: Subject) -> None:
    """As tokens, document names and logits of features, as labels and notes, in the table and on the map."""
    page, store = watched.page, subject.store
    assert store is not None
    named = [feature for feature, text in enumerate(PAYLOADS) if not SURROGATE.search(text)]
    for feature in named:
        store.annotate(feature, PAYLOADS[feature], PAYLOADS[feature])
    page.goto(address)
    page.wait_for_selector(ROW)
    for feature in range(store.info.n_features - 1):
        page.evaluate(f"location.hash = '{feature}'")
        page.wait_for_selector(f"#sae-feature[data-feature='{feature}'] .sae-token")
        shown = page.evaluate(
            "[...document.querySelectorAll('#sae-feature .sae-peak')].map(token => token.textContent)"
        )
        assert set(shown) == {store.examples(feature)[0].tokens[9]}
        if feature in named:
            assert page.locator("#label-shown").evaluate("node => node.textContent") == PAYLOADS[feature]
            note = page.locator(".sae-annotation")
            assert note.evaluate("node => node.textContent") == PAYLOADS[feature]
    page.click("#tab-Map")
    page.wait_for_selector("#sae-map[data-points]")
    watched.check()
    for feature in named:
        store.annotate(feature, "")


@pytest.mark.browser
def test_hostile_prompts_are_shown_and_never_run(watched: Any, address: str) -> None:
    """All payloads as one prompt: what fires on it, and texts that go on from it."""
    page, prompt = watched.page, " ".join(PAYLOADS)
    page.goto(address)
    page.wait_for_selector(ROW)
    page.click("#tab-Prompt")
    page.evaluate("text => window.dash_clientside.set_props('prompt-text', { value: text })", prompt)
    page.click("#prompt-run")
    page.wait_for_selector(".sae-strip")
    shown = page.evaluate("[...document.querySelectorAll('.sae-strip .sae-token')].map(token => token.textContent)")
    assert shown == [word + " " for word in prompt.split(" ")]
    page.click("#tab-Steering")
    page.evaluate("text => window.dash_clientside.set_props('steer-prompt', { value: text })", prompt)
    page.fill("#steer-feature", "3")
    page.click("#steer-run")
    page.wait_for_selector("#steer-steered:has-text('steered by 3')")
    for name in ("baseline", "steered"):
        text = page.locator(f"#steer-{name}").evaluate("node => node.textContent")
        assert text.startswith(f"<b>{prompt}")
    watched.check()


@pytest.mark.browser
def test_labels_are_downloaded_as_json_and_csv(watched: Any, address: str, subject: Subject) -> None:
    page, store = watched.page, subject.store
    assert store is not None
    store.annotate(6, "=1+1 <b>", "a note")
    page.goto(address)
    page.wait_for_selector(ROW)
    page.click("text=Label and note")
    texts = {}
    for name in ("JSON", "CSV"):
        with page.expect_download() as download:
            page.click(f"#labels-{name.lower()}")
        assert download.value.suggested_filename == f"labels.{name.lower()}"
        texts[name] = Path(download.value.path()).read_text(encoding="utf-8")
    assert texts == {"JSON": labels_json(store), "CSV": labels_csv(store)}
    (entry,) = (entry for entry in json.loads(texts["JSON"]) if entry["index"] == "6")
    assert entry["description"] == "=1+1 <b>" and entry["notes"] == "a note" and '"\'=1+1 <b>"' in texts["CSV"]
    watched.check()
    store.annotate(6, "")


@pytest.mark.browser
def test_a_lasso_becomes_a_list_that_stays(watched: Any, address: str, subject: Subject) -> None:
    """Drawn with the mouse on the map, kept by a name, in the store, and chosen again from another page."""
    page, store = watched.page, subject.store
    assert store is not None
    page.goto(address)
    page.wait_for_selector(ROW)
    page.click("#tab-Map")
    page.wait_for_selector("#sae-map[data-points]")
    lasso(page, [(0.005, 0.005), (0.55, 0.005), (0.55, 0.995), (0.005, 0.995), (0.005, 0.01)])
    status = page.locator(".sae-map-tools [role=status]")
    page.wait_for_selector(".sae-map-tools [role=status]:has-text('features in the table')")
    n_chosen = int(status.inner_text().split()[0])
    assert 0 < n_chosen < store.info.n_features - 1
    page.wait_for_selector(f"#sae-count:text-is('{n_chosen} of {store.info.n_features}')")
    page.fill("#list-name", "left <i>")
    page.click("#list-save")
    page.wait_for_selector(f"#list-status:has-text('kept {n_chosen} features')")
    columns = store.columns("x", "density")
    kept = store.lists()["left <i>"]
    inside = columns["x"][kept]
    others = [f for f in range(store.info.n_features) if f not in kept and columns["density"][f] > 0]
    assert len(kept) == n_chosen and inside.max() < columns["x"][others].min(), "what lies to the left"
    page.goto("about:blank")
    page.goto(address)
    page.wait_for_selector(ROW)
    page.fill("#list-choice", "left <i>")
    page.wait_for_selector(f"#sae-count:text-is('{n_chosen} of {store.info.n_features}')")
    page.fill("#list-choice", "")
    page.wait_for_selector(f"#sae-count:text-is('{store.info.n_features} of {store.info.n_features}')")
    watched.check()
    store.set_list("left <i>", [])


@pytest.mark.browser
def test_going_to_a_feature_by_number_or_by_words(watched: Any, address: str, subject: Subject) -> None:
    page = watched.page
    page.goto(address)
    page.wait_for_selector(ROW)
    go_to(page, 17)
    assert page.evaluate("document.activeElement.id") != "sae-search"
    page.keyboard.press("/")
    page.keyboard.type("count<=8")
    page.keyboard.press("Enter")
    page.wait_for_selector("#sae-feature[data-feature='1'] .sae-token")  # fires 8 times: the densest of those
    watched.check()


def selected(page: Any, feature: int) -> None:
    """Wait until the table's one selected row is that of the feature, and the address and the view are of it."""
    page.wait_for_selector(f"#sae-feature[data-feature='{feature}'] .sae-token")
    rows = "window.dash_ag_grid.getApi('table').getSelectedNodes().map(row => row.data.feature).join()"
    page.wait_for_function(f"{rows} === '{feature}' && location.hash === '#{feature}'")


@pytest.mark.browser
def test_table_address_and_view_are_of_one_feature(watched: Any, address: str, subject: Subject) -> None:
    """However it was asked for; features are in the order of density, which grows with the number."""
    assert subject.store is not None
    page, third = watched.page, subject.store.info.n_features - 4
    page.goto(address)
    page.click(f"{ROW}[row-index='2']")
    selected(page, third)
    page.evaluate("location.hash = '17'")
    selected(page, 17)
    for key, feature in (("j", 16), ("k", 17)):
        page.keyboard.press(key)
        selected(page, feature)
    page.click(f"{ROW}[row-index='2']")
    selected(page, third)
    page.click("#tab-Prompt")
    page.click("#prompt-run")
    for _ in range(2):  # the second time the address leads there already
        page.click("#prompt-result .sae-chip >> nth=0")
        page.wait_for_selector("#panel-Feature:not([hidden])")
        selected(page, 0)
        page.click("#tab-Prompt")
    page.keyboard.press("1")
    page.evaluate("window.dash_clientside.set_props('list-filter', { data: [9, 3, 5] })")
    page.wait_for_selector("#sae-count:has-text('3 of')")
    page.keyboard.press("/")
    page.keyboard.press("Enter")
    selected(page, 9)
    page.keyboard.press("j")
    selected(page, 5)
    watched.check()


@pytest.mark.browser
def test_an_address_with_a_feature_opens_it(watched: Any, address: str) -> None:
    page = watched.page
    page.goto(f"{address}#3")
    page.wait_for_selector("#sae-feature-title:text-is('Feature 3')")
    page.wait_for_selector("#sae-feature .sae-token")
    page.evaluate("location.hash = '5'")
    page.wait_for_selector("#sae-feature-title:text-is('Feature 5')")
    watched.check()


@pytest.mark.browser
def test_a_walk_by_keyboard_from_table_to_steering(watched: Any, address: str) -> None:
    page = watched.page
    page.goto(address)
    page.wait_for_selector(ROW)
    page.locator(f"{ROW}[row-index='0'] .ag-cell").first.focus()
    page.keyboard.press("ArrowDown")
    page.keyboard.press("Space")
    page.wait_for_selector("#sae-feature .sae-token")
    page.locator(".sae-context").first.focus()
    page.keyboard.press("ArrowRight")
    assert page.locator(".sae-tip").is_visible()
    page.locator("#tabs [role=tab]", has_text="Steering").focus()
    page.keyboard.press("Enter")
    page.wait_for_selector("#steer-run")
    page.locator("#steer-prompt").focus()
    page.keyboard.type("abc")
    page.locator("#steer-strength").focus()
    page.keyboard.press("ArrowRight")
    page.wait_for_selector("#steer-shown:has-text('1.1')")
    page.locator("#steer-run").focus()
    page.keyboard.press("Enter")
    page.wait_for_selector("#steer-steered:has-text('steered by')")
    watched.check()
