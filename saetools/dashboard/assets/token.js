/* Token text and its values: the one script of saetools that draws text from a corpus.

   It writes text with textContent only. What is in the document afterwards is the text itself, character for
   character: signs for newlines, tabs and invisible characters are drawn by the style sheet. */
"use strict";
window.SaeTokens = (() => {
  // Characters that have no shape of their own or reorder what follows: controls, zero-width, bidi, separators, tags.
  const INVISIBLE = /[\u0000-\u0008\u000b-\u001f\u007f-\u009f\u00ad\u034f\u061c\u115f\u1160\u17b4\u17b5\u180b-\u180f\u200b-\u200f\u2028-\u202f\u2060-\u206f\u3164\ufe00-\ufe0f\ufeff\uffa0\ufff0-\ufffb\ud800-\udfff]|[\u{e0000}-\u{e0fff}]/u;
  const PIECES = new RegExp(`(\\n|\\t|${INVISIBLE.source})`, "u");

  const LEAST_EFFECT = 0.05; // nats of loss below which a token is not underlined

  const element = (tag, className, text) => {
    const node = document.createElement(tag);
    if (className) node.className = className;
    if (text !== undefined) node.textContent = text;
    return node;
  };

  const codeName = (character) =>
    "U+" + character.codePointAt(0).toString(16).toUpperCase().padStart(4, "0");

  /** Put text into a node such that every character can be seen and none reorders its surroundings. */
  const write = (node, text) => {
    if (!PIECES.test(text)) { // most text: one node, no splitting
      node.append(text);
      return node;
    }
    for (const piece of text.split(PIECES)) {
      if (piece === "") continue;
      if (piece === "\n") node.append(element("span", "sae-nl", piece));
      else if (piece === "\t") node.append(element("span", "sae-tab", piece));
      else if (INVISIBLE.test(piece)) {
        const mark = element("span", "sae-control", piece);
        mark.dataset.code = codeName(piece);
        node.append(mark);
      } else node.append(piece);
    }
    return node;
  };

  /** A short label for a token in a list: spaces are signs too. */
  const label = (text) => {
    const node = element("span", "sae-label");
    const inner = text.match(/^( *)([\s\S]*?)( *)$/u);
    const spaces = (run) => run && node.append(element("span", "sae-space", run));
    spaces(inner[1]);
    write(node, inner[2]);
    spaces(inner[3]);
    return node;
  };

  const format = (value) => {
    if (value === null || value === undefined || Number.isNaN(value)) return "–";
    const size = Math.abs(value);
    if (size !== 0 && (size < 1e-3 || size >= 1e5)) return value.toExponential(1);
    return String(Number(value.toPrecision(3)));
  };

  /** One example: {tokens, at, values, peak, document, position}; scale is the value of full colour. */
  const context = (example, scale) => {
    const values = new Float64Array(example.tokens.length);
    example.at.forEach((index, order) => { values[index] = example.values[order]; });
    const row = element("div", "sae-example");
    const head = element("div", "sae-example-head");
    head.append(element("span", "sae-value", format(values[example.peak])));
    const place = element("span", "sae-place");
    write(place, example.document);
    const at = example.position + example.peak;
    const saysWhere = example.tokens[example.peak] === `row ${at}`; // a row that was made from no token
    if (example.document && !saysWhere) place.append(` · token ${at}`);
    head.append(place);
    if (example.loss_effects) {
      const total = example.loss_effects.reduce((sum, effect) => sum + effect, 0);
      head.append(element("span", "sae-worth", `${total < 0 ? "−" : "+"}${format(Math.abs(total))} nats`));
      head.lastChild.title = "Loss of the shown tokens without the feature, minus with it: positive where it helps.";
    }
    const text = element("div", "sae-context");
    text.setAttribute("role", "group");
    text.setAttribute("tabindex", "0");
    text.setAttribute("aria-label", "Context; left and right move between tokens");
    text.dir = "ltr";
    text.sae = { example, values }; // for the tip: attributes on thousands of tokens would cost a frame
    const spans = example.tokens.map((token, index) => {
      const value = values[index];
      const span = write(element("span", "sae-token"), token);
      if (value) {
        span.classList.add(value > 0 ? "sae-positive" : "sae-negative");
        span.style.setProperty("--strength", String(Math.min(1, Math.abs(value) / (scale || 1))));
      }
      if (index === example.peak) span.classList.add("sae-peak");
      const effect = example.loss_effects ? example.loss_effects[index] : 0;
      if (Math.abs(effect) >= LEAST_EFFECT) span.classList.add(effect > 0 ? "sae-helped" : "sae-hurt");
      return span;
    });
    text.append(...spans);
    row.append(head, text);
    return row;
  };

  let tip = null;
  const hideTip = () => { if (tip) tip.hidden = true; };
  /** Show nodes above a box of the window, or below it where there is no room. */
  const tipAt = (box, nodes) => {
    if (!tip || !tip.isConnected) {
      tip = element("div", "sae-tip");
      tip.id = "sae-tip";
      tip.setAttribute("role", "status");
      document.body.append(tip);
    }
    tip.replaceChildren(...nodes);
    tip.hidden = false;
    const left = Math.max(8, Math.min(box.left, document.documentElement.clientWidth - tip.offsetWidth - 8));
    const above = box.top - tip.offsetHeight - 6;
    tip.style.left = `${left + window.scrollX}px`;
    tip.style.top = `${(above > 0 ? above : box.bottom + 6) + window.scrollY}px`;
  };
  const showTip = (token) => {
    const { example, values } = token.parentElement.sae;
    const index = [...token.parentElement.children].indexOf(token);
    const nodes = [label(token.textContent), element("strong", "", format(values[index]))];
    if (example.loss_effects) nodes.push(element("span", "", `${format(example.loss_effects[index])} nats of loss without it`));
    nodes.push(element("span", "sae-dim", `token ${example.position + index}`));
    tipAt(token.getClientRects()[0] || token.getBoundingClientRect(), nodes);
  };

  /** Left and right, home and end move a cursor over the tokens of the focused context. */
  const move = (text, event) => {
    const tokens = [...text.children];
    const current = tokens.findIndex((token) => token.classList.contains("sae-cursor"));
    const peak = tokens.findIndex((token) => token.classList.contains("sae-peak"));
    const from = current < 0 ? peak : current;
    const targets = { ArrowLeft: from - 1, ArrowRight: from + 1, Home: 0, End: tokens.length - 1 };
    if (!(event.key in targets) || event.altKey || event.ctrlKey || event.metaKey) return;
    event.preventDefault();
    mark(text, tokens[Math.max(0, Math.min(tokens.length - 1, targets[event.key]))]);
  };
  const mark = (text, token) => {
    text.querySelectorAll(".sae-cursor").forEach((old) => old.classList.remove("sae-cursor"));
    if (!token) return hideTip();
    token.classList.add("sae-cursor");
    showTip(token);
  };

  /** Values on hover and on focus, for all contexts below a node, now and later. */
  const listen = (root) => {
    root.addEventListener("mouseover", (event) => {
      const token = event.target.closest(".sae-token");
      if (token) showTip(token);
    });
    root.addEventListener("mouseout", (event) => { if (event.target.closest(".sae-token")) hideTip(); });
    root.addEventListener("focusin", (event) => {
      const text = event.target.closest(".sae-context");
      if (text) mark(text, text.querySelector(".sae-peak"));
    });
    root.addEventListener("focusout", (event) => {
      const text = event.target.closest(".sae-context");
      if (text) mark(text, null);
    });
    root.addEventListener("keydown", (event) => {
      const text = event.target.closest(".sae-context");
      if (text) move(text, event);
      if (event.key === "Escape") hideTip();
    });
  };

  /** Bands of examples: [{title, examples}]. */
  const draw = (root, bands, scale) => {
    const parts = bands.map((band) => {
      const section = element("section", "sae-band");
      section.append(element("h4", "", band.title));
      section.append(...band.examples.map((example) => context(example, scale)));
      return section;
    });
    root.replaceChildren(...parts);
  };

  return { draw, context, write, label, listen, format, element, tipAt, hideTip };
})();
