/* One feature's page: statistics, charts, logits, neighbours, examples. Needs token.js and bars.js; charts that are no
   histograms need Plotly. */
"use strict";
window.SaeFeature = (() => {
  const { element, label, format } = window.SaeTokens;

  const dark = window.matchMedia("(prefers-color-scheme: dark)");
  const themes = new Map(); // reading a style after each change of the document would lay it out anew each time
  const theme = () => {
    if (!themes.has(dark.matches)) {
      const style = getComputedStyle(document.documentElement);
      const names = ["grid", "line", "sans", "text", "text-dim", "raised"];
      themes.set(dark.matches, Object.fromEntries(names.map((name) => [name, style.getPropertyValue(`--sae-${name}`).trim()])));
    }
    return themes.get(dark.matches);
  };

  /** The page's colours over a figure's layout: figures themselves carry none. */
  const themed = (layout) => {
    const colours = theme();
    const axis = (own) => ({
      ...own, gridcolor: colours.grid, linecolor: colours.line, zerolinecolor: colours.grid,
    });
    return {
      ...layout,
      font: { family: colours.sans, size: 12, color: colours["text-dim"] },
      modebar: { bgcolor: "rgba(0,0,0,0)", color: colours["text-dim"], activecolor: colours.text },
      hoverlabel: { bgcolor: colours.raised, bordercolor: colours.line, font: { color: colours.text } },
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

  const plotted = (plot, panel) => {
    const layout = { ...themed(panel.layout), height: plot.clientHeight || panel.layout.height };
    window.Plotly.react(plot, panel.data, layout);
  };

  /** A chart with its numbers as a table behind a disclosure. */
  const chart = (panel) => {
    const figure = element("figure", "sae-chart");
    const caption = element("figcaption", "", panel.title);
    const note = element("span", "sae-note", panel.note);
    caption.append(note);
    figure.append(caption);
    const plot = element("div", "sae-plot");
    plot.setAttribute("role", "img");
    plot.setAttribute("aria-label", `${panel.title}; the numbers follow as a table`);
    figure.append(plot);
    const details = element("details", "sae-details");
    details.append(element("summary", "", "Numbers"));
    const fill = () => {
      while (details.children.length > 1) details.lastChild.remove();
      if (details.open) details.append(table(figure.sae.panel.columns, figure.sae.panel.rows));
    };
    details.addEventListener("toggle", fill);
    figure.append(details);
    const ours = window.SaeBars.draws(panel);
    if (ours) window.SaeBars.listen(plot, () => figure.sae.panel);
    const draw = () => {
      note.textContent = figure.sae.panel.note;
      return (ours ? window.SaeBars.draw : plotted)(plot, figure.sae.panel);
    };
    figure.sae = { panel, draw, fill };
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

  const LISTED = 10; // related features of a kind that are seen at once
  const related = (items, options) => {
    const list = element("ul", "");
    items.forEach(([feature, value]) => {
      const item = element("li", "");
      const known = options.has(feature);
      const link = element(known ? "a" : "span", "sae-chip", `#${feature}`);
      if (known) link.href = `#${feature}`;
      item.append(link, element("span", "sae-number", format(value)));
      list.append(item);
    });
    return list;
  };
  const neighbours = (groups, options) => {
    const box = element("section", "sae-card");
    box.append(element("h3", "", "Related features"));
    const columns = element("div", "sae-columns");
    groups.forEach((group) => {
      const column = element("div", "sae-related");
      column.append(element("h4", "", group.title), element("p", "sae-note", group.unit));
      column.append(related(group.items.slice(0, LISTED), options));
      if (group.items.length > LISTED) {
        const more = element("details", "sae-more");
        more.append(element("summary", "", `${group.items.length - LISTED} more`), related(group.items.slice(LISTED), options));
        column.append(more);
      }
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

  /** The charts that root shows already, given new numbers, so that open tables stay open; null where it shows others. */
  const reused = (root, panels) => {
    const old = [...root.querySelectorAll(".sae-charts > .sae-chart")];
    if (old.length === panels.length && old.every((figure, i) => figure.sae.panel.title === panels[i].title)) {
      old.forEach((figure, i) => { figure.sae.panel = panels[i]; figure.sae.fill(); });
      return old;
    }
    return null;
  };

  const LEAST_HEIGHT = 48; // pixels, of a context
  const SOON = 200; // milliseconds
  /** [first, last) of the contexts that can be in view, if they stay where those are that root shows now. */
  const inView = (root) => {
    const old = root.querySelector(".sae-band");
    const top = old ? old.getBoundingClientRect().top : 0;
    return [0, window.innerHeight].map((edge, i) => Math.max(0, Math.ceil((edge - top) / LEAST_HEIGHT) + (i ? 4 : -4)));
  };

  /** Draw a feature view into root. options: {has(feature) -> bool}. Contexts further down than can be seen are
      laid out a moment later, so that stepping through features does not wait for them. */
  const draw = (root, view, options) => {
    const visible = inView(root);
    const figures = reused(root, view.charts) || view.charts.map((panel) => chart(panel));
    const parts = [];
    if (view.note) parts.push(element("p", "sae-annotation", view.note));
    parts.push(statistics(view.statistics));
    const charts = element("div", "sae-charts");
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
    box.checked = root.classList.contains("sae-lines");
    box.addEventListener("change", () => {
      root.classList.toggle("sae-lines", box.checked);
      centre(root);
    });
    toggle.append(box, "Line breaks");
    head.append(toggle);
    const body = element("div", "");
    if (view.bands.length) window.SaeTokens.draw(body, view.bands, Math.abs(view.max_value));
    else body.append(element("p", "sae-note", "It fired nowhere in the text that was read, or no text was read."));
    examples.append(head, body);
    parts.push(examples);
    if (view.neighbours.length) parts.push(neighbours(view.neighbours, options));
    figures.forEach((figure) => figure.sae.draw());
    const rows = [...body.querySelectorAll(".sae-example")];
    const [now, later] = [rows.slice(...visible), rows.slice(visible[1])];
    now.forEach((row) => row.classList.add("sae-now"));
    later.forEach((row) => row.classList.add("sae-later"));
    root.replaceChildren(...parts);
    if (!root.classList.contains("sae-lines")) toMiddle(now.map((row) => row.lastChild));
    centre(root);
    const show = () => {
      window.removeEventListener("scroll", show);
      if (!body.isConnected) return; // another feature has been chosen since
      rows.forEach((row) => row.classList.remove("sae-now", "sae-later"));
      centre(root);
    };
    setTimeout(show, SOON);
    window.addEventListener("scroll", show);
  };

  /** Where contexts are single lines, scroll each so that its peak is in the middle, one below the other. */
  const toMiddle = (texts) => {
    const places = texts.map((text) => {
      const peak = text.querySelector(".sae-peak");
      return peak ? peak.offsetLeft + peak.offsetWidth / 2 - text.clientWidth / 2 : 0;
    });
    texts.forEach((text, index) => { text.scrollLeft = places[index]; });
  };
  /** Those further down when they come into view: asking all for their places would lay them all out. */
  const seen = new IntersectionObserver((entries) => {
    const texts = entries.filter((entry) => entry.isIntersecting).map((entry) => entry.target);
    toMiddle(texts);
    texts.forEach((text) => seen.unobserve(text));
  }, { rootMargin: "200px" });
  const centre = (root) => {
    if (root.classList.contains("sae-lines")) return;
    root.querySelectorAll(".sae-example:not(.sae-now, .sae-later) .sae-context").forEach((text) => seen.observe(text));
  };

  /** The features of another dictionary beside ours: {title, note, histogram, rows: [[feature, partner, cosine, name of
      the feature, of the partner]]}. */
  const comparison = (data, options) => {
    const card = element("section", "sae-card sae-form");
    const heading = element("h3", "", "Beside ");
    heading.append(window.SaeTokens.write(element("span", ""), data.title));
    const cosines = element("div", "");
    cosines.id = "sae-cosines";
    const box = element("div", "sae-table-box sae-compared");
    box.id = "sae-compared";
    box.tabIndex = 0;
    box.setAttribute("role", "region");
    box.setAttribute("aria-label", "Matched features");
    const list = table(["Feature", "Top token", "Partner", "Top token", "Cosine"], []);
    list.className = "sae-table";
    data.rows.forEach(([feature, partner, cosine, name, partnerName]) => {
      const row = list.tBodies[0].insertRow();
      row.dataset.feature = String(feature);
      const link = element(options.has(feature) ? "a" : "span", "", `#${feature}`);
      if (options.has(feature)) link.href = `#${feature}`;
      row.insertCell().append(link);
      row.insertCell().append(label(name));
      row.insertCell().append(partner < 0 ? "none" : `#${partner}`);
      row.insertCell().append(label(partnerName));
      row.insertCell().append(partner < 0 ? "–" : cosine.toFixed(4));
    });
    box.append(list);
    card.append(heading, element("p", "sae-note", data.note), cosines, box);
    const title = element("h3", "sae-partner-title", "Select a feature to see it beside its partner");
    title.id = "sae-partner-title";
    const beside = element("div", "sae-beside");
    ["sae-own", "sae-partner"].forEach((id) => {
      const half = element("div", "");
      const root = element("div", "sae-feature");
      root.id = id;
      half.append(root);
      beside.append(half);
    });
    return [card, title, beside];
  };

  /** A feature and its partner, {view, cosine} or null, beside each other below the comparison. */
  const drawPair = (feature, view, partner, options) => {
    const by = (id) => document.getElementById(id);
    by("sae-partner-title").textContent = partner
      ? `Feature ${feature} here, ${partner.view.feature} there: cosine ${format(partner.cosine)}`
      : `Feature ${feature} has no partner to show`;
    if (view) draw(by("sae-own"), view, options);
    else by("sae-own").replaceChildren();
    if (partner) draw(by("sae-partner"), partner.view, { ...options, has: () => false });
    else by("sae-partner").replaceChildren();
  };

  /** Draw all charts below a node again, e.g. in other colours. */
  const redraw = (root) => root.querySelectorAll(".sae-chart").forEach((figure) => figure.sae.draw());

  return { draw, drawPair, chart, redraw, comparison, centre };
})();
