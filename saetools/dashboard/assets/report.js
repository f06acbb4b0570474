/* Charts of a report, each drawn when it comes near the screen. Needs token.js and feature.js. */
"use strict";
(() => {
  const page = JSON.parse(document.getElementById("sae-report").textContent);
  const drawn = new Set();
  const seen = new IntersectionObserver((entries) => {
    for (const { target, isIntersecting } of entries) {
      if (!isIntersecting || drawn.has(target)) continue;
      drawn.add(target);
      target.sae.draw();
    }
  }, { rootMargin: "400px" });
  /** Numbers behind a chart that came without: its lines, point by point. */
  const points = (panel) => panel.data.flatMap((line) => line.x.map((x, i) => [line.name, x, line.y[i]]));
  for (const box of document.querySelectorAll(".sae-report-charts")) {
    for (const panel of page.panels[Number(box.dataset.section)]) {
      if (!panel.rows.length) panel.rows = points(panel);
      const figure = window.SaeFeature.chart(panel);
      figure.querySelector(".sae-plot").style.height = `${panel.layout.height}px`;
      box.append(figure);
      seen.observe(figure);
    }
  }
  /** Sort a table's rows by a column: by the number that a cell begins with, else by its text; empty cells last. */
  const sorted = (body, column, up) => {
    const key = (row) => row.cells[column].textContent;
    const number = (row) => Number.parseFloat(key(row).replaceAll(",", ""));
    const ways = [...body.rows].filter((row) => key(row) !== "-").sort((a, b) => {
      const [x, y] = [number(a), number(b)];
      const order = Number.isNaN(x) || Number.isNaN(y) ? key(a).localeCompare(key(b)) : x - y;
      return up ? order : -order;
    });
    return [...ways, ...[...body.rows].filter((row) => key(row) === "-")];
  };
  for (const table of document.querySelectorAll(".sae-report-table table")) {
    if (table.querySelector(".sae-report-group")) continue;
    const heads = [...table.tHead.rows[0].cells];
    heads.forEach((head, column) => {
      const button = document.createElement("button");
      button.type = "button";
      button.append(...head.childNodes);
      button.addEventListener("click", () => {
        const up = head.ariaSort !== "ascending";
        heads.forEach((other) => other.removeAttribute("aria-sort"));
        head.ariaSort = up ? "ascending" : "descending";
        table.tBodies[0].append(...sorted(table.tBodies[0], column, up));
      });
      head.append(button);
    });
  }
  const redraw = () => drawn.forEach((figure) => figure.sae.draw());
  window.matchMedia("(prefers-color-scheme: dark)").addEventListener("change", redraw);
  window.addEventListener("beforeprint", () => document.querySelectorAll(".sae-chart").forEach((figure) => figure.sae.draw()));
})();
