"""Measure the dashboard in a real browser against its targets: `python scripts/bench_dashboard.py [--features N]`.

Prints one JSON line per figure: name, value, unit, target, n. Every timing follows a check that what was timed is
right; a wrong result stops the script. Needs chromium, playwright and the extra dash.

    switch    another feature, 40 contexts of 64 tokens with charts, until it is painted
    clients   features asked for by 20 clients at once, each a connection of its own; the server's memory then
    busy      20 readers, a feature every half second each, while prompts of 1,000 tokens keep the model at work
    table     first paint and sorting of N features; the server's memory
    map       of N features, from the click on its tab until it is painted
    prompt    which features fire on 64 tokens: a host of GPT-2 small's shape, 24,576 features, until it is painted
    collect   the store of 4,096 features over 100,000 tokens of the embedded host
"""

import argparse
import json
import multiprocessing
import sqlite3
import sys
import tempfile
import threading
import time
import urllib.request
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import psutil

from saetools.atomic import committed_directory
from saetools.features.records import Example, FeatureRecord, Histogram, LogitEffect, StoreInfo, TokenWeight
from saetools.features.schema import CREATE, CREATE_INDEXES, DATABASE
from saetools.features.store import FeatureStore
from saetools.features.write import Entry, write_store
from saetools.records import PointSpec

CHROMIUM = "/usr/bin/chromium"
ARGUMENTS = ["--no-sandbox", "--disable-quic", "--no-first-run", "--disable-background-networking", "--disable-sync"]
N_FEATURES, N_EXAMPLES, N_TOKENS = 200, 40, 64
PARTS = ("switch", "clients", "busy", "table", "map", "prompt", "collect")
GPT2_FEATURES, PROMPT_TOKENS = 24_576, 64
N_CLIENTS, REQUESTS, PAUSE = 20, 30, 0.5
BUSY_TOKENS = 1000
SPEC = PointSpec(host="synthetic", point="blocks.0.hook_out", d_model=64)


def number(least: int, most: int) -> Callable[[str], int]:
    """What reads a whole number between the two."""

    def whole_number(text: str) -> int:
        if not least <= int(text) <= most:
            raise argparse.ArgumentTypeError(f"{text} is not between {least} and {most}")
        return int(text)

    return whole_number


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--features", type=number(1, 10**9), default=1_000_000, help="rows of the table")
    parser.add_argument("--switches", type=number(4, N_FEATURES), default=60, help="feature switches; three go untimed")
    parser.add_argument("--only", nargs="+", choices=PARTS, default=PARTS, help="parts to measure")
    parser.add_argument("--stores", type=Path, help="directory that keeps the made stores and host for another call")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        for figure in measure(options.stores or Path(temporary), options):
            sys.stdout.write(json.dumps(figure) + "\n")
            sys.stdout.flush()


def measure(folder: Path, options: argparse.Namespace) -> Iterator[dict[str, Any]]:
    """The figures of all parts that are asked for."""
    from playwright.sync_api import sync_playwright

    small, large, gpt2 = (folder / name for name in ("small", f"table{options.features}", f"table{GPT2_FEATURES}"))
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=ARGUMENTS)
        if {"switch", "clients", "busy"} & set(options.only) and not small.exists():
            write_store(small, info(N_FEATURES), (entry(feature) for feature in range(N_FEATURES)))
        if "clients" in options.only:
            yield from measure_clients(small)
        if "busy" in options.only:
            yield from measure_busy(small)
        if "switch" in options.only:
            yield from measure_switch(browser, small, options.switches)
        if {"table", "map"} & set(options.only):
            write_large(large, options.features)
            yield from measure_store(large)
            yield from measure_table(browser, large, options)
        if "prompt" in options.only:
            write_large(gpt2, GPT2_FEATURES)
            yield from measure_prompt(browser, gpt2)
        browser.close()
    if "collect" in options.only:
        yield from measure_collect(folder / "collected")


def info(n_features: int) -> StoreInfo:
    return StoreInfo(title="bench", kind="topk", n_features=n_features, n_tokens=1_000_000, spec=SPEC)


def entry(feature: int) -> Entry:
    """A feature with 40 contexts of 64 tokens."""
    random = np.random.default_rng(feature)
    words = [" the", "def", "(", "self", "\n    ", "return", " value", ".", "x", " ="]
    examples = []
    for _ in range(N_EXAMPLES):
        values = np.where(random.random(N_TOKENS) < 0.15, random.random(N_TOKENS), 0.0)
        values[40] = 2.0
        tokens = tuple(words[i] for i in random.integers(0, len(words), N_TOKENS))
        examples.append(Example("top", "file.py", 0, 40, tokens, tuple(values.tolist())))
    weights = tuple(TokenWeight(token=word, weight=1 - j / 10) for j, word in enumerate(words))
    counts = tuple(random.integers(1, 100, 30).tolist())
    logits = LogitEffect(top=weights, bottom=weights, low=-1, high=1, counts=counts)
    record = FeatureRecord(
        feature=feature,
        count=100,
        density=float(random.uniform(1e-5, 0.1)),
        max_value=2.0,
        histogram=Histogram(first=180, positive=counts),
        logits=logits,
        map_xy=(float(random.normal()), float(random.normal())),
    )
    return Entry(record, examples)


def write_large(path: Path, n_features: int) -> None:
    """A store of a table alone, where there is none yet: what its size costs is what is measured."""
    if path.exists():
        return
    random = np.random.default_rng(0)
    numbers = random.random((n_features, 7))
    with committed_directory(path) as directory:
        connection = sqlite3.connect(directory / DATABASE)
        connection.executescript(CREATE)
        connection.execute("INSERT INTO meta VALUES ('info', ?)", (info(n_features).model_dump_json(),))
        rows = (
            (i, r[0], int(r[1] * 1e6), *r[2:6].tolist(), r[6], 5, "tok", " the", r[0], r[1])
            for i, r in enumerate(numbers)
        )
        connection.executemany(f"INSERT INTO features VALUES ({', '.join('?' * 13)})", rows)
        connection.executescript(CREATE_INDEXES + "ANALYZE;")
        connection.commit()
        connection.close()


def result(name: str, milliseconds: list[float], quantile: float, target: float) -> dict[str, Any]:
    return {
        "name": f"{name} p{round(100 * quantile)}",
        "value": round(float(np.quantile(milliseconds, quantile)), 1),
        "unit": "ms",
        "target": target,
        "n": len(milliseconds),
    }


def measure_store(large: Path) -> Iterator[dict[str, Any]]:
    """Pages of the table without a browser."""
    store = FeatureStore.open(large)
    times = []
    for column in ("-density", "mean", "-kurtosis", "count", "max_value") * 4:
        started = time.perf_counter()
        page = store.table(column, offset=1000, limit=50)
        times.append(1e3 * (time.perf_counter() - started))
        values = [getattr(row, column.removeprefix("-")) for row in page.rows]
        if values != sorted(values, reverse=column.startswith("-")):
            raise SystemExit(f"the page sorted by {column} is not sorted")
    yield result("store page", times, 0.95, 50)


def serve_in_process(path: Path, with_model: bool, ready: Any) -> None:
    """What a child process runs: the live app on a free port, told through the pipe."""
    from saetools.dashboard.live.app import listen, make_guarded
    from saetools.dashboard.live.subject import Subject

    fire = gpt2_shaped(path.parent / "host") if with_model else None
    server = listen(make_guarded(Subject(FeatureStore.open(path), fire)), "127.0.0.1", 0)
    ready.send(server.server_port)
    server.serve_forever()


def gpt2_shaped(path: Path) -> Any:
    """Which features fire on a text: random weights in the shape of GPT-2 small, the embedded host's tokenizer."""
    from transformers import AutoTokenizer, GPT2Config, GPT2LMHeadModel

    from saetools.config import HostConfig
    from saetools.dictionaries.base import make_dictionary
    from saetools.features.prompt import fire_on_prompt
    from saetools.lm.hosts import embedded_directory, make_host
    from saetools.pipeline import dictionary_configs

    if not path.exists():
        GPT2LMHeadModel(GPT2Config()).save_pretrained(path)
        AutoTokenizer.from_pretrained(embedded_directory()).save_pretrained(path)
    host = make_host(HostConfig(name=str(path)), "cpu")
    config = dictionary_configs()["topk"](kind="topk", n_features=GPT2_FEATURES, k=32)
    dictionary = make_dictionary(config, d_model=768)
    return lambda text: fire_on_prompt(dictionary, host, "blocks.6.hook_out", text, n_features=2000)


class Server:
    """A server process and its address."""

    def __init__(self, path: Path, with_model: bool = False) -> None:
        context = multiprocessing.get_context("spawn")
        ours, theirs = context.Pipe()
        self.process = context.Process(target=serve_in_process, args=(path, with_model, theirs), daemon=True)
        self.process.start()
        theirs.close()  # so that a process that ends is noticed
        self.address = f"http://127.0.0.1:{ours.recv()}/"

    def memory_megabytes(self) -> float:
        return psutil.Process(self.process.pid).memory_info().rss / 1e6

    def stop(self) -> None:
        self.process.terminate()
        self.process.join()


def measure_switch(browser: Any, path: Path, n_switches: int) -> Iterator[dict[str, Any]]:
    """From choosing a feature, or the key j, until all that is in view is painted: 40 contexts of 64 tokens, charts."""
    server = Server(path)
    page = browser.new_page(viewport={"width": 1280, "height": 900})
    page.goto(server.address)
    page.wait_for_selector(".ag-row")
    page.wait_for_selector("#sae-density svg")
    yield from switches(page, "feature switch", range(n_switches))
    page.click(".ag-row[row-index='0']")  # the densest is listed first
    page.wait_for_selector(f"#sae-feature:not([data-feature='{n_switches - 1}'])")
    yield from switches(page, "feature switch by key", [None] * n_switches)
    page.close()
    server.stop()


def switches(page: Any, name: str, features: Iterable[int | None]) -> Iterator[dict[str, Any]]:
    """Medians and 95th percentiles of going to each feature; None: to the next of the table, by its key."""
    times = []
    for feature in features:
        shown = page.evaluate(SWITCH, feature)
        times.append(shown["milliseconds"])
        right = {"tokens": N_EXAMPLES * N_TOKENS, "charts": 2, "astray": 0, "title": f"Feature {shown['feature']}"}
        if shown["visible"] < 1 or any(shown[key] != value for key, value in right.items()):
            raise SystemExit(f"feature {feature} is not shown as it should be: {shown}")
    yield result(name, times[3:], 0.5, 100)
    yield result(name, times[3:], 0.95, 200)


# Painted: the frame after the one in which the view is complete has begun. Only then is looked whether it is.
SWITCH = """feature => new Promise(done => {
  const node = document.getElementById("sae-feature"), old = node.dataset.feature, start = performance.now();
  const middle = box => (box.left + box.right) / 2, box = each => each.getBoundingClientRect();
  const inView = each => box(each).top < window.innerHeight && box(each).bottom > 0;
  const count = (selector, keep = () => true) => [...node.querySelectorAll(selector)].filter(keep).length;
  const look = () => {
    const milliseconds = performance.now() - start;
    const off = context => Math.abs(middle(box(context)) - middle(box(context.querySelector(".sae-peak")))) > 2;
    const visible = [...node.querySelectorAll(".sae-example:not(.sae-later) .sae-context")].filter(inView);
    done({
      milliseconds, feature: node.dataset.feature, title: document.getElementById("sae-feature-title").textContent,
      tokens: count(".sae-token"), charts: count(".sae-chart svg"), visible: visible.length,
      astray: visible.filter(off).length + count(".sae-later", inView),
    });
  };
  const observer = new MutationObserver(() => {
    if (node.dataset.feature === old) return;
    observer.disconnect();
    requestAnimationFrame(() => setTimeout(look));
  });
  observer.observe(node, { attributes: true });
  if (feature === null) document.body.dispatchEvent(new KeyboardEvent("keydown", { key: "j", bubbles: true }));
  else location.hash = String(feature);
})"""


def measure_clients(path: Path) -> Iterator[dict[str, Any]]:
    """N_CLIENTS threads ask for one feature after another, as fast as they are answered."""
    server = Server(path)
    times = ask_features(server.address)
    for quantile in (0.5, 0.95):
        yield result(f"a feature, {N_CLIENTS} clients", times, quantile, 1000)
    yield {"name": "server memory then", "value": round(server.memory_megabytes()), "unit": "MB", "target": 600, "n": 1}
    server.stop()


def measure_busy(path: Path) -> Iterator[dict[str, Any]]:
    """N_CLIENTS threads ask for features and pause between; one more asks for long prompts, never pausing."""
    server = Server(path, with_model=True)
    ended, spent = threading.Event(), list[float]()

    def keep_busy() -> None:
        while not ended.is_set():
            started = time.perf_counter()
            status = ask_prompt(server.address, "=1" * (BUSY_TOKENS // 2))
            spent.append(time.perf_counter() - started)
            if " tokens, " not in status:
                raise SystemExit(f"the prompt was not answered: {status}")

    with ThreadPoolExecutor(1) as prompts:
        job = prompts.submit(keep_busy)
        times = ask_features(server.address, PAUSE)
        ended.set()
        job.result()
    for quantile in (0.5, 0.95):
        yield result(f"a feature, {N_CLIENTS} clients, {len(spent)} prompts meanwhile", times, quantile, 200)
    server.stop()


def ask_prompt(address: str, text: str) -> str:
    """What the page would say after a click on Show features."""
    outputs = [{"id": "prompt-view", "property": "data"}, {"id": "prompt-status", "property": "children"}]
    body = {
        "output": "..prompt-view.data...prompt-status.children..",
        "outputs": outputs,
        "inputs": [{"id": "prompt-run", "property": "n_clicks", "value": 1}],
        "state": [
            {"id": "prompt-text", "property": "value", "value": text},
            {"id": "prompt-density", "property": "value", "value": 1},
        ],
        "changedPropIds": ["prompt-run.n_clicks"],
    }
    headers = {"Content-Type": "application/json"}
    asked = urllib.request.Request(f"{address}_dash-update-component", json.dumps(body).encode(), headers)
    with urllib.request.urlopen(asked) as answer:
        return json.load(answer)["response"]["prompt-status"]["children"]


def ask_features(address: str, pause: float = 0) -> list[float]:
    """Milliseconds until each of N_CLIENTS had each of REQUESTS features, one after another."""

    def ask(client: int) -> list[float]:
        times = []
        time.sleep(pause * client / N_CLIENTS)
        for number in range(REQUESTS):
            feature = (37 * client + number) % N_FEATURES
            started = time.perf_counter()
            with urllib.request.urlopen(f"{address}view/{feature}") as answer:
                view = json.load(answer)
            times.append(1e3 * (time.perf_counter() - started))
            if view["feature"] != feature:
                raise SystemExit(f"feature {feature} was asked for, {view['feature']} was given")
            time.sleep(pause)
        return times

    ask(0)
    with ThreadPoolExecutor(N_CLIENTS) as clients:
        return [ms for each in clients.map(ask, range(N_CLIENTS)) for ms in each]


def measure_table(browser: Any, path: Path, options: argparse.Namespace) -> Iterator[dict[str, Any]]:
    """First paint and sorting of the table of all features; the map; the server's memory."""
    server = Server(path)
    page = browser.new_page(viewport={"width": 1280, "height": 900})
    page.goto(server.address)
    page.wait_for_selector(".ag-row")  # warms the browser's cache
    if "table" in options.only:
        yield from measure_rows(page, server, FeatureStore.open(path))
    if "map" in options.only:
        yield from measure_map(page, options.features)
    yield {"name": "server memory", "value": round(server.memory_megabytes()), "unit": "MB", "target": 600, "n": 1}
    page.close()
    server.stop()


def measure_rows(page: Any, server: Server, store: FeatureStore) -> Iterator[dict[str, Any]]:
    paints = []
    for _ in range(5):
        started = time.perf_counter()
        page.goto(server.address)
        page.wait_for_selector(".ag-row[row-id] .ag-cell")
        paints.append(1e3 * (time.perf_counter() - started))
    yield result("table first paint", paints, 0.5, 1500)
    sorts = []
    for column in ("mean", "density", "max_value", "kurtosis") * 4:
        page.locator(f".ag-header-cell[col-id='{column}']").scroll_into_view_if_needed()
        before = page.locator(".ag-row[row-index='0']").get_attribute("row-id")
        started = time.perf_counter()
        page.click(f".ag-header-cell[col-id='{column}'] .ag-header-cell-label")
        # with an id: rows exist before they are loaded
        page.wait_for_selector(f".ag-row[row-index='0'][row-id]:not([row-id='{before}'])")
        sorts.append(1e3 * (time.perf_counter() - started))
        first = page.locator(".ag-row[row-index='0']").get_attribute("row-id")
        if first not in {str(store.table(sign + column, limit=1).rows[0].feature) for sign in ("", "-")}:
            raise SystemExit(f"sorted by {column}, the table begins with feature {first}")
    yield result("table sort", sorts, 0.95, 500)


def measure_map(page: Any, n_features: int) -> Iterator[dict[str, Any]]:
    started = time.perf_counter()
    page.click("#tab-Map")
    page.wait_for_selector("#sae-map[data-points]")
    page.evaluate(PAINTED)
    milliseconds = 1e3 * (time.perf_counter() - started)
    n_points = int(page.locator("#sae-map").get_attribute("data-points"))
    if n_points < min(n_features, 100_000):
        raise SystemExit(f"the map shows {n_points} of {n_features} features")
    yield result(f"map of {n_points:,} points interactive", [milliseconds], 0.5, 3000)


PAINTED = "() => new Promise(done => requestAnimationFrame(() => setTimeout(done)))"


def measure_prompt(browser: Any, path: Path) -> Iterator[dict[str, Any]]:
    """From the click until the prompt is painted with what fires on it."""
    server = Server(path, with_model=True)
    page = browser.new_page(viewport={"width": 1280, "height": 900})
    page.goto(server.address)
    page.wait_for_selector(".ag-row")
    page.click("#tab-Prompt")
    page.fill("#prompt-density", "1")
    times = []
    for trial in range(25):
        text = f"x{trial}" + "=1" * PROMPT_TOKENS
        page.evaluate("text => window.dash_clientside.set_props('prompt-text', { value: text })", text[:PROMPT_TOKENS])
        times.append(page.evaluate(ASK))
        if page.locator(".sae-strip").evaluate("node => node.textContent") != text[:PROMPT_TOKENS]:
            raise SystemExit("the prompt shown is not the one that was asked about")
    n_tokens = page.locator(".sae-strip .sae-token").count()
    page.close()
    server.stop()
    yield result(f"prompt search, {n_tokens} tokens", times[3:], 0.95, 1000)


ASK = """() => new Promise(done => {
  const start = performance.now(), old = document.querySelector(".sae-strip");
  const look = () => {
    const now = document.querySelector(".sae-strip");
    if (now && now !== old) requestAnimationFrame(() => setTimeout(() => done(performance.now() - start)));
    else setTimeout(look, 5);
  };
  document.getElementById("prompt-run").click();
  look();
})"""


def measure_collect(path: Path) -> Iterator[dict[str, Any]]:
    """One pass over held-out text with random weights, until the store is on disk."""
    from saetools.dictionaries.base import make_dictionary
    from saetools.features.collect import CollectSettings, collect
    from saetools.features.entries import Description, describe
    from saetools.pipeline import Data, dictionary_configs, read_config

    config = read_config("quickstart")
    data = Data(config)
    source, plan = data.source("heldout"), data.plan("heldout")
    dictionary = make_dictionary(dictionary_configs()["topk"](kind="topk", n_features=4096, k=32), source.spec.d_model)
    started = time.perf_counter()
    collected = collect(dictionary, source, plan, CollectSettings(n_tokens=100_000))
    store_info, entries = describe(collected, dictionary, source.spec, data.host, Description("bench"))
    write_store(path, store_info, entries)
    seconds = time.perf_counter() - started
    store = FeatureStore.open(path)
    if store.info.n_tokens < 100_000 or int(store.columns("count")["count"].sum()) != 32 * store.info.n_tokens:
        raise SystemExit("the store does not hold every firing")
    n = store.info.n_tokens
    yield {"name": "collect 4,096 features", "value": round(seconds, 1), "unit": "s", "target": 60, "n": n}


if __name__ == "__main__":
    main()
