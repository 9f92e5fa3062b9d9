"""The search for jobs by words of their prompts, the same on both databases.

A search is a list of words; it finds the prompts in which each of them begins some word, in any order. What a
word is, is said here and nowhere else: databases disagree about it. They keep and compare finished words
only, SQLite in the FTS5 table `job_words`, PostgreSQL in a GIN index (both of migration 0004).
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterable
from typing import Any

from sqlalchemy import (
    ColumnElement,
    Connection,
    Select,
    String,
    and_,
    cast,
    false,
    func,
    literal,
    literal_column,
    or_,
    select,
    text,
)
from sqlalchemy.dialects.postgresql import TSQUERY, TSVECTOR

from jobs.db.tables import jobs

# Letters and digits of scripts that put no spaces between words: each is a word of its own.
_UNSPACED = (
    "\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u3040-\u30ff\u3400-\u9fff\uf900-\ufaff\U00020000-\U0003ffff"
)
_WORD = re.compile(rf"(?=[^\W_])[{_UNSPACED}]|[^\W_{_UNSPACED}]+")
_ID = re.compile("[0-9a-f]{4,32}")
"""Fewer of its digits say too little: a word of a prompt may begin like this as well."""
_LETTERS, _WORDS, _ASKED = 64, 1000, 100
"""A longer word is cut; further words of a prompt, or of a search, do not count: databases have limits."""
_FEW = 5000
"""Up to so many jobs are found by the index; where more match, the newest are soon met one by one."""
_VECTOR = literal_column(
    "coalesce(array_to_tsvector(string_to_array(jobs.words, ' ')),"
    " to_tsvector('simple', jobs.spec ->> 'prompt'))",
    TSVECTOR,
)
"""As in the index, to the letter: else PostgreSQL would not use it."""
_JOB: ColumnElement[str] = literal_column("job", String)


def words_of(prompt: str) -> list[str]:
    """The different words of a text: runs of letters and digits, without regard to case and width."""
    plain = unicodedata.normalize("NFKC", unicodedata.normalize("NFKC", prompt).casefold())
    return list(dict.fromkeys(word[:_LETTERS] for word in _WORD.findall(plain)))[:_WORDS]


def kept_words(prompt: str) -> str:
    """A prompt's words as a job's row keeps them."""
    return " ".join(words_of(prompt))


def keep_words(connection: Connection, rows: Iterable[dict[str, Any]]) -> None:
    """Let new jobs be found, given their rows' `id` and `words`; in the transaction that inserts them."""
    if connection.dialect.name == "sqlite":
        kept = [{"id": row["id"], "words": row["words"]} for row in rows]
        connection.execute(text("insert into job_words (words, job) values (:words, :id)"), kept)


def matching(connection: Connection, search: str) -> ColumnElement[bool]:
    """The jobs whose prompts a search finds; any character is harmless, and no word finds nothing.

    Four digits or more of an id's beginning find the job as well.
    """
    words = words_of(search)[:_ASKED]
    if not words:
        return false()
    in_postgres = connection.dialect.name == "postgresql"
    by_index = select(jobs.c.id).where(_fits(words)) if in_postgres else _found_by_sqlite(words)
    by_id = _begins(words[0]) if _ID.fullmatch(search.strip().lower()) else false()
    some = by_index.limit(_FEW + 1).subquery()
    if connection.execute(select(func.count()).select_from(some)).scalar_one() <= _FEW:
        # A union is read to its end, and by the index. A mere condition would tempt PostgreSQL to look at all
        # jobs from the newest on for a page of matches, which there are not.
        return jobs.c.id.in_(by_index.union(select(jobs.c.id).where(by_id)))
    return or_(_fits(words) if in_postgres else _holds(words), by_id)


def _begins(beginning: str) -> ColumnElement[bool]:
    # Not LIKE, which would read every id.
    return and_(jobs.c.id >= beginning, jobs.c.id < beginning + "g")


def _fits(words: list[str]) -> ColumnElement[bool]:
    query = " & ".join(f"'{word}':*" for word in words)
    return _VECTOR.op("@@")(cast(literal(query), TSQUERY))


def _found_by_sqlite(words: list[str]) -> Select[Any]:
    matches = text("job_words match :query").bindparams(query=" ".join(f'"{word}"*' for word in words))
    return select(_JOB).select_from(text("job_words")).where(matches)


def _holds(words: list[str]) -> ColumnElement[bool]:
    padded = literal(" ") + jobs.c.words
    return and_(*(padded.contains(f" {word}") for word in words))
