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
