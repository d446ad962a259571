// Every table of the book can be sorted: a button in the head of each column, up, down, and back to the order of the page.
// Numbers are compared as numbers; what is empty or no number comes last.

const NUMBER = /^[\s<>≤≥≈~±$]*([-+]?(?:\d+(?:\.\d*)?|\.\d+)(?:e[-+]?\d+)?)/i;
const NOTHING = /^(nan|none|n\/a|[-–—…]*)$/i;

const textOf = (cell) => (cell ? cell.textContent.trim() : "");

function numberIn(text) {
  const found = NUMBER.exec(text.replaceAll("−", "-").replace(/(\d),(?=\d{3}\b)/g, "$1"));
  return found ? Number(found[1]) : NaN;
}

// The cell of the head that names each column: the lowest that spans this column alone, and one with words before an empty one.
function namesOf(table) {
  const taken = [];
  const names = [];
  [...table.tHead.rows].forEach((row, line) => {
    let column = 0;
    for (const cell of row.cells) {
      while (taken[line]?.[column]) column += 1;
      for (let down = 0; down < cell.rowSpan; down += 1) {
        taken[line + down] ??= [];
        for (let across = 0; across < cell.colSpan; across += 1) taken[line + down][column + across] = true;
      }
      if (cell.colSpan === 1 && (textOf(cell) || !names[column])) names[column] = cell;
      column += cell.colSpan;
    }
  });
  return names;
}

// A cell that spans rows is repeated in each of them: once sorted, they are no longer neighbours.
function repeatSpans(rows) {
  rows.forEach((row, at) => {
    for (let index = 0; index < row.cells.length; index += 1) {
      const cell = row.cells[index];
      for (let down = 1; down < cell.rowSpan && rows[at + down]; down += 1) {
        const copy = cell.cloneNode(true);
        copy.rowSpan = 1;
        rows[at + down].insertBefore(copy, rows[at + down].cells[index] ?? null);
      }
      cell.rowSpan = 1;
    }
  });
}

function order(rows, column, down) {
  const values = rows.map((row) => textOf(row.cells[column]));
  const empty = values.map((text) => NOTHING.test(text));
  const numbers = values.map(numberIn);
  const numeric = numbers.every((number, at) => empty[at] || !Number.isNaN(number));
  const compare = (a, b) =>
    (numeric && numbers[a] - numbers[b]) || values[a].localeCompare(values[b], undefined, { numeric: true });
  return [...rows.keys()].sort((a, b) => empty[a] - empty[b] || (down ? compare(b, a) : compare(a, b)) || a - b);
}

// A line between groups of rows has words in its first cell alone; it is left out of a sorted table.
const isGroup = (row) => row.cells.length > 2 && textOf(row.cells[0]) && ![...row.cells].slice(1).some(textOf);

function prepare(table) {
  const bodies = [...table.tBodies];
  const rows = bodies.flatMap((body) => [...body.rows]).filter((row) => !isGroup(row));
  if (!table.tHead || rows.length < 2) return;
  const original = bodies.map((body) => [...body.rows]);
  const spanned = rows.some((row) => [...row.cells].some((cell) => cell.rowSpan > 1));
  const names = namesOf(table);
  const before = spanned ? bodies.map((body) => body.cloneNode(true)) : null;

  function sort(name, column) {
    const next = { none: "ascending", ascending: "descending", descending: "none" }[name.ariaSort ?? "none"];
    for (const other of names) other?.removeAttribute("aria-sort");
    if (next === "none") {
      if (before) before.forEach((copy, at) => bodies[at].replaceChildren(...copy.cloneNode(true).rows));
      else bodies.forEach((body, at) => body.replaceChildren(...original[at]));
      return;
    }
    name.ariaSort = next;
    const now = before ? before.flatMap((body) => [...body.cloneNode(true).rows]) : rows;
    if (before) repeatSpans(now);
    const sorted = order(now, column, next === "descending").map((at) => now[at]);
    bodies.forEach((body, at) => body.replaceChildren(...(at ? [] : sorted)));
  }

  names.forEach((name, column) => {
    if (!name || name.querySelector("a, button")) return;
    const button = document.createElement("button");
    button.type = "button";
    button.className = "sort";
    button.title = "sort";
    if (!textOf(name)) button.ariaLabel = "sort by the first column";
    button.append(...name.childNodes);
    name.append(button);
    button.addEventListener("click", () => sort(name, column));
  });
}

function alignNumbers(table) {
  for (const cell of table.querySelectorAll("tbody td")) {
    if (/^[-+−<]?[\d.,]+(e[-+]?\d+)?( ?%)?$|^nan$/i.test(textOf(cell))) cell.classList.add("number");
  }
}

// What scrolls by touch must scroll by keys.
function wrap(table) {
  if (table.closest(".scrolls, .pst-scrollable-table-container")) return;
  const box = document.createElement("div");
  box.className = "scrolls";
  table.replaceWith(box);
  box.append(table);
}

document.addEventListener("DOMContentLoaded", () => {
  for (const table of document.querySelectorAll("article table")) {
    wrap(table);
    alignNumbers(table);
    prepare(table);
  }
  for (const box of document.querySelectorAll("article .scrolls, article div.math")) {
    if (box.scrollWidth > box.clientWidth) box.tabIndex = 0;
  }
});
