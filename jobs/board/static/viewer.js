// Deep zoom of one image, or of two that pan and zoom together.
"use strict";

function openViewers(elements) {
  const viewers = elements.map((element) =>
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
  let leader = null;
  for (const viewer of viewers) {
    viewer.addHandler("viewport-change", () => {
      showScale(viewers[0]);
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
    viewer.addHandler("open", () => showScale(viewers[0]));
  }
  // For tests and for the console.
  window.chorale = { viewers };
  return viewers;
}

function showScale(viewer) {
  const item = viewer.world.getItemAt(0);
  if (!item) return;
  const share = item.viewportToImageZoom(viewer.viewport.getZoom(true));
  document.querySelector("[data-scale]").textContent = `${Math.round(share * 100)} %`;
}

function zoomActions(viewport) {
  return {
    in: () => viewport().zoomBy(1.6).applyConstraints(),
    out: () => viewport().zoomBy(1 / 1.6).applyConstraints(),
    home: () => viewport().goHome(),
    full: () => viewport().zoomTo(viewport().imageToViewportZoom(1)).applyConstraints(),
  };
}

const onPage = [...document.querySelectorAll(".viewer")];
if (onPage.length) {
  const viewers = openViewers(onPage);
  const actions = zoomActions(() => viewers[0].viewport);
  for (const button of document.querySelectorAll("[data-action]")) {
    button.addEventListener("click", () => actions[button.dataset.action]());
  }
}
