"""Nobody is declared lost while the ends of leases mean nothing."""

from __future__ import annotations

import logging

import pytest

from jobs.db.claims import LEASE_S
from jobs.node.clock_watch import ClockWatch


class Clocks:
    """Ours, and the database's."""

    def __init__(self) -> None:
        self.ours, self.database = 100.0, 1_700_000_000.0
        self.watch = ClockWatch(lambda: self.ours)

    def go_on(self, seconds: float) -> bool:
        self.ours += seconds
        self.database += seconds
        return self.watch.is_steady(self.database)


@pytest.mark.parametrize("jump", [3600.0, -3600.0, 5.0, -86_400.0])
def test_after_a_jump_leases_get_the_time_to_be_renewed(
    jump: float, caplog: pytest.LogCaptureFixture
) -> None:
    clocks = Clocks()
    assert not clocks.go_on(1) and not clocks.go_on(3) and clocks.go_on(3), "from its start on, too"
    clocks.database += jump
    with caplog.at_level(logging.WARNING):
        assert not clocks.go_on(1)
    told = f"set {'forward' if jump > 0 else 'back'} by {abs(jump):.0f} s"
    assert (told in caplog.text) == (abs(jump) > 10)
    assert not clocks.go_on(LEASE_S - 2) and clocks.go_on(3)


def test_a_clock_that_is_slewed_is_no_jump() -> None:
    clocks = Clocks()
    clocks.go_on(LEASE_S + 1)
    for _ in range(20):
        clocks.database += 0.5
        assert clocks.go_on(3)


def test_a_database_that_stood_still_is_one_that_was_away() -> None:
    clocks = Clocks()
    clocks.go_on(LEASE_S + 1)
    assert clocks.go_on(1)
    assert not clocks.go_on(60), "nobody could renew a lease"
    assert not clocks.go_on(1) and clocks.go_on(LEASE_S)


def test_a_machine_that_is_always_late_finds_dead_nodes_all_the_same() -> None:
    clocks = Clocks()
    steady = [clocks.go_on(5) for _ in range(100)]
    assert steady.count(True) > 60


def test_an_outage_counts_as_well() -> None:
    clocks = Clocks()
    assert clocks.go_on(LEASE_S + 1)
    clocks.watch.disturb()
    assert not clocks.go_on(3) and clocks.go_on(3.5)
