// Sheets open and close; filters choose cards. Nothing here makes HTML of a text.
"use strict";

for (const button of document.querySelectorAll("[data-opens]")) {
  const dialog = document.getElementById(button.dataset.opens);
  button.addEventListener("click", () => {
    dialog.showModal();
    document.documentElement.classList.add("open");
  });
  dialog.addEventListener("close", () => {
    document.documentElement.classList.remove("open");
    button.focus();
  });
  dialog.querySelector("[data-closes]").addEventListener("click", () => dialog.close());
  dialog.addEventListener("click", (event) => {
    if (event.target === dialog) dialog.close(); // beside it
  });
}

const form = document.getElementById("filters");
if (form) {
  const cards = [...document.querySelectorAll("#test-image-cards > .card")];
  const count = document.getElementById("count");
  const nothing = document.getElementById("nothing");

  const choose = () => {
    const wanted = { true: form.elements.true.value, predicted: form.elements.predicted.value };
    let shown = 0;
    for (const card of cards) {
      const fits = Object.entries(wanted).every(([kind, value]) => !value || card.dataset[kind] === value);
      card.hidden = !fits;
      shown += fits;
    }
    count.textContent = `${shown} of ${cards.length} images`;
    nothing.hidden = shown > 0;
  };

  form.addEventListener("change", choose);
  form.addEventListener("submit", (event) => event.preventDefault());
  form.querySelector("button").addEventListener("click", () => {
    form.reset();
    choose();
  });
  form.hidden = false;
  choose(); // a reloaded page may have kept its choice
}
