// The contact sheet goes on as it is scrolled: the next page is added below. The first page is live by itself;
// those that were added are read again while they are in view.
"use strict";

const rest = document.querySelector("[data-rest]");
const READ_AGAIN_MS = 5000;
let loading = null;

const lastPager = () => rest.querySelector(".pager") || document.querySelector("[data-live] .pager");
const nextPage = () => lastPager() && lastPager().querySelector('a[rel="next"]');

async function readPage(address) {
  const answer = await fetch(address, { headers: { accept: "text/html" } });
  if (!answer.ok) throw new Error(`the board answers ${answer.status}`);
  const page = new DOMParser().parseFromString(await answer.text(), "text/html");
  return { sheet: page.querySelector(".sheet"), pager: page.querySelector(".pager") };
}

async function addPage(address) {
  const { sheet, pager } = await readPage(address);
  if (!sheet) return false;
  const section = document.createElement("section");
  section.dataset.page = address;
  section.setAttribute("aria-label", "more images");
  section.append(document.adoptNode(sheet));
  rest.querySelectorAll(".pager").forEach((old) => old.remove());
  rest.append(section, document.adoptNode(pager));
  document.body.classList.add("scrolled");
  watchPager();
  inView.observe(section);
  return true;
}

// Adds the next page; false if there is none, null if it could not be loaded. What is asked for twice at once is read once.
function moreImages() {
  const link = nextPage();
  if (!link) return Promise.resolve(false);
  loading =
    loading ||
    addPage(link.getAttribute("href"))
      .catch(() => null)
      .finally(() => (loading = null));
  return loading;
}

const nearEnd = new IntersectionObserver((seen) => seen.some((each) => each.isIntersecting) && moreImages(), {
  rootMargin: "1200px",
});

function watchPager() {
  nearEnd.disconnect();
  if (nextPage()) nearEnd.observe(lastPager());
}

const visible = new Set();
const inView = new IntersectionObserver((seen) =>
  seen.forEach((each) => (each.isIntersecting ? visible.add(each.target) : visible.delete(each.target)))
);

async function readAgain() {
  for (const section of document.hidden ? [] : visible) {
    try {
      const { sheet } = await readPage(section.dataset.page);
      if (sheet) Idiomorph.morph(section.querySelector(".sheet"), sheet, { morphStyle: "outerHTML", ignoreActiveValue: true });
    } catch {
      // The next round tries again.
    }
  }
  setTimeout(readAgain, READ_AGAIN_MS);
}

watchPager();
setTimeout(readAgain, READ_AGAIN_MS);
