"""Mappings of large processes, which a thread of ours reads while we look at other things.

For /proc/PID/smaps the kernel looks at all pages of a process. That of which it notes what is
written to, we ask about its pages meanwhile: nothing writes to them as long as it is held.
"""

import threading
from collections.abc import Container, Iterable
from contextlib import suppress

from woodfrog.kernel.kcmp import KCMP_VM
from woodfrog.kernel.pagemap import Pagemap
from woodfrog.kernel.procfs.maps import Mapping, read_maps, read_smaps
from woodfrog.kernel.procfs.status import read_status
from woodfrog.remote.held import HeldProcess

_LARGE = 64 << 20
_LARGE_MAPPING = 1 << 20


class MappingsAhead:
    """Those of held processes; nothing may be mapped in them until they are `finished`.

    If flags `may_be_late`, those of some are left to be read later (see late_flags).
    """

    def __init__(
        self, processes: Iterable[HeldProcess], noted: Container[int], *, may_be_late: bool
    ) -> None:
        """`noted` are the pids of those of which the kernel notes what is written to."""
        self._found: dict[int, list[Mapping]] = {}
        self._processes = [*processes]
        self._late = {
            one.pid
            for one in self._processes
            # A copy of who is noted is not, and so has other flags.
            if may_be_late and one.pid not in noted and _may_be_late(one)
        }
        self._pids = [
            one.pid
            for one in self._processes
            if one.own_bytes >= _LARGE and one.pid not in self._late
        ]
        self._thread = threading.Thread(target=self._read, daemon=True)
        if self._pids:
            self._thread.start()

    def _read(self) -> None:
        try:
            for pid in self._pids:
                self._found[pid] = read_smaps(pid)
        except OSError:
            pass  # whoever needs them reads them, and tells

    def walk(self, noted: Container[int]) -> None:
        """Walk over the pages of those processes that are `noted`, by their pids."""
        for one in self._processes:
            if one.pid in noted:
                with suppress(OSError):  # whoever needs it walks, and tells
                    _walk(one)

    def finish(self) -> None:
        """Wait until all are read."""
        if self._pids:
            self._thread.join()

    def lacks_flags(self, held: HeldProcess) -> bool:
        """Tell whether the mappings of a process are told without their flags."""
        # (New memory is locked by mlockall(MCL_FUTURE), and so would that of ours be.)
        return held.pid in self._late and not _has_locked(held)

    def of(self, held: HeldProcess) -> list[Mapping]:
        """Return the mappings of a process, in which there is scratch memory of ours now."""
        if self.lacks_flags(held):
            return [Mapping(*head, flags=frozenset()) for head in read_maps(held.pid)]
        found = self._found.get(held.pid)
        # How new memory is locked only that of ours tells, and only if anything is locked.
        if found is None or _has_locked(held):
            return read_smaps(held.pid)
        return found


def _may_be_late(held: HeldProcess) -> bool:
    """Tell whether a copy of a process would have the same flags and pages, as far as that is seen.

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
