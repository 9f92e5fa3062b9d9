"""Golden digests, computed by version 0.1.0: stored specs and published images keep their identity."""

from __future__ import annotations

import hashlib
import json
from typing import Any

import pytest

from render.spec import Spec

# (names and values, digest of the spec, beginning of the digest of its JSON as it is stored)
GOLDEN: list[tuple[dict[str, Any], str, str]] = [
    (
        {"prompt": "a red vase"},
        "da1c0c88e58608aefcd95d9610319beee8dff44299f0263a8ec6ec0e784ec069",
        "b59bfb423cf36cf9",
    ),
    (
        {
            "prompt": "a red vase",
            "negative_prompt": "blurry, naïve — “quotes” 日本 🏺",
            "seed": 9223372036854775807,
        },
        "edc93809005c39a8c52a9cc2fb996f0cfd36cd14d378e4414fdd50a4cb6e70e4",
        "bb7a0afa613f4e40",
    ),
    (
        {"prompt": ' two\nlines\t"quoted" \\ ', "width": 8, "height": 4096, "steps": 1000},
        "c1b6ad0ecb1cb32723dac9935e0f59701de108feb0f4e295345e31b4a80305cd",
        "a4ea3b5ec0368c56",
    ),
    (
        {"prompt": "x", "guidance_scale": 4, "strength": 1, "ilvr": 0, "skip_residual": 1},
        "bc2a1b90c095c799ee77d4760fa6619cdb2f97d26a4a2bec6ac587b5b1f21d4b",
        "3e82259d99873f82",
    ),
    (
        {"prompt": "x", "guidance_scale": 7.5, "strength": 0.01, "ilvr": 0.1, "skip_residual": 1e-07},
        "78957262a5b9a91cbf3a789c7587d5b1c240d2afb350ad7485cfe12a5995e7f6",
        "40155dcd2ae1997b",
    ),
    (
        {"prompt": "x", "sampler": "euler-ancestral", "blend": "shift", "dtype": "bfloat16"},
        "59c5853cb921ba027909e4d01e1660f77c8998ee323e61eb3c91463607c26b23",
        "b8bd35b7af3fbb61",
    ),
    (
        {"prompt": "x", "sampler": "ddim", "wrap": "x", "cross_attention": 1, "window_batch": 3},
        "9d96653e4a4149733e616af3438f40a42c9fa7d2304db01a7a02d90e951ecb83",
        "eacef95816de8dc4",
    ),
    (
        {
            "prompt": "x",
            "sampler": "dpmpp-2m",
            "wrap": "xy",
            "cross_attention": 0.5,
            "cross_attention_form": "learned",
        },
        "53b5817500e5537e07ee746eda9073ab4be5960ab7199a9cba841b48609efad6",
        "685c3cbff53e9da9",
    ),
    (
        {"prompt": "x", "sampler": "lcm", "wrap": "y", "steps": 4, "guidance_scale": 1.0, "tile_size": 64},
        "88be20a423210c5b6097983db12c7815afebd463f02bde70b14d1d7fe3ff47fb",
        "64dc5bf9733978ce",
    ),
    (
        {"prompt": "x", "refiner": "some/refiner", "refiner_start": 0.75, "steps": 30, "model": "some/model"},
        "afd227c995941044bf1f7f90a1eaecd86bb7b0ab11b4b72eee1c56d90e5c10ea",
        "ef46196d5455f30b",
    ),
    (
        {"prompt": "x", "dilated": 0.7, "variation": 2147483647, "seed": 5},
        "806d91cc171309e7bf2cb71fbfc4d01e38f8db9da9839a45d69b483adf224b47",
        "2c443a264512c5ed",
    ),
    (
        {"prompt": "x", "format": "webp", "quality": 1, "tile_size": 2048, "window_batch": 256},
        "34c1e0b73e639bef4852678072446cd190ce01d423069ca9942c3ace4da3f055",
        "751ba96a747c44ea",
    ),
    (
        {"prompt": "x", "format": "jpeg", "quality": 100, "dtype": "float16", "window_batch": None},
        "e0a5551ec520776fda8a9917fb42e07d5e1305b62e0291cc73e4a4a1517b156f",
        "18dd37975baac66a",
    ),
    (
        {
            "prompt": "a table",
            "boxes": [
                "0,0,0.5,1: a red vase",
                {
                    "prompt": "a mug",
                    "x": 0.5,
                    "y": 0,
                    "width": 0.5,
                    "height": 1,
                    "weight": 0.25,
                    "feather": 0,
                },
            ],
        },
        "2a8520c00d371f2728d17ab06f3b05050ba99ec76605b68c1ff0ec806693757c",
        "955330cd913ce473",
    ),
    (
        {
            "prompt": "a table",
            "tile_set": ["one: a,b,,", {"name": "two", "left": "b", "right": "a", "top": 1, "bottom": 1}],
        },
        "46c0cbc21d8a50a7f62398067507cd657d5ebf584083443f74d8244533644cf9",
        "f1b213726438d817",
    ),
    (
        {
            "prompt": "a table",
            "init": {
                "path": "/somewhere/a.png",
                "digest": "0f0f0f0f0f0f0f0f0f0f0f0f0f0f0f0f0f0f0f0f0f0f0f0f0f0f0f0f0f0f0f0f",
                "width": 1000,
                "height": 512,
            },
            "width": 2000,
            "height": 1024,
            "strength": 0.6,
        },
        "1f95c31df38dee6f966dc6d9488275785ca09e9b50be46cc4138e16450e2c5ac",
        "9cb4d62a28599fc5",
    ),
]


@pytest.mark.parametrize(("values", "digest", "stored"), GOLDEN)
def test_digests_and_stored_json_never_change(values: dict[str, Any], digest: str, stored: str) -> None:
    """A change here gives every published image another identity: raise DIGEST_VERSION, and mean it."""
    spec = Spec.from_mapping(values)
    models = "m+r" if spec.refiner else "m"
    assert spec.digest(models) == digest
    assert hashlib.sha256(json.dumps(spec.to_dict()).encode()).hexdigest().startswith(stored)
    again = Spec.from_mapping(json.loads(json.dumps(spec.to_dict())))
    assert again == spec and hash(again) == hash(spec) and again.digest(models) == digest


def test_a_spec_stored_before_a_field_was_added_is_read() -> None:
    values, digest, _ = GOLDEN[0]
    stored = Spec.from_mapping(values).to_dict()
    for name in ("cross_attention_form", "tile_set", "refiner", "refiner_start", "variation"):
        del stored[name]
    assert Spec.from_mapping(stored).digest("m") == digest
