// Tables of the class `sortable`: a click on a column's header, or Enter on it, sorts by that column. Without this
// script they are tables all the same.
"use strict";

(function () {
  function value(row, column) {
    const cell = row.cells[column];
    if (cell.dataset.value !== undefined) return Number(cell.dataset.value);
    const text = cell.textContent.trim();
    return text === "-" ? null : text;
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

  document.querySelectorAll("table.sortable").forEach(prepare);
})();
