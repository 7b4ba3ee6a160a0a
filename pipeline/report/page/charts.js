// Charts with a legend: the pointer or the focus on a line, or on its name, brings it out. Several systems may lie close
// together, as on the chart of the detection error trade-off.
"use strict";

(function () {
  function bringOut(figure, line) {
    figure.classList.toggle("lit", line !== undefined);
    for (const part of figure.querySelectorAll("[data-line]")) {
      part.classList.toggle("on", part.dataset.line === line);
    }
  }

  function prepare(figure) {
    const lineAt = (event) => event.target.closest("[data-line]")?.dataset.line;
    figure.addEventListener("pointerover", (event) => bringOut(figure, lineAt(event)));
    figure.addEventListener("pointerleave", () => bringOut(figure, undefined));
    figure.addEventListener("focusin", (event) => bringOut(figure, lineAt(event)));
    figure.addEventListener("focusout", () => bringOut(figure, undefined));
    figure.querySelectorAll(".legend li").forEach((name) => (name.tabIndex = 0));
  }

  document.querySelectorAll("figure:has(.legend [data-line])").forEach(prepare);
})();
