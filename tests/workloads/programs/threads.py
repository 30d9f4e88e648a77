"""Eight threads hash random buffers that come through queues, beside timers; no buffer is lost."""

import hashlib
import queue
import random
import sys
import threading
import time
from pathlib import Path

WORK = Path("/work")
HASHERS = 8


class Fed(threading.Thread):
    """Feeds buffers that anybody can make again from their number."""

    def __init__(self, to: "queue.Queue[int | None]") -> None:
        super().__init__()
        self.to = to
        self.sent = 0

    def run(self) -> None:
        while not (WORK / "check").exists():
            for _ in range(20):
                self.to.put(self.sent)
                self.sent += 1
        for _ in range(HASHERS):
            self.to.put(None)


def buffer(number: int) -> bytes:
    """Return the random buffer of a number."""
    return random.Random(number).randbytes(20_000)


def main() -> int:
    """Work until the test says `check`; return whether all is well."""
    numbers: queue.Queue[int | None] = queue.Queue(maxsize=50)
    # As small, or what is yet to be looked at grows for as long as the test takes.
    hashes: queue.Queue[tuple[int, str, bytes] | None] = queue.Queue(maxsize=50)
    wrong: list[str] = []
    ticks: list[float] = []

    def hash_buffers() -> None:
        while (number := numbers.get()) is not None:
            text = buffer(number)
            hashes.put((number, hashlib.sha256(text).hexdigest(), text[:64]))
        hashes.put(None)

    def tick() -> None:
        ticks.append(time.monotonic())
        if not (WORK / "check").exists():
            timer = threading.Timer(0.02, tick)
            timer.daemon = True
            timer.start()

    feeder = Fed(numbers)
    threads = [threading.Thread(target=hash_buffers) for _ in range(HASHERS)]
    for thread in [*threads, feeder]:
        thread.start()
    tick()
    seen: set[int] = set()
    ended = 0
    while ended < HASHERS:
        got = hashes.get(timeout=60)
        if got is None:
            ended += 1
            continue
        number, digest, start = got
        if number in seen:
            wrong.append(f"buffer {number} came twice")
        seen.add(number)
        text = buffer(number)
        if hashlib.sha256(text).hexdigest() != digest or text[:64] != start:
            wrong.append(f"buffer {number} has another hash")
        if len(seen) == 100:
            (WORK / "ready").touch()
        (WORK / "progress").write_text(str(len(seen)))
    for thread in [*threads, feeder]:
        thread.join()
    if seen != set(range(feeder.sent)):
        wrong.append(f"{feeder.sent} buffers were sent, {len(seen)} came")
    if ticks != sorted(ticks) or len(ticks) < 3:
        wrong.append(f"{len(ticks)} ticks, and time goes back")
    (WORK / "out").write_text("\n".join(wrong) or "ok\n")
    return 1 if wrong else 0


sys.exit(main())
