"""Held tasks run our programs and notice nothing, whatever happens meanwhile."""

import os
import random
import signal
import struct
import subprocess
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest

from containers import eventually
from entering import Entered, entered, padding_of
from started import areas, line, numbers_sent, send_number, started
from woodfrog.kernel import ptrace, syscalls
from woodfrog.kernel.abi.x86_64 import SYS
from woodfrog.kernel.procfs.maps import read_maps
from woodfrog.kernel.procfs.status import read_stat, read_status
from woodfrog.kernel.ptrace import NO_CALL
from woodfrog.remote.program import ProgramError
from woodfrog.remote.registers import way_back
from woodfrog.remote.tracee import EndedError

PROGRAMS = Path(__file__).parent / "programs"
Build = Callable[..., Path]
Process = subprocess.Popen[bytes]


# --- programs ------------------------------------------------------------------------------------


def test_a_program_passes_results_on(guest: Entered) -> None:
    program = guest.scratch.program()
    fd = syscalls.eventfd(program, 0)
    copy = syscalls.duplicate_above(program, fd, 100)
    written = syscalls.write(program, copy, (7).to_bytes(8, "little"))
    value = bytearray(8)
    read = program.call(SYS.READ, fd, value, 8)
    syscalls.close(program, fd)
    syscalls.close(program, copy)
    guest.scratch.run(program)
    assert program.results([copy, written, read]) == [100, 8, 8]
    assert int.from_bytes(value, "little") == 7


def test_a_program_stops_at_the_call_that_fails(guest: Entered) -> None:
    program = guest.scratch.program()
    fd = syscalls.eventfd(program, 0)
    syscalls.openat2(program, b"/no/such/thing", os.O_RDONLY)
    syscalls.close(program, fd)
    with pytest.raises(ProgramError, match=r"openat2\(-100, '/no/such/thing', .*: No such file"):
        guest.scratch.run(program)
    # The third call was not made, and the task can still be used.
    assert os.readlink(f"/proc/{guest.pid}/fd/{program[fd]}") == "anon_inode:[eventfd]"
    assert guest.call(SYS.GETPID) == guest.pid


def test_a_program_stops_at_a_result_that_is_not_the_one_expected(guest: Entered) -> None:
    program = guest.scratch.program()
    program.expect(program.call(SYS.GETPID), guest.pid)
    program.expect(program.call(SYS.GETPPID), 1 << 40)
    program.call(SYS.CLOSE, 0)
    with pytest.raises(ProgramError, match=r"getppid\(\) returned 0x[0-9a-f]+, not 0x10000000000"):
        guest.scratch.run(program)
    assert os.path.lexists(f"/proc/{guest.pid}/fd/0")


def test_a_program_goes_on_after_what_may_fail(guest: Entered) -> None:
    program = guest.scratch.program()
    failed = program.may_fail(syscalls.close(program, 9999))
    expected = program.expect(syscalls.close(program, 9999), -9)
    last = program.call(SYS.GETPID)
    guest.scratch.run(program)
    assert program.results([failed, expected, last]) == [-9, -9, guest.pid]


def test_results_go_through_memory_in_either_direction(guest: Entered) -> None:
    program = guest.scratch.program()
    ends = syscalls.pipe2(program, 0)
    there = program.address_of(ends)
    program.call(SYS.PIPE2, there, 0)
    reading, writing = program.load(there), program.load(there + 4)
    syscalls.write(program, writing, b"frog")
    text = bytearray(4)
    program.call(SYS.READ, reading, text, 4)
    polled = program.address_of(struct.pack("<ihh", -1, 4, 0))
    program.store(polled, writing)
    ready = program.call(SYS.POLL, polled, 1, 0)
    guest.scratch.run(program)
    assert text == b"frog"
    assert program[ready] == 1


def test_a_program_of_very_many_calls_runs_at_once(sleeper: int) -> None:
    with entered(sleeper, 1 << 20) as guest:
        program = guest.scratch.program()
        results = [program.call(SYS.GETPID) for _ in range(12_000)]
        guest.scratch.run(program)
    assert set(program.results(results)) == {sleeper}


def test_the_scratch_area_leaves_no_trace(sleeper: int) -> None:
    before = areas(sleeper)
    assert not any(padding_of(sleeper))
    with entered(sleeper) as guest:
        assert guest.scratch.range[0] in {area[0] for area in areas(sleeper)}
        guest.call(SYS.GETPID)
    assert areas(sleeper) == before
    assert not any(padding_of(sleeper))


def test_no_page_of_the_scratch_area_is_both_written_and_executed(guest: Entered) -> None:
    start, end = guest.scratch.range
    protections = [m[2] for m in read_maps(guest.pid) if start <= m[0] < end]
    assert protections == [5, 3]


def test_a_tracee_that_is_killed_is_reported(sleeper: int) -> None:
    # Nor can the area be unmapped any more, which must not hide why.
    def kill_itself() -> None:
        with entered(sleeper) as guest:
            guest.call(SYS.KILL, sleeper, signal.SIGKILL)

    with pytest.raises(EndedError, match=f"task {sleeper} ended"):
        kill_itself()


# --- what the held program notices ---------------------------------------------------------------


def test_no_signal_is_lost_while_programs_run(build: Build) -> None:
    numbered = 600
    with started(build(PROGRAMS / "signals.c")) as process:
        assert line(process) == "ready"
        sender = numbers_sent(process.pid, numbered)
        runs = 0
        while os.waitpid(sender, os.WNOHANG) == (0, 0):
            # A handler that a signal started in a hold runs, and takes the next, only after it.
            with entered(process.pid) as guest:
                for _ in range(3):
                    program = guest.scratch.program()
                    program.expect(program.call(SYS.GETPID), process.pid)
                    actions = [bytearray(32) for _ in range(40)]
                    for action in actions:
                        syscalls.rt_sigaction(program, signal.SIGALRM, None, action)
                    guest.scratch.run(program)
                    assert len({bytes(action) for action in actions}) == 1
                    runs += 1
            time.sleep(0.002)
        send_number(process.pid, -1)
        verdict, numbers, alarms = line(process).split()
    assert runs > 10
    assert (verdict, int(numbers)) == ("right", numbered)
    assert int(alarms) > 20


@pytest.mark.parametrize("with_flags", [False, True])
def test_the_way_back_sets_every_register(
    guest: Entered, chance: random.Random, with_flags: bool
) -> None:
    # Carry, parity, adjust, zero, sign, direction, overflow; 2 is always set, as are interrupts.
    status, always = 0xCD5, 0x202
    code, end, flags_at = guest.scratch.start + 1024, guest.scratch.start + 2048, guest.scratch.data
    os.pwrite(guest.memory, b"\xcc", end)
    for _ in range(20):
        wanted = guest.tracee.registers.copy()
        for name in ptrace._REGISTERS[:15]:
            setattr(wanted, name, chance.getrandbits(64))
        wanted.rsp, wanted.rip, wanted.orig_rax = chance.getrandbits(47), end, NO_CALL
        wanted.eflags = chance.getrandbits(12) & status | always
        os.pwrite(guest.memory, way_back(wanted, flags_at if with_flags else None), code)
        os.pwrite(guest.memory, struct.pack("<Q", wanted.eflags), flags_at)
        start = guest.tracee.registers.copy()
        start.rip, start.orig_rax = code, NO_CALL
        ptrace.set_registers(guest.pid, start)
        ptrace.resume(guest.pid)
        assert ptrace.wait(guest.pid).signal == signal.SIGTRAP
        found = ptrace.registers(guest.pid)
        wanted.rip = end + 1
        if not with_flags:
            wanted.eflags, wanted.rsp = start.eflags, start.rsp
        assert bytes(found) == bytes(wanted)
    guest.tracee.go_back()


def test_a_sleep_goes_on_exactly_after_programs(build: Build) -> None:
    with started(build(PROGRAMS / "undisturbed.c"), "sleep", "1500") as process:
        assert line(process) == "ready"
        begun = time.monotonic()
        time.sleep(1.2)
        with entered(process.pid) as guest:
            for _ in range(20):
                assert guest.call(SYS.GETPID) == process.pid
        let_go = 1000 * (time.monotonic() - begun)
        verdict, length = line(process).split()
    assert verdict == "right"
    # Were it begun anew, it would last 1500 ms more.
    assert 1500 <= int(length) < let_go + 1400


def _use_until_killed(pid: int) -> int:
    """Fork a tracer that never stops running programs in a process; returns its id."""
    tracer = os.fork()
    if tracer:
        return tracer
    try:
        while True:
            with entered(pid) as guest:
                for _ in range(20):
                    program = guest.scratch.program()
                    for _ in range(30):
                        program.call(SYS.GETPID)
                    guest.scratch.run(program)
    finally:
        os._exit(1)


def _sleeps_by_itself(pid: int) -> bool:
    if read_stat(f"/proc/{pid}").state != "S":
        return False
    own = (SYS.CLOCK_NANOSLEEP, SYS.RESTART_SYSCALL, SYS.READ)
    with open(f"/proc/{pid}/syscall", encoding="ascii") as file:
        return file.read().split()[0] in map(str, own)  # not at the end of a program of ours


def test_a_killed_tracer_leaves_its_tracees_as_they_were(
    build: Build, chance: random.Random
) -> None:
    program = build(PROGRAMS / "undisturbed.c")
    for _ in range(5):
        with started(program, "sleep", "1500") as one, started(program, "compute", "1500") as other:
            assert [line(one), line(other)] == ["ready", "ready"]
            before = [areas(one.pid), areas(other.pid)]
            masks = [read_status(f"/proc/{p.pid}")["SigBlk"] for p in (one, other)]
            begun = time.monotonic()
            time.sleep(1.2)
            tracers = [_use_until_killed(one.pid), _use_until_killed(other.pid)]
            time.sleep(chance.uniform(0.01, 0.1))
            for tracer in tracers:
                os.kill(tracer, signal.SIGKILL)
                assert os.waitstatus_to_exitcode(os.waitpid(tracer, 0)[1]) == -signal.SIGKILL
            # The program waits in vain for its tracer, and goes on by itself: the sleeper to sleep.
            eventually(partial(_sleeps_by_itself, one.pid), "the sleep goes on")
            went_on = 1000 * (time.monotonic() - begun)
            for process, areas_before, mask in zip((one, other), before, masks, strict=True):
                verdict, length = line(process).split()
                assert verdict == "right"
                # Were the sleep begun anew, it would last 1500 ms more.
                assert int(length) >= 1500
                assert process is other or int(length) < went_on + 1400
                assert read_status(f"/proc/{process.pid}")["SigBlk"] == mask
                assert areas_before <= areas(process.pid)
                left = {area[2:] for area in areas(process.pid) - areas_before}
                assert left <= {(5, b""), (3, b"")}  # our scratch area
            for process in (one, other):
                assert process.stdin is not None
                process.stdin.close()
                assert process.wait(60) == 0
