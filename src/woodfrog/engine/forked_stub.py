"""ROOT, from a template: the waiting init becomes the root stub and keeps the memory that it has.

Without the exec(2) of other restores, what exec would have done is done here, but for what each
process sets later anyway: signal actions, names, the fields of the memory. The loop and the memory
that it needs init was born with, so all that takes two programs.
"""

import os
import socket
import struct

from woodfrog.engine.root_stub import hold
from woodfrog.engine.template import Template
from woodfrog.kernel import ptrace, syscalls
from woodfrog.kernel.abi.x86_64 import SYS
from woodfrog.kernel.namespaces import CLONE_NEWTIME
from woodfrog.remote import descriptors, stub
from woodfrog.remote.program import Program
from woodfrog.remote.stub import Stub
from woodfrog.resources import memory_making

_RSEQ_FLAG_UNREGISTER = 1
_ROBUST_LIST_BYTES = 24
_STACK_T = struct.Struct("<QixxxxQ")
_SS_DISABLE = 2
_FIRST = 3  # behind stdio


def make(
    init: int, template: Template, *, high: int, pages: int, time_offsets: bytes | None
) -> tuple[Stub, int]:
    """Make a stub of init, like `root_stub.make`, that has only the memory that lies ready."""
    hold(init)
    ptrace.set_signal_mask(init, stub.MASK)
    made = Stub(init, template.base, template.size)
    program = made.program()
    # All that init has open closes on exec.
    syscalls.close_range(program, _FIRST, 0xFFFFFFFF)
    ends = bytearray(8)
    kind = socket.SOCK_DGRAM | socket.SOCK_CLOEXEC
    program.call(SYS.SOCKETPAIR, socket.AF_UNIX, kind, 0, ends)
    if time_offsets is not None:
        program.call(SYS.UNSHARE, CLONE_NEWTIME)
    made.run(program)
    sent = [pages]
    if time_offsets is not None:
        with open(f"/proc/{init}/timens_offsets", "wb", buffering=0) as file:
            file.write(time_offsets)
        sent.append(os.open(f"/proc/{init}/ns/time_for_children", os.O_RDONLY | os.O_CLOEXEC))
    try:
        theirs, ours = struct.unpack("<2i", ends)
        descriptors.send_by(init, ours, sent)
    finally:
        for descriptor in sent[1:]:
            os.close(descriptor)
    program = made.program()
    store, *clocks = descriptors.receive(program, theirs, len(sent))
    syscalls.duplicate_to(program, store, high, cloexec=True)
    for descriptor in clocks:
        program.call(SYS.SETNS, descriptor, CLONE_NEWTIME)
    syscalls.close_range(program, _FIRST, high - 1)
    _forget_the_interpreter(program, init)
    memory_making.unmap_all(program, [made.area, *template.ready])
    # The kernel takes as long for that as it takes us to prepare what comes next.
    made.run_aside(program)
    return made, high


def _forget_the_interpreter(program: Program, init: int) -> None:
    """Take back what Python's thread has told the kernel."""
    area = ptrace.rseq(init)
    if area.address:
        program.call(SYS.RSEQ, area.address, area.size, _RSEQ_FLAG_UNREGISTER, area.signature)
    program.call(SYS.SET_ROBUST_LIST, 0, _ROBUST_LIST_BYTES)
    program.call(SYS.SET_TID_ADDRESS, 0)
    syscalls.sigaltstack(program, _STACK_T.pack(0, _SS_DISABLE, 0), None)
