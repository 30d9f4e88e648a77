"""ptrace(2): one function per request, registers, and wait statuses.

Only the thread that seized a task may use these on it (ESRCH otherwise).
"""

import ctypes
import os
import struct
from enum import Enum

import msgspec

from woodfrog.errors import UnsupportedResource

_libc = ctypes.CDLL(None, use_errno=True)
_ptrace = _libc.ptrace
_ptrace.argtypes = [ctypes.c_long, ctypes.c_long, ctypes.c_void_p, ctypes.c_void_p]
_ptrace.restype = ctypes.c_long

_PEEKUSER, _CONT, _DETACH, _SYSCALL = 3, 7, 17, 24
_SETOPTIONS, _GETEVENTMSG = 0x4200, 0x4201
_GETREGSET, _SETREGSET, _SEIZE, _INTERRUPT = 0x4204, 0x4205, 0x4206, 0x4207
_PEEKSIGINFO, _GETSIGMASK, _SETSIGMASK, _SECCOMP_GET_FILTER = 0x4209, 0x420A, 0x420B, 0x420C
_SECCOMP_GET_METADATA, _GET_RSEQ_CONFIGURATION = 0x420D, 0x420F
_GET_SYSCALL_USER_DISPATCH_CONFIG = 0x4211

NT_PRSTATUS = 1
NT_X86_XSTATE = 0x202

O_TRACESYSGOOD, O_TRACEFORK, O_TRACEVFORK, O_TRACECLONE, O_TRACEEXEC = 1, 2, 4, 8, 16
O_EXITKILL, O_SUSPEND_SECCOMP = 0x100000, 0x200000

_EVENT_STOP = 128
_STOP_AT_CALL = 5 | 0x80  # SIGTRAP, marked by O_TRACESYSGOOD
WALL = 0x40000000
SIGINFO_BYTES = 128

# fmt: off
_REGISTERS = (
    "r15", "r14", "r13", "r12", "rbp", "rbx", "r11", "r10", "r9", "r8", "rax", "rcx", "rdx", "rsi",
    "rdi", "orig_rax", "rip", "cs", "eflags", "rsp", "ss", "fs_base", "gs_base", "ds", "es", "fs",
    "gs",
)
# fmt: on


class _Iovec(ctypes.Structure):
    _fields_ = (("base", ctypes.c_void_p), ("length", ctypes.c_size_t))


class Registers(ctypes.Structure):
    """struct user_regs_struct: the general registers, each 64 bits."""

    _fields_ = tuple((name, ctypes.c_uint64) for name in _REGISTERS)

    r15: int
    r14: int
    r13: int
    r12: int
    rbp: int
    rbx: int
    r11: int
    r10: int
    r9: int
    r8: int
    rax: int
    rcx: int
    rdx: int
    rsi: int
    rdi: int
    orig_rax: int
    rip: int
    cs: int
    eflags: int
    rsp: int
    ss: int
    fs_base: int
    gs_base: int
    ds: int
    es: int
    fs: int
    gs: int

    def copy(self) -> "Registers":
        """Return registers that can be changed without changing these."""
        return Registers.from_buffer_copy(self)

    @property
    def result(self) -> int:
        """rax as the signed number that a call returns."""
        return self.rax - (1 << 64) if self.rax >> 63 else self.rax


NO_CALL = (1 << 64) - 1  # orig_rax of a task that is not in a system call


class Event(Enum):
    """Why a wait returned."""

    STOPPED = "stopped"  # PTRACE_EVENT_STOP: an interrupt, a group stop or a new task
    EVENT = "event"  # another PTRACE_EVENT_*
    CALL = "call"  # where a system call begins or ends, after resume_to_call
    SIGNAL = "signal"  # about to take a signal
    EXITED = "exited"
    KILLED = "killed"


class Status(msgspec.Struct, frozen=True):
    """A wait status taken apart. `number` is the signal, the exit status or the event."""

    pid: int
    event: Event
    number: int
    signal: int


def _request(request: int, pid: int, address: int = 0, data: int = 0) -> int:
    result: int = _ptrace(request, pid, address, data)
    # None of our requests returns -1 otherwise.
    if result == -1:
        error = ctypes.get_errno()
        raise OSError(error, f"ptrace request {request:#x} on {pid}: {os.strerror(error)}")
    return result


def seize(pid: int, options: int = O_TRACESYSGOOD) -> None:
    """Attach to a task without stopping it."""
    _request(_SEIZE, pid, 0, options)


def interrupt(pid: int) -> None:
    """Have the task stop (Event.STOPPED) before it runs another instruction of its own."""
    _request(_INTERRUPT, pid)


def resume(pid: int, signal: int = 0) -> None:
    """Let the task run, delivering `signal` if it stopped for one."""
    _request(_CONT, pid, 0, signal)


def resume_to_call(pid: int) -> None:
    """Let the task run to the next entry into, or exit from, a system call.

    With O_TRACESYSGOOD that is an Event.CALL, and nothing comes of it if we die then; without, the
    task would take the SIGTRAP.
    """
    _request(_SYSCALL, pid)


def detach(pid: int, signal: int = 0) -> None:
    """Let go of a stopped task; it runs on."""
    _request(_DETACH, pid, 0, signal)


def set_options(pid: int, options: int) -> None:
    """Replace the options that were given when the task was seized."""
    _request(_SETOPTIONS, pid, 0, options)


def event_message(pid: int) -> int:
    """Return what the last event stop is about, such as the new task's id."""
    message = ctypes.c_ulong()
    _request(_GETEVENTMSG, pid, 0, ctypes.addressof(message))
    return message.value


def registers(pid: int) -> Registers:
    """Read a stopped task's general registers."""
    found = Registers()
    vector = _Iovec(ctypes.addressof(found), ctypes.sizeof(found))
    _request(_GETREGSET, pid, NT_PRSTATUS, ctypes.addressof(vector))
    if vector.length != ctypes.sizeof(found):
        raise UnsupportedResource(f"task {pid} runs a 32-bit program, which cannot be saved")
    return found


def r15(pid: int) -> int:
    """Read one register of a stopped task, in which there is an address.

    That takes half the time of reading all.
    """
    return _request(_PEEKUSER, pid, Registers.r15.offset)  # type: ignore[attr-defined]


def set_registers(pid: int, new: Registers) -> None:
    """Set a stopped task's general registers."""
    vector = _Iovec(ctypes.addressof(new), ctypes.sizeof(new))
    _request(_SETREGSET, pid, NT_PRSTATUS, ctypes.addressof(vector))


def xstate(pid: int) -> bytes:
    """Read the whole XSAVE area, in the standard (not compacted) format."""
    area = ctypes.create_string_buffer(16384)
    vector = _Iovec(ctypes.addressof(area), len(area))
    _request(_GETREGSET, pid, NT_X86_XSTATE, ctypes.addressof(vector))
    return ctypes.string_at(area, vector.length)


def set_xstate(pid: int, area: bytes) -> None:
    """Set the whole XSAVE area."""
    buffer = ctypes.create_string_buffer(area, len(area))
    vector = _Iovec(ctypes.addressof(buffer), len(area))
    _request(_SETREGSET, pid, NT_X86_XSTATE, ctypes.addressof(vector))


def signal_mask(pid: int) -> int:
    """Read the set of blocked signals; bit N-1 is signal N."""
    mask = ctypes.c_uint64()
    _request(_GETSIGMASK, pid, 8, ctypes.addressof(mask))
    return mask.value


def set_signal_mask(pid: int, mask: int) -> None:
    """Replace the set of blocked signals."""
    word = ctypes.c_uint64(mask)
    _request(_SETSIGMASK, pid, 8, ctypes.addressof(word))


class _PeekSiginfo(ctypes.Structure):
    """struct ptrace_peeksiginfo_args."""

    _fields_ = (("off", ctypes.c_uint64), ("flags", ctypes.c_uint32), ("nr", ctypes.c_int32))


def pending_signals(pid: int, *, shared: bool) -> list[bytes]:
    """Read the queued signals of the task, or of its process, as siginfo_t, oldest first."""

    buffer = ctypes.create_string_buffer(32 * SIGINFO_BYTES)
    found: list[bytes] = []
    while True:
        arguments = _PeekSiginfo(len(found), 1 if shared else 0, 32)
        count = _request(_PEEKSIGINFO, pid, ctypes.addressof(arguments), ctypes.addressof(buffer))
        raw = ctypes.string_at(buffer, count * SIGINFO_BYTES)
        found += [raw[at : at + SIGINFO_BYTES] for at in range(0, len(raw), SIGINFO_BYTES)]
        if count < 32:
            return found


def seccomp_filter(pid: int, index: int) -> bytes | None:
    """Read one classic BPF filter of the task, index 0 being the oldest; None past the newest.

    The man page has it the other way round (kernel/seccomp.c, get_nth_filter).
    """
    try:
        count = _request(_SECCOMP_GET_FILTER, pid, index, 0)
    except FileNotFoundError:
        return None
    buffer = ctypes.create_string_buffer(8 * count)
    _request(_SECCOMP_GET_FILTER, pid, index, ctypes.addressof(buffer))
    return buffer.raw


def seccomp_filter_flags(pid: int, index: int) -> int:
    """Read the SECCOMP_FILTER_FLAG_* (only LOG is kept by the kernel) of one filter."""
    buffer = (ctypes.c_uint64 * 2)(index, 0)
    _request(_SECCOMP_GET_METADATA, pid, 16, ctypes.addressof(buffer))
    return int(buffer[1])


_RSEQ = struct.Struct("<Q3Ixxxx")


class Rseq(msgspec.Struct, frozen=True):
    """struct ptrace_rseq_configuration: the registered rseq area of a task."""

    address: int
    size: int
    signature: int
    flags: int


def has_syscall_dispatch(pid: int) -> bool:
    """Tell whether a task's system calls may be given to itself (PR_SET_SYSCALL_USER_DISPATCH).

    Before Linux 6.4 nobody tells.
    """
    mode_selector_offset_length = (ctypes.c_uint64 * 4)()
    size, found = ctypes.sizeof(mode_selector_offset_length), mode_selector_offset_length
    try:
        _request(_GET_SYSCALL_USER_DISPATCH_CONFIG, pid, size, ctypes.addressof(found))
    except OSError:
        return False
    return found[0] != 0


def rseq(pid: int) -> Rseq:
    """Read the task's rseq registration; address 0 means that there is none."""

    found = bytearray(_RSEQ.size)
    address = ctypes.addressof(ctypes.c_char.from_buffer(found))
    _request(_GET_RSEQ_CONFIGURATION, pid, _RSEQ.size, address)
    return Rseq(*_RSEQ.unpack(found))


def parse_status(pid: int, status: int) -> Status:
    """Take a wait status apart."""
    if os.WIFEXITED(status):
        return Status(pid, Event.EXITED, os.WEXITSTATUS(status), 0)
    if os.WIFSIGNALED(status):
        return Status(pid, Event.KILLED, os.WTERMSIG(status), os.WTERMSIG(status))
    event, signal = status >> 16, os.WSTOPSIG(status)
    if event == _EVENT_STOP:
        return Status(pid, Event.STOPPED, event, signal)
    if event:
        return Status(pid, Event.EVENT, event, signal)
    if signal == _STOP_AT_CALL:
        return Status(pid, Event.CALL, signal, 0)
    return Status(pid, Event.SIGNAL, signal, signal)


def wait(pid: int) -> Status:
    """Wait until the task stops or ends. `pid` -1 means any."""
    found, status = os.waitpid(pid, WALL)
    return parse_status(found, status)


def poll(pid: int) -> Status | None:
    """Return how the task stopped or ended, or None if it runs."""
    found, status = os.waitpid(pid, WALL | os.WNOHANG)
    return parse_status(found, status) if found else None
