"""An attempt from reservation to end; calls that come late change nothing."""

from typing import Any

import pytest
from sqlalchemy import insert, select, update

from infra.database import Database, now
from jobs.db.claims import attempt_ages, claim, make_ready, next_offer, release, rendezvous_endpoint
from jobs.db.commands import apply_command
from jobs.db.heartbeats import heartbeat
from jobs.db.nodes import register, set_draining
from jobs.db.outcomes import MAX_ATTEMPTS, Tally, fail, finish
from jobs.db.queues import set_queue
from jobs.db.records import Assignment, PlacedGroup
from jobs.db.reservations import reserve
from jobs.db.state_machine import change_state
from jobs.db.submission import BatchItem, JobOptions, submit
from jobs.db.tables import attempts, jobs, leases, members, nodes
from jobs.errors import LostRace
from jobs.scheduler.dispatcher import dispatch
from jobs.scheduler.warm_reuse import finish_and_take_next, next_for_group, waiting_for_slots
from render.spec import Spec


@pytest.fixture
def farm(database: Database) -> Database:
    """Two nodes of one slot each."""
    with database.write() as connection:
        for name in ("a", "b"):
            register(connection, name, address="127.0.0.1", slots=1, device="cpu", vram_bytes=None)
    return database


def submit_jobs(farm: Database, count: int = 1, **options: Any) -> list[str]:
    items = [
        BatchItem(row=n, custom_id=str(n), spec=Spec(prompt="a vase", seed=n, width=128, height=128))
        for n in range(count)
    ]
    submit(farm, items, "test", JobOptions(owner="me", **options))
    with farm.read() as connection:
        return list(connection.execute(select(jobs.c.id).order_by(jobs.c.created, jobs.c.id)).scalars())


def job_of(farm: Database, job: str) -> Any:
    with farm.read() as connection:
        return connection.execute(select(jobs).where(jobs.c.id == job)).one()


def claimed(farm: Database, attempt: str, node: str, supervisor: str = "s") -> Assignment | None:
    with farm.write() as connection:
        return claim(connection, attempt, node, supervisor)


def lose(farm: Database, table: Any, column: str) -> None:
    """Let all leases of a table run out."""
    with farm.write() as connection:
        connection.execute(update(table).values({column: now() - 1}))


def test_a_group_is_placed_whole_meets_and_finishes(farm: Database) -> None:
    (job,) = submit_jobs(farm, ranks=2)
    notifications = dispatch(farm, "a")
    assert sorted(node for node, *_ in notifications) == ["a", "b"]
    attempt = notifications[0][1]
    first, second = claimed(farm, attempt, "a"), claimed(farm, attempt, "b")
    assert first is not None and second is not None
    assert (first.place, second.place, first.nodes, first.fence) == (0, 1, 2, 1)
    with farm.write() as connection:
        make_ready(connection, first, "127.0.0.1:5000")
        assert rendezvous_endpoint(connection, first) is None
        make_ready(connection, second, None)
        assert rendezvous_endpoint(connection, second) == "127.0.0.1:5000"
        assert heartbeat(connection, first, 0.5) == "continue"
        change_state(connection, job, "placing", "rendering", "", expected_fence=1)
        change_state(connection, job, "rendering", "publishing", "", expected_fence=1)
        finish(connection, first, "root", 3.0)
        assert heartbeat(connection, second) == "abandon", "the attempt is over"
    row = job_of(farm, job)
    assert (row.state, row.root, row.progress, row.model_seconds) == ("done", "root", 1.0, 3.0)


def test_a_part_is_claimed_once(farm: Database) -> None:
    submit_jobs(farm)
    ((node, attempt, _),) = dispatch(farm, "a")
    assert claimed(farm, attempt, node, "one") is not None
    assert claimed(farm, attempt, node, "two") is None


def test_one_dispatcher_at_a_time_and_another_takes_over(farm: Database) -> None:
    submit_jobs(farm, count=2)
    assert len(dispatch(farm, "a")) == 2
    submit_jobs(farm, count=3)
    assert dispatch(farm, "b") == []
    lose(farm, leases, "until")
    lose(farm, nodes, "lease_until")
    assert dispatch(farm, "b") == [], "no node is up, but b holds the lease now"
    with farm.read() as connection:
        assert connection.execute(select(leases.c.holder)).scalar_one() == "b"


def test_groups_reserved_together_get_slots_of_their_own_or_none(farm: Database) -> None:
    with farm.write() as connection:
        register(connection, "a", address="127.0.0.1", slots=4, device="cpu", vram_bytes=None)
    one, two, three, gone = submit_jobs(farm, count=4)
    with farm.write() as connection:
        change_state(connection, gone, "queued", "cancelled", "")
    wanted = [(one, {"a": 2}), (gone, {"b": 1}), (two, {"a": 1, "b": 1}), (three, {"b": 1, "a": 1})]
    groups = [PlacedGroup(job=job, slots=slots) for job, slots in wanted]
    with farm.write() as connection:
        # Node b's one slot was meant for the cancelled job; the others get it in the next round.
        assert list(reserve(connection, groups, lambda group: "")) == [one]
        taken = reserve(connection, groups[2:], lambda group: f"for {group.job}")
        assert list(taken) == [two] and taken[two][1] == 1
        held = {(row.node, tuple(row.slots)) for row in connection.execute(select(members))}
    assert held == {("a", (0, 1)), ("a", (2,)), ("b", (0,))}
    assert job_of(farm, three).state == "queued"
    assert job_of(farm, two).reason == f"for {two}"


def test_a_lost_member_gives_the_job_back_without_blaming_it(farm: Database) -> None:
    # J: rendering > queued, and a late supervisor changes nothing.
    (job,) = submit_jobs(farm)
    ((node, attempt, _),) = dispatch(farm, "a")
    late = claimed(farm, attempt, node)
    assert late is not None
    with farm.write() as connection:
        change_state(connection, job, "placing", "rendering", "", expected_fence=1)
    lose(farm, members, "lease_until")
    notifications = dispatch(farm, "a")
    assert len(notifications) == 1, "placed again in the same round"
    row = job_of(farm, job)
    assert (row.state, row.fence, row.attempts, row.losses) == ("placing", 2, 0, 1)
    with farm.write() as connection:
        assert heartbeat(connection, late) == "abandon"
        with pytest.raises(LostRace):
            change_state(connection, job, "rendering", "publishing", "late", expected_fence=late.fence)
        fail(connection, attempt, "late", node)
    assert job_of(farm, job).state == "placing"


def test_a_group_that_never_meets_is_released(farm: Database) -> None:
    (job,) = submit_jobs(farm, ranks=2)
    ((_, attempt, _), _) = dispatch(farm, "a")
    with farm.write() as connection:
        connection.execute(update(attempts).values(created=now() - 1000))
    dispatch(farm, "a")
    with farm.read() as connection:
        ended = connection.execute(select(attempts.c.reason).where(attempts.c.id == attempt)).scalar_one()
    assert "never started its ranks" in ended
    row = job_of(farm, job)
    assert (row.state, row.attempts, row.losses) == ("queued", 0, 1)
    assert row.not_before > row.changed + 1, "not at once again"


def test_a_poison_job_is_failed_with_its_reason_and_blocks_nobody(farm: Database) -> None:
    poison, other = submit_jobs(farm, count=2)
    with farm.write() as connection:
        set_draining(connection, "b", True)
    for _ in range(MAX_ATTEMPTS):
        fail_next(farm, poison, "attempts", "the model answered with NaN")
    row = job_of(farm, poison)
    assert (row.state, row.reason) == ("failed", "gave up after 4 attempts: the model answered with NaN")
    dispatch(farm, "a")
    assert job_of(farm, other).state == "placing"
    with farm.write() as connection:
        apply_command(connection, "retry", poison, "me")
    assert (job_of(farm, poison).state, job_of(farm, poison).attempts) == ("queued", 0)


def test_a_node_that_a_job_has_failed_on_twice_is_avoided_where_there_is_another(farm: Database) -> None:
    (job,) = submit_jobs(farm)
    with farm.write() as connection:
        for fence in (98, 99):
            connection.execute(
                insert(attempts).values(
                    id=str(fence), job=job, fence=fence, created=0, ended=1, failed_node="a"
                )
            )
    assert [node for node, *_ in dispatch(farm, "a")] == ["b"]


def test_an_attempt_knows_since_when_its_job_was_without_a_group(farm: Database) -> None:
    submit_jobs(farm)
    reasons: list[str | None] = [None, "the group broke off: killed", "stopped after step 3 of stage 1"]
    for last in reasons:
        ((node, attempt, _),) = dispatch(farm, "a")
        assignment = claimed(farm, attempt, node)
        assert assignment is not None
        with farm.write() as connection:
            placed, failed = attempt_ages(connection, assignment)
            assert 0 <= placed < 60
            assert (failed is not None) == (last is not None and last.startswith("the group"))
            coming = reasons[min(assignment.fence, len(reasons) - 1)]
            fail(connection, attempt, str(coming), None, None)
            connection.execute(update(jobs).values(not_before=None))


def test_lost_attempts_are_told_with_their_node(farm: Database) -> None:
    submit_jobs(farm)
    ((node, attempt, _),) = dispatch(farm, "a")
    claimed(farm, attempt, node)
    with farm.write() as connection:
        connection.execute(update(members).values(lease_until=now() - 1))
    lost: list[str] = []
    dispatch(farm, "a", on_lost=lost.append)
    assert lost == [node]


def test_a_cancelled_job_frees_its_slots(farm: Database) -> None:
    (job,) = submit_jobs(farm)
    ((node, attempt, _),) = dispatch(farm, "a")
    assignment = claimed(farm, attempt, node)
    assert assignment is not None
    with farm.write() as connection:
        apply_command(connection, "cancel", job, "me")
        assert heartbeat(connection, assignment) == "abandon"
    dispatch(farm, "a")
    with farm.read() as connection:
        ended = select(attempts.c.ended)
        assert connection.execute(ended).scalar_one() is None, "its ranks are still there"
    with farm.write() as connection:
        release(connection, assignment)
    dispatch(farm, "a")
    with farm.read() as connection:
        assert connection.execute(select(attempts.c.reason)).scalar_one() == "the job is cancelled"


def test_draining_nodes_and_closed_queues_get_nothing(farm: Database) -> None:
    with farm.write() as connection:
        set_draining(connection, "a", True)
        set_queue(connection, "shut", {"paused": True})
    submit_jobs(farm, count=2, queue="shut")
    assert dispatch(farm, "a") == []
    with farm.write() as connection:
        set_queue(connection, "shut", {"paused": False})
    assert [node for node, *_ in dispatch(farm, "a")] == ["b"]


def rendering(farm: Database, job: str, assignment: Assignment) -> None:
    with farm.write() as connection:
        make_ready(connection, assignment, "127.0.0.1:5000")
        change_state(connection, job, "placing", "rendering", "", expected_fence=assignment.fence)


@pytest.mark.parametrize("how", ["pause", "window"])
def test_an_interrupted_job_is_stopped_after_its_step_and_goes_on_later(farm: Database, how: str) -> None:
    # The farm's clock is simulated: the window is open at noon and closed at six.
    noon, six = 1_000_000_800.0 // 86_400 * 86_400 + 12 * 3600, 1_000_000_800.0 // 86_400 * 86_400 + 18 * 3600
    with farm.write() as connection:
        set_queue(connection, "days", {"time_window": "08:00-17:00 UTC"})
    (job,) = submit_jobs(farm, queue="days")
    assert dispatch(farm, "a", moment=six) == []
    ((node, attempt, _),) = dispatch(farm, "a", moment=noon)
    assignment = claimed(farm, attempt, node)
    assert assignment is not None
    rendering(farm, job, assignment)
    with farm.write() as connection:
        assert heartbeat(connection, assignment, 0.4) == "continue"
        if how == "pause":
            apply_command(connection, "pause", job, "me")
    assert dispatch(farm, "a", moment=six) == []
    with farm.write() as connection:
        assert heartbeat(connection, assignment, 0.5) == "stop"
    assert job_of(farm, job).state == ("paused" if how == "pause" else "queued")
    assert dispatch(farm, "a", moment=six) == [], "its ranks are still there"
    with farm.write() as connection:
        fail(connection, attempt, "stopped after step 3", None, None)
        release(connection, assignment)
        if how == "pause":
            apply_command(connection, "resume", job, "me")
    assert dispatch(farm, "a", moment=six) == []
    assert len(dispatch(farm, "a", moment=noon + 86_400)) == 1
    row = job_of(farm, job)
    assert (row.state, row.fence, row.attempts, row.losses, row.progress) == ("placing", 2, 0, 0, 0.5)


def finished(farm: Database, job: str, assignment: Assignment) -> Assignment | None:
    with farm.write() as connection:
        change_state(connection, job, "rendering", "publishing", "", expected_fence=assignment.fence)
        return finish_and_take_next(connection, assignment, "root", 1.0)


def test_a_warm_group_takes_the_next_job_of_its_slots(farm: Database) -> None:
    with farm.write() as connection:
        set_draining(connection, "b", True)
    first, second = submit_jobs(farm, count=2)
    ((node, attempt, _),) = dispatch(farm, "a")
    assignment = claimed(farm, attempt, node)
    assert assignment is not None
    rendering(farm, first, assignment)
    taken = finished(farm, first, assignment)
    assert taken is not None
    assert (taken.job, taken.slots, taken.begun) == (second, assignment.slots, True)
    assert [job_of(farm, job).state for job in (first, second)] == ["done", "rendering"]
    with farm.write() as connection:
        assert heartbeat(connection, taken) == "continue"
        change_state(connection, second, "rendering", "publishing", "", expected_fence=taken.fence)
        assert finish_and_take_next(connection, taken, "root", 1.0) is None
        assert next_offer(connection, taken) == (None, True)


def test_a_warm_group_gives_way_to_a_better_claim(farm: Database) -> None:
    first, _ = submit_jobs(farm, count=2)
    ((node, attempt, _), _) = dispatch(farm, "a")
    assignment = claimed(farm, attempt, node)
    assert assignment is not None
    # Too long to be done before the other node is free.
    long = Spec(prompt="a long one", width=1024, height=1024, steps=100)
    submit(farm, [BatchItem(row=8, custom_id="8", spec=long)], "long", JobOptions(owner="me", ranks=1))
    gang = BatchItem(row=9, custom_id="9", spec=Spec(prompt="a gang", width=128, height=128))
    submit(farm, [gang], "gang", JobOptions(owner="me", ranks=2, priority=100))
    rendering(farm, first, assignment)
    assert finished(farm, first, assignment) is None, "the slot is kept for the group of two"


def test_an_idle_group_sees_what_is_placed_on_its_slots_or_sees_that_they_are_taken(farm: Database) -> None:
    with farm.write() as connection:
        set_draining(connection, "b", True)
    (first,) = submit_jobs(farm)
    ((node, attempt, _),) = dispatch(farm, "a")
    assignment = claimed(farm, attempt, node)
    assert assignment is not None
    rendering(farm, first, assignment)
    assert finished(farm, first, assignment) is None
    submit_jobs(farm, count=2)
    ((_, following, _),) = dispatch(farm, "a")
    with farm.write() as connection:
        assert next_offer(connection, assignment) == (following, False)
        assert claim(connection, following, node, "s") is not None
        assert next_offer(connection, assignment) == (None, False)


def test_each_attempt_has_a_secret_of_its_own_until_it_ends(farm: Database) -> None:
    (job,) = submit_jobs(farm)
    secrets = []
    for _ in range(2):
        with farm.write() as connection:
            placed = reserve(connection, [PlacedGroup(job=job, slots={"a": 1, "b": 1})], lambda _: "test")
        attempt = placed[job][0]
        one, two = claimed(farm, attempt, "a"), claimed(farm, attempt, "b")
        assert one and two and one.secret == two.secret
        assert one.secret is not None and len(one.secret) == 64 and one.secret not in repr(one)
        secrets.append(one.secret)
        with farm.write() as connection:
            fail(connection, attempt, "test", None, None)
            left = select(attempts.c.secret).where(attempts.c.id == attempt)
            assert connection.execute(left).scalar_one() is None
            connection.execute(update(jobs).values(not_before=None))
    assert secrets[0] != secrets[1]


def fail_next(farm: Database, job: str, tally: Tally, reason: str = "lacks weights") -> str:
    """Place a job, and fail its attempt; returns the node."""
    with farm.write() as connection:
        connection.execute(update(jobs).where(jobs.c.id == job).values(not_before=None))
    dispatch(farm, "a")
    with farm.write() as connection:
        row = connection.execute(
            select(attempts.c.id, members.c.node)
            .join(members, members.c.attempt == attempts.c.id)
            .where(attempts.c.job == job, attempts.c.ended.is_(None))
        ).one()
        fail(connection, row.id, reason, row.node, tally)
    return str(row.node)


def test_what_would_fail_everywhere_is_tried_once(farm: Database) -> None:
    (job,) = submit_jobs(farm)
    fail_next(farm, job, "permanent")
    row = job_of(farm, job)
    assert (row.state, row.reason) == ("failed", "gave up after 1 attempt: lacks weights")


def test_a_node_without_the_model_leaves_the_job_to_the_others_and_fails_it_when_none_is_left(
    farm: Database,
) -> None:
    (job,) = submit_jobs(farm)
    tried = [fail_next(farm, job, "node")]
    assert job_of(farm, job).state == "queued", "another node may have it"
    while job_of(farm, job).state == "queued":
        tried.append(fail_next(farm, job, "node"))
    assert set(tried) == {"a", "b"} and len(tried) <= 3
    assert job_of(farm, job).state == "failed"


def test_on_the_only_node_a_missing_model_fails_the_job_at_once(farm: Database) -> None:
    (job,) = submit_jobs(farm)
    with farm.write() as connection:
        set_draining(connection, "b", True)
    fail_next(farm, job, "node")
    assert job_of(farm, job).state == "failed"


def pair(farm: Database, attempt: str, supervisor: str = "s") -> tuple[Assignment, Assignment]:
    """Both parts of a group of two nodes, claimed."""
    first, second = claimed(farm, attempt, "a", supervisor), claimed(farm, attempt, "b", supervisor)
    assert first is not None and second is not None
    return first, second


def keep(farm: Database) -> None:
    """Both nodes have agents that keep groups of several nodes."""
    with farm.write() as connection:
        connection.execute(update(nodes).values(agent="new"))


def offers(farm: Database, *parts: Assignment) -> list[Assignment | None]:
    found = []
    for part in parts:
        with farm.write() as connection:
            found.append(next_for_group(connection, part))
    return found


def test_a_group_of_two_nodes_goes_on_with_the_next_job_for_both(farm: Database) -> None:
    keep(farm)
    one, two, three = submit_jobs(farm, count=3, ranks=2)
    ((_, attempt, _), _) = dispatch(farm, "a")
    first, second = pair(farm, attempt)
    rendering(farm, one, first)
    following = finished(farm, one, first)
    assert following is not None and not following.begun
    assert (following.job, following.follows, following.place) == (two, attempt, 0)
    with farm.read() as connection:
        assert waiting_for_slots(connection, second) == "group"
    (other,) = offers(farm, second)
    assert other is not None and (other.attempt, other.place) == (following.attempt, 1)
    with farm.write() as connection:
        assert rendezvous_endpoint(connection, following) is None, "both must be there"
        make_ready(connection, following, "a:1")
        make_ready(connection, other, None)
        assert rendezvous_endpoint(connection, following) == "a:1"
    # Idle for a while, and then the dispatcher places the next one on its slots.
    with farm.write() as connection:
        apply_command(connection, "pause", three, "me")
    rendering(farm, two, following)
    assert finished(farm, two, following) is None
    with farm.read() as connection:
        assert waiting_for_slots(connection, other) == "nothing"
    assert offers(farm, following, other) == [None, None]
    with farm.write() as connection:
        apply_command(connection, "resume", three, "me")
    ((_, third, _), _) = dispatch(farm, "a")
    assert offers(farm, other) == [None], "the first node chooses"
    assert [part and part.attempt for part in offers(farm, following, other)] == [third, third]


@pytest.mark.parametrize("why", ["old agent", "claimed", "other shape"])
def test_a_group_of_two_nodes_does_not_go_on_alone(farm: Database, why: str) -> None:
    keep(farm)
    (one,) = submit_jobs(farm, ranks=2)
    ((_, attempt, _), _) = dispatch(farm, "a")
    first, second = pair(farm, attempt)
    rendering(farm, one, first)
    assert finished(farm, one, first) is None
    submit(
        farm,
        [BatchItem(row=9, custom_id="9", spec=Spec(prompt="another", width=128, height=128))],
        "test",
        JobOptions(owner="me", ranks=1 if why == "other shape" else 2),
    )
    placed = dispatch(farm, "a")
    if why == "old agent":
        with farm.write() as connection:
            connection.execute(update(nodes).where(nodes.c.name == "b").values(agent=None))
    elif why == "claimed":
        # The second node's supervisor had ended, and its agent has started another.
        assert claimed(farm, placed[0][1], "b", "fresh") is not None
    else:
        with farm.read() as connection:
            assert waiting_for_slots(connection, first) == "others"
    assert offers(farm, first, second) == [None, None]
