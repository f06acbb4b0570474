/* What page and live app share around the panels: tabs, keys, the list of keys. Needs nothing. */
"use strict";
window.SaeShell = (() => {
  const by = (id) => document.getElementById(id);
  const tabs = () => [...document.querySelectorAll("#tabs [role=tab]")];
  const nameOf = (tab) => tab.id.replace(/^tab-/, "");

  /** Call choose(name) when a tab is clicked or activated; arrows, home and end move between tabs. */
  const listenTabs = (choose) => {
    document.addEventListener("click", (event) => {
      const tab = event.target.closest("#tabs [role=tab]");
      if (tab) choose(nameOf(tab));
    });
    document.addEventListener("keydown", (event) => {
      const tab = event.target.closest("#tabs [role=tab]");
      const all = tabs();
      const from = all.indexOf(tab);
      const to = { ArrowLeft: from - 1, ArrowRight: from + 1, Home: 0, End: all.length - 1 }[event.key];
      if (!tab || to === undefined) return;
      event.preventDefault();
      all[(to + all.length) % all.length].focus();
    });
  };

  /** Show one panel; charts that were drawn while it was hidden get their size now. */
  const showTab = (name) => {
    tabs().forEach((tab) => {
      const chosen = nameOf(tab) === name;
      tab.setAttribute("aria-selected", String(chosen));
      by(`panel-${nameOf(tab)}`).hidden = !chosen;
    });
    window.dispatchEvent(new Event("resize"));
  };

  const help = () => {
    if (!by("sae-help").open) by("sae-help").showModal();
  };
  const focusSearch = () => { by("sae-search")?.focus(); by("sae-search")?.select(); };

  /** j k / g ? and digits for tabs; while a text is typed only Escape, which leaves the field, and Enter in the search,
      which opens what was found. */
  const listenKeys = (step, choose, openFound) => {
    document.addEventListener("click", (event) => {
      if (event.target.closest("#sae-help-open")) help();
      if (event.target.closest("#sae-help-close")) by("sae-help").close();
      if (event.target.closest("#sae-previous")) step(-1);
      if (event.target.closest("#sae-next")) step(1);
    });
    document.addEventListener("keydown", (event) => {
      if (event.altKey || event.ctrlKey || event.metaKey) return;
      const typing = /^(INPUT|TEXTAREA|SELECT)$/.test(event.target.tagName) && event.target.type !== "checkbox";
      if (typing) {
        if (event.key === "Escape") event.target.blur();
        if (event.key === "Enter" && event.target.id === "sae-search") {
          openFound(event.target.value.trim());
          event.target.blur();
        }
        return;
      }
      const actions = { j: () => step(1), k: () => step(-1), "/": focusSearch, g: focusSearch, "?": help };
      tabs().forEach((tab, index) => { actions[String(index + 1)] = () => choose(nameOf(tab)); });
      if (event.key in actions && !by("sae-help").open) {
        event.preventDefault();
        actions[event.key]();
      }
    });
  };

  /** Where table and feature stand below each other, go to the feature that was chosen. */
  const reveal = () => {
    if (window.matchMedia("(max-width: 900px)").matches) by("sae-main").scrollIntoView();
  };

  return { listenTabs, listenKeys, showTab, reveal };
})();
