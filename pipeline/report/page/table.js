// Tables of the class `sortable`: a click on a column's header, or Enter on it, sorts by that column. Filters leave the
// rows of some systems in all tables of systems. Without this script they are tables all the same.
"use strict";

(function () {
  const tables = [...document.querySelectorAll("table.sortable")];
  const filters = document.getElementById("filters");

  // Long tables: the rows beyond the first ones are text until they are asked for. Those of the leaderboard, which a
  // browser without scripts shows, come by themselves once the page is painted.

  const restOf = (table) => table.parentElement.querySelector(".rest");

  function grow(table) {
    const rest = restOf(table);
    if (!rest) return;
    const read = document.createElement("template");
    read.innerHTML = (rest.querySelector("script") || rest).textContent;
    table.tBodies[0].append(...read.content.querySelectorAll("tr[data-row]"));
    rest.remove();
  }

  function offerRest(table) {
    const rest = restOf(table);
    if (!rest) return;
    if (rest.matches("noscript")) {
      const idle = window.requestIdleCallback || ((work) => setTimeout(work, 100));
      addEventListener("load", () => requestAnimationFrame(() => idle(() => grow(table))));
      return;
    }
    const button = document.createElement("button");
    button.type = "button";
    button.className = "plain";
    button.textContent = "Show all";
    button.addEventListener("click", () => grow(table));
    rest.append(" ", button);
  }

  // Sorting

  function value(row, column) {
    const cell = row.cells[column];
    if (cell.dataset.value !== undefined) return Number(cell.dataset.value);
    const text = cell.textContent.trim();
    if (text === "-") return null;
    return column > 0 && text !== "" && !isNaN(text) ? Number(text) : text;
  }

  function compare(a, b) {
    return typeof a === "number" && typeof b === "number" ? a - b : String(a).localeCompare(String(b), "en");
  }

  // Rows in order; equal ones stay as they are, and those without a value come last in both directions.
  function sorted(rows, column, sign) {
    const keyed = rows.map((row) => ({ row, key: value(row, column) }));
    keyed.sort((a, b) => {
      if (a.key === null || b.key === null) return (a.key === null) - (b.key === null);
      return sign * compare(a.key, b.key);
    });
    return keyed.map((entry) => entry.row);
  }

  function sort(table, header) {
    grow(table);
    const down = header.getAttribute("aria-sort") === "ascending";
    for (const other of table.tHead.rows[0].cells) other.removeAttribute("aria-sort");
    header.setAttribute("aria-sort", down ? "descending" : "ascending");
    table.tBodies[0].append(...sorted([...table.tBodies[0].rows], header.cellIndex, down ? -1 : 1));
  }

  function prepare(table) {
    for (const header of table.tHead.rows[0].cells) {
      const button = document.createElement("button");
      button.type = "button";
      button.title = "Sort by this column";
      button.append(...header.childNodes);
      button.addEventListener("click", () => sort(table, header));
      header.append(button);
    }
  }

  // Filters: every row of a system has its number, and the rows of the leaderboard have what they are filtered by

  const leaderboardRows = () => [...document.querySelectorAll("table.pooled tbody tr")];

  function filter() {
    tables.forEach(grow);
    const rows = leaderboardRows();
    const words = document.getElementById("filter").value.toLowerCase().split(/\s+/).filter(Boolean);
    const chosen = [...filters.querySelectorAll("select[data-axis]")].filter((select) => select.value);
    const fits = (row) =>
      words.every((word) => row.cells[0].textContent.toLowerCase().includes(word)) &&
      chosen.every((select) => row.dataset[select.dataset.axis] === select.value);
    const left = new Set(rows.filter(fits).map((row) => row.dataset.row));
    for (const row of document.querySelectorAll("tr[data-row]")) row.hidden = !left.has(row.dataset.row);
    document.getElementById("left").textContent = left.size === rows.length ? "" : `${left.size} of ${rows.length}`;
  }

  function offerFilters() {
    filters.hidden = leaderboardRows().length < 2;
    filters.addEventListener("input", filter);
    filters.addEventListener("submit", (event) => event.preventDefault());
  }

  tables.forEach(prepare);
  tables.forEach(offerRest);
  offerFilters();
})();
