/* One feature's page: statistics, charts, logits, neighbours, examples. Needs token.js; charts need Plotly. */
"use strict";
window.SaeFeature = (() => {
  const { element, label, format } = window.SaeTokens;

  const css = (name) => getComputedStyle(document.documentElement).getPropertyValue(name).trim();

  /** The page's colours over a figure's layout: figures themselves carry none. */
  const themed = (layout) => {
    const axis = (own) => ({
      ...own, gridcolor: css("--sae-grid"), linecolor: css("--sae-line"), zerolinecolor: css("--sae-grid"),
      automargin: true,
    });
    return {
      ...layout,
      font: { family: css("--sae-sans"), size: 12, color: css("--sae-text-dim") },
      hoverlabel: {
        bgcolor: css("--sae-raised"), bordercolor: css("--sae-line"), font: { color: css("--sae-text") },
      },
      xaxis: axis(layout.xaxis), yaxis: axis(layout.yaxis), autosize: true,
    };
  };

  const table = (columns, rows) => {
    const node = element("table", "sae-numbers");
    const head = node.createTHead().insertRow();
    columns.forEach((name) => {
      const cell = element("th", "", name);
      cell.scope = "col";
      head.append(cell);
    });
    const body = node.createTBody();
    rows.forEach((values) => {
      const row = body.insertRow();
      values.forEach((value) => {
        row.insertCell().append(typeof value === "number" ? String(value) : label(String(value)));
      });
    });
    return node;
  };

  const plotted = (plot, panel, config) => {
    const layout = { ...themed(panel.layout), height: plot.clientHeight || panel.layout.height };
    window.Plotly.react(plot, panel.data, layout, config);
  };

  /** Bars without Plotly, for places that cannot carry it: heights alone, the numbers are in the table. */
  const bars = (plot, panel) => {
    const row = element("div", "sae-bars");
    const counts = panel.rows.map(([, count]) => count);
    panel.rows.forEach(([name, count]) => {
      const bar = element("span", "");
      bar.style.setProperty("--length", String(count / Math.max(...counts)));
      bar.title = `${name}: ${count}`;
      row.append(bar);
    });
    plot.replaceChildren(row);
  };

  /** A chart with its numbers as a table behind a disclosure. */
  const chart = (panel, config) => {
    const figure = element("figure", "sae-chart");
    figure.append(element("figcaption", "", panel.title));
    const plot = element("div", "sae-plot");
    plot.setAttribute("role", "img");
    plot.setAttribute("aria-label", `${panel.title}; the numbers follow as a table`);
    figure.append(plot);
    const details = element("details", "sae-details");
    details.append(element("summary", "", "Numbers"));
    details.addEventListener("toggle", () => {
      if (details.open && details.children.length === 1) details.append(table(panel.columns, panel.rows));
    });
    figure.append(details);
    figure.sae = { draw: () => (window.Plotly ? plotted : bars)(plot, panel, config) };
    return figure;
  };

  const logitColumn = (title, weights, greatest) => {
    const column = element("div", "sae-logits");
    column.append(element("h4", "", title));
    const list = element("ol", "");
    weights.forEach(([token, weight]) => {
      const row = element("li", "");
      const bar = element("span", weight > 0 ? "sae-bar sae-bar-up" : "sae-bar sae-bar-down");
      bar.style.setProperty("--length", String(Math.abs(weight) / (greatest || 1)));
      const name = label(token);
      row.append(bar, name, element("span", "sae-number", format(weight)));
      list.append(row);
    });
    column.append(list);
    return column;
  };

  const logits = (data) => {
    const box = element("section", "sae-card");
    box.append(element("h3", "", "Tokens it raises and lowers"));
    const greatest = Math.max(...[...data.top, ...data.bottom].map(([, weight]) => Math.abs(weight)), 0);
    const columns = element("div", "sae-columns");
    columns.append(logitColumn("Raised", data.top, greatest), logitColumn("Lowered", data.bottom, greatest));
    box.append(columns, element("p", "sae-note", data.note));
    return box;
  };

  const neighbours = (groups, options) => {
    const box = element("section", "sae-card");
    box.append(element("h3", "", "Related features"));
    const columns = element("div", "sae-columns");
    groups.forEach((group) => {
      const column = element("div", "sae-related");
      column.append(element("h4", "", group.title), element("p", "sae-note", group.unit));
      const list = element("ul", "");
      group.items.forEach(([feature, value]) => {
        const item = element("li", "");
        const known = options.has(feature);
        const link = element(known ? "a" : "span", "sae-chip", `#${feature}`);
        if (known) link.href = `#${feature}`;
        item.append(link, element("span", "sae-number", format(value)));
        list.append(item);
      });
      column.append(list);
      columns.append(column);
    });
    box.append(columns);
    return box;
  };

  const statistics = (entries) => {
    const list = element("dl", "sae-statistics");
    entries.forEach((entry) => {
      const cell = element("div", "");
      cell.append(element("dt", "", entry.name), element("dd", "sae-big", entry.value));
      cell.append(element("dd", "sae-note", entry.about));
      list.append(cell);
    });
    return list;
  };

  /** Draw a feature view into root. options: {config, has(feature) -> bool}. */
  const draw = (root, view, options) => {
    root.querySelectorAll(".sae-plot").forEach((plot) => window.Plotly && window.Plotly.purge(plot));
    const parts = [];
    if (view.note) parts.push(element("p", "sae-annotation", view.note));
    parts.push(statistics(view.statistics));
    const charts = element("div", "sae-charts");
    const figures = view.charts.map((panel) => chart(panel, options.config));
    charts.append(...figures);
    const overview = element("div", view.logits ? "sae-overview" : "");
    overview.append(charts);
    if (view.logits) overview.append(logits(view.logits));
    parts.push(overview);
    const examples = element("section", "sae-card sae-examples");
    const head = element("div", "sae-card-head");
    head.append(element("h3", "", "Contexts"));
    const toggle = element("label", "sae-toggle");
    const box = element("input", "");
    box.type = "checkbox";
    box.checked = !root.classList.contains("sae-oneline");
    box.addEventListener("change", () => {
      root.classList.toggle("sae-oneline", !box.checked);
      centre(root);
    });
    toggle.append(box, "Keep line breaks");
    head.append(toggle);
    const body = element("div", "");
    if (view.bands.length) window.SaeTokens.draw(body, view.bands, view.scale);
    else body.append(element("p", "sae-note", "It fired nowhere in the text that was read, or no text was read."));
    examples.append(head, body);
    parts.push(examples);
    if (view.neighbours.length) parts.push(neighbours(view.neighbours, options));
    root.replaceChildren(...parts);
    figures.forEach((figure) => figure.sae.draw());
    centre(root);
  };

  /** Where contexts are single lines, scroll each so that its peak is in the middle. */
  const centre = (root) => {
    if (!root.classList.contains("sae-oneline")) return;
    const texts = [...root.querySelectorAll(".sae-context")];
    const places = texts.map((text) => {
      const peak = text.querySelector(".sae-peak");
      return peak ? peak.offsetLeft - text.offsetLeft - text.clientWidth / 2 : 0;
    });
    texts.forEach((text, index) => { text.scrollLeft = places[index]; });
  };

  /** Draw all charts below a node again, e.g. in other colours. */
  const redraw = (root) => root.querySelectorAll(".sae-chart").forEach((figure) => figure.sae.draw());

  return { draw, chart, redraw, themed };
})();
