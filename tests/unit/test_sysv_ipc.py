"""Records of System V objects in an image are checked before anything is made of them."""

from typing import Any

import msgspec
import pytest

from woodfrog.errors import ImageError
from woodfrog.resources import sysv_ipc, sysv_memory
from woodfrog.resources.memory import Mapping, Source
from woodfrog.resources.shared_memory import SharedMemory
from woodfrog.resources.sysv_ipc import AnyObject, Message, MessageQueue, Semaphores
from woodfrog.resources.sysv_memory import Segment

ID: dict[str, int] = {"id": 5, "key": -7, "mode": 0o640, "uid": 1, "gid": 2, "cuid": 3, "cgid": 4}
SEMAPHORES = Semaphores(**ID, values=[0, 0x7FFF])
QUEUE = MessageQueue(**ID, qbytes=100, messages=[Message(type=1, text=b"")])
SEGMENT = Segment(**ID, size=5000, locked=False, removed=False, contents=9)
MEMORY = {9: SharedMemory(id=9, memfd=None, size=5000, seals=0, extents=[], store=0)}


def changed(one: AnyObject, **fields: Any) -> AnyObject:
    """Return the record with other fields."""
    return msgspec.structs.replace(one, **fields)


def test_sound_objects_pass() -> None:
    # Each kind has ids of its own; a removed segment no longer has its key.
    removed = changed(SEGMENT, id=6, removed=True)
    sysv_ipc.check([SEMAPHORES, QUEUE, SEGMENT, removed], MEMORY)


@pytest.mark.parametrize(
    "objects",
    [
        [SEMAPHORES, changed(SEMAPHORES, key=8)],
        [QUEUE, changed(QUEUE, id=6)],
        [changed(SEMAPHORES, id=-1)],
        [changed(SEMAPHORES, id=1 << 31)],
        [changed(SEMAPHORES, key=1 << 31)],
        [changed(SEMAPHORES, mode=0o1640)],
        [changed(SEMAPHORES, cuid=-1)],
        [changed(SEMAPHORES, gid=(1 << 32) - 1)],
        [changed(SEMAPHORES, values=[])],
        [changed(SEMAPHORES, values=[0x8000])],
        [changed(QUEUE, qbytes=-1)],
        [changed(QUEUE, messages=[Message(type=0, text=b"")])],
        [changed(QUEUE, messages=[Message(type=1, text=bytes((16 << 20) + 1))])],
        [changed(SEGMENT, contents=8)],
        [changed(SEGMENT, size=1 << 40)],
    ],
)
def test_impossible_objects_are_refused(objects: list[AnyObject]) -> None:
    with pytest.raises(ImageError):
        sysv_ipc.check(objects, MEMORY)


@pytest.mark.parametrize(
    ("fields", "sound"),
    [
        ({}, True),
        ({"offset": 4096, "end": 0x11000}, True),
        ({"offset": 4096}, False),
        ({"offset": -4096}, False),
        ({"end": 0x13000}, False),
        ({"shared": False}, False),
        ({"object": 6}, False),
    ],
)
def test_an_attachment_shows_no_more_than_its_segment(fields: dict[str, Any], sound: bool) -> None:
    mapping = Mapping(
        start=0x10000, end=0x12000, protection=3, shared=True, source=Source.SYSV, object=5
    )
    mapping = msgspec.structs.replace(mapping, **fields)
    segments = {SEGMENT.id: SEGMENT}
    if sound:
        sysv_memory.check_mapping(mapping, segments)
    else:
        with pytest.raises(ImageError):
            sysv_memory.check_mapping(mapping, segments)
