"""Wrong tokens are counted by address; sessions and other addresses notice nothing."""

from __future__ import annotations

from pathlib import Path

from jobs.board.login_limit import MOST_WRONG, PERIOD_S, LoginLimit
from tests.jobs.board.conftest import OPERATOR
from tests.support.board import running_board


def test_after_too_many_wrong_tokens_an_address_waits() -> None:
    now = [0.0]
    limit = LoginLimit(clock=lambda: now[0])
    for _ in range(MOST_WRONG):
        assert limit.wait_s("a") == 0
        limit.count_wrong("a")
        now[0] += 1
    assert limit.wait_s("a") == PERIOD_S - MOST_WRONG and limit.wait_s("b") == 0
    now[0] = PERIOD_S
    assert limit.wait_s("a") == 0, "the first one is forgotten"
    limit.count_wrong("a")
    assert limit.wait_s("a") > 0


def test_a_board_refuses_to_look_at_more_tokens_for_a_while(tmp_path: Path) -> None:
    (tmp_path / "tokens").write_text(f"operator={OPERATOR}\n")
    words = ("serve", "--port", "0")
    with running_board(tmp_path, *words, CHORALE_TOKENS_FILE=str(tmp_path / "tokens")) as board:

        def ask(token: str) -> int:
            return board.ask("/api/v1/queues", authorization=f"Bearer {token}").status

        assert ask(OPERATOR) == 200
        statuses = [ask(f"wrong-{number}") for number in range(MOST_WRONG + 1)]
        assert statuses == [401] * MOST_WRONG + [429]
        assert ask(OPERATOR) == 429, "not even a right one, or guessing would go on"
        assert board.ask("/healthz").status == 200


def test_all_addresses_of_an_ipv6_network_count_as_one() -> None:
    limit = LoginLimit(lambda: 100.0)
    for number in range(MOST_WRONG):
        limit.count_wrong(f"2001:db8:1:2::{number:x}")
    assert limit.wait_s("2001:db8:1:2:ffff::1") > 0 and limit.wait_s("2001:db8:1:3::1") == 0
    for number in range(MOST_WRONG):
        limit.count_wrong("::ffff:192.0.2.7" if number % 2 else "192.0.2.7")
    assert limit.wait_s("192.0.2.7") > 0 and limit.wait_s("192.0.2.8") == 0 and limit.wait_s("") == 0
