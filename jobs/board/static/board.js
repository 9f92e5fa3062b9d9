// Keeps a page live: its server sends a part of it again whenever that has changed, and it is merged in.
"use strict";

const live = document.querySelector("[data-live]");
const pulse = document.querySelector("[data-pulse]");

function merge(html) {
  // What somebody has opened, or is typing into, stays as it is.
  Idiomorph.morph(live, html, {
    morphStyle: "innerHTML",
    ignoreActiveValue: true,
    callbacks: {
      beforeAttributeUpdated: (name, node) => !(name === "open" && node.tagName === "DETAILS"),
    },
  });
}

function listen() {
  const stream = new EventSource(live.dataset.live);
  const show = (on) => {
    pulse.className = on ? "pulse on" : "pulse off";
    pulse.title = on ? "live" : "the board does not answer; trying again";
  };
  stream.onopen = () => show(true);
  stream.onerror = () => show(false);
  stream.onmessage = (event) => merge(JSON.parse(event.data));
  addEventListener("pagehide", () => stream.close());
}

// A page that was left by its back button comes back as it was: start anew.
addEventListener("pageshow", (event) => event.persisted && location.reload());
if (live && window.EventSource) listen();

addEventListener("submit", (event) => {
  const question = event.submitter && event.submitter.dataset.ask;
  if (question && !confirm(question)) event.preventDefault();
});

addEventListener("change", (event) => {
  if ("now" in event.target.dataset) event.target.form.requestSubmit();
});

addEventListener("keydown", (event) => {
  const search = document.querySelector("[data-search]");
  const typing = event.target.closest("input, textarea, select");
  if (event.key === "/" && search && !typing) {
    event.preventDefault();
    search.focus();
  }
});
