"""Many jobs of one kind, done by several threads."""

import os
import threading
from collections.abc import Callable, Iterator
from typing import TypeVar

_MOST_THREADS = 16

Job = TypeVar("Job")


def in_parallel(
    jobs: Iterator[Job],
    worker: Callable[[], Callable[[Job], None]],
    *,
    threads: int,
    failed: Callable[[], None] = lambda: None,
) -> None:
    """Do all jobs, in order of start, by this thread and others; raise the first failure.

    Each thread calls `worker` once, for a function that does one job with what the thread owns.
    After a failure no job is begun any more, and `failed` is called to wake those who wait.
    """
    take = threading.Lock()
    failures: list[BaseException] = []

    def work() -> None:
        try:
            do = worker()
            while not failures:
                with take:
                    job = next(jobs, None)
                if job is None:
                    return
                do(job)
        except BaseException as error:
            failures.append(error)
            failed()

    helpers = [threading.Thread(target=work, daemon=True) for _ in range(threads - 1)]
    started = []
    try:
        for helper in helpers:
            helper.start()
            started.append(helper)
    except RuntimeError:
        pass  # no room for another thread: fewer do it too
    work()
    for helper in started:
        helper.join()
    if failures:
        raise failures[0]


def usable_cpus() -> int:
    """Return on how many CPUs this process may run, at most as many as threads are worth it."""
    return min(len(os.sched_getaffinity(0)), _MOST_THREADS)
