"""Fills in the memory of processes that run already: what they touch first, the rest meanwhile."""

import errno
import os
import select
import time
from collections import deque
from collections.abc import Callable, Iterable, Mapping, Sequence

from woodfrog.engine import working_set
from woodfrog.errors import WoodfrogError
from woodfrog.image.layout import CHUNK
from woodfrog.image.pages import Chunks
from woodfrog.kernel import userfaultfd
from woodfrog.kernel.abi.x86_64 import PAGE
from woodfrog.kernel.caller import HERE
from woodfrog.remote.address import TASK_SIZE
from woodfrog.resources.missing_memory import Missing

# With the page that somebody waits for comes so much, then the rest of its chunk.
_AT_ONCE = 64 << 10
_WHILE_CHANGING_MS = 1
_PROGRESS_SECONDS = 0.1
_MANY = 64
# What a container may have us remember, by forking while its memory is in pieces: 256 MiB.
_MOST_RANGES = 16 << 20
# How long a container that has used up its memory may take to get some.
_OUT_OF_MEMORY_SECONDS = 5.0


class _EndedError(Exception):
    """The process has ended, or has become another program."""


class _ChangingError(Exception):
    """Its mappings are changing, of which there will be something to hear."""


class _Space:
    """One process's memory: its userfaultfd, and what is still missing."""

    def __init__(self, descriptor: int, missing: Missing, first: Iterable[int] = ()) -> None:
        self.descriptor = descriptor
        self.missing = missing
        self.first = deque(first)  # addresses that are wanted before all others
        self.touched: list[int] = []  # pages that somebody has waited for
        self.faults: dict[int, None] = {}  # pages that somebody waits for, in order
        self.next: deque[int] = deque()  # addresses whose chunk is at hand


class PageServer:
    """Serves until nothing is missing any more, or the container has ended.

    `spaces` are userfaultfds and what is missing there; they are closed as soon as all is in.
    `init` is a pidfd of the container's first process. Without `ahead` only what is touched comes,
    until `wake_up`, an eventfd, is written to. `tell` gets how many bytes are in, and of how many.
    What is in `first`, addresses by descriptor, comes before all else that nobody waits for. `note`
    gets such addresses when programs have run for a while: those that they were waiting for.
    """

    def __init__(
        self,
        spaces: Mapping[int, Missing],
        chunks: Chunks,
        init: int,
        *,
        ahead: bool,
        wake_up: int,
        tell: Callable[[int, int], None],
        first: Mapping[int, Sequence[int]],
        note: Callable[[Mapping[int, list[int]]], None] | None,
    ) -> None:
        self._note = note
        self._note_at = time.monotonic() + working_set.SECONDS
        self._noted: dict[int, list[int]] = {}
        self._chunks = chunks
        self._init = init
        self._ahead = ahead
        self._wake_up = wake_up
        self._tell = tell
        self._told = time.monotonic()
        self._short_since: float | None = None
        self._spaces: dict[int, _Space] = {}
        self._look_at = _MANY
        self._total = 0
        self._poll = select.poll()
        self._poll.register(init, select.POLLIN)
        self._poll.register(wake_up, select.POLLIN)
        for descriptor, missing in spaces.items():
            space = _Space(descriptor, missing, first.get(descriptor, ()))
            self._noted[descriptor] = space.touched
            self._add(space)

    def run(self) -> None:
        """Serve to the end; raises ImageError if the image turns out to be damaged."""
        timeout: int | None = 0
        while self._spaces:
            if not self._hear(timeout):
                break
            timeout = None
            self._drop_ended()
            for space in list(self._spaces.values()):
                # In order: a child that was forked meanwhile comes last, and mostly ends before.
                again = self._serve(space, ahead=self._ahead and timeout != 0)
                if again is not None:
                    timeout = again if timeout is None else min(again, timeout)
            self._report(at_rest=timeout is None)
        self._write_note()

    def _serve(self, space: _Space, *, ahead: bool) -> int | None:
        """Bring what a process waits for, and a bit more; returns when to come again (ms)."""
        try:
            self._answer(space)
            brought = self._bring_more(space, ahead=ahead)
        except _ChangingError:
            return _WHILE_CHANGING_MS
        except _EndedError:
            brought = False
            self._drop(space)
        else:
            if not space.missing:
                self._drop(space)
        return 0 if brought else None

    def _add(self, space: _Space) -> None:
        self._spaces[space.descriptor] = space
        self._total += space.missing.bytes
        self._poll.register(space.descriptor, select.POLLIN)

    def _drop(self, space: _Space) -> None:
        """Let the kernel bring what is missing from now on: nothing of ours is."""
        del self._spaces[space.descriptor]
        self._poll.unregister(space.descriptor)
        os.close(space.descriptor)

    def _drop_ended(self) -> None:
        """Forget children that have come and gone, when there are many."""
        if len(self._spaces) < self._look_at:
            return
        for space in list(self._spaces.values()):
            # The last page can't be mapped: this tells of the process only.
            if (
                userfaultfd.bring_zeros(HERE, space.descriptor, TASK_SIZE - PAGE, PAGE)
                == -errno.ESRCH
            ):
                self._drop(space)
        self._look_at = max(_MANY, 2 * len(self._spaces))

    def _write_note(self) -> None:
        """Say once what was touched; later faults are no part of a beginning."""
        if self._note:
            self._note(self._noted)
            self._note = None

    def _report(self, *, at_rest: bool) -> None:
        now = time.monotonic()
        if now >= self._note_at:
            self._write_note()
        if at_rest or now - self._told >= _PROGRESS_SECONDS:
            self._told = now
            missing = sum(space.missing.bytes for space in self._spaces.values())
            self._tell(self._total - missing, self._total)

    def _hear(self, timeout: int | None) -> bool:
        """Take in what processes wait for and do; tell whether the container lives."""
        for descriptor, _ in self._poll.poll(timeout):
            if descriptor == self._init:
                return False
            if descriptor == self._wake_up:
                os.eventfd_read(self._wake_up)
                self._ahead = True
                continue
            space = self._spaces[descriptor]
            for message in userfaultfd.messages(descriptor):
                self._take_in(space, *message)
        return True

    def _take_in(self, space: _Space, event: int, first: int, second: int, third: int) -> None:
        match event:
            case userfaultfd.PAGEFAULT:
                space.faults[second & -PAGE] = None
            case userfaultfd.FORK:
                if sum(len(one.missing) for one in self._spaces.values()) > _MOST_RANGES:
                    raise WoodfrogError("it forks too often while its memory is missing")
                self._add(_Space(first & 0xFFFFFFFF, space.missing.copy()))
            case userfaultfd.REMAP:
                space.missing.move(first, second, third)
            case userfaultfd.REMOVE | userfaultfd.UNMAP:
                space.missing.take(first, second)

    def _answer(self, space: _Space) -> None:
        """Bring what somebody waits for."""
        while space.faults:
            page = next(iter(space.faults))
            found = space.missing.at(page)
            if found is None:
                self._bring_zeros(space, page)
            else:
                if self._note:
                    space.touched.append(page)
                self._bring(space, *found, _AT_ONCE)
                space.next.append(page + _AT_ONCE)
            del space.faults[page]

    def _bring_more(self, space: _Space, *, ahead: bool) -> bool:
        """Bring what nobody waits for yet, at most a chunk; tell whether there was any."""
        while space.first:
            if (found := space.missing.at(space.first.popleft())) is not None:
                self._bring(space, *found, _AT_ONCE)
                space.next.append(found[0] + _AT_ONCE)
                return True
        found = None
        while space.next and found is None:
            found = space.missing.at(space.next.popleft())
        if found is None:
            if not (ahead and space.missing):
                return False
            found = space.missing.first()
        self._bring(space, *found, CHUNK)
        return True

    def _bring(self, space: _Space, start: int, end: int, store: int, most: int) -> None:
        """Bring the pages from `start` on, as far as `end`, a chunk's end or `most` allow."""
        offset = store % CHUNK
        end = min(end, start + most, start + CHUNK - offset)
        memory = self._chunks.memory(store // CHUNK)
        at, step = start, end - start
        while at < end:
            step = min(step, end - at)
            done = userfaultfd.copy(HERE, space.descriptor, at, memory, offset + at - start, step)
            if done == -errno.ENOENT and step > PAGE:
                step = max(step // 2 & -PAGE, PAGE)  # more than one mapping, or none
                continue
            if done <= 0:
                self._settle(space, at, done)
                done = PAGE
            space.missing.take(at, at + done)
            at += done
            self._short_since = None

    def _bring_zeros(self, space: _Space, page: int) -> None:
        """Answer for a page that was never written to."""
        done = userfaultfd.bring_zeros(HERE, space.descriptor, page, PAGE)
        if done <= 0:
            self._settle(space, page, done)

    def _settle(self, space: _Space, page: int, result: int) -> None:
        """Pass over a page that is there or isn't mapped any more; raises what keeps it away."""
        match -result:
            case errno.EEXIST | errno.ENOENT:
                userfaultfd.wake(HERE, space.descriptor, page, PAGE)
            case errno.EAGAIN:
                raise _ChangingError
            case errno.ESRCH:
                raise _EndedError
            case errno.ENOMEM if not self._is_short_for_long():
                raise _ChangingError
            case failure:
                raise OSError(failure, f"bringing the page at {page:#x}: {os.strerror(failure)}")

    def _is_short_for_long(self) -> bool:
        """Tell whether the container has been out of memory for too long."""
        now = time.monotonic()
        self._short_since = self._short_since or now
        return now - self._short_since > _OUT_OF_MEMORY_SECONDS
