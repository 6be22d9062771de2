// Opens and closes sheets, and filters cards. No text becomes HTML.
"use strict";

for (const button of document.querySelectorAll("[data-open]")) {
  const dialog = document.getElementById(button.dataset.open);
  button.addEventListener("click", () => {
    dialog.showModal();
    document.documentElement.classList.add("open");
  });
  dialog.addEventListener("close", () => {
    document.documentElement.classList.remove("open");
    button.focus();
  });
  dialog.querySelector("[data-close]").addEventListener("click", () => dialog.close());
  dialog.addEventListener("click", (event) => {
    if (event.target === dialog) dialog.close(); // on the backdrop
  });
}

const form = document.getElementById("filters");
if (form) {
  const cards = [...document.querySelectorAll("#test-image-cards > .card")];
  const count = document.getElementById("count");
  const empty = document.getElementById("empty");

  const filter = () => {
    const selected = { true: form.elements.true.value, predicted: form.elements.predicted.value };
    let shown = 0;
    for (const card of cards) {
      const matches = Object.entries(selected).every(([kind, value]) => !value || card.dataset[kind] === value);
      card.hidden = !matches;
      shown += matches;
    }
    count.textContent = `${shown} of ${cards.length} images`;
    empty.hidden = shown > 0;
  };

  form.addEventListener("change", filter);
  form.addEventListener("submit", (event) => event.preventDefault());
  form.querySelector("button").addEventListener("click", () => {
    form.reset();
    filter();
  });
  form.hidden = false;
  filter(); // a reloaded page may have kept its selection
}
