"""Search for jobs by the words of their prompts, with equal results on both databases.

A search is a list of words. It matches the prompts in which each of them is a prefix of some word, in any
order. Words are split here only, because databases split differently. The databases store and compare split
words: SQLite in the FTS5 table `job_words`, PostgreSQL in a GIN index (both from migration 0004).
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

# Letters and digits of scripts without spaces between words: each is a word of its own.
_UNSPACED = (
    "\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u3040-\u30ff\u3400-\u9fff\uf900-\ufaff\U00020000-\U0003ffff"
)
_WORD = re.compile(rf"(?=[^\W_])[{_UNSPACED}]|[^\W_{_UNSPACED}]+")
_ID = re.compile("[0-9a-f]{4,32}")
"""At least four digits: words of prompts may begin like an id too."""
_MAX_LETTERS, _MAX_WORDS, _MAX_SEARCHED = 64, 1000, 100
"""Limits for the databases: longer words are cut; further words of a prompt or a search are ignored."""
_FEW = 5000
"""Up to so many matches are read from the index; with more, scanning from the newest job is faster."""
_VECTOR = literal_column(
    "coalesce(array_to_tsvector(string_to_array(jobs.words, ' ')),"
    " to_tsvector('simple', jobs.spec ->> 'prompt'))",
    TSVECTOR,
)
"""Exactly the expression of the index; otherwise PostgreSQL would not use it."""
_JOB: ColumnElement[str] = literal_column("job", String)


def words_of(prompt: str) -> list[str]:
    """The distinct words of a text: runs of letters and digits, ignoring case and width."""
    plain = prompt.lower() if prompt.isascii() else _folded(prompt)
    return list(dict.fromkeys(word[:_MAX_LETTERS] for word in _WORD.findall(plain)))[:_MAX_WORDS]


def _folded(text: str) -> str:
    return unicodedata.normalize("NFKC", unicodedata.normalize("NFKC", text).casefold())


def stored_words(prompt: str) -> str:
    """A prompt's words as the column `jobs.words` stores them."""
    return " ".join(words_of(prompt))


def index_words(connection: Connection, rows: Iterable[dict[str, Any]]) -> None:
    """Add new jobs, given their `id` and `words`, to the index; in the transaction that inserts them."""
    if connection.dialect.name == "sqlite":
        entries = [{"id": row["id"], "words": row["words"]} for row in rows]
        connection.execute(text("insert into job_words (words, job) values (:words, :id)"), entries)


def forget_words(connection: Connection, ids: Iterable[str]) -> None:
    """Take jobs out of the index; in the transaction that deletes them."""
    if connection.dialect.name == "sqlite":
        connection.execute(text("delete from job_words where job = :id"), [{"id": id} for id in ids])


def matching(connection: Connection, search: str) -> ColumnElement[bool]:
    """Condition on `jobs`: the prompt matches a search. Any character is safe; a search without words
    matches nothing. The first four or more digits of a job's id match as well."""
    words = words_of(search)[:_MAX_SEARCHED]
    if not words:
        return false()
    in_postgres = connection.dialect.name == "postgresql"
    by_index = select(jobs.c.id).where(_matches_vector(words)) if in_postgres else _matches_fts(words)
    by_id = _id_begins(words[0]) if _ID.fullmatch(search.strip().lower()) else false()
    some = by_index.limit(_FEW + 1).subquery()
    if connection.execute(select(func.count()).select_from(some)).scalar_one() <= _FEW:
        # A union is read completely and by the index. With a plain condition PostgreSQL may scan all jobs
        # from the newest on for a page of matches that does not exist.
        return jobs.c.id.in_(by_index.union(select(jobs.c.id).where(by_id)))
    return or_(_matches_vector(words) if in_postgres else _contains_words(words), by_id)


def _id_begins(beginning: str) -> ColumnElement[bool]:
    # LIKE would read every id.
    return and_(jobs.c.id >= beginning, jobs.c.id < beginning + "g")


def _matches_vector(words: list[str]) -> ColumnElement[bool]:
    query = " & ".join(f"'{word}':*" for word in words)
    return _VECTOR.op("@@")(cast(literal(query), TSQUERY))


def _matches_fts(words: list[str]) -> Select[Any]:
    matches = text("job_words match :query").bindparams(query=" ".join(f'"{word}"*' for word in words))
    return select(_JOB).select_from(text("job_words")).where(matches)


def _contains_words(words: list[str]) -> ColumnElement[bool]:
    padded = literal(" ") + jobs.c.words
    return and_(*(padded.contains(f" {word}") for word in words))
