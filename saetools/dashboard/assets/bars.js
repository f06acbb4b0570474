/* Histograms: panels whose traces are all upright bars, drawn from the same data as plotly's figures, in a millisecond
   instead of 50. Everything is placed by share of the plot, so that no size is asked for. Needs token.js. */
"use strict";
window.SaeBars = (() => {
  const { element, tipAt, hideTip } = window.SaeTokens;
  const SVG = "http://www.w3.org/2000/svg";
  const COUNT = new Intl.NumberFormat("en", { notation: "compact" });
  const LEAST_GAP = 0.1; // of the width, between the middles of two ticks
  const FILLED = 0.94; // of a bar's width

  /** Whether this script draws the panel. */
  const draws = (panel) => panel.data.every((trace) => trace.type === "bar" && trace.orientation !== "h");

  /** A step of 1, 2 or 5 times a power of ten, at most `n` of which make up `size`. */
  const stepFor = (size, n) => {
    const power = 10 ** Math.floor(Math.log10(size / n));
    return power * [1, 2, 5, 10].find((factor) => factor * power * n >= size * 0.999);
  };

  /** [low, high] of the horizontal axis: as the figure says, or around all bars. */
  const domain = ({ data, layout }) => {
    if (layout.xaxis.range) return layout.xaxis.range;
    let [low, high] = [Infinity, -Infinity];
    data.forEach(({ x, width }) => x.forEach((middle) => {
      low = Math.min(low, middle - width / 2);
      high = Math.max(high, middle + width / 2);
    }));
    return [low, high];
  };

  /** [[value, text]] of the horizontal axis, none nearer to the last than can be read. */
  const ticks = ({ tickvals, ticktext }, [low, high]) => {
    const all = (tickvals || []).map((value, index) => [value, ticktext[index]]);
    if (!tickvals) {
      const step = stepFor(high - low, 5);
      for (let i = Math.ceil(low / step); i * step <= high; i += 1) all.push([i * step, String(Number((i * step).toPrecision(6)))]);
    }
    let last = -Infinity;
    return all.filter(([value]) => {
      const fits = value >= low && value <= high && (value - last) / (high - low) >= LEAST_GAP;
      if (fits) last = value;
      return fits;
    });
  };

  /** Bars stacked on each other, one path for all of a colour, in a box of 1 x 1. */
  const shapes = ({ data }, [low, high], top) => {
    const svg = document.createElementNS(SVG, "svg");
    svg.setAttribute("viewBox", "0 0 1 1");
    svg.setAttribute("preserveAspectRatio", "none");
    const [paths, heights] = [new Map(), new Map()];
    data.forEach(({ x, y, width, marker }) => x.forEach((middle, index) => {
      if (!y[index]) return;
      const colour = Array.isArray(marker.color) ? marker.color[index] : marker.color;
      const base = heights.get(middle) || 0;
      heights.set(middle, base + y[index]);
      const [wide, tall] = [(FILLED * width) / (high - low), Math.max(y[index] / top, 0.006)];
      const left = (middle - low) / (high - low) - wide / 2;
      const bar = `M${left.toFixed(5)} ${(1 - base / top).toFixed(5)}v${(-tall).toFixed(5)}h${wide.toFixed(5)}v${tall.toFixed(5)}z`;
      paths.set(colour, (paths.get(colour) || "") + bar);
    }));
    paths.forEach((d, colour) => {
      const path = document.createElementNS(SVG, "path");
      path.setAttribute("d", d);
      path.setAttribute("fill", colour);
      svg.append(path);
    });
    return svg;
  };

  const placed = (className, side, share, text) => {
    const node = element("span", className, text);
    node.style.setProperty(side, `${(100 * share).toFixed(2)}%`);
    return node;
  };

  /** The greatest height of bars that stand on each other. */
  const greatest = ({ data }) => {
    const heights = new Map();
    data.forEach(({ x, y }) => x.forEach((middle, index) => heights.set(middle, (heights.get(middle) || 0) + y[index])));
    return Math.max(0, ...heights.values());
  };

  const draw = (plot, panel) => {
    const most = greatest(panel);
    if (!most) {
      plot.replaceChildren(element("p", "sae-note", "No values."));
      return;
    }
    const { xaxis, yaxis, showlegend } = panel.layout;
    const step = Math.max(1, stepFor(most, 3));
    const top = Math.max(most * (showlegend ? 1.3 : 1.04), step); // a legend stands above the bars
    const across = domain(panel);
    const area = element("div", "sae-bars-area");
    for (let count = 0; count <= top; count += step) {
      const rule = placed("sae-bars-rule", "bottom", count / top);
      rule.append(element("span", "", COUNT.format(count)));
      area.append(rule);
    }
    area.append(shapes(panel, across, top));
    ticks(xaxis, across).forEach(([value, text]) => area.append(placed("sae-bars-tick", "left", (value - across[0]) / (across[1] - across[0]), text)));
    const parts = [element("span", "sae-bars-upright", yaxis.title.text), area, element("span", "sae-bars-title", xaxis.title.text)];
    if (showlegend) {
      const legend = element("span", "sae-bars-legend");
      panel.data.forEach((trace) => {
        const entry = element("span", "", trace.name);
        entry.style.setProperty("--colour", trace.marker.color);
        legend.append(entry);
      });
      parts.push(legend);
    }
    plot.replaceChildren(...parts);
  };

  /** What the bars at a place say: plotly's own templates, read for what panels use of them. */
  const told = (panel, share) => {
    const [low, high] = domain(panel);
    const place = low + share * (high - low);
    return panel.data.flatMap((trace) => {
      const index = trace.x.findIndex((middle) => Math.abs(middle - place) <= trace.width / 2);
      if (index < 0 || !trace.y[index]) return [];
      const lines = trace.hovertemplate.replace(/<extra>.*$/, "").split("<br>");
      return lines.map((line) => line.replace(/%\{(\w+)\}/g, (_, name) => trace[name][index]));
    });
  };

  /** Values on hover; `current` gives the panel that is drawn now. */
  const listen = (plot, current) => {
    plot.classList.add("sae-bars");
    plot.addEventListener("pointermove", (event) => {
      const area = plot.querySelector(".sae-bars-area");
      if (!area) return;
      const box = area.getBoundingClientRect();
      const lines = told(current(), (event.clientX - box.left) / box.width);
      if (lines.length) tipAt({ left: event.clientX, top: event.clientY, bottom: event.clientY }, lines.map((line) => element("span", "", line)));
      else hideTip();
    });
    plot.addEventListener("pointerleave", hideTip);
  };

  return { draws, draw, listen };
})();
