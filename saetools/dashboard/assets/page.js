/* The page that can be mailed: a table of features, one feature's view, keyboard. Needs token.js, feature.js, map.js
   and shell.js. */
"use strict";
(() => {
  const { element, write, label, format } = window.SaeTokens;
  const data = (id) => JSON.parse(document.getElementById(id).textContent);
  const page = data("sae-page");
  const by = (id) => document.getElementById(id);
  const known = new Map(page.rows.map((row) => [row.feature, row]));
  const lists = new Map(Object.entries(page.lists));
  page.rows.forEach((row) => {
    row.text = `${row.feature} ${row.label} ${row.note} ${row.search}`.toLowerCase();
    row.signs = `${row.peak_token || ""}\n${row.top_logit || ""}\n${row.label} ${row.note}`;
  });
  const state = { sort: "density", descending: true, query: "", listed: null, feature: null, shown: [], drawn: [0, 0], tab: "Feature", map: null, pair: null };

  const compare = (a, b) => {
    const [left, right] = [a[state.sort], b[state.sort]];
    const empty = (value) => value === null || value === "";
    if (empty(left) || empty(right)) return empty(left) - empty(right) || a.feature - b.feature;
    const order = typeof left === "number" ? left - right : left < right ? -1 : left > right ? 1 : 0;
    return (state.descending ? -order : order) || a.feature - b.feature;
  };

  const BOUND = new RegExp(`^${page.bound.form}$`);
  const SPACED = new RegExp(page.bound.spaced, "g");
  const columns = new Map(Object.entries(page.bound.columns));
  const HOLDS = { "<": (a, b) => a < b, ">": (a, b) => a > b, "<=": (a, b) => a <= b, ">=": (a, b) => a >= b };
  /** Whether a row is on the list, within the bounds and has the words that are asked for, as in the live app: a word
      without a letter or digit is looked for where it tells features apart. */
  const matcher = () => {
    const asked = state.query.replace(SPACED, "$1$2").split(/\s+/).filter(Boolean).map((word) => [word, word.match(BOUND) || []]);
    const isBound = ([, [, name]]) => columns.has(name);
    const words = asked.filter((each) => !isBound(each)).map(([word]) => word);
    const tests = asked.filter(isBound).map(([, [, name, sign, bound]]) => {
      const column = columns.get(name);
      return (row) => row[column] !== null && HOLDS[sign](row[column], Number(bound));
    });
    if (words.length === 1 && /^\d+$/.test(words[0])) tests.push((row) => row.feature === Number(words[0]));
    else tests.push(...words.map((word) => (/[\p{L}\p{N}_]/u.test(word) ? (row) => row.text.includes(word.toLowerCase()) : (row) => row.signs.includes(word))));
    return (row) => (!state.listed || state.listed.has(row.feature)) && tests.every((test) => test(row));
  };

  const cell = (row, name) => {
    const value = row[name];
    const td = element("td", typeof value === "number" ? "sae-number" : "");
    if (name === "feature") {
      const link = element("a", "", `#${value}`);
      link.href = `#${value}`;
      td.append(link);
    } else if (typeof value === "number") td.textContent = format(value);
    else if (value) td.append(label(value));
    else td.append(element("span", "sae-dim", "–"));
    return td;
  };

  const ROW = 29; // pixels: every row is one line
  const WINDOW = 400; // rows in the document at most, around those in view

  const tableRow = (row) => {
    const tr = element("tr", "");
    tr.dataset.feature = String(row.feature);
    tr.append(...page.columns.map(([name]) => cell(row, name)));
    return tr;
  };
  const spacer = (rows) => {
    const tr = element("tr", "sae-spacer");
    tr.setAttribute("aria-hidden", "true");
    tr.append(element("td", ""));
    tr.firstChild.colSpan = page.columns.length;
    tr.firstChild.style.height = `${rows * ROW}px`;
    return tr;
  };

  /** Rows around those in view: thousands of rows in the document would take seconds to lay out. */
  const drawRows = () => {
    const box = by("sae-table-box");
    const middle = Math.floor((box.scrollTop + box.clientHeight / 2) / ROW);
    const first = Math.max(0, Math.min(middle - WINDOW / 2, state.shown.length - WINDOW));
    const last = Math.min(state.shown.length, first + WINDOW);
    state.drawn = [first, last];
    const rows = state.shown.slice(first, last).map(tableRow);
    if (first > 0) rows.unshift(spacer(first));
    if (last < state.shown.length) rows.push(spacer(state.shown.length - last));
    by("sae-rows").replaceChildren(...rows);
    by("sae-table").setAttribute("aria-rowcount", String(state.shown.length + 1));
    markRow();
  };
  const onScroll = () => {
    const box = by("sae-table-box");
    const [first, last] = state.drawn;
    const [top, bottom] = [box.scrollTop / ROW, (box.scrollTop + box.clientHeight) / ROW];
    if ((top < first + 20 && first > 0) || (bottom > last - 20 && last < state.shown.length)) drawRows();
  };

  const drawTable = () => {
    state.shown = page.rows.filter(matcher()).sort(compare);
    drawRows();
    by("sae-count").textContent = `${state.shown.length.toLocaleString("en")} of ${page.rows.length.toLocaleString("en")} shown`;
  };

  const markRow = () => {
    for (const row of by("sae-rows").rows) {
      const current = Number(row.dataset.feature) === state.feature;
      row.classList.toggle("sae-current", current);
      if (current) row.setAttribute("aria-current", "true");
      else row.removeAttribute("aria-current");
    }
  };
  const scrollToRow = () => {
    const place = state.shown.findIndex((row) => row.feature === state.feature);
    const box = by("sae-table-box");
    if (place < 0 || box.scrollHeight <= box.clientHeight) return;
    const [top, head] = [place * ROW, by("sae-head").offsetHeight];
    if (top < box.scrollTop) box.scrollTop = top;
    else if (top + ROW + head > box.scrollTop + box.clientHeight) box.scrollTop = top + ROW + head - box.clientHeight;
  };

  const drawHead = () => {
    const row = element("tr", "");
    for (const [name, title, about] of page.columns) {
      const th = element("th", "");
      th.scope = "col";
      const sorted = state.sort === name;
      th.setAttribute("aria-sort", sorted ? (state.descending ? "descending" : "ascending") : "none");
      const button = element("button", "sae-sort", title);
      button.type = "button";
      button.title = about;
      button.dataset.column = name;
      button.append(element("span", "sae-arrow", sorted ? (state.descending ? "▼" : "▲") : ""));
      button.addEventListener("click", () => {
        state.descending = state.sort === name ? !state.descending : typeof page.rows[0]?.[name] === "number";
        state.sort = name;
        drawHead();
        by("sae-head").querySelector(`[data-column="${name}"]`).focus();
        drawTable();
      });
      th.append(button);
      row.append(th);
    }
    by("sae-head").replaceChildren(row);
  };

  const options = { has: (feature) => known.has(feature) };

  /** What Python packed: JSON as zlib in base64. */
  const unpack = async (text) => {
    const bytes = Uint8Array.from(atob(text), (letter) => letter.charCodeAt(0));
    const stream = new Blob([bytes]).stream().pipeThrough(new DecompressionStream("deflate"));
    return JSON.parse(await new Response(stream).text());
  };

  /** Calls back with what is to be drawn of a feature: it is in this page, or in a script of its own beside it. */
  const waiting = new Map();
  window.SaePage = { receive: (feature, parts) => { unpack(parts).then(waiting.get(feature)); waiting.delete(feature); } };
  const withView = (feature, ready) => {
    if (!window.DecompressionStream) {
      by("sae-feature-title").textContent = "This page needs a browser of 2023 or later";
      return undefined;
    }
    if (page.folder === null) return unpack(by(`sae-feature-${feature}`).textContent).then(ready);
    waiting.set(feature, ready);
    const script = document.createElement("script");
    script.src = `${page.folder}/${feature}.js`;
    script.addEventListener("load", () => script.remove());
    script.addEventListener("error", () => {
      by("sae-feature-title").textContent = `Feature ${feature}: ${script.getAttribute("src")} is missing. Keep the folder together.`;
    });
    return document.head.append(script);
  };

  const open = (feature) => {
    if (!known.has(feature)) return;
    state.feature = feature;
    markRow();
    scrollToRow();
    withView(feature, ({ view, partner }) => {
      if (state.feature !== feature) return;
      const title = by("sae-feature-title");
      title.replaceChildren(`Feature ${feature}`);
      if (view.label) title.append(" ", write(element("span", "sae-name"), view.label));
      window.SaeFeature.draw(by("sae-feature"), view, options);
      by("sae-feature").dataset.feature = String(feature);
      state.pair = [feature, view, partner, options];
      if (state.tab === "Compare") window.SaeFeature.drawPair(...state.pair);
      if (state.map) state.map.mark(feature);
    });
  };

  const step = (by_) => {
    const place = state.shown.findIndex((row) => row.feature === state.feature);
    const next = state.shown[Math.max(0, Math.min(state.shown.length - 1, place + by_))];
    if (next) go(next.feature);
  };
  const go = (feature) => {
    if (location.hash === `#${feature}`) open(feature);
    else location.hash = String(feature);
  };
  const fromHash = () => {
    const feature = Number.parseInt(location.hash.slice(1), 10);
    if (!known.has(feature)) return;
    open(feature);
    if (state.tab === "Map" || state.tab === "Training") choose("Feature");
  };

  // --- the other views ---------------------------------------------------------------------------------------

  const choose = (name) => {
    state.tab = name;
    window.SaeShell.showTab(name);
    if (name === "Map" && !state.map) drawMap();
    if (name === "Training") drawOnce(by("sae-curves"), page.curves);
    if (name === "Compare") {
      drawOnce(by("sae-cosines"), [page.comparison.histogram]);
      if (state.pair) window.SaeFeature.drawPair(...state.pair);
    }
  };
  const drawOnce = (root, panels) => {
    if (root.childElementCount) return;
    root.append(...panels.map((panel) => window.SaeFeature.chart(panel)));
    window.SaeFeature.redraw(root);
  };
  const drawMap = () => {
    const faint = page.whole ? "" : ". Faint features are not in this page.";
    by("sae-map-note").textContent = page.map.title + faint;
    const select = (features) => { state.listed = features && new Set(features); drawTable(); };
    state.map = window.SaeMap.draw(by("sae-map"), page.map, { select, open: go, has: options.has });
    if (state.feature !== null) state.map.mark(state.feature);
  };
  const drawComparison = () => {
    if (!page.comparison) return;
    by("panel-Compare").append(...window.SaeFeature.comparison(page.comparison, options));
    by("sae-compared").addEventListener("click", (event) => {
      const row = event.target.closest("tr[data-feature]");
      if (row && !event.target.closest("a")) go(Number(row.dataset.feature));
    });
  };

  const start = () => {
    const density = window.SaeFeature.chart(page.density);
    by("sae-density").append(density);
    density.sae.draw();
    drawComparison();
    drawHead();
    drawTable();
    by("sae-table-box").addEventListener("scroll", onScroll, { passive: true });
    by("sae-search").addEventListener("input", (event) => { state.query = event.target.value; by("sae-table-box").scrollTop = 0; drawTable(); });
    by("list-choice")?.addEventListener("input", ({ target }) => { state.listed = target.value ? new Set(lists.get(target.value)) : null; drawTable(); });
    by("sae-rows").addEventListener("click", (event) => {
      const row = event.target.closest("tr[data-feature]");
      if (!row) return;
      event.preventDefault();
      go(Number(row.dataset.feature));
      window.SaeShell.reveal();
    });
    window.SaeShell.listenTabs(choose);
    window.SaeShell.listenKeys(step, choose, () => { if (state.shown.length) go(state.shown[0].feature); });
    window.addEventListener("hashchange", fromHash);
    window.matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => { window.SaeFeature.redraw(document); if (state.map) state.map.redraw(); });
    ["sae-feature", "sae-own", "sae-partner"].forEach((id) => by(id) && window.SaeTokens.listen(by(id)));
    const asked = Number.parseInt(location.hash.slice(1), 10);
    if (known.has(asked)) open(asked);
    else if (state.shown.length) open(state.shown[0].feature);
  };
  start();
})();
