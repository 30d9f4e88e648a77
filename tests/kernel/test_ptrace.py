"""Each ptrace request does what its function says."""

import ctypes
import errno
import os
import signal
import struct
import subprocess
from collections.abc import Iterator

import pytest
from msgspec.structs import astuple

from containers import eventually
from entering import seized
from needs import needs
from woodfrog.kernel import ptrace
from woodfrog.kernel.abi.x86_64 import SYS
from woodfrog.kernel.procfs.status import read_stat, read_status
from woodfrog.kernel.ptrace import NO_CALL, Event

USR1, RT = signal.SIGUSR1, signal.SIGRTMIN + 5


@pytest.fixture
def held(sleeper: int) -> Iterator[int]:
    """The sleeper, stopped in its sleep."""
    with seized(sleeper):
        yield sleeper


def until(pid: int, state: str) -> None:
    """Wait until a process is in a state."""
    eventually(lambda: read_stat(f"/proc/{pid}").state == state, f"its state is {state}")


def sigqueue(pid: int, number: int, value: int) -> None:
    """Send a signal with a value."""
    assert ctypes.CDLL(None).sigqueue(pid, number, ctypes.c_void_p(value)) == 0


def test_a_seized_process_is_ours_until_it_is_let_go(sleeper: int) -> None:
    with seized(sleeper):
        assert read_status(f"/proc/{sleeper}")["TracerPid"] == str(os.getpid())
        assert read_stat(f"/proc/{sleeper}").state == "t"
    assert read_status(f"/proc/{sleeper}")["TracerPid"] == "0"
    until(sleeper, "S")


def test_seizing_does_not_stop(sleeper: int) -> None:
    ptrace.seize(sleeper)
    assert ptrace.poll(sleeper) is None
    assert read_stat(f"/proc/{sleeper}").state == "S"
    ptrace.interrupt(sleeper)
    assert astuple(ptrace.wait(sleeper)) == (sleeper, Event.STOPPED, 128, signal.SIGTRAP)
    ptrace.detach(sleeper)


def test_a_request_on_a_process_that_is_not_ours_names_it(sleeper: int) -> None:
    with pytest.raises(ProcessLookupError, match=f"ptrace request 0x4207 on {sleeper}: No such"):
        ptrace.interrupt(sleeper)


def test_registers_tell_the_interrupted_call(held: int) -> None:
    found = ptrace.registers(held)
    assert found.orig_rax in (SYS.CLOCK_NANOSLEEP, SYS.NANOSLEEP)
    assert found.result == -516
    assert found.cs == 0x33


def test_registers_are_set_and_a_copy_is_apart(held: int) -> None:
    own = ptrace.registers(held)
    other = own.copy()
    other.r12, other.r15, other.orig_rax = 0x1234_5678_9ABC_DEF0, (1 << 64) - 1, NO_CALL
    assert own.r12 != other.r12
    ptrace.set_registers(held, other)
    found = ptrace.registers(held)
    assert (found.r12, found.r15, found.orig_rax) == (other.r12, other.r15, NO_CALL)
    ptrace.set_registers(held, own)
    assert bytes(ptrace.registers(held)) == bytes(own)


def test_the_vector_registers_are_set(held: int) -> None:
    own = ptrace.xstate(held)
    xmm0, xstate_bv = 160, 512
    assert len(own) >= 576
    changed = bytearray(own)
    changed[xmm0 : xmm0 + 16] = bytes(range(16))
    (features,) = struct.unpack_from("<Q", changed, xstate_bv)
    struct.pack_into("<Q", changed, xstate_bv, features | 2)
    ptrace.set_xstate(held, bytes(changed))
    assert ptrace.xstate(held)[xmm0 : xmm0 + 16] == bytes(range(16))
    ptrace.set_xstate(held, own)


def test_the_signal_mask_is_set(held: int) -> None:
    own = ptrace.signal_mask(held)
    wanted = 1 << (USR1 - 1) | 1 << (RT - 1)
    ptrace.set_signal_mask(held, wanted)
    assert ptrace.signal_mask(held) == wanted
    assert int(read_status(f"/proc/{held}")["SigBlk"], 16) == wanted
    ptrace.set_signal_mask(held, own)


@pytest.mark.parametrize("count", [0, 1, 31, 32, 33, 100])
def test_queued_signals_are_read_in_order(held: int, count: int) -> None:
    ptrace.set_signal_mask(held, 1 << (RT - 1))
    for value in range(count):
        sigqueue(held, RT, value)
    found = ptrace.pending_signals(held, shared=True)
    # siginfo_t: signal, errno, code, pid, uid, value
    assert [struct.unpack_from("<i20xi", one) for one in found] == [
        (RT, value) for value in range(count)
    ]
    assert ptrace.pending_signals(held, shared=False) == []


def test_a_signal_stops_its_task_and_is_told(held: int) -> None:
    ptrace.resume(held)
    sigqueue(held, RT, 77)
    assert astuple(ptrace.wait(held)) == (held, Event.SIGNAL, RT, RT)


def test_a_signal_that_comes_before_the_stop_is_not_lost() -> None:
    # The shell is stopped by whichever comes first.
    # (A trap ends its `read`, which is not to be its end.)
    command = ["sh", "-c", "trap 'echo taken' USR1; echo ready; until read line; do :; done"]
    for _ in range(10):
        pipe = subprocess.PIPE
        with subprocess.Popen(command, stdin=pipe, stdout=pipe, text=True) as process:
            try:
                assert process.stdout is not None
                assert process.stdout.readline() == "ready\n"
                os.kill(process.pid, USR1)
                with seized(process.pid):
                    pass
                assert process.stdout.readline() == "taken\n"
            finally:
                process.kill()


def test_a_detached_task_takes_the_signal_it_is_given(sleeper: int) -> None:
    ptrace.seize(sleeper)
    ptrace.interrupt(sleeper)
    ptrace.wait(sleeper)
    ptrace.resume(sleeper)
    os.kill(sleeper, signal.SIGTERM)
    assert ptrace.wait(sleeper).signal == signal.SIGTERM
    ptrace.detach(sleeper, signal.SIGTERM)
    assert os.waitstatus_to_exitcode(os.waitpid(sleeper, 0)[1]) == -signal.SIGTERM


def test_calls_can_be_stopped_at(held: int) -> None:
    own = ptrace.registers(held)
    ptrace.resume_to_call(held)
    assert ptrace.wait(held).event is Event.CALL
    # The sleep goes on as restart_syscall(2).
    assert ptrace.registers(held).orig_rax == SYS.RESTART_SYSCALL
    assert ptrace.registers(held).rsp == own.rsp


def _die_at_a_call(pid: int, stops: int) -> None:
    """Have a task run to so many calls, and be killed; the last is not waited for if it is odd."""
    try:
        ptrace.seize(pid)
        ptrace.interrupt(pid)
        ptrace.wait(pid)
        for number in range(stops):
            ptrace.resume_to_call(pid)
            if number < stops - stops % 2:
                assert ptrace.wait(pid).event is Event.CALL
        os.kill(os.getpid(), signal.SIGKILL)
    finally:
        os._exit(1)


def test_a_task_survives_its_tracer_where_a_call_begins_or_ends() -> None:
    with subprocess.Popen(["yes"], stdout=subprocess.DEVNULL) as calling:
        try:
            for number in range(60):
                if not (tracer := os.fork()):
                    _die_at_a_call(calling.pid, number % 6 + 1)
                assert os.waitstatus_to_exitcode(os.waitpid(tracer, 0)[1]) == -signal.SIGKILL
                before = _written(calling.pid)
                eventually(lambda then=before: _written(calling.pid) > then, "it goes on")
        finally:
            calling.kill()


def _written(pid: int) -> int:
    """Return how much a process has written; nothing if it has ended."""
    with open(f"/proc/{pid}/io", encoding="ascii") as file:
        return int(file.read().partition("wchar: ")[2].split()[0])


def test_a_fork_is_told_and_its_child_is_held() -> None:
    command = ["sh", "-c", "read line; (:); exit 7"]
    with subprocess.Popen(command, stdin=subprocess.PIPE) as process:
        assert process.stdin is not None
        with seized(process.pid):
            ptrace.set_options(process.pid, ptrace.O_TRACEFORK | ptrace.O_TRACECLONE)
            ptrace.resume(process.pid)
            process.stdin.write(b"\n")
            process.stdin.close()
            status = ptrace.wait(process.pid)
            assert status.event is Event.EVENT
            child = ptrace.event_message(process.pid)
            assert int(read_status(f"/proc/{child}")["PPid"]) == process.pid
            assert ptrace.wait(child).event is Event.STOPPED
            ptrace.detach(child)
        assert process.wait(60) == 7


def test_a_held_process_that_is_killed_is_told(held: int) -> None:
    os.kill(held, signal.SIGKILL)
    assert astuple(ptrace.wait(held)) == (held, Event.KILLED, 9, 9)


def test_an_exit_status_is_taken_apart() -> None:
    assert astuple(ptrace.parse_status(5, 3 << 8)) == (5, Event.EXITED, 3, 0)
    assert astuple(ptrace.parse_status(5, 0x137F)) == (5, Event.SIGNAL, 19, 19)
    assert astuple(ptrace.parse_status(5, 128 << 16 | 0x137F)) == (5, Event.STOPPED, 128, 19)
    assert astuple(ptrace.parse_status(5, 1 << 16 | 0x057F)) == (5, Event.EVENT, 1, 5)


def test_the_rseq_area_of_a_c_program_is_told(held: int) -> None:
    found = ptrace.rseq(held)
    # glibc 2.35 and later register one, with this signature on x86.
    assert found.address == 0 or (found.size >= 32 and found.signature == 0x53053053)
    assert found.flags == 0


@needs("root")
def test_a_task_without_filters_has_none_to_read(held: int) -> None:
    with pytest.raises(OSError) as refusal:
        ptrace.seccomp_filter(held, 0)
    assert refusal.value.errno == errno.EINVAL
