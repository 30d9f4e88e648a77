"""A fork that forgets Python, memory and all, by a program that it runs itself."""

import ctypes
import os
import signal
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import cast

import pytest

from containers import eventually
from needs import needs
from woodfrog.engine import forked_stub
from woodfrog.engine.template import Template
from woodfrog.kernel import syscalls
from woodfrog.kernel.caller import HERE
from woodfrog.kernel.procfs.maps import read_maps
from woodfrog.kernel.procfs.status import read_status
from woodfrog.remote import entrance
from woodfrog.remote.address import TASK_SIZE
from woodfrog.remote.stub import CODE_BYTES, MASK
from woodfrog.resources.memory import MAP_ANONYMOUS, MAP_PRIVATE

pytestmark = needs("root")

SIZE = 16 * 4096
READY = 3 * 4096


@pytest.fixture
def template() -> Iterator[Template]:
    """What a fork knows of a template: where a stub's own memory is, and memory that lies ready."""
    length = CODE_BYTES + SIZE + READY
    base = syscalls.mmap(HERE, 0, length, 3, MAP_PRIVATE | MAP_ANONYMOUS)
    ctypes.memmove(base, entrance.code(), len(entrance.code()))
    syscalls.mprotect(HERE, base, CODE_BYTES, 5)
    ready = base + CODE_BYTES + SIZE, base + length
    yield cast(Template, SimpleNamespace(base=base, size=SIZE, ready=[ready], stand_by=None))
    syscalls.munmap(HERE, base, length)


def forked(template: Template) -> int:
    forked_stub.prepare(template)
    pid = os.fork()
    if pid == 0:
        assert template.stand_by
        template.stand_by()
    return pid


def span(pid: int) -> tuple[int, int]:
    """Return where the first mapping of a process begins, and where the last one ends."""
    found = [(one[0], one[1]) for one in read_maps(pid) if one[1] <= TASK_SIZE]
    return found[0][0], found[-1][1]


def test_only_what_lies_ready_stays_mapped(template: Template) -> None:
    pid = forked(template)
    try:
        own = template.base, template.ready[0][1]
        eventually(lambda: span(pid) == own, "all else is unmapped")
        # It may not be asked to handle a signal any more.
        assert int(read_status(f"/proc/{pid}")["SigBlk"], 16) | 1 << 8 | 1 << 18 == MASK
        assert Path(f"/proc/{pid}/syscall").read_text().split()[0] == "35"  # nanosleep
    finally:
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)


def test_it_ends_if_nobody_comes(template: Template, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(forked_stub, "_PATIENCE_S", 0)
    _, status = os.waitpid(forked(template), 0)
    assert os.waitstatus_to_exitcode(status) == 1
