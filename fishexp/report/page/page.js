"use strict";
// sorts and filters tables, unfolds rows, copies commands, switches pictures; without it all of the page is shown
document.documentElement.classList.add("js");
const all = (selector, within = document) => [...within.querySelectorAll(selector)];

function sort(table, column, header) {
  const numbers = header.classList.contains("number");
  const first = numbers ? "descending" : "ascending", second = numbers ? "ascending" : "descending";
  const order = header.getAttribute("aria-sort") === first ? second : first;
  const sign = order === "ascending" ? 1 : -1;
  const key = (body) => body.rows[0].cells[column];
  const compare = (a, b) => {
    const [x, y] = [key(a), key(b)];
    if (!numbers) return sign * x.textContent.localeCompare(y.textContent, "en", { numeric: true });
    const [p, q] = [x.dataset.by, y.dataset.by];
    if (p === undefined || q === undefined) return (p === undefined) - (q === undefined);  // what is missing comes last
    return sign * (Number(p) - Number(q));
  };
  table.append(...[...table.tBodies].sort(compare));
  [...table.tHead.rows[0].cells].forEach((one) => one.setAttribute("aria-sort", one === header ? order : "none"));
}

function filter(name) {
  const fields = all(`[data-table="${name}"]`);
  const words = fields.find((one) => one.type === "search").value.toLowerCase().split(/\s+/).filter(Boolean);
  const choices = fields.filter((one) => one.tagName === "SELECT" && one.value);
  const bodies = [...document.getElementById(name).tBodies];
  for (const body of bodies) {
    const text = body.textContent.toLowerCase();
    const cell = (key) => [...body.rows[0].cells].find((one) => one.dataset.key === key).textContent;
    body.hidden = !(words.every((word) => text.includes(word)) && choices.every((one) => cell(one.dataset.key) === one.value));
  }
  count(name);
}

function count(name) {
  const bodies = [...document.getElementById(name).tBodies];
  const shown = bodies.filter((body) => !body.hidden).length;
  all(`output[data-table="${name}"]`)[0].value = `${shown} of ${bodies.length} rows`;
}

function unfold(button, open) {
  button.setAttribute("aria-expanded", open);
  document.getElementById(button.getAttribute("aria-controls")).classList.toggle("open", open);
}

function select(tab) {
  for (const one of all("[role=tab]", tab.parentElement)) {
    one.setAttribute("aria-selected", one === tab);
    one.tabIndex = one === tab ? 0 : -1;
    document.getElementById(one.getAttribute("aria-controls")).classList.toggle("open", one === tab);
  }
}

async function copy(button) {
  const code = button.previousElementSibling;
  try {
    await navigator.clipboard.writeText(code.textContent);
    button.textContent = "Copied";
  } catch {
    getSelection().selectAllChildren(code);  // a browser that does not let pages copy
    button.textContent = "Selected; press Ctrl+C";
  }
  setTimeout(() => { button.textContent = "Copy command"; }, 2000);
}

function arrive() {
  const row = document.getElementById(location.hash.slice(1));
  if (!row || row.tagName !== "TBODY") return;
  row.hidden = false;
  count(row.parentElement.id);
  const fold = row.closest("details");
  if (fold) fold.open = true;
  const button = row.querySelector("button");
  unfold(button, true);
  button.focus();
}

for (const table of all("table.runs")) {
  [...table.tHead.rows[0].cells].forEach((header, column) => {
    header.querySelector("button").addEventListener("click", () => sort(table, column, header));
  });
}
for (const field of all("input[data-table], select[data-table]")) {
  field.addEventListener("input", () => filter(field.dataset.table));
}
for (const button of all("tbody > tr > th button[aria-expanded]")) {
  button.addEventListener("click", () => unfold(button, button.getAttribute("aria-expanded") !== "true"));
}
for (const tab of all("[role=tab]")) {
  tab.addEventListener("click", () => select(tab));
  tab.addEventListener("keydown", (event) => {
    const step = { ArrowRight: 1, ArrowLeft: -1 }[event.key];
    if (!step) return;
    const tabs = all("[role=tab]", tab.parentElement);
    const next = tabs[(tabs.indexOf(tab) + step + tabs.length) % tabs.length];
    select(next);
    next.focus();
  });
  if (tab.getAttribute("aria-selected") === "true") select(tab);
}
for (const button of all(".legend button")) {
  button.addEventListener("click", () => {
    const off = button.getAttribute("aria-pressed") === "true";
    button.setAttribute("aria-pressed", !off);
    const shapes = all(`[data-line="${button.dataset.line}"]`, button.closest(".comparison"));
    shapes.filter((shape) => shape !== button).forEach((shape) => shape.classList.toggle("off", off));
  });
}
all("button.copy").forEach((button) => button.addEventListener("click", () => copy(button)));
addEventListener("hashchange", arrive);
arrive();
