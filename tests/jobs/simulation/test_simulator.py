"""The simulated farm: against sums made by hand, and what must hold of every run."""

from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jobs.simulation.farm import Group
from jobs.simulation.outcome import Outcome
from jobs.simulation.scenario import Scenario, read_scenario
from jobs.simulation.setup import from_scenario
from jobs.simulation.simulator import Simulator
from render.errors import BadInput

START = "2026-11-29T21:00:00+00:00"
MODEL: dict[str, Any] = {"native_size": 512, "guidance_scale": 0, "evaluation_s": 1.0}
NATIVE: dict[str, Any] = {"model": "m", "size": "512x512", "steps": 10, "guidance_scale": 0}


def scenario(**parts: Any) -> Scenario:
    base = {"start": START, "nodes": [{"slots": 1}], "models": {"m": MODEL}, "jobs": [NATIVE], "round_s": 0}
    return Scenario.model_validate(base | parts)


def outcome_of(**parts: Any) -> Outcome:
    return from_scenario(scenario(**parts)).run()


def test_a_job_takes_its_steps_and_its_start() -> None:
    cold = MODEL | {"start_s": 30, "warm_start_s": 2, "decode_s": 1e6 / 512**2}
    outcome = outcome_of(models={"m": cold}, jobs=[NATIVE | {"count": 3}])
    # 30 s of start, then ten evaluations and one second of decoding each, with a warm start in between.
    assert outcome.makespan_s == pytest.approx(30 + 3 * 11 + 2 * 2)
    assert outcome.useful_slot_s == pytest.approx(33)
    assert outcome.busy_share == pytest.approx(33 / 67)


def test_jobs_of_one_rank_fill_all_slots() -> None:
    outcome = outcome_of(nodes=[{"count": 2, "slots": 2}], jobs=[NATIVE | {"count": 8, "ranks": 1}])
    assert outcome.makespan_s == pytest.approx(20)
    assert outcome.busy_share == pytest.approx(1.0)
    assert (outcome.waits[0].median_s, outcome.waits[0].worst_s) == (pytest.approx(10), pytest.approx(10))


def test_a_group_is_as_slow_as_its_busiest_rank() -> None:
    # 1024x1024 overlapped by quarters takes 3x3 windows: three ranks have three each.
    job = {"model": "m", "size": "1024x1024", "steps": 10, "strength": 0.1, "guidance_scale": 0, "ranks": 3}
    outcome = outcome_of(nodes=[{"slots": 3}], jobs=[job])
    assert outcome.makespan_s < outcome.useful_slot_s
    assert outcome.busy_share < 1


def test_a_window_that_closes_stops_the_job_until_it_opens_again() -> None:
    queue = {"name": "night", "window": "22:00-23:00 UTC"}
    job = NATIVE | {"queue": "night", "steps": 1000}
    outcome = outcome_of(queues=[queue], models={"m": MODEL | {"evaluation_s": 7.2}}, jobs=[job])
    # Two hours of work: one from 22:00, one hour after the start, and the other the next night.
    assert outcome.makespan_s == pytest.approx(3600 + 24 * 3600 + 3600)
    assert outcome.lost_slot_s == 0


def test_a_node_that_dies_costs_what_no_checkpoint_holds() -> None:
    parts = {"jobs": [NATIVE | {"steps": 1000, "count": 20}], "nodes": [{"count": 4, "slots": 1}]}
    faults = {"node_hours": 0.5, "down_s": 60, "seed": 3}
    calm, faulty = outcome_of(**parts), outcome_of(**parts, faults=faults)
    assert faulty.done == calm.done == 20
    assert faulty.faults > 0
    assert faulty.makespan_s > calm.makespan_s
    assert 0 < faulty.lost_slot_s <= faulty.faults * 60
    assert outcome_of(**parts, faults=faults).end == faulty.end, "the same seed gives the same night"
    assert outcome_of(**parts, faults=faults | {"seed": 4}).end != faulty.end


def test_a_group_takes_a_slot_that_becomes_free_and_gives_it_back_to_a_job() -> None:
    long = {"model": "m", "size": "2048x2048", "steps": 10, "guidance_scale": 0, "owner": "long"}
    two = {"nodes": [{"slots": 2}]}
    alone = outcome_of(**two, jobs=[long | {"ranks": 1}]).makespan_s
    short = NATIVE | {"owner": "short", "ranks": 1}
    grown = outcome_of(**two, jobs=[short, long])
    # The short job holds one of two slots for ten seconds; what is left has both, but for the first stage.
    assert alone / 2 < grown.makespan_s < 0.8 * alone
    late = NATIVE | {"owner": "late", "ranks": 1, "at_s": 40}
    shared = outcome_of(**two, jobs=[short, long, late])
    waited = {owner.owner: owner.worst_s for owner in shared.waits}
    assert waited["late"] < 2 and shared.done == 3
    assert grown.makespan_s < shared.makespan_s < alone
    cold = outcome_of(**two, jobs=[short, long], models={"m": MODEL | {"start_s": 30}})
    # New ranks load the model, too, while the others render.
    assert cold.makespan_s > grown.makespan_s + 30


def test_jobs_that_no_node_can_hold_are_told() -> None:
    outcome = outcome_of(jobs=[NATIVE, NATIVE | {"ranks": 2}])
    assert (outcome.done, outcome.jobs, outcome.end) == (1, 2, None)


class _Checked(Simulator):
    """Checks at each start that no slot is held twice and that a gang is whole."""

    def _begin(self, job: Any, placed: Any) -> None:
        super()._begin(job, placed)
        held: dict[str, int] = {}
        for group in self.farm.groups.values():
            for name, count in group.slots.items():
                held[name] = held.get(name, 0) + count
        for name, count in held.items():
            assert count <= self.farm.nodes[name].slots
        group: Group = self.farm.groups[job.name]
        assert job.least <= group.ranks <= job.most
        assert not self.farm.down & set(placed.slots)


@settings(max_examples=30, derandomize=True)  # Some nights with many faults take minutes.
@given(
    st.lists(st.integers(1, 4), min_size=1, max_size=4),
    st.lists(
        st.tuples(
            st.sampled_from(["512x512", "1024x512", "1024x1024"]),
            st.sampled_from(["auto", 1, 2]),
            st.integers(1, 6),
            st.floats(0, 50),
            st.sampled_from("ab"),
        ),
        min_size=1,
        max_size=5,
    ),
    st.booleans(),
)
def test_every_night_ends_and_no_slot_is_held_twice(nodes: list[int], jobs: list[Any], faulty: bool) -> None:
    entries = [
        NATIVE | {"size": size, "ranks": ranks, "count": count, "at_s": at, "owner": owner}
        for size, ranks, count, at, owner in jobs
    ]
    parts: dict[str, Any] = {"faults": {"node_hours": 0.25, "down_s": 20}} if faulty else {}
    made = from_scenario(
        scenario(
            nodes=[{"slots": slots, "name": str(i)} for i, slots in enumerate(nodes)], jobs=entries, **parts
        )
    )
    simulator = _Checked(
        farm=made.farm, jobs=made.jobs, start=made.start, times=made.times, faults=made.faults, round_s=0
    )
    outcome = simulator.run()
    fits = [job for job in made.jobs if job.least <= sum(nodes)]
    assert outcome.done == len(fits)
    assert outcome.makespan_s >= outcome.lower_bound_s * (1 - 1e-9)
    assert outcome.held_slot_s >= outcome.useful_slot_s * (1 - 1e-9)
    assert outcome.busy_share <= 1 + 1e-9


@pytest.mark.parametrize(
    ("text", "answer"),
    [
        ("nodes: []", "nodes"),
        ("[1, 2", "is not a scenario"),
        ("nodes: [{slots: 1}]\nmodels: {m: {evaluation_s: -1}}\njobs: [{model: m}]", "models.m.evaluation_s"),
        ("nodes: [{slots: 1}]\nmodels: {}\njobs: [{model: m}]", "has no entry in models"),
        (
            "nodes: [{slots: 1}]\nmodels: {m: {evaluation_s: 1}}\njobs: [{model: m, steps: 0}]",
            "steps",
        ),
        (
            "nodes: [{slots: 1}]\nmodels: {m: {evaluation_s: 1}}\njobs: [{model: m, colour: red}]",
            "colour",
        ),
    ],
)
def test_a_bad_scenario_is_refused_in_one_sentence(tmp_path: Path, text: str, answer: str) -> None:
    file = tmp_path / "night.yaml"
    file.write_text(text)
    with pytest.raises(BadInput) as caught:
        read_scenario(file)
    assert answer in str(caught.value)
    assert "\n" not in str(caught.value)
