/* What the live app does in the browser: draws what the server hands over, selects, listens to keys. */
"use strict";
window.dash_clientside = window.dash_clientside || {};
window.dash_clientside.saetools = (() => {
  const { element, write, context, listen, format, label } = window.SaeTokens;
  const options = { has: () => true };
  const by = (id) => document.getElementById(id);
  const same = () => window.dash_clientside.no_update; // known once the renderer has been loaded

  /** Call back once the node is in the document. */
  const when = (id, ready) => {
    const node = by(id);
    if (node) ready(node);
    else setTimeout(() => when(id, ready), 30);
  };
  /** Call back once plotly is there, which is loaded with the first curves: its script is 4.8 MB. */
  let loading = null;
  const withPlotly = (ready) => {
    loading = loading || new Promise((done) => {
      const script = document.createElement("script");
      script.src = "/plotly.js";
      script.addEventListener("load", done);
      document.head.append(script);
    });
    loading.then(ready);
  };
  const listening = new WeakSet();
  const listenOnce = (node) => {
    if (listening.has(node)) return;
    listening.add(node);
    listen(node);
  };

  /** The one way to a feature, whoever asks for it: view, address and row of the table follow. */
  let wanted = null;
  const go = (feature) => {
    wanted = feature;
    showFeature(feature);
    mark();
    location.hash = String(feature);
    window.dash_clientside.set_props("selected", { data: feature });
  };
  /** Fetch what is known of a feature and draw it: past Dash's stores and React, which would take longer than drawing. */
  const showFeature = (feature) => {
    fetch(`/view/${feature}`)
      .then((answer) => answer.json())
      .catch(() => ({ error: "The server does not answer. Is it still running?" }))
      .then((view) => { if (wanted === feature) when("sae-feature", (node) => drawFeature(node, view)); });
  };

  let shownView = null;
  const drawFeature = (node, view) => {
    if (view.error) {
      node.replaceChildren(element("p", "sae-note", view.error));
      by("sae-feature-title").textContent = "No feature";
      shownView = null;
      return;
    }
    by("sae-feature-title").textContent = `Feature ${view.feature}`;
    const shown = by("label-shown");
    shown.replaceChildren();
    write(shown, view.label);
    window.SaeFeature.draw(node, view, options);
    listenOnce(node);
    node.dataset.feature = String(view.feature);
    shownView = view;
    setField("label", view.label);
    setField("note", view.note);
    if (by("steer-feature")?.closest("[role=tabpanel]").hidden === false) aim();
    if (map) map.mark(view.feature);
    if (pair && pair.feature === view.feature) drawPair();
  };

  /** A field of a form, where it holds something else: each change is a round through React. */
  const setField = (id, value) => {
    if (by(id).value !== String(value)) window.dash_clientside.set_props(id, { value });
  };
  /** A number, as if it were typed: Dash's field keeps one beside the property, and its + and - go on from that. */
  const typeNumber = (id, value) => {
    const field = by(id);
    if (field.value === String(value)) return;
    Object.getOwnPropertyDescriptor(HTMLInputElement.prototype, "value").set.call(field, value);
    field.dispatchEvent(new Event("input", { bubbles: true }));
  };
  /** Steering at the feature that is shown, at the greatest value that it took. */
  const aim = () => {
    if (!shownView) return;
    typeNumber("steer-feature", shownView.feature);
    if (shownView.max_value) typeNumber("steer-value", Number(shownView.max_value.toPrecision(3)));
  };
  /** What has been written about the feature that is shown. */
  const toSave = (_, written, note) => ({ feature: shownView ? shownView.feature : null, label: written, note });

  const drawComparison = (view) => {
    if (!view) return same();
    when("sae-comparison", (node) => {
      node.replaceChildren(...window.SaeFeature.comparison(view, options));
      drawPanels("sae-cosines")([view.histogram]);
      by("sae-compared").addEventListener("click", (event) => {
        const row = event.target.closest("tr[data-feature]");
        if (row) go(Number(row.dataset.feature));
      });
      listenOnce(by("sae-own"));
      listenOnce(by("sae-partner"));
    });
    return view.rows.length;
  };

  const drawPartner = (data) => {
    if (!data) return same();
    pair = data;
    when("sae-partner", drawPair);
    return data.feature;
  };
  let pair = null; // {feature, partner} as it was asked for last
  const drawPair = () => {
    const view = shownView && shownView.feature === pair.feature ? shownView : null; // else it is on its way
    window.SaeFeature.drawPair(pair.feature, view, pair.partner, options);
  };

  /** Charts of the panels, one below the other, in the node `id`; those that are there already are redrawn in place. */
  const drawPanels = (id) => (panels) => {
    if (!panels) return same();
    const draw = (node) => {
      const old = [...node.querySelectorAll(".sae-chart")];
      if (old.length === panels.length) old.forEach((figure, i) => { figure.sae.panel = panels[i]; figure.sae.fill(); });
      else {
        node.querySelectorAll(".js-plotly-plot").forEach((plot) => window.Plotly.purge(plot));
        node.replaceChildren(...panels.map((panel) => window.SaeFeature.chart(panel)));
      }
      window.SaeFeature.redraw(node);
    };
    when(id, (node) => (panels.every(window.SaeBars.draws) ? draw(node) : withPlotly(() => draw(node))));
    return panels.length;
  };

  let map = null;
  const drawMap = (points) => {
    if (!points) return same();
    const select = (features) => window.dash_clientside.set_props("list-filter", { data: features });
    if (map) map.rename(points.tokens); // labels are what can have changed: place and selection stay
    else {
      map = window.SaeMap.draw(by("sae-map"), points, { select, open: go, has: options.has });
      if (wanted !== null) map.mark(wanted);
    }
    return points.names;
  };

  // --- which features fire on a prompt ------------------------------------------------------------------------

  const SHOWN = 40;

  /** A feature that fires on the prompt: its number, label, top token and density, above the prompt in its colours. */
  const promptRow = (view, feature, at, scale) => {
    const strongest = feature.values.reduce((best, value, index, all) => (Math.abs(value) > Math.abs(all[best]) ? index : best), 0);
    const peak = at === null ? feature.at[strongest] : at;
    const row = context({ ...feature, tokens: view.tokens, peak, document: "", position: 0 }, scale);
    const link = element("a", "sae-chip", `#${feature.feature}`);
    link.href = `#${feature.feature}`;
    row.querySelector(".sae-example-head").prepend(link);
    const place = row.querySelector(".sae-place");
    if (feature.name) place.append(write(element("b", ""), feature.name), " · ");
    place.append("top token ", label(feature.token), ` · density ${format(feature.density)}`);
    return row;
  };

  /** The prompt, each token coloured by its strongest feature; choosing a token lists what fires there. */
  const drawPrompt = (view) => {
    if (!view) return same();
    when("prompt-result", (node) => {
      const strongest = new Float64Array(view.tokens.length);
      view.features.forEach((feature) => feature.at.forEach((at, i) => {
        if (Math.abs(feature.values[i]) > Math.abs(strongest[at])) strongest[at] = feature.values[i];
      }));
      const scale = Math.max(...strongest.map(Math.abs), 0);
      const places = [...strongest.keys()].filter((at) => strongest[at]);
      const strip = context({ tokens: view.tokens, at: places, values: places.map((at) => strongest[at]), peak: -1, document: "", position: 0 }, scale).lastChild;
      strip.classList.add("sae-strip");
      strip.setAttribute("aria-label", "The prompt; left and right move between tokens, Enter lists what fires at one, Escape all");
      const heading = element("h3", "");
      const all = element("button", "sae-button", "All tokens");
      all.type = "button";
      const head = element("div", "sae-card-head");
      head.append(heading, all);
      const list = element("div", "");
      const show = (at) => {
        [...strip.children].forEach((token, index) => token.classList.toggle("sae-chosen", index === at));
        const firing = at === null ? view.features : view.features.filter((feature) => feature.at.includes(at));
        const value = (feature) => Math.abs(feature.values[feature.at.indexOf(at)]);
        const sorted = at === null ? firing : [...firing].sort((a, b) => value(b) - value(a));
        heading.replaceChildren(at === null ? `The strongest of ${firing.length} features` : `${firing.length} features fire at `);
        if (at !== null) heading.append(label(view.tokens[at]));
        all.hidden = at === null;
        list.replaceChildren(...sorted.slice(0, SHOWN).map((feature) => promptRow(view, feature, at, scale)));
        window.SaeFeature.centre(list);
      };
      strip.addEventListener("click", (event) => {
        const token = event.target.closest(".sae-token");
        if (token) show([...strip.children].indexOf(token));
      });
      strip.addEventListener("keydown", (event) => {
        const cursor = [...strip.children].findIndex((token) => token.classList.contains("sae-cursor"));
        if (event.key === "Enter" && cursor >= 0) show(cursor);
        if (event.key === "Escape") show(null);
      });
      all.addEventListener("click", () => show(null));
      node.replaceChildren(strip, element("p", "sae-note", "Choose a token to list what fires there."), head, list);
      show(null);
      listenOnce(node);
    });
    return view.tokens.length;
  };

  /** The browser's own list of choices: those of Dash have roles that axe-core finds seriously wrong. */
  const drawWays = (ways) => {
    if (!ways) return same();
    when("steer-how-box", (node) => {
      const select = element("select", "sae-select");
      select.id = "steer-how-select";
      ways.forEach(([value, text]) => {
        const option = element("option", "", text);
        option.value = value;
        select.append(option);
      });
      select.addEventListener("change", () => window.dash_clientside.set_props("steer-how", { data: select.value }));
      node.replaceChildren(select);
    });
    return ways.length;
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

  /** A label that was saved, in the table and above the contexts. */
  const showSaved = (saved) => {
    if (!saved) return same();
    if (saved.label) grid.setColumnsVisible(["label"], true);
    grid.refreshInfiniteCache();
    if (saved.feature === wanted) showFeature(wanted);
    return 1;
  };

  // --- the table ----------------------------------------------------------------------------------------------

  let grid = null; // once it is there
  /** The row of the feature that is shown is the selected one, once it has been loaded; there is no other. */
  const mark = () => {
    if (!grid || wanted === null) return;
    const row = grid.getRowNode(String(wanted));
    if (!row) grid.deselectAll();
    else if (!row.isSelected()) row.setSelected(true, true);
  };
  const listenGrid = (api) => {
    grid = api;
    mark();
    grid.addEventListener("modelUpdated", mark);
    grid.addEventListener("rowSelected", ({ node, source }) => {
      if (source === "api" || !node.isSelected()) return; // what `mark` did
      window.SaeShell.reveal();
      go(node.data.feature);
    });
  };
  let listed = null; // features of the list or the lasso that the table shows
  const refetch = (_, features) => {
    listed = features || null;
    if (grid) grid.purgeInfiniteCache();
    return same();
  };

  const step = (by_) => {
    if (!grid) return;
    const current = grid.getRowNode(String(wanted));
    const next = grid.getDisplayedRowAtIndex(Math.max(0, (current ? current.rowIndex : -1) + by_));
    if (!next || !next.data) return;
    grid.ensureNodeVisible(next);
    go(next.data.feature);
  };

  const choose = (name) => window.dash_clientside.set_props("tab", { data: name });
  const showTab = (name) => {
    if (by("tabs")) window.SaeShell.showTab(name);
    if (name === "Steering") aim();
    return name;
  };
  window.SaeShell.listenTabs(choose);
  const PAUSE = 200; // milliseconds without a key, after which the table follows the search
  /** A field of the browser's own: those of Dash put back an older text, or the cursor, while one is typing. */
  const drawSearch = (node) => {
    const field = element("input", "");
    Object.assign(field, { id: "sae-search", type: "search", placeholder: "Search: tokens, labels, density>0.01", spellcheck: false });
    field.setAttribute("aria-label", "Search features");
    let waiting = 0;
    field.addEventListener("input", () => {
      clearTimeout(waiting);
      waiting = setTimeout(() => window.dash_clientside.set_props("search", { data: field.value }), PAUSE);
    });
    node.replaceChildren(field);
  };

  /** The feature of a number, or the first that a search finds among those listed, in the order of the table. */
  const openFound = (text, meanwhile = () => false) => {
    if (/^\d{1,15}$/.test(text)) return go(Number(text));
    const column = grid && grid.getColumnState().find(({ sort }) => sort);
    const sort = column ? (column.sort === "desc" ? "-" : "") + column.colId : "-density";
    return fetch("/find", { method: "POST", headers: { "Content-Type": "application/json" }, body: JSON.stringify({ text, sort, features: listed }) })
      .then((answer) => answer.json())
      .then(({ feature }) => { if (feature !== null && !meanwhile()) go(feature); });
  };
  /** The feature of the address, or else the first of the table, unless one was chosen meanwhile. */
  const begin = () => (location.hash ? follow(location.hash) : openFound("", () => wanted !== null));
  window.SaeShell.listenKeys(step, choose, openFound);

  /** A link to a feature, or its number in the address: its view, whatever tab is open. */
  const follow = (hash) => {
    if (!/^#\d{1,15}$/.test(hash)) return;
    go(Number(hash.slice(1)));
    choose("Feature");
  };
  document.addEventListener("click", (event) => {
    const link = event.target.closest("a[href^='#']");
    if (!link || event.ctrlKey || event.metaKey || event.shiftKey) return;
    event.preventDefault(); // a link to where the address leads already would do nothing
    follow(link.getAttribute("href"));
  });
  window.addEventListener("hashchange", () => { if (location.hash !== `#${wanted}`) follow(location.hash); });

  /** Called once where there is a store. */
  const start = () => {
    when("sae-search-box", drawSearch);
    when("table", () => window.dash_ag_grid.getApiAsync("table").then(listenGrid));
    when("sae-feature", begin);
    return 1;
  };
  window.matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => { window.SaeFeature.redraw(document); if (map) map.redraw(); });

  return {
    start, toSave, showSaved, drawPartner, drawPrompt, drawSteering, drawWays, drawMap, drawComparison, refetch, showTab, text: String,
    drawDensity: drawPanels("sae-density"), drawCurves: drawPanels("sae-curves"),
  };
})();
