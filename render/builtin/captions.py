"""Captions for scenes, in varied wording. No torch."""

from __future__ import annotations

import numpy as np

from render.builtin.studio import Scene

_OPENINGS = (
    "a", "a", "a", "a photo of a", "a studio photo of a", "product photo of a", "a picture of a",
    "studio shot of a", "catalog photo of a", "photograph of a",
)  # fmt: skip
_MATERIALS = {
    "ceramic": ("ceramic", "glazed", "glazed ceramic"),
    "wood": ("wooden", "wood"),
    "woven": ("woven", "fabric", "woven fabric"),
}
_BACKDROPS = {
    "studio": ("on a studio background", "on a grey background", "in a studio", "on a light grey sweep"),
    "wood": ("on a wooden table", "on a wooden table", "on a table made of wood", "on a wood table"),
    "marble": ("on marble", "on a marble table", "on a marble surface", "on white marble"),
    "concrete": ("on concrete", "on a concrete floor", "on a concrete surface", "on grey concrete"),
}


def caption(scene: Scene, draw: np.random.Generator) -> str:
    """One true sentence about the scene; the material is left out half of the time, the backdrop rarely."""
    material = str(draw.choice(_MATERIALS[scene.material])) + " " if draw.random() < 0.5 else ""
    subject = f"{scene.colour} {material}{scene.product}"
    opening = str(draw.choice(_OPENINGS))
    if opening.endswith(" a") or opening == "a":
        opening = opening[:-1] + ("an" if subject[0] in "aeiou" else "a")
    backdrop = " " + str(draw.choice(_BACKDROPS[scene.backdrop])) if draw.random() < 0.95 else ""
    return f"{opening} {subject}{backdrop}"


def all_captions() -> list[str]:
    """A sample of captions for every combination of attributes: the tokenizer's corpus."""
    draw = np.random.default_rng(0)
    from render.builtin.studio import BACKDROPS, COLOURS, MATERIALS, PRODUCTS

    return [
        caption(Scene(product=p, colour=c, material=m, backdrop=b, seed=0), draw)
        for p in PRODUCTS
        for c in COLOURS
        for m in MATERIALS
        for b in BACKDROPS
        for _ in range(3)
    ]
