"""Signal actions of a process, and queued signals with their siginfo."""

import struct
from collections.abc import Callable, Iterable

from woodfrog.image.record import Part
from woodfrog.kernel import ptrace, syscalls
from woodfrog.kernel.abi.x86_64 import SYS
from woodfrog.kernel.procfs.status import read_status
from woodfrog.remote.program import Program

SIGTRAP, SIGKILL, SIGCHLD, SIGCONT, SIGSTOP = 5, 9, 17, 18, 19
SIGNALS = range(1, 65)
UNCATCHABLE = (SIGKILL, SIGSTOP)
# By default those that stop: SIGSTOP, SIGTSTP, SIGTTIN, SIGTTOU.
STOPPING = range(SIGSTOP, 23)
# And what doesn't end either: SIGCHLD, SIGCONT, SIGURG, SIGWINCH.
_HARMLESS = (SIGCHLD, SIGCONT, 23, 28)

_FAULTS = (4, SIGTRAP, 7, 8, 11, 31)  # SIGILL, SIGBUS, SIGFPE, SIGSEGV, SIGSYS

_ACTION = struct.Struct("<4Q")
_MASK_BYTES = 8
_SIG_IGN = 1


class Action(Part, frozen=True):
    """What a signal does, as struct kernel_sigaction has it. Signals at their default have none."""

    signal: int
    handler: int
    flags: int
    restorer: int
    mask: int


def can_end_by(status: int) -> bool:
    """Tell whether a process can have this wait status (wait(2)) when it has ended."""
    signal = status & 0x7F
    ending = signal == 0 or (signal in SIGNALS and signal not in (*STOPPING, *_HARMLESS))
    return ending and 0 <= status <= 0xFFFF


def can_tell_end(signal: int) -> bool:
    """Tell whether a restored process may have this exit signal (clone(2)); 0 is none."""
    return signal == 0 or (signal in SIGNALS and signal not in (*UNCATCHABLE, SIGTRAP))


def ask(program: Program) -> Callable[[], list[Action]]:
    """Add the calls that tell all signal actions."""
    answers = {signal: bytearray(_ACTION.size) for signal in SIGNALS if signal not in UNCATCHABLE}
    for signal, answer in answers.items():
        syscalls.rt_sigaction(program, signal, None, answer)

    def answered() -> list[Action]:
        found = []
        for signal, answer in answers.items():
            handler, flags, restorer, mask = _ACTION.unpack(answer)
            if handler or flags:
                found.append(
                    Action(
                        signal=signal, handler=handler, flags=flags, restorer=restorer, mask=mask
                    )
                )
        return found

    return answered


def forget_children(program: Program, others: Iterable[int] = ()) -> None:
    """Drop the SIGCHLDs that were queued while the tree was built, and `others` for ended children.

    A signal that is ignored is dropped; by default SIGCHLD is.
    """
    for signal in {SIGCHLD, *others} - {0}:
        forget(program, signal)


def forget(program: Program, signal: int) -> None:
    """Drop what is queued of a signal, and give it its default action."""
    if signal not in _HARMLESS:
        syscalls.rt_sigaction(program, signal, _ACTION.pack(_SIG_IGN, 0, 0, 0), None)
    syscalls.rt_sigaction(program, signal, bytes(_ACTION.size), None)


def restore_actions(program: Program, actions: list[Action], *, skip: int) -> None:
    """Set all actions but that of signal `skip`; what isn't recorded gets its default."""
    known = {action.signal: action for action in actions}
    default = program.address_of(packed(None))
    rest = []
    for signal in SIGNALS:
        if signal in UNCATCHABLE or signal == skip:
            continue
        if signal in known:
            syscalls.rt_sigaction(program, signal, packed(known[signal]), None)
        else:
            rest.append((signal, default, 0, _MASK_BYTES))
    program.call_each(SYS.RT_SIGACTION, rest)


def packed(action: Action | None) -> bytes:
    """Return struct kernel_sigaction."""
    if action is None:
        return bytes(_ACTION.size)
    return _ACTION.pack(action.handler, action.flags, action.restorer, action.mask)


def collect_pending(pid: int, *, shared: bool, shown: str = "0") -> list[bytes]:
    """Read the queued signals of a held task, or of its process, oldest first.

    Those that will be in the way come last, as they will be queued; each number's stay in order.
    `shown` is which waited when it was held, as /proc/PID/status has it: at the limit of signals
    that wait (RLIMIT_SIGPENDING) the kernel keeps the number alone of those that may not fail.
    """
    queue = ptrace.pending_signals(pid, shared=shared)
    if _without_info(queue, shown):
        # What was shown may have been taken since.
        shown = read_status(f"/proc/{pid}")["ShdPnd" if shared else "SigPnd"]
        queue = ptrace.pending_signals(pid, shared=shared)
    # As such a signal is when it comes (collect_signal() in the kernel).
    queue += (
        struct.pack("<i", signal).ljust(ptrace.SIGINFO_BYTES, b"\0")
        for signal in _without_info(queue, shown)
    )
    return sorted(queue, key=is_in_the_way)


def _without_info(queue: list[bytes], shown: str) -> list[int]:
    """Return the signals that are shown to wait, and are not in the queue."""
    mask = int(shown, 16)
    if not mask:
        return []
    queued = {struct.unpack_from("<i", info)[0] for info in queue}
    waiting = (one for one in SIGNALS if mask >> (one - 1) & 1 and one not in UNCATCHABLE)
    return [signal for signal in waiting if signal not in queued]


def is_in_the_way(info: bytes) -> bool:
    """Tell whether a queued signal would come while its task still runs programs of ours.

    A stub's programs end in SIGTRAP, which it can't block; and beside that the kernel takes what
    looks like a fault from the thread's queue, be it blocked (dequeue_synchronous_signal()).
    """
    signal, _, code = struct.unpack_from("<3i", info)
    return signal == SIGTRAP or (signal in _FAULTS and code > 0)


def restore_pending(program: Program, process: int, thread: int | None, queue: list[bytes]) -> None:
    """Queue signals to a thread, or with None to the process; run it in that thread.

    A process may send itself any siginfo (rt_sigqueueinfo(2)); the kernel checks the rest. What
    `is_in_the_way` comes later.
    """
    for info in queue:
        if is_in_the_way(info):
            continue
        signal = struct.unpack_from("<i", info)[0]
        if thread is None:
            program.call(SYS.RT_SIGQUEUEINFO, process, signal, info)
        else:
            program.call(SYS.RT_TGSIGQUEUEINFO, process, thread, signal, info)


def check_pending(queue: list[bytes]) -> bool:
    """Tell whether queued signals from an image are well-formed."""
    return all(
        len(info) == ptrace.SIGINFO_BYTES and struct.unpack_from("<i", info)[0] in SIGNALS
        for info in queue
    )
