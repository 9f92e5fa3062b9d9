// Review on the contact sheet: keys, verdicts, and a viewer that opens over the sheet.
"use strict";

const dialog = document.querySelector("dialog.reviewer");
const stage = dialog.querySelector(".stage");
const field = (name) => dialog.querySelector(`[name="${name}"]`);
const part = (name) => dialog.querySelector(`[data-review-${name}]`);
const button = (name) => dialog.querySelector(`[data-review="${name}"]`);
const sheet = () => document.querySelector(".sheet");
// Only finished images can be looked at and voted on.
const images = () => [...document.querySelectorAll('.sheet li[data-state="done"]')];
const mayReview = dialog.dataset.mayReview === "yes";

let current = null; // what the viewer shows: a copy of the item's data, which may leave the sheet
let place = 0;
let viewers = [];
let zoomed = false;
let comparing = false;

// Who reviews: the name of the token, else the one that was entered, kept in this browser.
const reviewer = () => dialog.dataset.reviewer || (field("reviewer") && field("reviewer").value.trim()) || "";
if (field("reviewer")) {
  field("reviewer").value = localStorage.getItem("chorale-reviewer") || "";
  field("reviewer").addEventListener("change", () => localStorage.setItem("chorale-reviewer", reviewer()));
}
const ownName = () => reviewer() || "the board";

// Votes wait in order until the board has taken them: a connection that breaks loses none.
const waiting = [];
let sending = false;

async function send() {
  if (sending) return;
  sending = true;
  while (waiting.length) {
    const { item, body } = waiting[0];
    try {
      const answer = await fetch(`/api/v1/batches/${sheet().dataset.batch}/review`, {
        method: "POST",
        headers: { "content-type": "application/json" },
        body: JSON.stringify(body),
      });
      if (answer.status >= 500) throw new Error(`the board answers ${answer.status}`);
      const said = await answer.json();
      waiting.shift();
      if (answer.ok) take(item, said.images[0]);
      say(answer.ok ? (waiting.length ? `${waiting.length} to save` : "Saved") : said.error);
    } catch (error) {
      say(`Not saved yet (${error.message}); trying again`);
      await new Promise((done) => setTimeout(done, 2000));
    }
  }
  sending = false;
}

addEventListener("beforeunload", (event) => waiting.length && event.preventDefault());

function say(text) {
  part("status").textContent = text;
}

// What the board says now of an image, on the sheet and in the viewer.
function take(item, said) {
  const data = { verdict: said.verdict, votes: JSON.stringify(said.votes) };
  const there = document.getElementById(item.id);
  if (there && there.dataset.job === said.job) {
    Object.assign(there.dataset, data);
    there.firstElementChild.className = `done ${said.verdict}`;
    showMark(there, said);
  }
  if (current && current.id === item.id && current.job === said.job) {
    Object.assign(current, data);
    describe();
  }
}

function showMark(item, said) {
  const frame = item.querySelector(".frame");
  frame.querySelectorAll(".mark-of, .star").forEach((old) => old.remove());
  const mark = said.verdict !== "unreviewed" ? said.verdict : said.flaws.length ? "flagged" : "";
  if (mark) frame.append(Object.assign(document.createElement("span"), { className: `mark-of ${mark}`, textContent: mark }));
  if (said.stars) frame.append(Object.assign(document.createElement("span"), { className: "star", textContent: "★" }));
}

const ownVote = (item) => JSON.parse(item.votes || "[]").find((vote) => vote.reviewer === ownName()) || {};

function vote(item, said) {
  if (!mayReview || !item) return;
  const body = { images: [{ custom_id: item.image, job: item.job }], ...said };
  if (reviewer()) body.reviewer = reviewer();
  waiting.push({ item, body });
  say(`${waiting.length} to save`);
  send();
}

const verdicts = {
  keep: (item) => vote(item, { verdict: "keep", reason: reasonFor(item) }),
  reject: (item) => vote(item, { verdict: "reject", reason: reasonFor(item) }),
  clear: (item) => vote(item, { verdict: "" }),
  star: (item) => vote(item, { starred: !ownVote(item).starred }),
};
const reasonFor = () => (dialog.open && field("reason") ? field("reason").value.trim() : "");
const dataOf = (item) => ({ id: item.id, ...item.dataset });

// The viewer over the sheet.
let parts = null;
function loadViewer() {
  const load = (address) =>
    new Promise((done, failed) => {
      document.head.append(Object.assign(document.createElement("script"), { src: address, onload: done, onerror: failed }));
    });
  parts = parts || load(dialog.dataset.openseadragon).then(() => load(dialog.dataset.viewer));
  return parts;
}

function partner() {
  const all = images();
  const same = all.filter((item) => item.dataset.base === current.base && item.dataset.image !== current.image);
  const others = same.length ? same : all.filter((item) => item.dataset.image !== current.image);
  return others.find((item) => all.indexOf(item) > place) || others[0] || null;
}

async function show(number) {
  const all = images();
  if (!all.length) return close();
  place = Math.max(0, Math.min(number, all.length - 1));
  current = dataOf(all[place]);
  if (field("reason")) field("reason").value = ownVote(current).reason || "";
  if (field("note")) field("note").value = ownVote(current).note || "";
  describe();
  if (!dialog.open) dialog.showModal();
  await loadViewer();
  draw();
}

function draw() {
  viewers.forEach((viewer) => viewer.destroy());
  const other = comparing ? partner() : null;
  const shown = other ? [current, dataOf(other)] : [current];
  stage.replaceChildren(
    ...shown.map((item) => {
      const figure = document.createElement("div");
      figure.className = "viewer";
      figure.dataset.image = `/jobs/${item.job}/image/image.dzi`;
      figure.setAttribute("role", "application");
      figure.setAttribute("aria-label", `${item.image}: ${item.prompt}`);
      return figure;
    })
  );
  stage.classList.toggle("two", shown.length > 1);
  zoomed = false;
  viewers = openViewers([...stage.children]);
}

function describe() {
  dialog.querySelector("h2").textContent = current.image;
  part("prompt").textContent = current.prompt;
  part("place").textContent = `${place + 1} of ${images().length} · ${current.size} · ${current.verdict}`;
  const own = ownVote(current);
  for (const name of ["keep", "reject"]) if (button(name)) button(name).setAttribute("aria-pressed", own.verdict === name);
  if (button("star")) button("star").setAttribute("aria-pressed", Boolean(own.starred));
  button("compare").setAttribute("aria-pressed", comparing);
  const flaws = JSON.parse(current.flaws || "[]").map((flaw) => `quality gate: ${flaw.text}`);
  const votes = JSON.parse(current.votes || "[]").map((one) => {
    const words = [one.verdict, one.starred ? "starred" : "", one.reason, one.note].filter(Boolean);
    return `${one.reviewer}: ${words.join(", ")}`;
  });
  part("remarks").replaceChildren(
    ...[...flaws, ...votes].map((text) => Object.assign(document.createElement("li"), { textContent: text }))
  );
}

async function step(by) {
  const all = images();
  // An image that a filter has taken away leaves its place to the next one.
  const there = all.findIndex((item) => item.dataset.image === current.image);
  const next = there === -1 ? (by > 0 ? place : place - 1) : there + by;
  if (next >= all.length) {
    const added = await moreImages();
    if (!dialog.open) return;
    if (added) show(next);
    else say(added === null ? "The next images could not be loaded" : "This is the last image");
    return;
  }
  if (next >= 0) show(next);
}

function close() {
  if (dialog.open) dialog.close();
}

dialog.addEventListener("close", () => {
  viewers.forEach((viewer) => viewer.destroy());
  viewers = [];
  const item = current && document.getElementById(current.id);
  current = null;
  if (item) item.firstElementChild.focus();
});

const viewport = () => viewers[0].viewport;
const zoom = (name) => viewers.length && zoomActions(viewport)[name]();
const actions = {
  close,
  next: () => step(1),
  previous: () => step(-1),
  in: () => zoom("in"),
  out: () => zoom("out"),
  zoom: () => {
    zoomed = !zoomed;
    zoom(zoomed ? "full" : "home");
  },
  compare: () => {
    comparing = !comparing;
    describe();
    draw();
  },
  keys: showKeys,
  keep: () => decide("keep"),
  reject: () => decide("reject"),
  star: () => verdicts.star(current),
};

function decide(name) {
  verdicts[name](current);
  step(1);
}

dialog.addEventListener("click", (event) => {
  const name = event.target.closest("[data-review]")?.dataset.review;
  if (name) actions[name]();
});
if (field("note")) field("note").addEventListener("change", (event) => vote(current, { note: event.target.value }));

document.addEventListener("click", (event) => {
  const item = event.target.closest('.sheet li[data-state="done"]');
  if (!item || event.ctrlKey || event.metaKey || event.shiftKey || event.button) return;
  event.preventDefault();
  show(images().indexOf(item));
});

const inViewer = {
  ArrowRight: "next", ArrowLeft: "previous", k: "keep", r: "reject", s: "star", z: "zoom", c: "compare", "+": "in", "-": "out", "?": "keys",
};

// Before the viewer's own keys: they pan with the arrows.
document.addEventListener("keydown", onKey, true);

function onKey(event) {
  if (keysOverlay.open || event.ctrlKey || event.metaKey || event.altKey) return;
  const typing = event.target.closest("input, textarea, select");
  if (typing) {
    if (event.key === "Enter" && dialog.open) typing.blur();
    return;
  }
  if (event.key.length === 1 && !letterKeysAreOn()) return;
  const handled = dialog.open ? onViewerKey(event.key) : onSheetKey(event);
  if (handled) {
    event.preventDefault();
    event.stopPropagation();
  }
}

function onViewerKey(key) {
  if (key === "n" && field("note")) return field("note").focus(), true;
  if (key === "u") return verdicts.clear(current), true;
  if (!(key in inViewer)) return false;
  if (["k", "r", "s"].includes(key) && !mayReview) return false;
  actions[inViewer[key]]();
  return true;
}

function onSheetKey(event) {
  if (goesOn()) return false;
  const all = images();
  const item = event.target.closest(".sheet li");
  if (event.key === "ArrowRight" || event.key === "ArrowLeft") {
    const at = all.indexOf(item) + (event.key === "ArrowRight" ? 1 : -1);
    const next = item ? all[at] : all[0];
    if (next) next.firstElementChild.focus();
    return Boolean(next);
  }
  const name = { k: "keep", r: "reject", s: "star", u: "clear" }[event.key];
  if (!name || !mayReview || !all.includes(item)) return false;
  verdicts[name](dataOf(item));
  const next = all[all.indexOf(item) + 1];
  if (next && name !== "star" && name !== "clear") next.firstElementChild.focus();
  return true;
}

// The live block has changed: what others say of the image in the viewer.
new MutationObserver(() => {
  if (!current) return;
  const item = document.getElementById(current.id);
  if (!item || item.dataset.job !== current.job) return;
  if (item.dataset.votes !== current.votes || item.dataset.verdict !== current.verdict) {
    Object.assign(current, { votes: item.dataset.votes, verdict: item.dataset.verdict });
    describe();
  }
}).observe(document.querySelector("main"), { subtree: true, attributes: true, attributeFilter: ["data-votes"] });

if (location.hash === "#review") {
  history.replaceState(null, "", location.pathname + location.search);
  show(0);
}
