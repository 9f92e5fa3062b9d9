// Deep zoom of one image, or of two that pan and zoom together.
"use strict";

const viewers = [...document.querySelectorAll(".viewer")].map((element) =>
  OpenSeadragon({
    element,
    tileSources: element.dataset.image,
    showNavigationControl: false,
    showNavigator: false,
    drawer: "canvas",
    animationTime: 0.6,
    maxZoomPixelRatio: 8,
    visibilityRatio: 0.4,
    gestureSettingsMouse: { clickToZoom: false, dblClickToZoom: true },
    placeholderFillStyle: "#1a1a1a",
  })
);
const scale = document.querySelector("[data-scale]");
// For tests and for the console.
window.chorale = { viewers };

function showScale() {
  const item = viewers[0].world.getItemAt(0);
  if (!item) return;
  const share = item.viewportToImageZoom(viewers[0].viewport.getZoom(true));
  scale.textContent = `${Math.round(share * 100)} %`;
}

let leader = null;
for (const viewer of viewers) {
  viewer.addHandler("viewport-change", () => {
    showScale();
    // The viewer that moves leads; updates of the others must not feed back to it.
    if (leader !== null) return;
    leader = viewer;
    for (const other of viewers) {
      if (other === viewer || !other.world.getItemAt(0)) continue;
      other.viewport.zoomTo(viewer.viewport.getZoom(), null, true);
      other.viewport.panTo(viewer.viewport.getCenter(), true);
    }
    leader = null;
  });
  viewer.addHandler("open", showScale);
}

const first = () => viewers[0].viewport;
const actions = {
  in: () => first().zoomBy(1.6).applyConstraints(),
  out: () => first().zoomBy(1 / 1.6).applyConstraints(),
  home: () => first().goHome(),
  full: () => first().zoomTo(first().imageToViewportZoom(1)).applyConstraints(),
};

for (const button of document.querySelectorAll("[data-action]")) {
  button.addEventListener("click", () => actions[button.dataset.action]());
}
