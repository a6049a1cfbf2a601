// Clicking a heading sorts its table: numbers by value, everything else by text; clicking again turns the order round.
const valueOf = (cell) => {
  const text = (cell.dataset.value ?? cell.textContent).trim().replace(/,(?=\d{3})/g, "");
  const number = parseFloat(text);
  return Number.isNaN(number) ? text : number;
};
const compare = (a, b) =>
  typeof a === "number" && typeof b === "number" ? a - b
  : typeof a === typeof b ? a.localeCompare(b)
  : typeof a === "number" ? -1 : 1;
const sortBy = (heading) => {
  const headings = [...heading.parentNode.cells];
  const sign = heading.getAttribute("aria-sort") === "ascending" ? -1 : 1;
  const column = headings.indexOf(heading);
  const body = heading.closest("table").tBodies[0];
  const rows = [...body.rows].map((row) => [valueOf(row.cells[column]), row]);
  rows.sort((a, b) => sign * compare(a[0], b[0]));
  body.append(...rows.map(([, row]) => row));
  headings.forEach((one) => one.removeAttribute("aria-sort"));
  heading.setAttribute("aria-sort", sign > 0 ? "ascending" : "descending");
};
document.querySelectorAll("table.sortable th").forEach((heading) => {
  heading.tabIndex = 0;
  heading.addEventListener("click", () => sortBy(heading));
  heading.addEventListener("keydown", (event) => event.key === "Enter" && sortBy(heading));
});
// What is folded away on the screen is printed.
addEventListener("beforeprint", () => document.querySelectorAll("details").forEach((one) => { one.open = true; }));
