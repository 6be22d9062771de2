// Copies commands, filters cards by class or by cell of the confusion matrix, and shows the sheets of those cards one
// after the other. No text becomes HTML.
"use strict";

const byId = (id) => document.getElementById(id);

for (const button of document.querySelectorAll("[data-copy]")) {
  const label = button.firstElementChild;
  button.addEventListener("click", async () => {
    const text = byId(button.dataset.copy);
    getSelection().selectAllChildren(text);
    let message = "Copied";
    try {
      await navigator.clipboard.writeText(text.textContent);
    } catch {
      if (!document.execCommand("copy")) message = "Selected: copy with Ctrl+C";
    }
    label.textContent = message;
    setTimeout(() => (label.textContent = "Copy"), 3_000);
  });
  button.hidden = false;
}

// ---- sheets
let opener = null; // what gets the focus back, if it is not the button of the card
const sheetsOf = (list) => [...list.querySelectorAll(".card:not([hidden]) dialog")];

const open = (dialog) => {
  const sheets = sheetsOf(dialog.closest(".cards"));
  const place = dialog.querySelector(".sheet-image");
  place.replaceChildren(dialog.closest(".card").querySelector(".pair img").cloneNode());
  dialog.querySelector(".position").textContent = `${sheets.indexOf(dialog) + 1} of ${sheets.length}`;
  for (const button of dialog.querySelectorAll("[data-step]")) button.hidden = sheets.length < 2;
  dialog.showModal();
  document.documentElement.classList.add("has-dialog");
};

const step = (dialog, by) => {
  const sheets = sheetsOf(dialog.closest(".cards"));
  const next = sheets[(sheets.indexOf(dialog) + by + sheets.length) % sheets.length];
  if (next === dialog) return;
  dialog.close();
  open(next);
  next.querySelector(`[data-step="${by}"]`).focus();
};

for (const button of document.querySelectorAll("[data-open]")) {
  const dialog = byId(button.dataset.open);
  button.addEventListener("click", () => open(dialog));
  dialog.addEventListener("close", () => {
    if (document.querySelector("dialog[open]")) return; // the next one
    document.documentElement.classList.remove("has-dialog");
    (opener?.isConnected ? opener : button).focus();
    opener = null;
  });
  dialog.querySelector("[data-close]").addEventListener("click", () => dialog.close());
  for (const each of dialog.querySelectorAll("[data-step]")) {
    each.addEventListener("click", () => step(dialog, Number(each.dataset.step)));
  }
  dialog.addEventListener("keydown", (event) => {
    const by = { ArrowLeft: -1, ArrowRight: 1 }[event.key];
    if (!by || event.ctrlKey || event.metaKey || event.altKey) return;
    if (event.target.scrollWidth > event.target.clientWidth) return; // the arrows scroll it
    event.preventDefault();
    step(dialog, by);
  });
  dialog.addEventListener("click", (event) => {
    if (event.target === dialog) dialog.close(); // on the backdrop
  });
}

// ---- filters
const MAX_THUMBS = 12;
const form = byId("filters");
const cards = [...document.querySelectorAll("#test-image-cards > .card")];
const cells = [...document.querySelectorAll("[data-count]")]; // of the confusion matrix, and its largest
const panel = byId("cell");
const names = [...(byId("names")?.options ?? [])].map((option) => option.value);
const selected = { true: "", predicted: "" }; // numbers of classes as text; "": any

const matches = (element) =>
  Object.entries(selected).every(([kind, value]) => !value || element.dataset[kind] === value);

const nameOf = (index) => {
  const element = document.createElement("bdi");
  element.textContent = names[index];
  return element;
};

const thumbOf = (card) => {
  const image = card.querySelector(".pair img");
  const button = document.createElement("button");
  button.type = "button";
  button.append(image ? image.cloneNode() : card.querySelector("h3").textContent);
  button.addEventListener("click", () => {
    const dialog = card.querySelector("dialog");
    if (!dialog) return card.scrollIntoView({ block: "center" });
    opener = button;
    open(dialog);
  });
  const item = document.createElement("li");
  item.append(button);
  return item;
};

const showPanel = (cell) => {
  panel.hidden = !cell;
  if (!cell) return;
  const { true: label, predicted, count, total, images } = cell.dataset;
  const number = (text) => Number(text).toLocaleString("en");
  const end = label === predicted ? ["correctly classified."] : ["predicted as ", nameOf(predicted), "."];
  const shown = cards.filter(matches);
  const list = shown.length > MAX_THUMBS ? ` The first ${MAX_THUMBS}, of ${shown.length} below:` : "";
  const verb = count === "1" ? " is " : " are ";
  byId("cell-text").replaceChildren(number(count), ` of ${number(total)} images of `, nameOf(label), verb, ...end, list);
  byId("cell-images").replaceChildren(...shown.slice(0, MAX_THUMBS).map(thumbOf));
  byId("cell-images").hidden = !shown.length;
  byId("cell-none").hidden = shown.length > 0 || count === "0";
  const command = panel.dataset.command && images ? `${panel.dataset.command} ${images}` : "";
  byId("cell-command").textContent = command;
  byId("cell-command").parentElement.hidden = !command;
  byId("cell-all").hidden = false;
};

const filter = () => {
  let shown = 0;
  for (const card of cards) {
    card.hidden = !matches(card);
    shown += !card.hidden;
  }
  if (form) {
    byId("count").textContent = `${shown} of ${cards.length} images`;
    byId("empty").hidden = shown > 0;
    for (const [kind, value] of Object.entries(selected)) form.elements[kind].value = value;
  }
  const isCell = selected.true && selected.predicted;
  for (const cell of cells) {
    cell.setAttribute(cell.tagName === "TD" ? "aria-selected" : "aria-pressed", Boolean(isCell) && matches(cell));
  }
  if (panel) showPanel(isCell ? cells.find(matches) : null);
};

const select = (label, predicted) => {
  Object.assign(selected, { true: label, predicted });
  filter();
};

if (form) {
  const read = () => select(form.elements.true.value, form.elements.predicted.value);
  form.addEventListener("change", read);
  form.addEventListener("submit", (event) => event.preventDefault());
  form.querySelector("button").addEventListener("click", () => select("", ""));
  form.hidden = false;
  for (const kind of Object.keys(selected)) selected[kind] = form.elements[kind].value; // a reloaded page may keep them
}

byId("cell-all")?.querySelector("button").addEventListener("click", () => {
  const cell = cells.find(matches);
  select("", "");
  cell.focus();
});

for (const cell of cells) {
  const { true: label, predicted } = cell.dataset;
  cell.addEventListener("click", () => {
    const isSelected = selected.true === label && selected.predicted === predicted;
    select(isSelected ? "" : label, isSelected ? "" : predicted);
  });
}

// ---- the confusion matrix by keyboard: one stop of Tab, arrows between the cells
const matrix = byId("matrix");
if (matrix) {
  const grid = [...matrix.tBodies[0].rows].map((row) => [...row.cells].slice(1));
  const go = (row, column) => {
    const cell = grid[row]?.[column];
    if (!cell) return;
    matrix.querySelector('[tabindex="0"]').tabIndex = -1;
    cell.tabIndex = 0;
    cell.focus();
  };
  const explained = new Set(cards.map((card) => `${card.dataset.true} ${card.dataset.predicted}`));
  matrix.setAttribute("role", "grid");
  grid.forEach((row, i) =>
    row.forEach((cell, j) => {
      cell.tabIndex = i || j ? -1 : 0;
      cell.classList.toggle("has-images", explained.has(`${i} ${j}`));
      cell.addEventListener("focus", () => go(i, j));
      cell.addEventListener("keydown", (event) => {
        const moves = { ArrowLeft: [i, j - 1], ArrowRight: [i, j + 1], ArrowUp: [i - 1, j], ArrowDown: [i + 1, j] };
        const move = { ...moves, Home: [i, 0], End: [i, row.length - 1] }[event.key];
        if (move) go(...move);
        else if (event.key === "Enter" || event.key === " ") cell.click();
        else return;
        event.preventDefault();
      });
    }),
  );
}

filter();
