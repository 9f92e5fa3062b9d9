"""The receiving end of events when another thread closes it, as whoever ends a group does."""

from __future__ import annotations

import threading
from pathlib import Path

from render.launch.event_channel import EventReceiver


def test_a_receiver_that_is_closed_meanwhile_has_no_more_events(tmp_path: Path) -> None:
    receiver = EventReceiver(tmp_path / "events")
    closing = threading.Timer(0.1, receiver.close)
    closing.start()
    assert receiver.next(0.5) is None
    closing.join()
    assert receiver.next(0.5) is None
