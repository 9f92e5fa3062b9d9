"""The folder of an image: by numerics for new attempts, by the digest alone for those of version 0.1."""

import pytest
from sqlalchemy import select, update

from infra.database import Database
from jobs.db.claims import attempt_folder, claim, record_folder
from jobs.db.folders import attempted_folders, digest_of, folder_name, image_folder
from jobs.db.nodes import register, renew
from jobs.db.outcomes import fail, finish
from jobs.db.records import Assignment
from jobs.db.state_machine import change_state
from jobs.db.submission import BatchItem, JobOptions, submit
from jobs.db.tables import jobs
from jobs.scheduler.dispatcher import dispatch
from jobs.scheduler.pending_jobs import PendingJob
from jobs.scheduler.placement import Node, place
from jobs.scheduler.warm_reuse import finish_and_take_next
from render.spec import Spec


@pytest.fixture
def farm(database: Database) -> Database:
    with database.write() as connection:
        register(connection, "a", address="127.0.0.1", slots=1, device="cpu", numerics="one")
    return database


def submit_jobs(farm: Database, count: int = 1) -> list[str]:
    specs = [Spec(prompt="a vase", seed=seed, width=128, height=128) for seed in range(count)]
    items = [BatchItem(row=number, custom_id=str(number), spec=spec) for number, spec in enumerate(specs)]
    submit(farm, items, "test", JobOptions(owner="me"))
    with farm.read() as connection:
        return list(connection.execute(select(jobs.c.id).order_by(jobs.c.created, jobs.c.id)).scalars())


def start(farm: Database, numerics: str | None) -> Assignment:
    """Place the next job and claim it."""
    with farm.write() as connection:
        renew(connection, "a", "agent", [])
    ((node, attempt, _),) = dispatch(farm, "a")
    with farm.write() as connection:
        assignment = claim(connection, attempt, node, "s", numerics)
        assert assignment is not None
        change_state(connection, assignment.job, "placing", "rendering", "", expected_fence=assignment.fence)
    return assignment


def lose(farm: Database, assignment: Assignment) -> None:
    with farm.write() as connection:
        fail(connection, assignment.attempt, "lost", None, "losses")
        connection.execute(update(jobs).values(not_before=None))


def folders_of(farm: Database, job: str) -> tuple[str, list[str]]:
    with farm.read() as connection:
        return image_folder(connection, job), attempted_folders(connection, job)


def test_a_folder_names_the_digest_and_the_numerics() -> None:
    assert folder_name("d" * 64, "0123456789ab") == "d" * 64 + "-0123456789ab"
    assert digest_of(folder_name("d" * 64, "0123456789ab")) == digest_of("d" * 64) == "d" * 64


def test_attempts_of_other_numerics_have_folders_of_their_own(farm: Database) -> None:
    # J: version 1 is lost with its database, version 2 finishes.
    (job,) = submit_jobs(farm)
    first = start(farm, "one")
    digest = first.digest
    assert first.folder == f"{digest}-one"
    assert folders_of(farm, job) == (f"{digest}-one", [f"{digest}-one"])
    lose(farm, first)
    second = start(farm, "two")
    assert folders_of(farm, job) == (f"{digest}-two", [f"{digest}-two", f"{digest}-one"])
    with farm.write() as connection:
        finish(connection, second, "root", 1.0)
    with farm.read() as connection:
        assert connection.execute(select(jobs.c.folder)).scalar_one() == f"{digest}-two"
    assert folders_of(farm, job)[0] == f"{digest}-two"


def test_attempts_and_jobs_of_version_0_1_are_in_the_folder_of_the_digest(farm: Database) -> None:
    (job,) = submit_jobs(farm)
    old = start(farm, None)
    assert old.folder == old.digest
    assert folders_of(farm, job) == (old.digest, [old.digest])
    lose(farm, old)
    new = start(farm, "two")
    with farm.write() as connection:
        # The image is found finished where version 0.1 has put it.
        record_folder(connection, new.attempt, old.digest)
        assert attempt_folder(connection, new) == old.digest
        finish(connection, new, "root", 1.0)
    assert folders_of(farm, job)[0] == old.digest


def test_the_first_node_of_a_group_decides_the_folder(farm: Database) -> None:
    with farm.write() as connection:
        register(connection, "b", address="127.0.0.1", slots=1, device="cpu", numerics="one")
    submit(
        farm,
        [BatchItem(row=1, custom_id="1", spec=Spec(prompt="a vase", width=256, height=256))],
        "two",
        JobOptions(owner="me", ranks=2),
    )
    (_, attempt, _), _ = dispatch(farm, "a")
    with farm.write() as connection:
        assignments = [claim(connection, attempt, node, node, f"by-{node}") for node in ("b", "a")]
        by_place = {each.place: each for each in assignments if each is not None}
        assert attempt_folder(connection, by_place[1]) == by_place[0].folder


def test_a_warm_group_goes_on_with_its_numerics(farm: Database) -> None:
    _, second = submit_jobs(farm, 2)
    first = start(farm, "one")
    with farm.write() as connection:
        taken = finish_and_take_next(connection, first, "root", 1.0)
    assert taken is not None and taken.folder == f"{taken.digest}-one"
    assert folders_of(farm, second)[0] == taken.folder


def test_a_group_never_mixes_numerics() -> None:
    nodes = [Node(name=name, slots=2, numerics=numerics) for name, numerics in (("a", "one"), ("b", "two"))]
    decision = place(nodes, [], [PendingJob(job="x", least=4, most=4), PendingJob(job="y", most=4)], [])
    assert [group.job for group in decision.placed] == ["y"] and len(decision.placed[0].slots) == 1
