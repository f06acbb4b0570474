/* The map of features on a canvas: a hundred thousand points in a frame, and no code made from strings, which plotly's
   WebGL charts need. Needs token.js. */
"use strict";
window.SaeMap = (() => {
  const { element, format, label } = window.SaeTokens;
  const N_SHADES = 12;
  const REACH = 9; // pixels from the pointer at which a point is meant

  /** The typed array that Python wrote as base64. */
  const array = (text, Type) => new Type(Uint8Array.from(atob(text), (letter) => letter.charCodeAt(0)).buffer);

  const columns = (panel) => ({
    feature: array(panel.feature, Int32Array), x: array(panel.x, Float32Array), y: array(panel.y, Float32Array),
    density: array(panel.density, Float32Array), tokens: panel.tokens,
  });

  const range = (values) => {
    let [low, high] = [Infinity, -Infinity];
    for (const value of values) { if (value < low) low = value; if (value > high) high = value; }
    return high > low ? [low, high] : [low - 1, high + 1];
  };

  /** Whether (x, y) lies inside a polygon: even-odd rule. */
  const inside = (polygon, x, y) => {
    let is = false;
    for (let i = 0, j = polygon.length - 1; i < polygon.length; j = i, i += 1) {
      const [xi, yi] = polygon[i];
      const [xj, yj] = polygon[j];
      if (yi > y !== yj > y && x < ((xj - xi) * (y - yi)) / (yj - yi) + xi) is = !is;
    }
    return is;
  };

  /** A dot of one colour, drawn once. */
  const dot = (colour, radius, ratio) => {
    const canvas = document.createElement("canvas");
    canvas.width = canvas.height = Math.ceil(2 * radius * ratio) + 2;
    const pen = canvas.getContext("2d");
    pen.fillStyle = colour;
    pen.arc(canvas.width / 2, canvas.width / 2, radius * ratio, 0, 7);
    pen.fill();
    return canvas;
  };

  /** Draw a map into root. on: {select(features or null), open(feature), has(feature)}: points that `has` denies are
      faint and cannot be chosen. Returns {mark(feature), rename(tokens), redraw()}. */
  const draw = (root, panel, on) => {
    const points = columns(panel);
    const n = points.feature.length;
    const [xs, ys] = [range(points.x), range(points.y)];
    const logs = Float32Array.from(points.density, (value) => Math.log10(value));
    const [low, high] = range(logs);
    const own = Uint8Array.from(points.feature, (feature) => Number(on.has(feature)));
    const shade = Uint8Array.from(logs, (value) => Math.round(((value - low) / (high - low)) * (N_SHADES - 1)));
    const view = { zoom: 1, x: 0.5, y: 0.5 }; // of the unit square: its scale, and what lies in the middle
    const state = { mode: "select", lasso: [], chosen: new Set(), current: null, hovered: -1 };

    const canvas = element("canvas", "sae-map-canvas");
    canvas.tabIndex = 0;
    canvas.setAttribute("role", "application");
    canvas.setAttribute("aria-label", `Map of ${n} features; arrows move, plus and minus zoom, 0 shows all, s selects what is in view, Escape unselects. The table beside it holds the same features.`);
    const status = element("span", "sae-dim");
    status.setAttribute("role", "status");
    const tip = element("div", "sae-tip");
    tip.hidden = true;
    const box = element("div", "sae-map-box");
    box.append(canvas, tip);

    const size = () => [canvas.clientWidth || 1, canvas.clientHeight || 1];
    const scale = () => { const [w, h] = size(); return [(w - 24) * view.zoom, (h - 24) * view.zoom]; };
    /** Where points lie on the canvas now: index -> [x, y]. The size is asked for once, not for every point. */
    const places = () => {
      const [w, h] = size();
      const [sx, sy] = scale();
      const [ax, ay] = [sx / (xs[1] - xs[0]), sy / (ys[1] - ys[0])];
      const [bx, by] = [w / 2 - view.x * sx - xs[0] * ax, h / 2 + view.y * sy + ys[0] * ay];
      return (index) => [bx + points.x[index] * ax, by - points.y[index] * ay];
    };

    const paint = () => {
      const [w, h] = size();
      const place = places();
      const ratio = window.devicePixelRatio || 1;
      canvas.width = w * ratio;
      canvas.height = h * ratio;
      const style = getComputedStyle(root);
      const colour = (name) => style.getPropertyValue(`--sae-${name}`).trim();
      const radius = Math.min(6, (n > 20000 ? 1.3 : n > 2000 ? 2.2 : 3.5) * Math.sqrt(view.zoom));
      const dots = Array.from({ length: N_SHADES }, (_, i) =>
        dot(`color-mix(in oklab, ${colour("map-high")} ${(100 * i) / (N_SHADES - 1)}%, ${colour("map-low")})`, radius, ratio));
      const bright = dot(colour("up"), radius + 1, ratio);
      const pen = canvas.getContext("2d");
      pen.clearRect(0, 0, canvas.width, canvas.height);
      const put = (image, x, y) => pen.drawImage(image, Math.round(x * ratio - image.width / 2), Math.round(y * ratio - image.width / 2));
      const chosen = [];
      const plain = state.chosen.size ? 0.3 : 1;
      for (let index = 0; index < n; index += 1) {
        const [x, y] = place(index);
        if (x < -8 || y < -8 || x > w + 8 || y > h + 8) continue;
        if (state.chosen.has(points.feature[index])) chosen.push([x, y]);
        else {
          pen.globalAlpha = own[index] ? plain : 0.2;
          put(dots[shade[index]], x, y);
        }
      }
      pen.globalAlpha = 1;
      chosen.forEach(([x, y]) => put(bright, x, y));
      pen.scale(ratio, ratio);
      pen.strokeStyle = colour("text");
      pen.lineWidth = 2;
      const ring = points.feature.indexOf(state.current);
      if (ring >= 0) {
        const [x, y] = place(ring);
        pen.beginPath();
        pen.arc(x, y, radius + 4, 0, 7);
        pen.stroke();
      }
      if (state.lasso.length > 1) {
        pen.strokeStyle = colour("accent");
        pen.lineWidth = 1.5;
        pen.setLineDash([4, 3]);
        pen.beginPath();
        state.lasso.forEach(([x, y]) => pen.lineTo(x, y));
        pen.closePath();
        pen.stroke();
      }
    };
    let asked = 0;
    const repaint = () => { cancelAnimationFrame(asked); asked = requestAnimationFrame(paint); };

    const nearest = (x, y) => {
      const place = places();
      let [best, least] = [-1, REACH * REACH];
      for (let index = 0; index < n; index += 1) {
        const [px, py] = place(index);
        const distance = (px - x) ** 2 + (py - y) ** 2;
        if (distance < least && own[index]) [best, least] = [index, distance];
      }
      return best;
    };

    const select = (keep) => {
      const found = [];
      const place = places();
      for (let index = 0; index < n; index += 1) if (own[index] && keep(...place(index))) found.push(points.feature[index]);
      choose(found);
    };
    const choose = (found) => {
      state.chosen = new Set(found || []);
      status.textContent = found ? `${found.length.toLocaleString("en")} features in the table` : "";
      repaint();
      on.select(found);
    };
    const inView = (x, y) => { const [w, h] = size(); return x >= 0 && y >= 0 && x <= w && y <= h; };

    const move = (dx, dy) => {
      const [sx, sy] = scale();
      view.x = Math.min(1.2, Math.max(-0.2, view.x - dx / sx));
      view.y = Math.min(1.2, Math.max(-0.2, view.y + dy / sy));
      repaint();
    };
    const zoom = (factor, x, y) => {
      const [w, h] = size();
      const old = scale();
      view.zoom = Math.min(200, Math.max(0.8, view.zoom * factor));
      const now = scale();
      view.x += ((x ?? w / 2) - w / 2) * (1 / old[0] - 1 / now[0]);
      view.y -= ((y ?? h / 2) - h / 2) * (1 / old[1] - 1 / now[1]);
      repaint();
    };
    const showAll = () => { Object.assign(view, { zoom: 1, x: 0.5, y: 0.5 }); repaint(); };

    const hover = (x, y) => {
      state.hovered = nearest(x, y);
      tip.hidden = state.hovered < 0;
      canvas.style.cursor = state.hovered >= 0 ? "pointer" : state.mode === "pan" ? "grab" : "crosshair";
      if (tip.hidden) return;
      const index = state.hovered;
      tip.replaceChildren(element("strong", "", `#${points.feature[index]}`));
      if (points.tokens && points.tokens[index]) tip.append(label(points.tokens[index]));
      tip.append(element("span", "sae-dim", `density ${format(points.density[index])}`));
      const [px, py] = places()(index);
      tip.style.left = `${Math.min(px + 10, size()[0] - tip.offsetWidth - 4)}px`;
      tip.style.top = `${Math.max(0, py - tip.offsetHeight - 8)}px`;
    };

    const at = (event) => { const frame = canvas.getBoundingClientRect(); return [event.clientX - frame.left, event.clientY - frame.top]; };
    let drag = null;
    canvas.addEventListener("pointerdown", (event) => {
      canvas.setPointerCapture(event.pointerId);
      drag = { last: at(event), moved: 0, pans: state.mode === "pan" || event.shiftKey || event.button === 1 };
      state.lasso = [];
    });
    canvas.addEventListener("pointermove", (event) => {
      const [x, y] = at(event);
      if (!drag) return hover(x, y);
      const [dx, dy] = [x - drag.last[0], y - drag.last[1]];
      drag.moved += Math.abs(dx) + Math.abs(dy);
      drag.last = [x, y];
      if (drag.moved < 4) return undefined;
      tip.hidden = true;
      if (drag.pans) move(dx, dy);
      else { state.lasso.push([x, y]); repaint(); }
      return undefined;
    });
    canvas.addEventListener("pointerup", (event) => {
      const [x, y] = at(event);
      const polygon = state.lasso;
      const clicked = drag && drag.moved < 4;
      drag = null;
      state.lasso = [];
      if (polygon.length > 2) return select((px, py) => inside(polygon, px, py));
      const point = clicked ? nearest(x, y) : -1;
      if (point >= 0) on.open(points.feature[point]);
      else if (clicked && state.chosen.size) choose(null);
      return repaint();
    });
    canvas.addEventListener("pointerleave", () => { if (!drag) tip.hidden = true; });
    canvas.addEventListener("wheel", (event) => { event.preventDefault(); zoom(event.deltaY < 0 ? 1.25 : 0.8, ...at(event)); }, { passive: false });
    canvas.addEventListener("keydown", (event) => {
      if (event.altKey || event.ctrlKey || event.metaKey) return;
      const actions = {
        ArrowLeft: () => move(40, 0), ArrowRight: () => move(-40, 0), ArrowUp: () => move(0, 40), ArrowDown: () => move(0, -40),
        "+": () => zoom(1.4), "=": () => zoom(1.4), "-": () => zoom(1 / 1.4), 0: showAll, s: () => select(inView), Escape: () => choose(null),
      };
      if (!(event.key in actions)) return;
      event.preventDefault();
      event.stopPropagation();
      actions[event.key]();
    });

    const button = (text, about, act) => {
      const node = element("button", "sae-button", text);
      node.type = "button";
      node.title = about;
      node.addEventListener("click", () => act(node));
      return node;
    };
    const tools = element("div", "sae-form-row sae-map-tools");
    const drawing = button("Lasso", "drag around features to put them into the table", () => setMode("select"));
    const moving = button("Move", "drag to move; shift and drag does so too", () => setMode("pan"));
    const setMode = (mode) => {
      state.mode = mode;
      drawing.setAttribute("aria-pressed", String(mode === "select"));
      moving.setAttribute("aria-pressed", String(mode === "pan"));
    };
    setMode("select");
    tools.append(drawing, moving, button("+", "zoom in", () => zoom(1.4)), button("−", "zoom out", () => zoom(1 / 1.4)),
      button("All", "show the whole map", showAll), button("Select what is in view", "put the features in view into the table", () => select(inView)),
      button("Clear", "show all features in the table again", () => choose(null)), status);
    const legend = element("div", "sae-map-legend sae-note");
    legend.append(`density ${format(10 ** low)}`, element("span", "sae-map-scale"), format(10 ** high));
    root.replaceChildren(tools, box, legend);
    new ResizeObserver(repaint).observe(canvas);
    paint();
    root.dataset.points = String(n);
    const mark = (feature) => {
      state.current = feature;
      canvas.dataset.current = String(feature);
      repaint();
    };
    return { mark, rename: (tokens) => { points.tokens = tokens; }, redraw: repaint };
  };

  return { draw };
})();
