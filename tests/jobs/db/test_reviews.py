"""What reviewers say of images: nobody's vote is lost, and what it comes to depends on all of them."""

from concurrent.futures import ThreadPoolExecutor

import pytest
from alembic import command
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from sqlalchemy import Connection, delete, select, update

from infra.database import Database
from jobs.db.reviews import SETS, Named, Review, record_review, review_counts, review_rows
from jobs.db.schema import config_for, upgrade
from jobs.db.submission import BatchItem, JobOptions, submit
from jobs.db.tables import entries, jobs, reviews
from jobs.errors import LostRace
from render.errors import BadInput
from render.spec import Spec

IDS = ("A-1", "A-1-s2", "B")


def finished(database: Database) -> str:
    specs = [Spec(prompt="a vase", seed=seed, width=64, height=64, steps=1) for seed in range(len(IDS))]
    items = [BatchItem(row=row, custom_id=IDS[row], spec=spec) for row, spec in enumerate(specs)]
    receipt = submit(database, items, "feed.csv", JobOptions(owner="me"))
    with database.write() as connection:
        connection.execute(update(jobs).values(state="done", root="0" * 64))
    return receipt.batch


def vote(database: Database, batch: str, who: str, image: str, **answer: object) -> None:
    with database.write() as connection:
        record_review(connection, batch, [Named(image)], who, Review(**answer))  # type: ignore[arg-type]


def verdicts(connection: Connection, batch: str) -> dict[str, str]:
    return {row["custom_id"]: row["verdict"] for row in review_rows(connection, batch)}


def test_two_reviewers_do_not_overrule_each_other(database: Database) -> None:
    batch = finished(database)
    vote(database, batch, "anna", "A-1", verdict="keep")
    vote(database, batch, "ben", "A-1", verdict="reject", reason="wrong color", note="see the feed")
    vote(database, batch, "anna", "B", starred=True)
    with database.read() as connection:
        assert verdicts(connection, batch) == {"A-1": "disputed", "A-1-s2": "unreviewed", "B": "unreviewed"}
        (row,) = review_rows(connection, batch, images=["A-1"])
        assert [(each["reviewer"], each["verdict"], each["reason"]) for each in row["votes"]] == [
            ("anna", "keep", ""),
            ("ben", "reject", "wrong color"),
        ]
        assert review_counts(connection, batch) == dict.fromkeys(SETS, 0) | {
            "unreviewed": 2,
            "disputed": 1,
            "starred": 1,
        }
    # One's own vote is replaced, with its reason; the note stays.
    vote(database, batch, "ben", "A-1", verdict="keep")
    with database.read() as connection:
        (row,) = review_rows(connection, batch, chosen="kept")
        ben = next(each for each in row["votes"] if each["reviewer"] == "ben")
        assert (ben["verdict"], ben["reason"], ben["note"]) == ("keep", "", "see the feed")


def test_votes_at_the_same_time_are_all_counted(database: Database) -> None:
    batch = finished(database)
    people = [f"reviewer {number}" for number in range(6)]

    def review_all(who: str) -> None:
        for image in IDS:
            vote(database, batch, who, image, verdict="reject" if who == people[0] else "keep")

    with ThreadPoolExecutor(len(people)) as pool:
        list(pool.map(review_all, people))
    with database.read() as connection:
        rows = review_rows(connection, batch)
    assert all({each["reviewer"] for each in row["votes"]} == set(people) for row in rows)
    assert {row["verdict"] for row in rows} == {"disputed"}


VOTES = st.lists(
    st.tuples(
        st.sampled_from(("anna", "ben", "carl")),
        st.sampled_from(IDS),
        st.sampled_from(("keep", "reject", "", None)),
        st.sampled_from((True, False, None)),
    ),
    max_size=8,
)


@settings(max_examples=15, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(votes=VOTES)
def test_a_verdict_follows_from_each_ones_last_word(
    tmp_path_factory: pytest.TempPathFactory, votes: list
) -> None:
    database = _shared(tmp_path_factory)
    with database.read() as connection:
        batch = connection.execute(select(entries.c.batch).limit(1)).scalar_one()
    with database.write() as connection:
        connection.execute(delete(reviews))
    answer: dict[tuple[str, str], str] = {}
    stars: dict[tuple[str, str], bool] = {}
    for who, image, verdict, starred in votes:
        if verdict is None and starred is None:
            continue
        vote(database, batch, who, image, verdict=verdict, starred=starred)
        if verdict is not None:
            answer[who, image] = verdict
        if starred is not None:
            stars[who, image] = starred
    expected = {}
    for image in IDS:
        words = {word for (_, about), word in answer.items() if about == image} - {""}
        both = "disputed" if len(words) == 2 else None
        expected[image] = both or {"keep": "kept", "reject": "rejected"}.get("".join(words), "unreviewed")
    with database.read() as connection:
        assert verdicts(connection, batch) == expected
        for name in ("kept", "rejected", "disputed", "unreviewed"):
            found = {row["custom_id"] for row in review_rows(connection, batch, chosen=name)}
            assert found == {image for image, verdict in expected.items() if verdict == name}
            assert review_counts(connection, batch)[name] == len(found)
        starred_ones = {row["custom_id"] for row in review_rows(connection, batch, chosen="starred")}
        assert starred_ones == {image for (_, image), on in stars.items() if on}


_DATABASES: dict[str, Database] = {}


def _shared(factory: pytest.TempPathFactory) -> Database:
    """One farm for all examples of a property."""
    if "one" not in _DATABASES:
        made = Database(f"sqlite:///{factory.mktemp('reviews') / 'farm.db'}")
        upgrade(made)
        finished(made)
        _DATABASES["one"] = made
    return _DATABASES["one"]


def test_a_vote_is_about_the_image_that_was_seen(database: Database) -> None:
    batch = finished(database)
    with database.write() as connection:
        seen = connection.execute(select(entries.c.job).where(entries.c.custom_id == "A-1")).scalar_one()
        other = connection.execute(select(entries.c.job).where(entries.c.custom_id == "B")).scalar_one()
    vote(database, batch, "anna", "A-1", verdict="reject")
    with database.write() as connection:
        connection.execute(update(entries).where(entries.c.custom_id == "A-1").values(job=other))
    with pytest.raises(LostRace, match="was re-rolled meanwhile"), database.write() as connection:
        record_review(connection, batch, [Named("A-1", seen)], "ben", Review(verdict="keep"))
    with database.read() as connection:
        assert verdicts(connection, batch)["A-1"] == "unreviewed", "the old votes are about the old image"


@pytest.mark.parametrize(
    ("image", "answer", "problem"),
    [
        ("C", {"verdict": "keep"}, "is no image of this batch"),
        ("A-1", {"verdict": "nice"}, "use keep or reject"),
        ("A-1", {}, "says nothing"),
        ("A-1", {"note": "x" * 2001}, "use at most 2000"),
    ],
)
def test_bad_reviews_are_refused(
    database: Database, image: str, answer: dict[str, object], problem: str
) -> None:
    batch = finished(database)
    with pytest.raises(BadInput, match=problem):
        vote(database, batch, "anna", image, **answer)
    with database.read() as connection:
        assert connection.execute(select(reviews)).all() == []
        with pytest.raises(BadInput, match="is unknown"):
            review_counts(connection, "nosuch")


def test_an_older_farms_batches_can_be_reviewed(database: Database) -> None:
    """T: a database from before there were reviews, with a finished batch > upgrade > review."""
    batch = finished(database)
    with database.write() as connection:
        command.downgrade(config_for(connection), "0010")
    upgrade(database)
    vote(database, batch, "anna", "B", verdict="keep")
    with database.read() as connection:
        assert verdicts(connection, batch)["B"] == "kept"
