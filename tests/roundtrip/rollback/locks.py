"""Has files locked in all ways, and a child, too; knows who may lock what."""

import contextlib
import fcntl
import os
import signal
import struct

from told import obey

OFD_GETLK, OFD_SETLK = 36, 37
FLOCK = struct.Struct("hhqqi4x")


def locked(file: int, command: int, kind: int, start: int, length: int) -> tuple[int, int]:
    """Make a request; return its answer's kind, and who it names."""
    found = fcntl.fcntl(file, command, FLOCK.pack(kind, os.SEEK_SET, start, length, 0))
    kind, _, _, _, holder = FLOCK.unpack(found)
    return kind, holder


def opened(name: str) -> int:
    """Open a file of the work directory."""
    return os.open(f"/work/{name}", os.O_RDWR | os.O_CREAT, 0o600)


file, whole, description = opened("ranges"), opened("whole"), opened("description")
locked(file, fcntl.F_SETLK, fcntl.F_WRLCK, 0, 10)
locked(file, fcntl.F_SETLK, fcntl.F_RDLCK, 100, 0)
fcntl.flock(whole, fcntl.LOCK_EX)
locked(description, OFD_SETLK, fcntl.F_WRLCK, 5, 5)
parts, shown = os.pipe(), os.pipe()
child = os.fork()
if child == 0:
    locked(file, fcntl.F_SETLK, fcntl.F_WRLCK, 20, 10)
    while True:
        os.write(shown[1], b"x")
        os.read(parts[0], 1)
        with contextlib.suppress(BlockingIOError):
            locked(file, fcntl.F_SETLK, fcntl.F_UNLCK, 0, 0)
            locked(file, fcntl.F_SETLK, fcntl.F_WRLCK, 0, 3)
os.read(shown[0], 1)


def let_child_lock() -> None:
    """Have the child take what was this process's."""
    locked(file, fcntl.F_SETLK, fcntl.F_UNLCK, 0, 0)
    os.write(parts[1], b"x")
    os.read(shown[0], 1)


CHANGES = {
    "unlock": lambda: (
        locked(file, fcntl.F_SETLK, fcntl.F_UNLCK, 0, 0),
        fcntl.flock(whole, fcntl.LOCK_UN),
        locked(description, OFD_SETLK, fcntl.F_UNLCK, 0, 0),
    ),
    "lock more": lambda: (
        locked(file, fcntl.F_SETLK, fcntl.F_RDLCK, 5, 2),
        locked(file, fcntl.F_SETLK, fcntl.F_WRLCK, 40, 10),
        locked(file, fcntl.F_SETLK, fcntl.F_WRLCK, 300, 0),
        fcntl.flock(whole, fcntl.LOCK_SH),
        locked(description, OFD_SETLK, fcntl.F_WRLCK, 0, 0),
    ),
    # Which loses all that the process had locked in it.
    "open and close": lambda: os.close(opened("ranges")),
    "open": lambda: opened("ranges"),
    "let lock": let_child_lock,
    "lock another": lambda: fcntl.flock(opened("elsewhere"), fcntl.LOCK_EX),
}


def look() -> None:
    """Raise AssertionError unless all is locked as it was, as another process sees it."""
    other, other_whole, other_description = opened("ranges"), opened("whole"), opened("description")
    for start, length, kind, holder in (
        (0, 10, fcntl.F_RDLCK, os.getppid()),
        (6, 1, fcntl.F_RDLCK, os.getppid()),
        (10, 10, fcntl.F_WRLCK, 0),
        (20, 10, fcntl.F_RDLCK, child),
        (30, 70, fcntl.F_WRLCK, 0),
        (100, 500, fcntl.F_RDLCK, 0),
        (400, 1, fcntl.F_WRLCK, os.getppid()),
    ):
        found, whose = locked(other, fcntl.F_GETLK, kind, start, length)
        whose = 0 if found == fcntl.F_UNLCK else whose
        assert whose == holder, f"{start}+{length} is locked by {whose}, not {holder}"
    for start, is_free in ((0, True), (5, False), (9, False), (10, True)):
        found, _ = locked(other_description, OFD_GETLK, fcntl.F_RDLCK, start, 1)
        assert (found == fcntl.F_UNLCK) == is_free, f"byte {start} of the description's"
    for name, is_free in ((other_whole, False), (opened("elsewhere"), True)):
        try:
            fcntl.flock(name, fcntl.LOCK_SH | fcntl.LOCK_NB)
            assert is_free, "the whole file is free"
        except BlockingIOError:
            assert not is_free, "what was free is locked"


def check() -> None:
    """Have another process look."""
    looker = os.fork()
    if looker == 0:
        try:
            look()
        except AssertionError as error:
            with open("/work/wrong", "w") as wrong:
                wrong.write(str(error))
            os._exit(1)
        os._exit(0)
    if os.waitpid(looker, 0)[1]:
        with open("/work/wrong") as wrong:
            raise AssertionError(wrong.read())
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)


obey(CHANGES, check)
