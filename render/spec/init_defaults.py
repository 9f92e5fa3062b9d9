"""What follows from an init image for the other values of a spec."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from render.errors import BadInput
from render.spec.choices import COMPOSITE, KEEP_ALPHA, NO_MASK
from render.spec.cutout import cutout_mask, is_cutout
from render.spec.init_image import InitImage
from render.spec.placement import CROP, OUTPAINT
from render.spec.source_image import ALPHA


def with_init_defaults(given: dict[str, Any]) -> dict[str, Any]:
    """The values of a spec with an init image, with what follows from it where nothing else is given.

    Raises `BadInput` for a mask or a transparency that the image does not have.
    """
    is_file = isinstance(given["init"], str)
    init = InitImage.from_any(given["init"])
    found: dict[str, Any] = {"init": init}
    if is_cutout(given.get("mask")):
        if isinstance(given["init"], dict):
            # It names a file of another machine, or of an earlier day.
            raise BadInput("mask", given["mask"], "needs the path of an init image; give --init")
        given = given | {"mask": str(cutout_mask(given["mask"], init))}
    if is_file:
        found["source_type"] = given.get("source_type", COMPOSITE)
        if (
            given.get("mask") is None
            and not given.get("tile_set")
            and InitImage.is_transparent(Path(init.path))
        ):
            found["mask"] = ALPHA
        elif given.get("mask") == ALPHA and not InitImage.is_transparent(Path(init.path)):
            raise BadInput("mask", ALPHA, "is the init image's transparency, and it has none; give a mask")
        elif (
            given.get("alpha") == KEEP_ALPHA
            and given.get("mask") in (None, NO_MASK)
            and not InitImage.is_transparent(Path(init.path))
        ):
            fix = "keeps the init image's transparency, and it has none; give a mask, or leave it out"
            raise BadInput("alpha", KEEP_ALPHA, fix)
    if given.get("placement") is not None and given.get("fit") is None:
        found["fit"] = OUTPAINT
    size: dict[str, int] = init.canvas_size
    if (found | given).get("mask") not in (None, NO_MASK) and not {"width", "height", "fit"} & set(
        given | found
    ):
        # At its own scale, so that what is kept is equal to the byte.
        size, found["fit"] = init.own_size, CROP
    return size | given | found
