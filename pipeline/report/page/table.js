// Tables of the class `sortable`: a click on a column's header, or Enter on it, sorts by that column. Filters leave the
// rows of some systems in all tables of systems. Without this script they are tables all the same.
"use strict";

(function () {
  const tables = [...document.querySelectorAll("table.sortable")];
  const filters = document.getElementById("filters");
  const AXES = ["backend", "loss", "layers", "views", "scoring"];

  // Long tables: the rows beyond the first ones are text until they are asked for

  function grow(table) {
    const rest = table.parentElement.querySelector(".rest");
    if (!rest) return;
    table.tBodies[0].insertAdjacentHTML("beforeend", rest.querySelector("script").textContent);
    rest.remove();
  }

  function offerRest(table) {
    const rest = table.parentElement.querySelector(".rest");
    if (!rest) return;
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

  function choicesOf(rows, axis) {
    const found = new Set(rows.map((row) => row.dataset[axis]).filter((choice) => choice !== undefined));
    return [...found].sort((a, b) => a.localeCompare(b, "en"));
  }

  function menu(axis, choices) {
    const label = document.createElement("label");
    const select = document.createElement("select");
    select.dataset.axis = axis;
    for (const [value, text] of [["", "all"], ...choices.map((choice) => [choice, choice])]) {
      select.append(new Option(text, value));
    }
    label.append(axis[0].toUpperCase() + axis.slice(1), select);
    return label;
  }

  function filter(rows) {
    tables.forEach(grow);
    const words = document.getElementById("filter").value.toLowerCase().split(/\s+/).filter(Boolean);
    const chosen = [...filters.querySelectorAll("select[data-axis]")].filter((select) => select.value);
    const fits = (row) =>
      words.every((word) => row.cells[0].textContent.toLowerCase().includes(word)) &&
      chosen.every((select) => row.dataset[select.dataset.axis] === select.value);
    const left = new Set(rows.filter(fits).map((row) => row.dataset.row));
    for (const row of document.querySelectorAll("tr[data-row]")) row.hidden = !left.has(row.dataset.row);
    document.getElementById("left").textContent = left.size === rows.length ? "" : `${left.size} of ${rows.length}`;
  }

  function offerFilters(rows) {
    for (const axis of AXES) {
      const choices = choicesOf(rows, axis);
      if (choices.length > 1) filters.append(menu(axis, choices));
    }
    filters.hidden = rows.length < 2;
    filters.addEventListener("input", () => filter(rows));
    filters.addEventListener("submit", (event) => event.preventDefault());
  }

  tables.forEach(prepare);
  tables.forEach(offerRest);
  offerFilters([...document.querySelectorAll("table.pooled tbody tr")]);
})();
