"""Of large processes, what their pages tell: read beside all else that we look at.

For /proc/PID/smaps the kernel looks at all pages of a process, and a thread of ours has it do so.
That of which it notes what is written to, we ask about its pages before: two who walk over the same
page tables keep each other waiting, and nothing writes to them as long as it is held.
"""

import threading
from collections.abc import Container, Iterable
from contextlib import ExitStack, suppress

from woodfrog.engine.collected import CollectedProcess, scratch_in
from woodfrog.engine.obstacles import Obstacles
from woodfrog.errors import UnsupportedResource
from woodfrog.kernel.kcmp import KCMP_VM
from woodfrog.kernel.pagemap import Pagemap
from woodfrog.kernel.procfs.maps import Mapping, read_maps, read_smaps
from woodfrog.kernel.procfs.status import read_status
from woodfrog.remote.held import HeldProcess
from woodfrog.remote.vdso import Vdso

_LARGE = 64 << 20
_LARGE_MAPPING = 1 << 20


class MappingsAhead:
    """The mappings of held processes; those of large ones are told without their flags at first.

    If flags `may_be_late`, those of some are left to be read from copies (see late_flags); those of
    the others come by `add_flags`.
    """

    def __init__(
        self, processes: Iterable[HeldProcess], noted: Container[int], *, may_be_late: bool
    ) -> None:
        """`noted` are the pids of those of which the kernel notes what is written to."""
        self._found: dict[int, list[Mapping]] = {}
        self._processes = [*processes]
        self._noted = noted
        self._late = {
            one.pid
            for one in self._processes
            # A copy of who is noted is not, and so has other flags.
            if may_be_late and one.pid not in noted and _may_be_late(one)
        }
        self._beside: list[int] = []
        self._thread = threading.Thread(target=self._read, daemon=True)

    def begin(self, vdso: Vdso, lent: ExitStack) -> None:
        """Begin to read; until that is finished, nothing can be mapped in those processes.

        So they lend us memory before, until `lent` unwinds.
        """
        # Who shares its memory with others would find what those lend us among its mappings.
        shared = {one.shares[KCMP_VM].pid for one in self._processes if KCMP_VM in one.shares}
        for one in self._processes:
            if one.own_bytes < _LARGE or one.pid in shared | self._late or not _may_be_late(one):
                continue
            with suppress(OSError, UnsupportedResource):  # whoever needs the memory tells
                lent.enter_context(scratch_in(one, vdso))
                if not _has_locked(one):
                    self._beside.append(one.pid)
        if self._beside:
            self._thread.start()

    def _read(self) -> None:
        try:
            for pid in self._beside:
                self._found[pid] = read_smaps(pid)
        except OSError:
            pass  # whoever needs them reads them, and tells

    def walk(self) -> None:
        """Walk over the pages of those processes that are noted."""
        for one in self._processes:
            if one.pid in self._noted:
                with suppress(OSError):  # whoever needs it walks, and tells
                    _walk(one)

    def forget_walks(self) -> None:
        """Have pages walked over again by who needs that, as they may have been written to."""
        for one in self._processes:
            one.walked.clear()

    def finish(self) -> None:
        """Wait until all are read."""
        if self._beside:
            self._thread.join()

    def lacks_flags(self, held: HeldProcess) -> bool:
        """Tell whether the mappings of a process are told without their flags."""
        # (New memory is locked by mlockall(MCL_FUTURE), and so would that of ours be.)
        return held.pid in self._beside or (held.pid in self._late and not _has_locked(held))

    def of(self, held: HeldProcess) -> list[Mapping]:
        """Return the mappings of a process, in which there is scratch memory of ours now."""
        if self.lacks_flags(held):
            return [Mapping(*head, flags=frozenset()) for head in read_maps(held.pid)]
        return read_smaps(held.pid)

    def add_flags(self, processes: Iterable[CollectedProcess], obstacles: Obstacles) -> None:
        """Add the flags that were read beside; what can't be kept is noted.

        The processes are held, and lend us the memory still.
        """
        self.finish()
        for one in processes:
            pid = one.held.pid
            if pid in self._beside:
                assert one.held.scratch, "it lends us memory"
                listed = self._found.get(pid) or read_smaps(pid)
                ours, noted = one.held.scratch.range, pid in self._noted
                with obstacles.at(one.held.name):
                    one.space.add_flags(pid, listed, ours, noted=noted)


def _may_be_late(held: HeldProcess) -> bool:
    """Tell whether nothing that flags tell matters at first, and a copy would have the same.

    It has nothing locked, and no huge pages of hugetlbfs.
    """
    status = held.leader.status
    nothing = all(status.get(name, "0 kB") == "0 kB" for name in ("VmLck", "HugetlbPages"))
    return nothing and KCMP_VM not in held.shares


def _has_locked(held: HeldProcess) -> bool:
    return read_status(held.path)["VmLck"] != "0 kB"


def _walk(held: HeldProcess) -> None:
    with Pagemap(held.pid) as pagemap:
        for start, end, _, is_shared, _, _, inode, _ in read_maps(held.pid):
            if is_shared or end - start < _LARGE_MAPPING:
                continue
            held.walked[start, end] = pagemap.walk(start, end, anonymous=not inode)
