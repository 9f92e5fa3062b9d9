"""The search for words finds the same on both databases, and what plain Python finds."""

from __future__ import annotations

import unicodedata

import pytest
from alembic import command
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from sqlalchemy import column as sql_column
from sqlalchemy import delete, insert, select, table, text

from infra.database import Database
from jobs.db import prompt_search
from jobs.db.prompt_search import stored_words, words_of
from jobs.db.queries import Filter, count_jobs, list_jobs
from jobs.db.schema import config_for, upgrade
from jobs.db.submission import BatchItem, JobOptions, submit
from jobs.db.tables import entries, events, jobs
from render.spec import Spec

_WORDS = [
    "red",
    "Red",
    "reddish",
    "VASE",
    "vase",
    "vases",
    "blue",
    "3",
    "33",
    "été",
    "ÉTÉ",
    "straße",
    "STRASSE",
    "花",
    "花瓶",
    "青い花瓶",
    "don't",
    "a-b",
    "a_b",
]
_MARKS = " \t,.;:'\"*%_&|!()<>-\\/^~`[]{}@#?=+$\u0301\u200d"
_PROMPTS = st.lists(st.sampled_from(_WORDS), min_size=1, max_size=5).map(" ".join)
_SEARCHES = st.one_of(
    st.lists(st.sampled_from([*_WORDS, "re", "va", "AND", "OR", "NOT", "NEAR"]), max_size=3).map(" ".join),
    st.text(st.sampled_from("rvsz" + _MARKS + "éß花"), max_size=12),
)


def _fill(database: Database, prompts: list[str]) -> None:
    with database.write() as connection:
        for table in (entries, events, jobs):
            connection.execute(delete(table))
        if connection.dialect.name == "sqlite":
            connection.execute(text("delete from job_words"))
    specs = (Spec(prompt=prompt, seed=number, width=128, height=128) for number, prompt in enumerate(prompts))
    items = (BatchItem(row=number, custom_id=str(number), spec=spec) for number, spec in enumerate(specs))
    submit(database, items, "words", JobOptions(owner="anna"))


def _found(database: Database, search: str) -> list[str]:
    with database.read() as connection:
        return sorted(row["prompt"] for row in list_jobs(connection, Filter(search=search), 1000))


def _found_by_hand(prompts: list[str], search: str) -> list[str]:
    """By letters alone: a prompt and a search as words between spaces, and every word looked for."""

    def spaced(text: str) -> str:
        # A letter and the accent after it are one letter.
        whole = unicodedata.normalize("NFC", text)
        apart = "".join(f" {c} " if "\u3040" <= c <= "\u9fff" else c if c.isalnum() else " " for c in whole)
        return " " + " ".join(apart.casefold().split()) + " "

    wanted = spaced(search).split()
    if not search:
        return sorted(prompts)
    return sorted(each for each in prompts if wanted and all(f" {word}" in spaced(each) for word in wanted))


@settings(
    max_examples=25,
    deadline=None,
    database=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
@example(prompts=["vases straße"], searches=["s\u0301", "v\u0301", "s \u0301"])
@given(
    prompts=st.lists(_PROMPTS, min_size=1, max_size=8), searches=st.lists(_SEARCHES, min_size=1, max_size=6)
)
def test_a_search_finds_what_plain_python_finds(
    database: Database, prompts: list[str], searches: list[str]
) -> None:
    _fill(database, prompts)
    # Where many jobs match, SQLite reads them one by one; it must find the same ones.
    for few in (5000, 0):
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(prompt_search, "_FEW", few)
            for search in searches:
                assert _found(database, search) == _found_by_hand(prompts, search)


@settings(
    max_examples=25,
    deadline=None,
    database=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
@given(search=st.text(max_size=30))
def test_any_text_is_harmless_and_finds_itself(database: Database, search: str) -> None:
    prompt = " ".join(words_of(search)) or "a vase"
    _fill(database, [prompt])
    assert _found(database, search) == ([prompt] if not search or words_of(search) else [])


@pytest.mark.parametrize(
    ("search", "number"),
    [
        ("vase red", 1),
        ("VAS re", 1),
        ("ase", 0),
        ("ｖａｓｅ", 1),
        ("花瓶", 1),
        ("瓶", 1),
        ('"', 0),
        ("' or 1=1 --", 0),
        ("% _", 0),
        ("strasse", 1),
        ("x" * 5000, 1),
        ("w1 " * 3000, 0),
        (" ".join(f"n{number}" for number in range(400)), 1),
        ("a\x00b\ud800", 0),
    ],
)
def test_some_searches(database: Database, search: str, number: int) -> None:
    many = " ".join(f"n{number}" for number in range(3000))
    _fill(database, ["a red vase", "青い花瓶", "an x-ray of a Straße", "x" * 9000, many])
    assert len(_found(database, search)) == number


def test_a_job_is_found_by_the_beginning_of_its_id(database: Database) -> None:
    _fill(database, ["a vase", "a bowl"])
    with database.read() as connection:
        (one, _) = connection.execute(select(jobs.c.id)).scalars().all()
        for beginning in (one, one[:4], one[:12].upper()):
            assert [row["id"] for row in list_jobs(connection, Filter(search=beginning), 9)] == [one]
            assert count_jobs(connection, Filter(search=beginning))["queued"] == 1


def test_jobs_of_before_and_of_an_older_version_are_found(database: Database) -> None:
    """The migration gives words to the jobs that are there; agents of the version before know of none."""
    with database.write() as connection:
        command.downgrade(config_for(connection), "0003")
    newer = ("words", "memory", "folder", "dependency", "require_tag")
    older = [column for column in jobs.c if column.name not in newer]
    table_then = table("jobs", *(sql_column(each.name, each.type) for each in older))
    row = {column.name: None for column in older if column.nullable}
    row |= {"model": "m", "owner": "o", "queue": "q", "state": "queued", "reason": ""}
    row |= dict.fromkeys(("fence", "attempts", "losses", "least_ranks", "most_ranks"), 1)
    row |= dict.fromkeys(("created", "changed", "progress", "model_seconds"), 1.0)
    row |= {"spec": {"prompt": "a Vase of 花瓶"}}
    with database.write() as connection:
        connection.execute(insert(table_then).values(row | {"id": "a", "digest": "a"}))
    upgrade(database)
    with database.write() as connection:
        assert connection.execute(select(jobs.c.words)).scalar_one() == stored_words("a Vase of 花瓶")
        connection.execute(insert(table_then).values(row | {"id": "b", "digest": "b"}))
    assert len(_found(database, "vas")) == 2 and len(_found(database, "瓶")) == 1


@given(st.text(st.characters(max_codepoint=127)))
def test_plain_text_is_folded_as_any_other(text: str) -> None:
    assert text.lower() == prompt_search._folded(text)
