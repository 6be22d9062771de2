// Decides about images by keys, and downloads the edited issues.csv. No text becomes HTML.
"use strict";

const issues = JSON.parse(document.getElementById("issues").textContent);
const ACTION = issues.columns.indexOf("action");
const LABEL = issues.columns.indexOf("label");
const SUGGESTED = issues.columns.indexOf("suggested");
const cards = [...document.querySelectorAll("[data-line]")];
const dialog = document.getElementById("relabel");
const field = document.getElementById("relabel-class");
const problem = document.getElementById("relabel-problem");
const done = []; // [card, action, suggested] before each change
let current = -1;
let isSaved = true;

const rowOf = (card) => issues.rows[Number(card.dataset.line)];

const show = (card) => {
  const row = rowOf(card);
  card.dataset.action = row[ACTION];
  for (const button of card.querySelectorAll("[data-do]")) {
    button.setAttribute("aria-pressed", button.dataset.do === row[ACTION]);
  }
  card.querySelector(".decision").textContent = row[ACTION] === "relabel" ? `relabel: ${row[SUGGESTED]}` : row[ACTION];
};

const count = () => {
  const number = (action) => issues.rows.filter((row) => row[ACTION] === action).length.toLocaleString("en");
  const changed = done.length === 1 ? "1 change" : `${done.length} changes`;
  document.getElementById("count").textContent =
    `${number("drop")} drop, ${number("relabel")} relabel, ${number("keep")} keep · ${changed}`;
};

const write = (card, action, suggested) => {
  const row = rowOf(card);
  row[ACTION] = action;
  row[SUGGESTED] = suggested;
  isSaved = false;
  show(card);
  count();
};

const decide = (card, action, suggested = rowOf(card)[SUGGESTED]) => {
  const row = rowOf(card);
  if (row[ACTION] === action && row[SUGGESTED] === suggested) return;
  done.push([card, row[ACTION], row[SUGGESTED]]);
  write(card, action, suggested);
};

const select = (card) => {
  current = cards.indexOf(card);
  for (const other of cards) other.classList.toggle("current", other === card);
};

const go = (index) => {
  const card = cards[Math.max(0, Math.min(index, cards.length - 1))];
  if (!card) return;
  select(card);
  card.focus({ preventScroll: true });
  card.scrollIntoView({ block: "center", behavior: "instant" });
};

const undo = () => {
  const last = done.pop();
  if (!last) return;
  write(...last);
  go(cards.indexOf(last[0]));
};

const askLabel = (card) => {
  select(card);
  const row = rowOf(card);
  document.getElementById("relabel-name").textContent = `New label of ${row[0]} ${row[1]}, now ${row[LABEL]}`;
  field.value = row[SUGGESTED];
  problem.textContent = "";
  dialog.showModal();
  field.select();
};

dialog.querySelector("form").addEventListener("submit", (event) => {
  event.preventDefault();
  if (!issues.classes.includes(field.value)) {
    problem.textContent = `${field.value}: no class of these data`;
    return;
  }
  dialog.close();
  decide(cards[current], "relabel", field.value);
});
document.getElementById("relabel-cancel").addEventListener("click", () => dialog.close());
dialog.addEventListener("close", () => go(current));

const KEYS = {
  j: () => go(current + 1),
  k: () => go(current - 1),
  u: undo,
  d: () => current >= 0 && decide(cards[current], "drop"),
  o: () => current >= 0 && decide(cards[current], "keep"),
  r: () => current >= 0 && askLabel(cards[current]),
};
document.addEventListener("keydown", (event) => {
  if (event.ctrlKey || event.metaKey || event.altKey || dialog.open) return;
  const act = KEYS[event.key.toLowerCase()]; // also with Caps Lock
  if (!act) return;
  event.preventDefault(); // else the r that opens the dialog is typed into it
  act();
});

for (const card of cards) {
  card.addEventListener("focusin", () => select(card));
  card.addEventListener("click", () => select(card));
  for (const button of card.querySelectorAll("[data-do]")) {
    const action = button.dataset.do;
    button.addEventListener("click", () => (action === "relabel" ? askLabel(card) : decide(card, action)));
  }
  card.querySelector(".actions").hidden = false;
  show(card);
}

const quoted = (text) => (/[",\r\n]/.test(text) ? `"${text.replaceAll('"', '""')}"` : text);
const cell = (text) => quoted(text.replace(/^(?=[=+@'-])/, "'")); // as in audit/issues.py: a formula in a spreadsheet

const toolbar = document.getElementById("toolbar");
if (toolbar) {
  toolbar.hidden = false;
  count();
  document.getElementById("undo").addEventListener("click", undo);
  document.getElementById("download").addEventListener("click", () => {
    const text = [issues.columns, ...issues.rows].map((row) => `${row.map(cell).join(",")}\n`).join("");
    const link = document.createElement("a");
    link.href = URL.createObjectURL(new Blob([text], { type: "text/csv" }));
    link.download = "issues.csv";
    link.click();
    setTimeout(() => URL.revokeObjectURL(link.href), 10_000);
    isSaved = true;
  });
}

addEventListener("beforeunload", (event) => {
  if (!isSaved) event.preventDefault();
});
