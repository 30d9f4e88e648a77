"""Open files that a process takes from another one: io_urings can't be sent since Linux 6.7."""

import os
from collections.abc import Mapping

from woodfrog.kernel import syscalls
from woodfrog.kernel.abi.x86_64 import SYS
from woodfrog.remote.stub import Stub
from woodfrog.resources.files.io_uring import is_one

_PR_SET_PTRACER, _ANY = 0x59616D61, -1


def must_be_taken(ours: int) -> bool:
    """Tell whether a file of ours can't be sent."""
    return is_one(os.readlink(b"/proc/self/fd/%d" % ours))


def take(stub: Stub, owner: Stub, pid: int, numbers: Mapping[int, list[tuple[int, bool]]]) -> None:
    """Have a stub take files of another one, which it knows as `pid`.

    `numbers` says for each number there, as what it takes them: numbers, and whether close-on-exec.
    """
    _set_ptracer(owner, _ANY)
    program = stub.program()
    process = program.call(SYS.PIDFD_OPEN, pid, 0)
    above = 1 + max(number for slots in numbers.values() for number, _ in slots)
    # High enough not to be in the way of those that are still to come.
    high = syscalls.duplicate_above(program, process, above)
    syscalls.close(program, process)
    for theirs, slots in numbers.items():
        got = program.call(SYS.PIDFD_GETFD, high, theirs, 0)
        moved = syscalls.duplicate_above(program, got, above)
        syscalls.close(program, got)
        for number, cloexec in slots:
            syscalls.duplicate_to(program, moved, number, cloexec=cloexec)
        syscalls.close(program, moved)
    syscalls.close(program, high)
    stub.run(program)
    _set_ptracer(owner, 0)


def _set_ptracer(stub: Stub, who: int) -> None:
    """Let another process take files of a stub, where Yama is in force (prctl(2))."""
    program = stub.program()
    program.may_fail(syscalls.prctl(program, _PR_SET_PTRACER, who))
    stub.run(program)
