/* What the live app does in the browser: draws what the server hands over, selects, listens to keys. */
"use strict";
window.dash_clientside = window.dash_clientside || {};
window.dash_clientside.saetools = (() => {
  const { element, write, context, listen, format } = window.SaeTokens;
  const CONFIG = { displaylogo: false, showSendToCloud: false, plotlyServerURL: "", responsive: true, displayModeBar: false };
  const options = { config: CONFIG, has: () => true };
  const by = (id) => document.getElementById(id);
  const same = () => window.dash_clientside.no_update; // known once the renderer has been loaded

  /** Call back once the node is in the document and, for charts, Plotly has been loaded. */
  const when = (id, ready) => {
    const node = by(id);
    if (node && window.Plotly) ready(node);
    else setTimeout(() => when(id, ready), 30);
  };
  const listening = new WeakSet();
  const listenOnce = (node) => {
    if (listening.has(node)) return;
    listening.add(node);
    listen(node);
  };

  const drawFeature = (view) => {
    if (!view) return same();
    when("sae-feature", (node) => {
      if (view.error) return node.replaceChildren(element("p", "sae-note", view.error));
      by("sae-feature-title").textContent = `Feature ${view.feature}`;
      const shown = by("label-shown");
      shown.replaceChildren();
      write(shown, view.label);
      window.SaeFeature.draw(node, view, options);
      listenOnce(node);
      node.dataset.feature = String(view.feature);
    });
    return view.feature === undefined ? null : view.feature;
  };

  const drawPartner = (view) => {
    if (view) when("sae-partner", (node) => { window.SaeFeature.draw(node, view, { config: CONFIG, has: () => false }); listenOnce(node); });
    return view ? view.feature : same();
  };

  /** Charts of the panels, one below the other, in the node `id`. */
  const drawPanels = (id) => (panels) => {
    if (!panels) return same();
    when(id, (node) => {
      const charts = panels.map((panel) => window.SaeFeature.chart(panel, CONFIG));
      node.querySelectorAll(".sae-plot").forEach((plot) => window.Plotly.purge(plot));
      node.replaceChildren(...charts);
      charts.forEach((chart) => chart.sae.draw());
    });
    return panels.length;
  };

  /** A figure for dcc.Graph in the page's colours. */
  const themedFigure = (panel) => (panel ? { data: panel.data, layout: window.SaeFeature.themed(panel.layout) } : same());

  /** Features that fire on a prompt, each over the whole text; below a token: which features fire at it. */
  const drawPrompt = (view) => {
    if (!view) return same();
    when("prompt-result", (node) => {
      const scale = Math.max(...view.features.flatMap((feature) => feature.values.map(Math.abs)), 0);
      const rows = view.features.map((feature) => {
        const peak = feature.at[feature.values.reduce((best, value, index, all) => (Math.abs(value) > Math.abs(all[best]) ? index : best), 0)];
        const row = context({ ...feature, tokens: view.tokens, peak, document: "", position: 0 }, scale);
        const link = element("a", "sae-chip", `#${feature.feature}`);
        link.href = `#${feature.feature}`;
        row.querySelector(".sae-example-head").prepend(link);
        row.querySelector(".sae-place").append(write(element("span", ""), feature.label), ` density ${format(feature.density)}`);
        return row;
      });
      node.replaceChildren(...rows);
      listenOnce(node);
    });
    return view.tokens.length;
  };

  /** Two texts side by side, newlines and invisible characters visible. */
  const drawSteering = (texts) => {
    if (!texts) return same();
    ["steer-baseline", "steer-steered"].forEach((id, index) => {
      by(id).replaceChildren();
      write(by(id), texts[index]);
    });
    return texts.length;
  };

  const grid = () => window.dash_ag_grid && window.dash_ag_grid.getApi("table");
  const selectRow = (rows) => (rows && rows.length ? rows[0].feature : same());
  const refetch = () => {
    const api = grid();
    if (api) api.purgeInfiniteCache();
    return same();
  };

  const open = (feature) => window.dash_clientside.set_props("selected", { data: feature });
  const step = (by_) => {
    const api = grid();
    if (!api) return;
    const current = api.getSelectedNodes()[0];
    const next = api.getDisplayedRowAtIndex(Math.max(0, (current ? current.rowIndex : -1) + by_));
    if (!next || !next.data) return;
    next.setSelected(true, true);
    api.ensureNodeVisible(next);
  };

  const tabs = () => [...document.querySelectorAll("#tabs [role=tab]")];
  const nameOf = (tab) => tab.id.replace(/^tab-/, "");
  const choose = (name) => window.dash_clientside.set_props("tab", { data: name });
  /** [hidden of each panel ..., aria-selected of each tab ...]; charts drawn while hidden get their size now. */
  const showTab = (chosen) => {
    const names = tabs().map(nameOf);
    setTimeout(() => window.dispatchEvent(new Event("resize")), 30);
    return [...names.map((name) => name !== chosen), ...names.map((name) => String(name === chosen))];
  };
  document.addEventListener("click", (event) => {
    const tab = event.target.closest("#tabs [role=tab]");
    if (tab) choose(nameOf(tab));
  });
  document.addEventListener("keydown", (event) => {
    const tab = event.target.closest("#tabs [role=tab]");
    const move = { ArrowLeft: -1, ArrowRight: 1 }[event.key];
    if (!tab || !move) return;
    const all = tabs();
    all[(all.indexOf(tab) + move + all.length) % all.length].focus();
  });

  const fromHash = () => {
    const feature = Number.parseInt(location.hash.slice(1), 10);
    if (Number.isInteger(feature)) {
      open(feature);
      choose("Feature");
    }
  };
  window.addEventListener("hashchange", fromHash);
  document.addEventListener("keydown", (event) => {
    if (event.altKey || event.ctrlKey || event.metaKey) return;
    if (/^(INPUT|TEXTAREA|SELECT)$/.test(event.target.tagName)) {
      if (event.key === "Escape") event.target.blur();
      return;
    }
    const actions = { j: () => step(1), k: () => step(-1), "/": () => by("sae-search").focus(), g: () => by("sae-search").focus() };
    if (event.key in actions) {
      event.preventDefault();
      actions[event.key]();
    }
  });
  window.matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => window.SaeFeature.redraw(document));

  return {
    drawFeature, drawPartner, drawPrompt, drawSteering, selectRow, refetch, themedFigure, showTab, text: String,
    drawDensity: drawPanels("sae-density"), drawCurves: drawPanels("curves"), drawComparison: drawPanels("comparison"),
  };
})();
