"""One thread: registers, XSAVE state, mask, and what it told the kernel about itself."""

import ctypes
import os
import struct

from woodfrog.errors import ImageError
from woodfrog.image.record import Part
from woodfrog.kernel import ptrace, syscalls
from woodfrog.kernel.abi.x86_64 import SYS
from woodfrog.kernel.caller import HERE
from woodfrog.kernel.namespaces import CLONE_FS
from woodfrog.kernel.process import PR_SET_NAME, PR_SET_PDEATHSIG, PR_SET_TIMERSLACK
from woodfrog.kernel.procfs.reading import read_file
from woodfrog.kernel.procfs.status import Status, read_stat, read_status
from woodfrog.kernel.ptrace import Registers
from woodfrog.remote.program import Program
from woodfrog.resources import credentials as credentials_of
from woodfrog.resources import thread_controls
from woodfrog.resources.credentials import Credentials
from woodfrog.resources.descriptor import Descriptor
from woodfrog.resources.scheduling import Scheduling
from woodfrog.resources.seccomp_filters import Filter
from woodfrog.resources.semaphore_undo import Undo
from woodfrog.resources.thread_controls import Controls
from woodfrog.resources.waits_at_sockets import WaitAtSocket

_PR_GET_PDEATHSIG = 2
_PR_MCE_KILL, _PR_MCE_KILL_CLEAR, _PR_MCE_KILL_SET, _PR_MCE_KILL_GET = 33, 0, 1, 34
_PR_GET_TIMERSLACK, _PR_GET_TID_ADDRESS = 30, 40
_ARCH_GET_XCOMP_PERM, _ARCH_REQ_XCOMP_PERM = 0x1022, 0x1023
_XFEATURE_AMX = 18
_ASK = 0xFFFFFFFF
_STACK = struct.Struct("<QixxxxQ")
_XSTATE_HEADER_AT, _XSTATE_LEAST = 512, 576
_XSTATE_LARGEST = 1 << 16


class RobustList(Part, frozen=True):
    """set_robust_list(2)."""

    head: int
    length: int


class RseqArea(Part, frozen=True):
    """rseq(2): address 0 means that there is none."""

    address: int
    size: int
    signature: int


class Thread(Part, frozen=True):
    """One thread, as it goes on. `xstate` is the XSAVE area without the zeros at its end.

    `directory` and `umask` are its own, if it doesn't share the process's; else empty. So are its
    table of `descriptors` and its `undo` list; None is the process's.
    """

    tid: int
    name: bytes
    registers: bytes
    xstate: bytes
    amx: bool
    mask: int
    pending: list[bytes]
    alternate_stack: bytes
    tid_address: int
    robust_list: RobustList
    rseq: RseqArea
    pdeath_signal: int
    timer_slack: int
    machine_check_kill: int
    credentials: Credentials
    scheduling: Scheduling
    personality: int
    seccomp: int
    filters: list[Filter]
    socket_wait: WaitAtSocket | None
    directory: bytes = b""
    umask: int = 0
    descriptors: list[Descriptor] | None = None
    controls: Controls | None = None
    namespaces: dict[str, int] = {}  # nested ones: see nested.Membership
    undo: list[Undo] | None = None
    nested_tid: list[int] = []  # what `tid` is in the nested pid namespaces, outermost first

    @property
    def ids(self) -> list[int]:
        """Its ids in all pid namespaces of the container that it is in, outermost first."""
        return [self.tid, *self.nested_tid]


class EndedThread(Part, frozen=True):
    """The first thread of a process, which has ended before others. `status` as in wait(2)."""

    name: bytes
    status: int
    credentials: Credentials


def read_personality(path: str) -> int:
    """Read a thread's /proc/PID/personality; the call would ask filters, which look at it."""
    return int(read_file(f"{path}/personality"), 16)


def ask_personality(program: Program) -> int:
    """Add the call that tells it without changing it, for threads that have no filters."""
    return program.call(SYS.PERSONALITY, _ASK)


def set_personality(program: Program, thread: Thread) -> None:
    """Set that; run it in the thread, as what is mapped after it may be executable."""
    program.call(SYS.PERSONALITY, thread.personality)


def ended(path: str) -> EndedThread:
    """Read what is left of an ended thread whose directory in /proc is `path`."""
    stat = read_stat(path)
    return EndedThread(
        name=stat.comm,
        status=stat.exit_code,
        credentials=credentials_of.shown(read_status(path), securebits=0),
    )


class Answers:
    """What a program tells of one thread."""

    def __init__(self, program: Program) -> None:
        self._program = program
        self._stack = bytearray(_STACK.size)
        self._tid_address = bytearray(8)
        self._pdeath = bytearray(4)
        self._xcomp = bytearray(8)
        syscalls.sigaltstack(program, None, self._stack)
        syscalls.prctl(program, _PR_GET_TID_ADDRESS, self._tid_address)
        syscalls.prctl(program, _PR_GET_PDEATHSIG, self._pdeath)
        self._slack = syscalls.prctl(program, _PR_GET_TIMERSLACK)
        self._machine_check = program.may_fail(syscalls.prctl(program, _PR_MCE_KILL_GET))
        program.may_fail(program.call(SYS.ARCH_PRCTL, _ARCH_GET_XCOMP_PERM, self._xcomp))
        self._controls = thread_controls.ask(program)
        self._credentials = credentials_of.ask(program)

    def fields(self, status: Status) -> dict[str, object]:
        """Return the record's fields, once the program has run in the thread with this status."""
        return {
            "alternate_stack": bytes(self._stack),
            "tid_address": int.from_bytes(self._tid_address, "little"),
            "pdeath_signal": int.from_bytes(self._pdeath, "little"),
            "timer_slack": self._program[self._slack],
            "machine_check_kill": self._program[self._machine_check],
            "amx": bool(int.from_bytes(self._xcomp, "little") >> _XFEATURE_AMX & 1),
            "credentials": self._credentials(status),
            "controls": self._controls(),
        }


def robust_list(pid: int) -> RobustList:
    """Read a thread's robust list, by its id as we see it."""
    head, length = bytearray(8), bytearray(8)
    HERE.call(SYS.GET_ROBUST_LIST, pid, head, length)
    return RobustList(head=int.from_bytes(head, "little"), length=int.from_bytes(length, "little"))


def rseq_area(found: ptrace.Rseq) -> RseqArea:
    """Return the record of a thread's rseq registration."""
    return RseqArea(address=found.address, size=found.size, signature=found.signature)


def packed_registers(registers: Registers) -> bytes:
    """Return the registers as struct user_regs_struct."""
    return bytes(registers)


def unpacked_registers(thread: Thread) -> Registers:
    """Return a thread's registers; the kernel refuses those that a program may not have."""
    if len(thread.registers) != ctypes.sizeof(Registers):
        raise ImageError(f"the registers of thread {thread.tid} are incomplete")
    return Registers.from_buffer_copy(thread.registers)


def check(thread: Thread) -> None:
    """Check a thread from an image before anything is made of it."""
    unpacked_registers(thread)
    if not _XSTATE_LEAST <= len(thread.xstate) <= _XSTATE_LARGEST:
        raise ImageError(f"the XSAVE state of thread {thread.tid} has an impossible size")
    if len(thread.alternate_stack) != _STACK.size or len(thread.name) > 15:
        raise ImageError(f"thread {thread.tid} has an impossible stack or name")
    if thread.controls:
        thread_controls.check(thread.controls)


def check_ended(thread: EndedThread) -> None:
    """Check a thread that has ended, from an image."""
    if not 0 <= thread.status <= 0xFFFF or thread.status & 0xFF or len(thread.name) > 15:
        raise ImageError("a first thread has ended in an impossible way")


def components(xstate: bytes) -> int:
    """Return the mask of state components in use (XSTATE_BV)."""
    return int(struct.unpack_from("<Q", xstate, _XSTATE_HEADER_AT)[0])


def restore(program: Program, thread: Thread) -> None:
    """Tell the kernel what the thread had told it; run it in that thread."""
    program.expect(program.call(SYS.GETTID), thread.ids[-1])
    if thread.amx:
        # Asked for once by any thread, it holds for the whole process; and before alternate stacks
        # are set, since the kernel wants them larger then.
        program.call(SYS.ARCH_PRCTL, _ARCH_REQ_XCOMP_PERM, _XFEATURE_AMX)
    syscalls.prctl(program, PR_SET_NAME, thread.name)
    program.call(SYS.SET_TID_ADDRESS, thread.tid_address)
    if thread.robust_list.head:
        program.call(SYS.SET_ROBUST_LIST, thread.robust_list.head, thread.robust_list.length)
    stack, flags, size = _STACK.unpack(thread.alternate_stack)
    on_stack, disable = 1, 2
    if not flags & disable:
        stack_now = _STACK.pack(stack, flags & ~on_stack, size)
        syscalls.sigaltstack(program, stack_now, None)
    how = _PR_MCE_KILL_SET if thread.machine_check_kill in (0, 1) else _PR_MCE_KILL_CLEAR
    early = thread.machine_check_kill if how else 0
    program.may_fail(syscalls.prctl(program, _PR_MCE_KILL, how, early))
    if thread.timer_slack:
        syscalls.prctl(program, PR_SET_TIMERSLACK, thread.timer_slack)
    if thread.directory:
        program.call(SYS.UNSHARE, CLONE_FS)
        flags = os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC
        directory = syscalls.openat2(program, thread.directory, flags)
        program.call(SYS.FCHDIR, directory)
        syscalls.close(program, directory)
        program.call(SYS.UMASK, thread.umask)


def uses_tiles(thread: Thread) -> bool:
    """Tell whether AMX tiles are in use."""
    return bool(components(thread.xstate) >> _XFEATURE_AMX & 1)


def register_rseq(program: Program, thread: Thread) -> None:
    """Register the rseq area; the kernel writes to it from then on."""
    if thread.rseq.address:
        program.call(SYS.RSEQ, thread.rseq.address, thread.rseq.size, 0, thread.rseq.signature)


def restore_pdeath_signal(program: Program, thread: Thread) -> None:
    """Set the signal for the parent's death, which a change of ids resets."""
    syscalls.prctl(program, PR_SET_PDEATHSIG, thread.pdeath_signal)


def state_bytes(pid: int) -> int:
    """Return how large the XSAVE state of a held task is, be it of any."""
    return len(ptrace.xstate(pid))


def set_state(pid: int, thread: Thread, size: int) -> None:
    """Set a held task's XSAVE state, of this size."""
    state = thread.xstate
    if len(state) > size:
        raise ImageError(
            f"thread {thread.tid} uses registers that this CPU lacks"
            f" ({len(state)} bytes of state, {size} here)"
        )
    ptrace.set_xstate(pid, state.ljust(size, b"\0"))
