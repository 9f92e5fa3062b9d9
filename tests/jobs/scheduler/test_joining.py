"""Jobs join the images of a slot in their turn, each with an attempt of its own on the same slot."""

from __future__ import annotations

from typing import Any

import pytest
from sqlalchemy import select, update

from infra.database import Database, now
from jobs.db.claims import claim, make_ready, release
from jobs.db.commands import apply_command
from jobs.db.nodes import list_nodes, register, set_draining
from jobs.db.outcomes import fail
from jobs.db.queues import queue_needs, set_queue
from jobs.db.records import Assignment
from jobs.db.slot_time import Stay, slot_seconds
from jobs.db.state_machine import change_state
from jobs.db.submission import BatchItem, JobOptions, submit
from jobs.db.tables import attempts, jobs, members
from jobs.node.slot_images import SlotImages, images_of_slot
from jobs.scheduler.dispatcher import dispatch
from jobs.scheduler.joining import anything_queued, join_slot
from jobs.scheduler.warm_reuse import finish_and_take_next
from render.spec import Spec

NAMES = [f"s+{number}" for number in range(1, 9)]


class Slot:
    """The only slot of a farm, and the supervisor that renders on it."""

    def __init__(self, database: Database) -> None:
        self.database = database
        self.parts: list[Assignment] = []
        self.names = list(NAMES)
        self.submitted = 0
        self.images: SlotImages | None = None
        with database.write() as connection:
            register(connection, "n", address="127.0.0.1", slots=1, device="cpu", vram_bytes=None)

    def submit(self, seed: int, queue: str = "default", owner: str = "me", **fields: Any) -> str:
        values = {"prompt": "a vase", "seed": seed, "width": 128, "height": 128} | fields
        options = JobOptions(owner=owner, ranks=1, queue=queue)
        item = BatchItem(row=1, custom_id="1", spec=Spec.from_mapping(values))
        submit(self.database, [item], "test", options)
        self.submitted += 1
        with self.database.write() as connection:
            wanted = jobs.c.spec["seed"].as_integer() == seed
            job = str(connection.execute(select(jobs.c.id).where(wanted)).scalar_one())
            # A second after the one before, and all of them a while ago.
            moment = now() - 100 + self.submitted
            connection.execute(update(jobs).where(jobs.c.id == job).values(created=moment))
        return job

    def begin(self) -> Assignment:
        """What the dispatcher has placed goes to the supervisor, with room for three more images."""
        ((node, attempt, _),) = dispatch(self.database, "n")
        with self.database.write() as connection:
            part = claim(connection, attempt, node, "s")
            assert part is not None
            make_ready(connection, part, None)
            change_state(connection, part.job, "placing", "rendering", "", expected_fence=part.fence)
        self.images = images_of_slot(self.database, part, 4)
        assert self.images is not None
        self.parts = [part]
        return part

    def join(self, room: int = 3) -> list[str]:
        """The jobs that join now."""
        assert self.images is not None
        with self.database.write() as connection:
            found = join_slot(connection, self.parts, self.names[:room], self.images.alike)
        self.parts += found
        self.names = [name for name in self.names if name not in {part.supervisor for part in found}]
        return [part.job for part in found]

    def state(self, job: str) -> str:
        with self.database.read() as connection:
            return str(connection.execute(select(jobs.c.state).where(jobs.c.id == job)).scalar_one())


@pytest.fixture
def slot(database: Database) -> Slot:
    return Slot(database)


def test_jobs_join_up_to_the_room_with_attempts_of_their_own(slot: Slot) -> None:
    first, *others = (slot.submit(seed, steps=seed + 1) for seed in range(5))
    assert slot.begin().job == first
    assert slot.join() == others[:3]
    assert len({part.attempt for part in slot.parts}) == 4 and all(part.slots == (0,) for part in slot.parts)
    assert all(part.begun and part.fence == 1 for part in slot.parts[1:])
    assert [slot.state(job) for job in (first, *others)] == ["rendering"] * 4 + ["queued"]
    with slot.database.read() as connection:
        (node,) = list_nodes(connection)
        assert node["used"] == 1, "the images have the slot together"
        assert queue_needs(connection, 0.0)["default"] == (True, 2)
    assert dispatch(slot.database, "n") == [], "the slot is not free"


def test_a_slot_leaves_others_their_share(slot: Slot) -> None:
    with slot.database.write() as connection:
        register(connection, "m", address="127.0.0.1", slots=1, device="cpu", vram_bytes=None)
    for seed in range(7):
        slot.submit(seed)
    placed = dispatch(slot.database, "n")
    parts = list[Assignment]()
    with slot.database.write() as connection:
        for node, attempt, _ in placed:
            part = claim(connection, attempt, node, f"on-{node}")
            assert part is not None
            make_ready(connection, part, None)
            change_state(connection, part.job, "placing", "rendering", "", expected_fence=part.fence)
            parts.append(part)
    slot.images, slot.parts = images_of_slot(slot.database, parts[0], 8), parts[:1]
    assert len(slot.join(7)) == 3, "two slots with seven images: four on each"
    slot.parts = parts[1:]
    assert len(slot.join(4)) == 2
    assert slot.join(1) == []


def test_the_reply_to_a_look_that_was_lost_comes_again(slot: Slot) -> None:
    slot.submit(0)
    slot.submit(1)
    slot.begin()
    joined = slot.join()
    del slot.parts[1:]
    slot.names = list(NAMES)
    assert slot.join() == joined and len(joined) == 1


def test_what_is_of_another_kind_or_large_or_has_failed_does_not_join(slot: Slot) -> None:
    slot.submit(0, owner="a")
    slot.begin()
    failed = slot.submit(2)
    with slot.database.write() as connection:
        connection.execute(update(jobs).where(jobs.c.id == failed).values(losses=1))
    small = slot.submit(4, steps=7)
    large = slot.submit(3, width=1024, height=1024)
    other = slot.submit(1, dtype="bfloat16")
    assert slot.images is not None
    with slot.database.read() as connection:
        assert slot.images.alike(connection, [failed, small, large, other]) == {small}
        assert anything_queued(connection, slot.parts[0].spec["model"])
        assert not anything_queued(connection, "another")


@pytest.mark.parametrize(("first", "joins"), [("alike", True), ("other", False)])
def test_a_job_of_another_kind_whose_turn_it_is_keeps_its_place(slot: Slot, first: str, joins: bool) -> None:
    slot.submit(0)
    slot.begin()
    kinds: list[dict[str, Any]] = [{"seed": 1}, {"seed": 2, "dtype": "bfloat16"}]
    for fields in kinds if first == "alike" else kinds[::-1]:
        slot.submit(**fields)
    assert bool(slot.join(room=1)) is joins


def test_queues_and_drained_nodes_are_heeded(slot: Slot) -> None:
    with slot.database.write() as connection:
        set_queue(connection, "few", {"group_limit": 1})
        set_queue(connection, "shut", {"paused": True})
    slot.submit(0)
    slot.begin()
    limited, _, _ = (slot.submit(seed, queue="few" if seed < 3 else "shut") for seed in (1, 2, 3))
    assert slot.join() == [limited]
    waiting = slot.submit(4)
    with slot.database.write() as connection:
        set_draining(connection, "n", True)
    assert slot.join() == []
    with slot.database.write() as connection:
        set_draining(connection, "n", False)
    assert slot.join() == [waiting]


def test_only_the_last_image_takes_the_slots_next_job(slot: Slot) -> None:
    jobs_of = [slot.submit(seed) for seed in range(2)]
    slot.begin()
    slot.join()
    large = slot.submit(5, width=1024, height=1024)
    first, second = slot.parts
    with slot.database.write() as connection:
        assert finish_and_take_next(connection, first, "root", 1.0, 0.5) is None
    with slot.database.write() as connection:
        taken = finish_and_take_next(connection, second, "root", 1.0, 0.5)
        assert taken is not None and (taken.job, taken.slots) == (large, (0,))
    assert [slot.state(job) for job in jobs_of] == ["done"] * 2
    assert slot.join() == [], "the slot belongs to another image now"


def test_one_image_is_cancelled_or_fails_alone(slot: Slot) -> None:
    kept, failing, cancelled = (slot.submit(seed) for seed in range(3))
    slot.begin()
    slot.join()
    parts = {part.job: part for part in slot.parts}
    with slot.database.write() as connection:
        fail(connection, parts[failing].attempt, "poison", "n")
        apply_command(connection, "cancel", cancelled, "me")
        release(connection, parts[cancelled])
    assert dispatch(slot.database, "n") == []
    assert [slot.state(job) for job in (kept, failing, cancelled)] == ["rendering", "queued", "cancelled"]
    with slot.database.read() as connection:
        active = select(attempts.c.job).where(attempts.c.ended.is_(None))
        assert connection.execute(active).scalars().all() == [kept]
        assert len(connection.execute(select(members.c.attempt)).all()) == 3


def test_a_job_that_has_failed_is_rendered_alone(slot: Slot) -> None:
    slot.submit(0)
    part = slot.begin()
    assert images_of_slot(slot.database, part, 1) is None
    assert images_of_slot(slot.database, part, None) is not None
    with slot.database.write() as connection:
        connection.execute(update(jobs).values(attempts=1))
        again = claim(connection, part.attempt, "n", "s")
    assert again is not None and again.failures == 1
    assert images_of_slot(slot.database, again, 4) is None


def test_auto_heeds_the_memory_of_the_slot(slot: Slot) -> None:
    slot.submit(0)
    part = slot.begin()
    unbounded = images_of_slot(slot.database, part, None)
    assert unbounded is not None
    with slot.database.read() as connection:
        (_, needed), *_ = connection.execute(select(jobs.c.memory)).scalar_one()
    found = []
    for vram_bytes in (needed + 2 * unbounded.memory_bytes, needed):
        with slot.database.write() as connection:
            register(connection, "n", address="127.0.0.1", slots=1, device="cpu", vram_bytes=vram_bytes)
        found.append(images_of_slot(slot.database, part, None))
    assert found[0] is not None and found[0].at_once == 3 < unbounded.at_once
    assert found[1] is None


def test_images_of_a_slot_have_its_time_together() -> None:
    def stay(attempt: str, begin: float, end: float, number: int = 0) -> Stay:
        return Stay(attempt=attempt, slot=("n", number), begin=begin, end=end)

    assert slot_seconds([stay("a", 0, 10), stay("b", 4, 8), stay("c", 8, 12), stay("d", 0, 3, 1)]) == {
        "a": 4 + 2 + 1,
        "b": 2,
        "c": 1 + 2,
        "d": 3,
    }
    assert slot_seconds([stay("a", 0, 2), stay("a", 0, 2, 1), stay("b", 5, 5)]) == {"a": 4}
