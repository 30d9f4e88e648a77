"""Mappings of large processes, which a thread of ours reads while we look at other things.

For /proc/PID/smaps the kernel looks at all pages of a process.
"""

import threading
from collections.abc import Iterable

from woodfrog.kernel.procfs.maps import Mapping, read_smaps
from woodfrog.kernel.procfs.status import read_status
from woodfrog.remote.held import HeldProcess

_LARGE = 64 << 20


class MappingsAhead:
    """Those of held processes; nothing may be mapped in them until they are `finished`."""

    def __init__(self, processes: Iterable[HeldProcess]) -> None:
        self._found: dict[int, list[Mapping]] = {}
        self._pids = [one.pid for one in processes if one.own_bytes >= _LARGE]
        self._thread = threading.Thread(target=self._read, daemon=True)
        if self._pids:
            self._thread.start()

    def _read(self) -> None:
        try:
            for pid in self._pids:
                self._found[pid] = read_smaps(pid)
        except OSError:
            pass  # whoever needs them reads them, and tells

    def finish(self) -> None:
        """Wait until all are read."""
        if self._pids:
            self._thread.join()

    def of(self, held: HeldProcess) -> list[Mapping]:
        """Return the mappings of a process, in which there is scratch memory of ours now."""
        found = self._found.get(held.pid)
        # How new memory is locked only that of ours tells, and only if anything is locked.
        if found is None or read_status(held.path)["VmLck"] != "0 kB":
            return read_smaps(held.pid)
        return found
