"""Specs from anywhere, and spec files: each is planned and digested, or refused in one sentence."""

from __future__ import annotations

import json
from pathlib import Path
from random import Random
from typing import Any

import pytest
import yaml

from render.errors import BadInput
from render.models.model_paths import find_model_paths, model_info
from render.models.number_format import resolve_dtype
from render.plan.plan import make_plan
from render.spec import Spec, read_spec_file
from tests.fuzz import values
from tests.fuzz.campaign import Result, run

PATHS = find_model_paths("builtin", None)
INFO = model_info(PATHS)
_PIECES = (
    "&a ",
    "*a ",
    "!!int ",
    "!!timestamp ",
    "? ",
    ": ",
    "- ",
    "[",
    "]",
    "{",
    "}",
    "<<: ",
    "2026-13-01",
    "\t",
    "'",
    '"',
)


def judge(given: Any) -> str:
    """Planned, or refused in one sentence."""
    try:
        spec = resolve_dtype(Spec.from_mapping(given), PATHS, None)
        if spec.refiner is None:
            digest = spec.digest(INFO.digest)
            json.loads(spec.canonical_json(INFO.digest))
            assert Spec.from_mapping(json.loads(json.dumps(spec.to_dict()))).digest(INFO.digest) == digest
        plan = make_plan(spec, INFO, 1)
    except BadInput as exc:
        return refused(exc)
    assert plan.work > 0 and plan.useful_ranks > 0
    return "planned"


def refused(error: BadInput) -> str:
    """The outcome, if the error is a sentence that a terminal can show."""
    sentence = str(error)
    sentence.encode()
    assert len(sentence) < 1500 and "Traceback" not in sentence, sentence[:1500]
    return "refused"


def spec_text(random: Random) -> tuple[str, bytes]:
    """(ending, bytes) of a spec file, often damaged."""
    ending = random.choice(("json", "yaml", "toml"))
    found = values.as_json(values.spec_values(random))
    try:
        text = json.dumps(found) if ending == "json" else yaml.safe_dump(found, allow_unicode=True)
    except (ValueError, RecursionError, yaml.YAMLError):
        text = "prompt: a vase"
    if ending == "toml":
        text = "\n".join(f"{name} = {json.dumps(values.text(random)[:50])}" for name in values.FIELDS[:4])
    for _ in range(random.choice((0, 0, 1, 3))):
        at = random.randrange(len(text) + 1)
        text = text[:at] + random.choice(_PIECES) + text[at + random.randrange(3) :]
    data = bytearray(text.encode(errors="surrogatepass"))
    if data and random.random() < 0.2:
        data[random.randrange(len(data))] = random.randrange(256)
    return ending, bytes(data)


def specs(cases: int) -> Result:
    return run("specs", cases, values.spec_values, judge)


def spec_files(cases: int, folder: Path) -> Result:
    def judge_file(case: tuple[str, bytes]) -> str:
        file = folder / f"spec.{case[0]}"
        file.write_bytes(case[1])
        try:
            given = read_spec_file(file)
        except BadInput as exc:
            return refused(exc)
        return judge(given)

    return run("spec files", cases, spec_text, judge_file)


def test_short(tmp_path: Path) -> None:
    specs(500).check()
    spec_files(200, tmp_path).check()


@pytest.mark.slow
def test_long(tmp_path: Path) -> None:
    specs(10_000).check()
    spec_files(2_000, tmp_path).check()
