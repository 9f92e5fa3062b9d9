"""Captions in natural wording for the flow transformer: synonyms, counts, any order, words without meaning.

The UNet has captions of its own (`captions.py`), which stay as they were trained. No torch.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from render.builtin.studio import Scene

PRODUCTS: dict[str, tuple[tuple[str, str], ...]] = {
    "vase": (("vase", "vases"), ("flower vase", "flower vases"), ("urn", "urns"), ("amphora", "amphoras")),
    "bottle": (("bottle", "bottles"), ("flask", "flasks"), ("decanter", "decanters"), ("carafe", "carafes")),
    "mug": (("mug", "mugs"), ("cup", "cups"), ("coffee mug", "coffee mugs"), ("tea cup", "tea cups"),
            ("coffee cup", "coffee cups"), ("teacup", "teacups")),
    "bowl": (("bowl", "bowls"), ("dish", "dishes"), ("salad bowl", "salad bowls"), ("basin", "basins")),
    "ball": (("ball", "balls"), ("sphere", "spheres"), ("orb", "orbs"), ("round ball", "round balls")),
    "box": (("box", "boxes"), ("cube", "cubes"), ("carton", "cartons"), ("gift box", "gift boxes"),
            ("crate", "crates"), ("block", "blocks")),
}  # fmt: skip
"""Names of each product, singular and plural; the studio's own name comes first and is drawn most."""
COLORS: dict[str, tuple[str, ...]] = {
    "red": ("red", "crimson", "scarlet", "bright red", "cherry red"),
    "orange": ("orange", "tangerine", "bright orange"),
    "yellow": ("yellow", "golden yellow", "lemon", "bright yellow"),
    "green": ("green", "emerald", "dark green", "forest green"),
    "teal": ("teal", "turquoise", "cyan", "aqua"),
    "blue": ("blue", "navy", "cobalt", "royal blue", "dark blue"),
    "purple": ("purple", "violet", "plum", "indigo"),
    "pink": ("pink", "rose", "light pink", "rosy pink"),
    "white": ("white", "ivory", "snow white", "off-white"),
    "black": ("black", "jet black", "ebony", "pitch black"),
}
MATERIALS: dict[str, tuple[str, ...]] = {
    "ceramic": ("ceramic", "glazed", "glazed ceramic", "porcelain", "stoneware", "pottery", "speckled"),
    "wood": ("wooden", "wood", "carved wooden", "timber"),
    "woven": ("woven", "fabric", "woven fabric", "textile", "cloth", "knitted"),
}
_MADE_OF = {
    "ceramic": ("made of ceramic", "in glazed ceramic", "of porcelain", "made from clay"),
    "wood": ("made of wood", "carved from wood", "of wood", "in wood"),
    "woven": ("made of fabric", "of woven fabric", "made of cloth", "in a woven textile"),
}
_SURFACES = {
    "wood": ("wood", "a wooden table", "a wooden table", "a table made of wood", "a wood table",
             "a wooden desk", "a wooden board", "wooden planks", "a wooden floor", "an oak table",
             "a wooden tabletop",
             "a wooden counter", "a wooden surface", "a rustic table", "a kitchen table", "timber"),
    "marble": ("marble", "a marble table", "a marble surface", "white marble", "a marble counter",
               "a marble countertop", "a marble slab", "a slab of marble", "a marble worktop",
               "a marble top"),
    "concrete": ("concrete", "a concrete floor", "a concrete surface", "grey concrete", "a concrete table",
                 "a concrete slab", "cement", "gray concrete", "a cement floor", "bare concrete"),
}  # fmt: skip
_BACKGROUNDS = {
    "studio": ("studio background", "grey background", "gray background", "light grey background",
               "neutral background", "plain grey background", "grey studio background", "grey backdrop",
               "studio backdrop", "light grey sweep", "grey sweep", "plain grey studio sweep", "studio sweep",
               "seamless grey background", "plain gray backdrop"),
    "white": ("white background", "plain white background", "pure white background", "white backdrop",
              "white sweep", "seamless white background", "clean white background"),
    "black": ("black background", "dark background", "plain black background", "black backdrop",
              "dark backdrop", "black sweep", "pure black background"),
}  # fmt: skip
_ALONE = {
    "studio": ("in a studio", "in a photo studio", "on grey", "in front of a grey wall", "on seamless paper"),
    "white": ("on white", "isolated on white", "on pure white", "in front of a white wall"),
    "black": ("on black", "isolated on black", "in the dark", "in front of a black wall"),
}
_STANDS = ("on", "on", "on", "on", "standing on", "sitting on", "placed on", "resting on", "on top of",
           "lying on", "displayed on", "set on", "atop")  # fmt: skip
_BEFORE = ("on", "on", "against", "in front of", "with", "before", "over")
_NUMBERS = {
    1: ("", "", "", "one", "a single", "1"),
    2: ("two", "two", "two", "2", "a pair of", "a couple of"),
    3: ("three", "three", "three", "3", "a trio of", "a group of three", "a set of three"),
}
_OPENINGS = ("a photo of", "a studio photo of", "product photo of", "a picture of", "studio shot of",
             "catalog photo of", "photograph of", "an image of", "a close-up of", "product shot of", "photo:",
             "professional photograph of", "a still life of", "packshot of", "render of")  # fmt: skip
_ENDINGS = ("soft light", "studio lighting", "high quality", "4k", "highly detailed", "sharp focus",
            "product photography", "photorealistic", "minimalist", "e-commerce", "professional lighting",
            "centered", "full view", "natural light", "soft shadows", "high resolution",
            "clean composition", "award winning", "best quality", "realistic", "catalog", "side lighting",
            "hd")  # fmt: skip
_ADJECTIVES = ("beautiful", "elegant", "modern", "vintage", "small", "large", "big", "simple", "handmade",
               "old", "new", "lovely", "cute", "fine", "little", "smooth", "shiny", "polished", "classic",
               "nice",
               "decorative", "stylish", "tall", "round", "antique", "delicate", "plain", "fancy", "tiny",
               "luxury", "rustic", "matte", "glossy", "empty", "unique", "expensive")  # fmt: skip
_FILLERS = ("for my shop", "by the window", "in the morning", "for sale", "from a museum", "with love",
            "please", "for the kitchen", "by a famous designer", "as seen on tv", "of great value",
            "in autumn",
            "seen from the front", "at home", "ready to ship", "new arrival", "for christmas",
            "in the style of a catalog", "shot on film", "with a soft shadow", "on sale", "in summer",
            "at an angle", "under warm light", "with nothing else")  # fmt: skip
_LETTERS = "etaoinshrdlcumwfgypbvk"
LONG = 40
"""Words of a long caption, at most."""


def wording(scene: Scene, draw: np.random.Generator, long: bool = False, complete: bool = False) -> str:
    """One true caption of the scene, in lower case.

    The color is left out rarely, the material often, and the backdrop in one caption of ten; of a `complete`
    one only the material. A `long` one has more words that mean nothing to the model.
    """
    subject = text = _subject(scene, draw, complete)
    if draw.random() < 0.9 or complete:
        text = _joined(subject, *_backdrop(scene.backdrop, draw), scene.count, draw)
    if draw.random() < 0.4 and text.startswith(subject):
        text = f"{_one(_OPENINGS, draw)} {text}"
    for _ in range(int(draw.integers(3, 8)) if long else int(draw.random() < 0.15)):
        text = f"{text} {_meaningless(draw)}"
    if draw.random() < (0.9 if long else 0.25):
        endings = draw.choice(_ENDINGS, size=int(draw.integers(1, 4)), replace=False)
        text = ", ".join([text, *(str(ending) for ending in endings)])
    return " ".join(text.split()[:LONG]) + ("." if draw.random() < 0.1 else "")


def all_words() -> list[str]:
    """Every word that captions may have, sorted, for the tokenizer. Made-up words are not among them."""
    nested: list[Sequence[str]] = [
        _STANDS, _BEFORE, _OPENINGS, _ENDINGS, _ADJECTIVES, _FILLERS, *COLORS.values(), *MATERIALS.values(),
        *_MADE_OF.values(), *_SURFACES.values(), *_BACKGROUNDS.values(), *_ALONE.values(), *_NUMBERS.values(),
        *(name for names in PRODUCTS.values() for name in names),
        ("a an the of in and there is are it them with that colored coloured color colour background",),
    ]  # fmt: skip
    return sorted({word.strip(":") for texts in nested for text in texts for word in text.split()})


def _one(words: Sequence[str], draw: np.random.Generator) -> str:
    return words[int(draw.integers(len(words)))]


def _often_first(words: Sequence[str], draw: np.random.Generator) -> str:
    return words[0] if draw.random() < 0.55 else _one(words, draw)


def _subject(scene: Scene, draw: np.random.Generator, colored: bool) -> str:
    """`two small red ceramic vases`, `a vase in red, made of wood`, and so on."""
    names = PRODUCTS[scene.product]
    name = names[0] if draw.random() < 0.6 else names[int(draw.integers(len(names)))]
    noun = name[0] if scene.count == 1 else name[1]
    color = _often_first(COLORS[scene.colour], draw) if draw.random() < 0.97 or colored else ""
    made = draw.random()
    material = _often_first(MATERIALS[scene.material], draw) if made < 0.3 else ""
    after = f" {_one(_MADE_OF[scene.material], draw)}" if 0.3 <= made < 0.42 else ""
    adjective = _one(_ADJECTIVES, draw) if draw.random() < 0.15 else ""
    if color and draw.random() < 0.12:
        words = [adjective, material, noun]
        phrases = (" in", ",", " that is" if scene.count == 1 else " that are", " colored")
        after = f"{_one(phrases, draw)} {color}{after}"
    else:
        words = [adjective, color, material, noun]
    phrase = " ".join(word for word in words if word) + after
    return _counted(phrase, scene.count, draw)


def _counted(phrase: str, count: int, draw: np.random.Generator) -> str:
    number = _one(_NUMBERS[count], draw)
    if count > 1 or number:
        return f"{number} {phrase}"
    article = "an" if phrase[0] in "aeiou" else "a"
    return f"{_one((article, article, article, 'the', ''), draw)} {phrase}".strip()


def _backdrop(backdrop: str, draw: np.random.Generator) -> tuple[str, str]:
    """How the subject is placed, and where; the first is empty where the second says both."""
    if backdrop in _SURFACES:
        return _one(_STANDS, draw), _one(_SURFACES[backdrop], draw)
    if draw.random() < 0.25:
        return "", _one(_ALONE[backdrop], draw)
    article = "a " if draw.random() < 0.85 else ""
    return _one(_BEFORE, draw), article + _one(_BACKGROUNDS[backdrop], draw)


def _joined(subject: str, placed: str, place: str, count: int, draw: np.random.Generator) -> str:
    """Subject and backdrop, usually in this order."""
    style, where = draw.random(), f"{placed} {place}".strip()
    if style < 0.06:
        return f"there {'is' if count == 1 else 'are'} {subject} {where}"
    if style < 0.16 and placed not in ("", "with"):
        return f"{where}, {subject}"
    if style < 0.24 and placed:
        return f"{place} with {subject}" + (" on it" if draw.random() < 0.4 else "")
    if style < 0.32:
        return f"{subject}, {place if placed else where}"
    return f"{subject} {where}"


def _meaningless(draw: np.random.Generator) -> str:
    """Words that say nothing about the picture, some of which the tokenizer does not know."""
    if draw.random() < 0.5:
        return _one(_FILLERS, draw)
    return "".join(_LETTERS[int(draw.integers(len(_LETTERS)))] for _ in range(int(draw.integers(3, 9))))
