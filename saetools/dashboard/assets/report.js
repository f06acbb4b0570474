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
  const redraw = () => drawn.forEach((figure) => figure.sae.draw());
  window.matchMedia("(prefers-color-scheme: dark)").addEventListener("change", redraw);
  window.addEventListener("beforeprint", () => document.querySelectorAll(".sae-chart").forEach((figure) => figure.sae.draw()));
})();
