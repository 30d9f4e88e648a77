"""A userfaultfd(2) of a stub's memory, in our hands alone."""

import errno
import os
from collections.abc import Iterable

from woodfrog.kernel import syscalls, userfaultfd
from woodfrog.kernel.caller import HERE
from woodfrog.remote import descriptors
from woodfrog.remote.stub import Stub


def register(stub: Stub, mappings: Iterable[tuple[int, int]], *, waits: bool) -> int:
    """Return a descriptor by which pages are brought to these (start, end) mappings.

    With `waits` whoever touches a missing page waits for it, in the kernel, too, and the descriptor
    tells of that and of all that changes the mappings; this needs CAP_SYS_PTRACE. Else nobody may
    touch them before it is closed.
    """
    theirs = _create(stub, waits=waits)
    ours = descriptors.fetch(stub.pid, theirs)
    try:
        end = stub.program()
        syscalls.close(end, theirs)
        stub.run(end)
        userfaultfd.begin(HERE, ours, events=waits)
        for start, stop in mappings:
            userfaultfd.register(HERE, ours, start, stop - start)
    except BaseException:
        os.close(ours)
        raise
    return ours


def _create(stub: Stub, *, waits: bool) -> int:
    """Return a new one's number in the stub."""
    program = stub.program()
    created = userfaultfd.create(program, kernel_too=waits)
    try:
        stub.run(program)
    except OSError as error:
        if error.errno != errno.EPERM or not os.path.exists(userfaultfd.DEVICE):
            raise
        return _create_by_device(stub)
    return program[created]


def _create_by_device(stub: Stub) -> int:
    """Do it where the stub lacks CAP_SYS_PTRACE on the host, as in a user namespace."""
    device = os.open(userfaultfd.DEVICE, os.O_RDWR | os.O_CLOEXEC)
    try:
        theirs = descriptors.give(stub, [device])[0]
    finally:
        os.close(device)
    program = stub.program()
    created = userfaultfd.create_by_device(program, theirs)
    syscalls.close(program, theirs)
    stub.run(program)
    return program[created]
