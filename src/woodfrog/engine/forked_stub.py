"""ROOT, from a template: the waiting init becomes the root stub and keeps the memory that it has.

Without the exec(2) of other restores, what exec would have done is done here, but for what each
process sets later anyway: signal actions, names, the fields of the memory. The loop, memory for
programs, and a first program init was born with. That it runs by itself as soon as it has nothing
else to do, since the kernel takes a while to unmap all of Python; then it waits to be held.
"""

import os
import socket
import struct
import time

from woodfrog.engine.root_stub import hold
from woodfrog.engine.template import Template
from woodfrog.kernel import ptrace, syscalls
from woodfrog.kernel.abi.x86_64 import SYS
from woodfrog.kernel.namespaces import CLONE_NEWTIME
from woodfrog.kernel.ptrace import Event, Rseq
from woodfrog.kernel.signals import signals
from woodfrog.remote import descriptors, entrance, stub
from woodfrog.remote.program import Program
from woodfrog.remote.stub import CODE_BYTES, Stub, StubError
from woodfrog.resources import memory_making

_RSEQ_FLAG_UNREGISTER = 1
_ROBUST_LIST_BYTES = 24
_STACK_T = struct.Struct("<QixxxxQ")
_SS_DISABLE = 2
_FIRST = 3  # behind stdio
_SIG_SETMASK = 2
_TIMESPEC = struct.Struct("<2q")
_PATIENCE_S = 60
_LOOK_AGAIN_S = 50e-6


def prepare(template: Template) -> None:
    """Have forks of ours know how to forget all but the memory that lies ready, and stand by."""
    base = template.base
    program = Program(*Stub.part_of(base, template.size))
    # A signal would find its handler gone; those that come now wait until the process is whole.
    mask = stub.MASK.to_bytes(8, "little")
    program.call(SYS.RT_SIGPROCMASK, _SIG_SETMASK, mask, 0, len(mask))
    _forget_the_interpreter(program, _rseq_of_forks())
    area = (base, base + CODE_BYTES + template.size)
    memory_making.unmap_all(program, [area, *template.ready])
    # If whoever was to hold it has been killed, it ends.
    program.may_fail(program.call(SYS.NANOSLEEP, _TIMESPEC.pack(_PATIENCE_S, 0), 0))
    program.call(SYS.EXIT_GROUP, 1)
    template.stand_by = entrance.into(program, base)


def _rseq_of_forks() -> Rseq:
    """Return what the C library has told the kernel of our thread, and of each fork's."""
    pid = os.fork()
    if pid == 0:
        while True:
            signals.pause()
    try:
        hold(pid)
        return ptrace.rseq(pid)
    finally:
        os.kill(pid, signals.SIGKILL)
        os.waitpid(pid, 0)


def _hold(init: int) -> None:
    """Stop the init as soon as it stands by."""
    hold(init)
    while ptrace.registers(init).orig_rax != SYS.NANOSLEEP:
        ptrace.resume(init)
        time.sleep(_LOOK_AGAIN_S)
        ptrace.interrupt(init)
        status = ptrace.wait(init)
        if status.event in (Event.EXITED, Event.KILLED):
            raise StubError(f"the init ended before it stood by: {status}")


def make(
    init: int, template: Template, *, high: int, pages: int, time_offsets: bytes | None
) -> tuple[Stub, int]:
    """Make a stub of init, like `root_stub.make`, that has only the memory that lies ready."""
    _hold(init)
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
    made.run(program)
    return made, high


def _forget_the_interpreter(program: Program, area: Rseq) -> None:
    """Take back what Python's thread has told the kernel."""
    if area.address:
        program.call(SYS.RSEQ, area.address, area.size, _RSEQ_FLAG_UNREGISTER, area.signature)
    program.call(SYS.SET_ROBUST_LIST, 0, _ROBUST_LIST_BYTES)
    program.call(SYS.SET_TID_ADDRESS, 0)
    syscalls.sigaltstack(program, _STACK_T.pack(0, _SS_DISABLE, 0), None)
