"""ROOT, from a template: the waiting init becomes the root stub and keeps the memory that it has.

Without the exec(2) of other restores, what exec would have done is done here, but for what each
process sets later anyway: signal actions, names, the fields of the memory.
"""

import os
import struct
from collections.abc import Sequence
from contextlib import ExitStack

from woodfrog.engine.root_stub import Injection, hold, raise_descriptor_limit
from woodfrog.kernel import ptrace
from woodfrog.kernel.abi.x86_64 import SYS
from woodfrog.kernel.namespaces import CLONE_NEWTIME
from woodfrog.kernel.syscalls import F_DUPFD
from woodfrog.remote import descriptors, stub
from woodfrog.remote.program import LOOP
from woodfrog.remote.stub import Stub
from woodfrog.remote.vdso import Vdso
from woodfrog.resources import memory_making

_PRIVATE_ANONYMOUS_NEW = 0x22 | 0x100000  # MAP_FIXED_NOREPLACE
_READ_EXECUTE, _READ_WRITE = 5, 3
_RSEQ_FLAG_UNREGISTER = 1
_ROBUST_LIST_BYTES = 24
_STACK_T = struct.Struct("<QixxxxQ")
_SS_DISABLE = 2


def make(
    init: int,
    base: int,
    size: int,
    vdso: Vdso,
    *,
    high: int,
    pages: int,
    time_offsets: bytes | None,
    ready: Sequence[tuple[int, int]],
) -> tuple[Stub, int]:
    """Make a stub of init, like `root_stub.make`, that has only the memory that lies ready.

    `ready` are (start, end) in order.
    """
    hold(init)
    injection = Injection(init, vdso)
    raise_descriptor_limit(injection)
    with ExitStack() as ours:
        sent = [pages]
        if time_offsets is not None:
            injection.call(SYS.UNSHARE, CLONE_NEWTIME)
            with open(f"/proc/{init}/timens_offsets", "wb", buffering=0) as file:
                file.write(time_offsets)
            clocks = os.open(f"/proc/{init}/ns/time_for_children", os.O_RDONLY | os.O_CLOEXEC)
            ours.callback(os.close, clocks)
            sent.append(clocks)
        theirs = descriptors.send(init, injection.memory, injection.page, injection.call, sent)
    store = injection.call(SYS.FCNTL, theirs[0], F_DUPFD, high)
    if time_offsets is not None:
        injection.call(SYS.SETNS, theirs[1], CLONE_NEWTIME)
    _forget_the_interpreter(injection)
    injection.call(SYS.MMAP, base, 4096, _READ_EXECUTE, _PRIVATE_ANONYMOUS_NEW, -1, 0)
    injection.call(SYS.MMAP, base + 4096, size, _READ_WRITE, _PRIVATE_ANONYMOUS_NEW, -1, 0)
    os.pwrite(injection.memory, LOOP, base)
    os.close(injection.memory)
    ptrace.set_signal_mask(init, stub.MASK)
    made = Stub(init, base, size)
    program = made.program()
    memory_making.unmap_all(program, [made.area, *ready])
    made.run(program)
    return made, store


def _forget_the_interpreter(injection: Injection) -> None:
    """Close what exec would close, and take back what Python's thread has told the kernel."""
    area = ptrace.rseq(injection.pid)
    if area.address:
        arguments = (area.address, area.size, _RSEQ_FLAG_UNREGISTER, area.signature)
        injection.call(SYS.RSEQ, *arguments)
    injection.call(SYS.SET_ROBUST_LIST, 0, _ROBUST_LIST_BYTES)
    injection.call(SYS.SET_TID_ADDRESS, 0)
    injection.call(SYS.SIGALTSTACK, injection.put(_STACK_T.pack(0, _SS_DISABLE, 0)), 0)
    for name in os.listdir(f"/proc/{injection.pid}/fd"):
        if _closes_on_exec(injection.pid, name):
            injection.call(SYS.CLOSE, int(name))


def _closes_on_exec(pid: int, number: str) -> bool:
    with open(f"/proc/{pid}/fdinfo/{number}", "rb") as file:
        flags = next(line for line in file if line.startswith(b"flags:"))
    return bool(int(flags.split()[1], 8) & os.O_CLOEXEC)
