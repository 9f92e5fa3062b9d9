// Live pages: the server sends the live block again whenever it changes, and it is morphed into the page.
"use strict";

const live = document.querySelector("[data-live]");
const pulse = document.querySelector("[data-pulse]");

function merge(html) {
  // Opened details and the field that has the focus stay unchanged.
  Idiomorph.morph(live, html, {
    morphStyle: "innerHTML",
    ignoreActiveValue: true,
    callbacks: {
      // So does a form that is being filled in.
      beforeNodeMorphed: (old) => !(old.nodeType === 1 && old.matches("details[open] > form")),
      // And a selection.
      beforeAttributeUpdated: (name, node) => name !== "checked" && !(name === "open" && node.tagName === "DETAILS"),
    },
  });
}

function connect() {
  const stream = new EventSource(live.dataset.live);
  const show = (on) => {
    pulse.className = on ? "pulse on" : "pulse off";
    pulse.title = on ? "live" : "no connection to the board; retrying";
  };
  stream.onopen = () => show(true);
  stream.onerror = () => show(false);
  stream.onmessage = (event) => merge(JSON.parse(event.data));
  addEventListener("pagehide", () => stream.close());
}

// The back button restores an old state of the page: reload it.
addEventListener("pageshow", (event) => event.persisted && location.reload());
if (live && window.EventSource) connect();

// The columns of the list of jobs and its order: each browser remembers its own.
const COLUMNS = "chorale.jobs.columns";

function showColumns() {
  for (const box of document.querySelectorAll("[data-column]")) {
    document.body.classList.toggle(`show-${box.dataset.column}`, box.checked);
  }
}

function rememberedColumns() {
  try {
    return JSON.parse(localStorage.getItem(COLUMNS)) || {};
  } catch {
    return {};
  }
}

for (const box of document.querySelectorAll("[data-column]")) {
  const remembered = rememberedColumns()[box.dataset.column];
  if (typeof remembered === "boolean") box.checked = remembered;
  box.addEventListener("change", () => {
    localStorage.setItem(COLUMNS, JSON.stringify({ ...rememberedColumns(), [box.dataset.column]: box.checked }));
    showColumns();
  });
}
showColumns();

const orderBox = document.querySelector("[data-remember]");
if (orderBox) {
  const address = new URL(location.href);
  const remembered = localStorage.getItem(orderBox.dataset.remember);
  const known = [...orderBox.options].some((option) => option.value === remembered);
  if (!address.searchParams.has(orderBox.name) && remembered && known) {
    address.searchParams.set(orderBox.name, remembered);
    location.replace(address);
  }
  orderBox.addEventListener("change", () => localStorage.setItem(orderBox.dataset.remember, orderBox.value));
}

addEventListener("submit", (event) => {
  const question = event.submitter && event.submitter.dataset.confirm;
  if (question && !confirm(question)) event.preventDefault();
});

function countSelected() {
  const shown = document.querySelector("[data-selected]");
  const count = document.querySelectorAll(".pick:checked").length;
  if (shown) shown.textContent = `${count} selected`;
}

addEventListener("change", (event) => {
  if (event.target.matches(".pick")) countSelected();
  if ("autosubmit" in event.target.dataset) event.target.form.requestSubmit();
});

addEventListener("keydown", (event) => {
  const search = document.querySelector("[data-search]");
  const typing = event.target.closest("input, textarea, select");
  if (event.key === "/" && search && !typing) {
    event.preventDefault();
    search.focus();
  }
});
