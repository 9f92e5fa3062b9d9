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

// The keys of the page, in a dialog that each page has. Who uses speech input can switch single letters off.
const keysOverlay = document.querySelector("dialog.keys");
const LETTER_KEYS = "chorale.letter-keys";
const letterKeysAreOn = () => localStorage.getItem(LETTER_KEYS) !== "off";

function showKeys() {
  if (!keysOverlay.open) keysOverlay.showModal();
}

const letterKeysBox = document.querySelector("[data-letter-keys]");
letterKeysBox.checked = letterKeysAreOn();
letterKeysBox.addEventListener("change", () => localStorage.setItem(LETTER_KEYS, letterKeysBox.checked ? "on" : "off"));

addEventListener("click", (event) => event.target.closest("[data-open-keys]") && showKeys());

const PLACES = { q: "/", j: "/jobs", b: "/batches", c: "/compare", n: "/nodes", s: "/submit" };
const SEQUENCE_MS = 1500;
let goSince = -Infinity;

// Whether a tab leads there: a viewer has none to the form, and nobody has any before the log-in.
const tabTo = (place) => place && document.querySelector(`nav[aria-label="Main"] a[href="${place}"]`);

// Whether a G has been pressed, and a place is to come.
const goesOn = () => performance.now() - goSince < SEQUENCE_MS;

function goTo(key) {
  const tab = goesOn() ? tabTo(PLACES[key]) : null;
  goSince = key === "g" && !tab ? performance.now() : -Infinity;
  if (tab) location.assign(tab.href);
  return Boolean(tab) || key === "g";
}

function nextRow(event, by) {
  const rows = [...document.querySelectorAll(".list a.row")];
  const at = rows.indexOf(event.target.closest("li")?.querySelector("a.row"));
  const next = at === -1 ? rows[by > 0 ? 0 : rows.length - 1] : rows[at + by];
  if (next) next.focus();
  return Boolean(next);
}

function select(event) {
  const box = event.target.closest(".list li")?.querySelector(".pick");
  if (box) box.click();
  return Boolean(box);
}

function onLetter(event) {
  const search = document.querySelector("[data-search]");
  if (event.key === "?") return showKeys(), true;
  if (event.key === "/" && search) return search.focus(), true;
  if (goTo(event.key)) return true;
  if (event.key === "j") return nextRow(event, 1);
  if (event.key === "k") return nextRow(event, -1);
  return event.key === "x" && select(event);
}

addEventListener("keydown", (event) => {
  const typing = event.target.closest("input:not(.pick), textarea, select");
  if (typing || event.ctrlKey || event.metaKey || event.altKey || document.querySelector("dialog[open]")) return;
  if (letterKeysAreOn() && onLetter(event)) event.preventDefault();
});
