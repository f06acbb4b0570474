/* The page that can be mailed: a table of features, one feature's view, keyboard. Needs token.js and feature.js. */
"use strict";
(() => {
  const { element, write, label, format } = window.SaeTokens;
  const data = (id) => JSON.parse(document.getElementById(id).textContent);
  const page = data("sae-page");
  const by = (id) => document.getElementById(id);
  const known = new Map(page.rows.map((row) => [row.feature, row]));
  const state = { sort: "density", descending: true, query: "", feature: null, shown: [] };

  const compare = (a, b) => {
    const [left, right] = [a[state.sort], b[state.sort]];
    const empty = (value) => value === null || value === "";
    if (empty(left) || empty(right)) return empty(left) - empty(right) || a.feature - b.feature;
    const order = typeof left === "number" ? left - right : left < right ? -1 : left > right ? 1 : 0;
    return (state.descending ? -order : order) || a.feature - b.feature;
  };

  const matches = (row) => {
    const words = state.query.toLowerCase().split(/\s+/).filter(Boolean);
    const text = `${row.feature} ${row.label} ${row.search}`.toLowerCase();
    return words.every((word) => (/^\d+$/.test(word) && words.length === 1 ? String(row.feature) === word : text.includes(word)));
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

  const drawTable = () => {
    state.shown = page.rows.filter(matches).sort(compare);
    const rows = state.shown.map((row) => {
      const tr = element("tr", "");
      tr.dataset.feature = String(row.feature);
      tr.append(...page.columns.map(([name]) => cell(row, name)));
      return tr;
    });
    by("sae-rows").replaceChildren(...rows);
    by("sae-count").textContent = `${state.shown.length} of ${page.rows.length} shown`;
    markRow();
  };

  const markRow = () => {
    for (const row of by("sae-rows").rows) {
      const current = Number(row.dataset.feature) === state.feature;
      row.classList.toggle("sae-current", current);
      if (current) row.setAttribute("aria-current", "true");
      else row.removeAttribute("aria-current");
      if (current) row.scrollIntoView({ block: "nearest" });
    }
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

  const options = { config: page.config, has: (feature) => known.has(feature) };

  const open = (feature) => {
    if (!known.has(feature)) return;
    state.feature = feature;
    const view = data(`sae-feature-${feature}`);
    const title = by("sae-feature-title");
    title.replaceChildren(`Feature ${feature}`);
    if (view.label) title.append(" ", write(element("span", "sae-name"), view.label));
    window.SaeFeature.draw(by("sae-feature"), view, options);
    markRow();
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
    if (known.has(feature)) open(feature);
  };

  const onKey = (event) => {
    if (event.altKey || event.ctrlKey || event.metaKey) return;
    const typing = /^(INPUT|TEXTAREA|SELECT)$/.test(event.target.tagName) && event.target.type !== "checkbox";
    if (typing) {
      if (event.key === "Escape") event.target.blur();
      return;
    }
    const actions = {
      j: () => step(1),
      k: () => step(-1),
      "/": () => by("sae-search").focus(),
      g: () => { by("sae-search").select(); by("sae-search").focus(); },
      "?": () => by("sae-help").showModal(),
    };
    if (event.key in actions && !by("sae-help").open) {
      event.preventDefault();
      actions[event.key]();
    }
  };

  const start = () => {
    const density = window.SaeFeature.chart(page.density, page.config);
    by("sae-density").append(density);
    density.sae.draw();
    drawHead();
    drawTable();
    by("sae-search").addEventListener("input", (event) => { state.query = event.target.value; drawTable(); });
    by("sae-rows").addEventListener("click", (event) => {
      const row = event.target.closest("tr");
      if (row && !event.target.closest("a")) go(Number(row.dataset.feature));
    });
    by("sae-previous").addEventListener("click", () => step(-1));
    by("sae-next").addEventListener("click", () => step(1));
    by("sae-help-open").addEventListener("click", () => by("sae-help").showModal());
    by("sae-help-close").addEventListener("click", () => by("sae-help").close());
    document.addEventListener("keydown", onKey);
    window.addEventListener("hashchange", fromHash);
    window.matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => window.SaeFeature.redraw(document));
    window.SaeTokens.listen(by("sae-feature"));
    const asked = Number.parseInt(location.hash.slice(1), 10);
    if (known.has(asked)) open(asked);
    else if (state.shown.length) open(state.shown[0].feature);
  };
  start();
})();
