"""Specs from anywhere: names and values, and spec files. Each is planned and digested or refused in one sentence."""

from __future__ import annotations

import json
from typing import Any

from render.errors import BadInput
from render.models.model_paths import find_model_paths, model_info
from render.plan.plan import make_plan
from render.spec import Spec
from tests.fuzz import values
from tests.fuzz.campaign import run

INFO = model_info(find_model_paths("builtin", None))


def judge(given: Any) -> str:
    """Planned, or refused in one sentence."""
    try:
        spec = Spec.from_mapping(given)
        if spec.refiner is None:
            json.loads(spec.canonical_json(INFO.digest))
            assert Spec.from_mapping(json.loads(json.dumps(spec.to_dict()))).digest(
                INFO.digest
            ) == spec.digest(INFO.digest)
        plan = make_plan(spec, INFO, 1)
        assert plan.work > 0 and plan.useful_ranks > 0
    except BadInput as exc:
        assert is_sentence(str(exc)), str(exc)
        return "refused"
    return "planned"


def is_sentence(found: str) -> bool:
    """One line that a terminal can show."""
    found.encode()
    return len(found) < 1500 and "Traceback" not in found


def test_short() -> None:
    run("specs", 600, values.spec_values, judge).check()
