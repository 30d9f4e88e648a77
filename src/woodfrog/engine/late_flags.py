"""What only smaps tells of the mappings of processes, read from copies while they run on.

For /proc/PID/smaps the kernel looks at each page, 20 ms for a gibibyte, and has much to say. As
soon as a copy of the process is made (see snapshots), that has the same mappings with the same
flags.
"""

from contextlib import suppress

from woodfrog.engine.collected import CollectedProcess
from woodfrog.engine.collecting import note_inherited
from woodfrog.engine.obstacles import Obstacles
from woodfrog.engine.snapshots import Snapshot, Snapshots
from woodfrog.kernel.pagemap import Pagemap
from woodfrog.kernel.procfs.maps import read_smaps
from woodfrog.kernel.procfs.reading import read_file
from woodfrog.resources import memory_flags

# To ask the kernel about so many mappings takes half a millisecond.
_MOST_ASKED_ABOUT = 200


class LateFlags:
    """The flags of those mappings that were listed without."""

    def __init__(self, processes: list[CollectedProcess], snapshots: Snapshots) -> None:
        """Read them at once where no copy tells the same, or lacks pages.

        To be made while the processes are held.
        """
        self._processes = processes
        self._left: list[tuple[CollectedProcess, Snapshot, tuple[int, int]]] = []
        for one in processes:
            if not one.space.lacks_flags:
                continue
            assert one.held.scratch, "it lends us memory as long as it is held"
            copy, ours = snapshots.of(one.held), one.held.scratch.range
            if copy and _has_all(one, copy.pid):
                self._left.append((one, copy, ours))
            else:
                one.space.add_flags(one.held.pid, read_smaps(one.held.pid), ours)

    def read(self) -> None:
        """Read the others from the copies, while their processes run; refuse what can't be kept."""
        obstacles = Obstacles()
        for one, copy, ours in self._left:
            with obstacles.at(one.held.name):
                # A copy is registered with no userfaultfd. That of who handles faults from outside
                # the container, as nobody inside has one, stays.
                with suppress(FileNotFoundError, ProcessLookupError):  # it has ended since
                    memory_flags.refuse_registered(read_smaps(one.held.pid))
                one.space.add_flags(copy.pid, read_smaps(copy.pid), ours)
        obstacles.raise_if_any()
        note_inherited(self._processes)


def _has_all(one: CollectedProcess, copy: int) -> bool:
    """Tell whether a copy has all mappings of its process, and the pages and guards in them.

    One by MADV_DONTFORK is missing, one by MADV_WIPEONFORK or MAP_DROPPABLE empty.
    """
    pid = one.held.pid
    anonymous = [each for each in one.space.mappings if each.is_anonymous and not each.shared]
    if len(anonymous) > _MOST_ASKED_ABOUT:
        return False
    if read_file(f"/proc/{pid}/maps") != read_file(f"/proc/{copy}/maps"):
        return False
    with Pagemap(pid) as original, Pagemap(copy) as copied:
        return all(
            copied.has_any(each.start, each.end)
            or not any(original.own_and_guards(each.start, each.end, anonymous=True))
            for each in anonymous
        )
