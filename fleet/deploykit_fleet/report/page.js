"use strict";
// Sorts tables by a click or Enter on a head (up, down, as written), and saves the JSON of a picture. The page is whole without it.
const UNITS = { kB: 1e3, MB: 1e6, GB: 1e9, k: 1e3, M: 1e6, G: 1e9, "µs": 1e-3 };
const figure = (text) => {
  const found = /^[<>~]?\s*(-?[\d,]*\.?\d+(?:e[+-]?\d+)?)\s*([a-zA-Zµ]*)/.exec(text);
  return found ? parseFloat(found[1].replaceAll(",", "")) * (UNITS[found[2]] ?? 1) : NaN;
};
const compare = (a, b) => {
  const [x, y] = [figure(a), figure(b)];
  if (Number.isNaN(x) !== Number.isNaN(y)) return Number.isNaN(x) ? 1 : -1;
  return Number.isNaN(x) ? a.localeCompare(b) : x - y;
};
const sort = (table, column, head) => {
  const was = head.getAttribute("aria-sort");
  for (const other of head.parentNode.cells) other.removeAttribute("aria-sort");
  if (was !== "descending") head.setAttribute("aria-sort", was ? "descending" : "ascending");
  const rows = table.rowsAsWritten.map((row) => [row.cells[column].textContent.trim(), row]);
  if (!was) rows.sort((a, b) => compare(a[0], b[0]));
  if (was === "ascending") rows.sort((a, b) => compare(b[0], a[0]));
  table.tBodies[0].append(...rows.map((pair) => pair[1]));
};
const cell = (tag, words) => {
  const found = document.createElement(tag);
  found.textContent = words ?? "-";
  return found;
};
const row = (tag, words) => {
  const found = document.createElement("tr");
  found.append(...words.map((each) => cell(tag, each)));
  return found;
};
for (const data of document.querySelectorAll("pre.data")) {
  const { columns, rows, words } = JSON.parse(data.textContent);
  const told = (value, at) => {
    if (words[columns[at]]) return words[columns[at]][value] ?? "";
    return columns[at] === "SQNR" && value !== null ? (value < 200 ? value.toFixed(1) : "identical") : value;
  };
  const table = document.createElement("table");
  table.createCaption().textContent = "SQNR in dB, in the order of execution; a head sorts";
  table.createTHead().append(row("th", columns));
  table.createTBody().append(...rows.map((each) => row("td", columns.map((_, at) => told(each[at], at)))));
  table.className = "n4";
  const box = document.createElement("div");
  Object.assign(box, { className: "scroll", tabIndex: 0, role: "region", ariaLabel: "Layers" });
  box.append(table);
  data.hidden = true;
  data.after(box);
}
for (const table of document.querySelectorAll("table:not(.matrix)")) {
  table.rowsAsWritten = [...table.tBodies[0].rows];
  for (const [column, head] of [...table.tHead.rows[0].cells].entries()) {
    const button = document.createElement("button");
    button.type = "button";
    button.append(...head.childNodes);
    button.addEventListener("click", () => sort(table, column, head));
    head.append(button);
  }
}
for (const data of document.querySelectorAll("figure script, figure pre")) {
  const button = document.createElement("button");
  button.type = "button";
  button.className = "save";
  button.textContent = "JSON";
  button.title = "Save the figures of this picture";
  button.addEventListener("click", () => {
    const link = document.createElement("a");
    link.href = URL.createObjectURL(new Blob([data.textContent], { type: "application/json" }));
    link.download = `${data.id.replace(/-data$/, "")}.json`;
    link.click();
    URL.revokeObjectURL(link.href);
  });
  data.closest("figure").querySelector("figcaption").append(button);
}
const open = () => {
  const found = location.hash.length > 1 && document.getElementById(decodeURIComponent(location.hash.slice(1)));
  const outer = found && found.closest("details");
  if (outer) outer.open = true;
};
addEventListener("hashchange", open);
open();
