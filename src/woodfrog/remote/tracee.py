"""A task of a running container, held by ptrace, that lends us its system calls.

Nothing here single-steps the task or leaves it in a state that needs us: if we are killed at any
point, the task goes on by itself to where it was (design law 1). So does one in a group stop, whose
signals are blocked meanwhile, after SIGCONT or with the next command.
"""

from collections.abc import Sequence

from woodfrog.kernel import ptrace
from woodfrog.kernel.abi.x86_64 import SYS
from woodfrog.kernel.ptrace import Event, Registers, Status
from woodfrog.remote import stopped
from woodfrog.remote.program import Program
from woodfrog.remote.registers import way_back
from woodfrog.remote.seccomp import Filters

_ALL = (1 << 64) - 1


class RanOnError(Exception):
    """The task went on by itself, because we were kept from stopping it in time."""


class EndedError(Exception):
    """The task ended while it was held; only SIGKILL and its like do that."""


class Tracee:
    """One held thread. `registers` are those with which it will go on.

    `filters` if it is under seccomp: should we die, the next call would meet them, so it gets
    programs of one call unless they let all calls pass.
    """

    def __init__(self, pid: int, registers: Registers) -> None:
        self.pid = pid
        self.registers = registers
        self.filters: Filters | None = None
        # In a group stop: what waits for it must wait on, though it runs code of ours.
        self.is_stopped = False
        self._mask: int | None = None
        # Tasks that were born of it while it was held, and are held, too.
        self.born: list[int] = []

    def may_run(self, program: Program) -> bool:
        """Tell whether the task would survive a program that it runs to its end without us."""
        return self.filters is None or all(self.may_call(*call) for call in program.calls())

    def may_call(self, number: int, arguments: Sequence[int | None]) -> bool:
        """Tell whether it would survive one call likewise; None is an argument not yet known."""
        return self.filters is None or self.filters.allow(number, arguments)

    def take_signal(self, status: Status, *, interrupted: bool) -> None:
        """Let a signal that arrives meanwhile act on the task as if we weren't here.

        The kernel then builds the handler's frame on the task's own registers, and the task stops
        before the first instruction of the handler. One that is stopped has it wait with the others
        for SIGCONT (it was on its way back because we were late): as it is blocked, the kernel
        puts it into its queue again.
        """
        if self._mask is not None:
            ptrace.set_signal_mask(self.pid, _ALL)
        else:
            ptrace.set_registers(self.pid, self.registers)
        if not interrupted:
            ptrace.interrupt(self.pid)
        ptrace.resume(self.pid, status.signal)
        after = ptrace.wait(self.pid)
        while after.event is Event.SIGNAL:
            ptrace.resume(self.pid, after.signal)
            after = ptrace.wait(self.pid)
        if after.event is not Event.STOPPED:
            raise EndedError(f"task {self.pid} was ended by signal {status.signal}")
        if self._mask is None:
            self.registers = ptrace.registers(self.pid)

    def catch_signal(self, signal: int) -> None:
        """Take from the task a signal that waits for it, is not blocked, and that we have caused.

        It is to hear nothing of it. Should we be killed just then, it does.
        """
        self.go_back()
        ptrace.resume(self.pid)
        status = ptrace.wait(self.pid)
        while status.event is Event.STOPPED:
            ptrace.resume(self.pid)
            status = ptrace.wait(self.pid)
        if status.event is not Event.SIGNAL or status.signal != signal:
            raise EndedError(f"task {self.pid} got another signal than {signal}, or ended")
        ptrace.interrupt(self.pid)
        ptrace.resume(self.pid)
        if ptrace.wait(self.pid).event is not Event.STOPPED:
            raise EndedError(f"task {self.pid} did not stop again")
        self.go_back()

    def way_back(self, flags_at: int | None = None) -> bytes:
        """Return machine code by which the task goes back by itself, should we be killed.

        `flags_at` is the address of a word with its flags; see `registers.way_back`.
        """
        if not self.is_stopped:
            return way_back(self.registers, flags_at)
        mask = ptrace.signal_mask(self.pid) if self._mask is None else self._mask
        call = (stopped.SIG_SETMASK, None, 0, stopped.MASK_BYTES)
        may_open = self.may_call(SYS.RT_SIGPROCMASK, call)
        return stopped.way_back(self.registers, flags_at, mask, may_open=may_open)

    def enter(self, registers: Registers) -> None:
        """Have the task run code of ours when it is resumed, with these registers, to `go_back`.

        Its `way_back` is there. At no time does it have its own registers, but not its own mask.
        """
        ptrace.set_registers(self.pid, registers)
        if self.is_stopped and self._mask is None:
            self._mask = ptrace.signal_mask(self.pid)
            ptrace.set_signal_mask(self.pid, _ALL)

    def go_back(self) -> None:
        """Set the task's own registers again; it stays held."""
        if self._mask is not None:
            ptrace.set_signal_mask(self.pid, self._mask)
            self._mask = None
        ptrace.set_registers(self.pid, self.registers)
