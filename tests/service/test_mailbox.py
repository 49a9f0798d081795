from __future__ import annotations

from typing import Any

from raycurv.service.mailbox import Mailbox


def mailbox() -> Any:
    """The class of the actor, in this process."""
    actor: Any = Mailbox
    return actor.__ray_metadata__.modified_class()


def test_a_sender_learns_how_many_of_its_messages_the_driver_has_accepted() -> None:
    box = mailbox()
    assert [box.put(b"1", "a"), box.put(b"2", "b"), box.put(b"3", "a")] == [("", 0)] * 3
    assert box.take() == [b"1", b"2", b"3"]
    assert box.put(b"4", "a") == ("", 0)  # taken, and not yet on the driver's disk
    box.accept(2)
    assert box.put(b"5", "a") == ("", 1)
    assert box.take() == [b"4", b"5"]
    box.accept(3)
    assert box.put(b"6", "a") == ("", 4)
    assert box.put(b"7", "b") == ("", 1)


def test_a_request_to_stop_comes_with_the_answer_and_failures_are_known() -> None:
    box = mailbox()
    box.stop()
    assert box.put(b"1", "a", failed="one") == ("stop", 0)
    assert box.failed(["one", "two"])
    assert not box.failed(["two"])
