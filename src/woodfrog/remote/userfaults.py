"""A userfaultfd(2) of a stub's memory, in our hands alone."""

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
    program = stub.program()
    theirs = userfaultfd.create(program, kernel_too=waits)
    stub.run(program)
    ours = descriptors.fetch(stub.pid, program[theirs])
    try:
        end = stub.program()
        syscalls.close(end, program[theirs])
        stub.run(end)
        userfaultfd.begin(HERE, ours, events=waits)
        for start, stop in mappings:
            userfaultfd.register(HERE, ours, start, stop - start)
    except BaseException:
        os.close(ours)
        raise
    return ours
