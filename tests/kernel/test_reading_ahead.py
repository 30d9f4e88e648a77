"""What is read of a held process while other things are looked at."""

import sys
from contextlib import ExitStack

import pytest

from needs import needs
from started import UNSHARE, child_of, line, started
from woodfrog.engine import collecting_shares, reading_ahead
from woodfrog.engine.collected import CollectedProcess
from woodfrog.engine.obstacles import Obstacles
from woodfrog.engine.reading_ahead import MappingsAhead
from woodfrog.kernel.pagemap import Pagemap
from woodfrog.kernel.procfs.maps import Mapping, read_smaps
from woodfrog.remote.held import HeldProcess
from woodfrog.remote.hold import held
from woodfrog.remote.vdso import own_vdso
from woodfrog.resources import memory

HOLDS = "one = bytearray(8 << 20); one[:] = b'x' * len(one); print('ready', flush=True); input()"
# Memory that is not to be dumped; with a word, it is registered with a userfaultfd.
HAS_FLAGS = """
import ctypes, fcntl, mmap, struct, sys
one = mmap.mmap(-1, 8 << 20, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
one[:] = b"x" * len(one)
one.madvise(16)
if sys.argv[1:]:
    file = ctypes.CDLL(None).syscall(323, 1)
    fcntl.ioctl(file, 0xC018AA3F, bytearray(struct.pack("3Q", 0xAA, 0, 0)))
    start = ctypes.addressof(ctypes.c_char.from_buffer(one))
    fcntl.ioctl(file, 0xC020AA00, bytearray(struct.pack("4Q", start, len(one), 1, 0)))
print("ready", flush=True)
input()
"""
SHARES_MEMORY = """
import ctypes
one = bytearray(8 << 20)
one[:] = b"x" * len(one)
libc, stack = ctypes.CDLL(None), ctypes.create_string_buffer(1 << 16)
libc.clone(libc.pause, ctypes.c_void_p(ctypes.addressof(stack) + (1 << 15)), 0x100 | 17, None)
print("ready", flush=True)
input()
"""


@needs("root")
def test_pages_that_are_walked_over_are_those_that_there_are() -> None:
    with started(*UNSHARE, sys.executable, "-c", HOLDS) as unshare:
        assert line(unshare) == "ready"
        init = child_of(unshare.pid)
        with held(init) as tree:
            [one] = tree.processes
            MappingsAhead(tree.processes, (), may_be_late=False).walk()
            assert not one.walked
            ahead = MappingsAhead(tree.processes, {init}, may_be_late=False)
            ahead.walk()
            mappings = [each for each in ahead.of(one) if not each.shared]
            large = {
                (each.start, each.end) for each in mappings if each.end - each.start >= 1 << 20
            }
            assert one.walked.keys() == large
            with Pagemap(init) as pagemap:
                for (start, end), walk in one.walked.items():
                    assert walk.own == pagemap.own_pages(start, end)
                    assert (walk.unwritten, walk.guards) == ([], [])
            pages = [end - start for walk in one.walked.values() for start, end in walk.own]
            assert sum(pages) >= 8 << 20
            ahead.forget_walks()
            assert not one.walked


@needs("root")
@pytest.mark.parametrize("words", [(), ("registered",)], ids=["kept", "refused"])
def test_flags_that_come_later_are_those_that_there_are(
    words: tuple[str, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(reading_ahead, "_LARGE", 4 << 20)
    with started(*UNSHARE, sys.executable, "-c", HAS_FLAGS, *words) as unshare:
        assert line(unshare) == "ready"
        with held(child_of(unshare.pid)) as tree, ExitStack() as lent:
            [one] = tree.processes
            ahead = MappingsAhead(tree.processes, (), may_be_late=False)
            ahead.begin(own_vdso(), lent)
            assert ahead.lacks_flags(one)
            found = _collected(one, ahead.of(one))
            assert not any(each.advice for each in found.space.mappings)
            obstacles = Obstacles()
            ahead.add_flags([found], obstacles)
            if words:
                [(text, _)] = obstacles.found
                assert "is registered with a userfaultfd" in text
                return
            assert not obstacles.found
            assert any(each.advice == [16] for each in found.space.mappings)
            assert found.space.mappings == _collected(one, read_smaps(one.pid)).space.mappings


@needs("root")
def test_flags_of_memory_that_others_share_do_not_come_later(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(reading_ahead, "_LARGE", 4 << 20)
    with started(*UNSHARE, sys.executable, "-c", SHARES_MEMORY) as unshare:
        assert line(unshare) == "ready"
        with held(child_of(unshare.pid)) as tree, ExitStack() as lent:
            assert len(tree.processes) == 2
            collecting_shares.refuse_shared_parts(tree, Obstacles())
            ahead = MappingsAhead(tree.processes, (), may_be_late=False)
            ahead.begin(own_vdso(), lent)
            assert not any(ahead.lacks_flags(one) for one in tree.processes)


def _collected(one: HeldProcess, listed: list[Mapping]) -> CollectedProcess:
    assert one.scratch
    ours, root = one.scratch.range, f"/proc/{one.pid}/root"
    space = memory.collect(
        one.pid, one.leader.stat, listed, ours, lambda *_: 0, root, 0, (b"", 0), noted=False
    )
    return CollectedProcess(one, space, {})
