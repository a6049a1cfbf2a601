// Clicking a heading sorts its table: numbers by value, everything else by text, what is missing last; clicking again
// turns the order round.
const valueOf = (cell) => {
  const text = cell.textContent.trim();
  const number = parseFloat(text.replace(/,(?=\d{3})/g, ""));
  return Number.isNaN(number) ? text : number;
};
const isMissing = (value) => value === "" || value === "\u2014";
const compare = (a, b) =>
  typeof a === "number" && typeof b === "number" ? a - b : String(a).localeCompare(String(b));
const sortBy = (heading) => {
  const headings = [...heading.parentNode.cells];
  const sign = heading.getAttribute("aria-sort") === "ascending" ? -1 : 1;
  const column = headings.indexOf(heading);
  const body = heading.closest("table").tBodies[0];
  const rows = [...body.rows].map((row) => [valueOf(row.cells[column]), row]);
  rows.sort(([a], [b]) => isMissing(a) - isMissing(b) || sign * compare(a, b));
  body.append(...rows.map(([, row]) => row));
  headings.forEach((one) => one.removeAttribute("aria-sort"));
  heading.setAttribute("aria-sort", sign > 0 ? "ascending" : "descending");
};
document.querySelectorAll("th").forEach((heading) => {
  heading.tabIndex = 0;
  heading.addEventListener("click", () => sortBy(heading));
  heading.addEventListener("keydown", (event) => event.key === "Enter" && sortBy(heading));
});
// What is folded away on the screen is printed.
addEventListener("beforeprint", () => document.querySelectorAll("details").forEach((one) => { one.open = true; }));
