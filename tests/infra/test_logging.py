"""Log records as text and as JSON lines, with the fields of the farm."""

import io
import json
import logging
import os
import subprocess
import sys
from collections.abc import Iterator

import pytest

from infra.errors import BadSetting
from infra.logging import FORMAT_VARIABLE, LEVEL_VARIABLE, configure_logging


@pytest.fixture(autouse=True)
def _restored(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    root = logging.getLogger()
    handlers, level = list(root.handlers), root.level
    for name in (FORMAT_VARIABLE, LEVEL_VARIABLE):
        monkeypatch.setenv(name, "")
    yield
    root.handlers[:] = handlers
    root.setLevel(level)


def test_json_lines_carry_the_fields_and_the_traceback() -> None:
    stream = io.StringIO()
    configure_logging("json", stream=stream)
    logger = logging.getLogger("jobs.node.agent")
    logger.warning("node is draining", extra={"node": "n1", "job": "3fa9"})
    try:
        raise ValueError("no")
    except ValueError:
        logger.exception("a round failed")
    first, second = (json.loads(line) for line in stream.getvalue().splitlines())
    assert first | {"time": ""} == {
        "time": "",
        "level": "WARNING",
        "logger": "jobs.node.agent",
        "message": "node is draining",
        "node": "n1",
        "job": "3fa9",
    }
    assert "ValueError: no" in second["exception"]


def test_text_names_the_fields() -> None:
    stream = io.StringIO()
    configure_logging("text", stream=stream)
    logging.getLogger("x").error("it failed", extra={"rank": 0})
    assert stream.getvalue() == "chorale: error: it failed (rank=0)\n"


def test_verbosity_chooses_the_level() -> None:
    for verbosity, shown in ((0, 1), (1, 2), (2, 3)):
        stream = io.StringIO()
        configure_logging("text", verbosity, stream)
        logger = logging.getLogger("x")
        logger.warning("one")
        logger.info("two")
        logger.debug("three")
        assert len(stream.getvalue().splitlines()) == shown
        os.environ[LEVEL_VARIABLE] = ""


def test_child_processes_inherit_the_choice() -> None:
    configure_logging("json", 1, io.StringIO())
    program = (
        "import logging, infra.logging as l; l.configure_logging(); logging.getLogger('x').info('hello')"
    )
    answer = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert json.loads(answer.stderr)["message"] == "hello"


def test_unknown_choices_are_refused() -> None:
    with pytest.raises(BadSetting, match="use text or json"):
        configure_logging("xml")
    os.environ[LEVEL_VARIABLE] = "LOUD"
    with pytest.raises(BadSetting, match="LOUD"):
        configure_logging()
