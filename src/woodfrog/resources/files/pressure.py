"""Files of pressure (PSI), /proc/pressure and cgroups', by which programs wait for triggers.

No kernel shows what was written for a trigger. So another one takes its place.
"""

import errno
import os
import re
import stat
from typing import Literal

from woodfrog.kernel.procfs import mountinfo
from woodfrog.kernel.syscalls import lseek, write
from woodfrog.remote.program import Program
from woodfrog.resources.files.open_file import ACCESS_MODE, O_PATH, OpenFile

# Which pressure a trigger is set for: that of some tasks, or that of all. Without one: neither.
Trigger = Literal["", "some", "full"]
LOSS = "triggers of pressure are restored with a threshold of 200 ms in 2 s: none can be read back"
# By the type of their file system, their paths in it.
_FILES = {
    "proc": re.compile(rb"/pressure/(cpu|memory|io|irq)"),
    "cgroup2": re.compile(rb"/(?:.*/)?(cpu|memory|io|irq)\.pressure", re.DOTALL),
}
_NO_TRIGGER = b"?"
_USUAL = "200000 2000000"


def trigger(file: OpenFile, mount: mountinfo.Mount) -> Trigger:
    """Return the trigger that a file has, which is on this mount."""
    if file.flags & O_PATH or file.flags & ACCESS_MODE == os.O_RDONLY or mount.type not in _FILES:
        return ""
    found = _FILES[mount.type].fullmatch(mountinfo.inside(mount, file.target))
    if found is None or not stat.S_ISREG(file.stat.st_mode) or not _has_one(file.descriptor):
        return ""
    return "full" if found[1] == b"irq" else "some"  # interrupts stop all that would run


def _has_one(descriptor: int) -> bool:
    """Tell by what the kernel has against another trigger: one stands, or it understands none."""
    try:
        os.write(descriptor, _NO_TRIGGER)
    except OSError as error:
        return error.errno == errno.EBUSY
    return False


def set_usual(program: Program, fd: int, trigger: Trigger, position: int) -> None:
    """Set a trigger, which moves the position in a cgroup's files."""
    text = f"{trigger} {_USUAL}\0".encode()  # the last byte isn't looked at
    program.expect(write(program, fd, text), len(text))
    program.expect(lseek(program, fd, position), position)
