"""What a POSIX message queue tells of who waits for a notification, and what an image may say."""

import pytest

from woodfrog.errors import ImageError
from woodfrog.resources.files.nameless_path import NamelessPath
from woodfrog.resources.queue_notices import QueueNotice, Waiting, waits


def test_who_waits_is_read_from_the_queue() -> None:
    told = b"QSIZE:5          NOTIFY:0     SIGNO:10    NOTIFY_PID:4242  \n"
    assert waits(told) == Waiting(pid=4242, how=0, signal=10)
    assert waits(b"QSIZE:5          NOTIFY:0     SIGNO:0     NOTIFY_PID:0     \n") is None


@pytest.mark.parametrize(
    ("change", "possible"),
    [
        ({}, True),
        ({"signal": 65}, False),
        ({"value": 1 << 64}, False),
        ({"how": 3}, False),
        ({"how": 2}, False),
        ({"how": 2, "socket": 4, "cookie": bytes(32)}, True),
        ({"how": 2, "socket": 4, "cookie": bytes(33)}, False),
    ],
)
def test_only_possible_notifications_are_taken(change: dict[str, object], possible: bool) -> None:
    fields: dict[str, object] = {"descriptor": 3, "how": 0, "signal": 10, "value": 7}
    notice = QueueNotice(**(fields | change))  # type: ignore[arg-type]
    assert notice.is_possible == possible


def test_what_was_opened_by_path_can_be_no_more_than_that() -> None:
    with pytest.raises(ImageError, match="can do more than that"):
        NamelessPath(id=1, flags=2, file=2).refuse_wider(0)
