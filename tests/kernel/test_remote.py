"""Held tasks run our programs and notice nothing, whatever happens meanwhile."""

import ctypes
import os
import random
import signal
import struct
import subprocess
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path

import pytest

from containers import eventually
from entering import VDSO, Entered, entered, padding_of, vdso_start
from needs import needs
from woodfrog.kernel import ptrace, syscalls
from woodfrog.kernel.abi.x86_64 import SYS
from woodfrog.kernel.caller import HERE
from woodfrog.kernel.namespaces import processes_in
from woodfrog.kernel.procfs.maps import read_maps
from woodfrog.kernel.procfs.status import read_stat, read_status
from woodfrog.kernel.ptrace import NO_CALL
from woodfrog.remote.held import Held, HeldProcess, HeldTask
from woodfrog.remote.hold import held
from woodfrog.remote.program import ProgramError
from woodfrog.remote.registers import way_back
from woodfrog.remote.scratch import Scratch
from woodfrog.remote.side_by_side import SideBySide
from woodfrog.remote.tracee import EndedError

PROGRAMS = Path(__file__).parent / "programs"
Build = Callable[..., Path]
Process = subprocess.Popen[bytes]

SIGQUEUE = ctypes.CDLL(None).sigqueue

# unshare's child is the first process of a pid namespace, which ends with it.
UNSHARE = ["unshare", "--pid", "--fork", "--kill-child"]


@contextmanager
def started(*command: str | Path) -> Iterator[Process]:
    """Run a program that says something when it is ready, and end it."""
    pipe = subprocess.PIPE
    with subprocess.Popen(command, stdin=pipe, stdout=pipe, bufsize=0) as process:
        try:
            yield process
        finally:
            # Of unshare, end the child, so that it takes the news: PID 1 may not reap.
            for pid in children_of(process.pid) if process.poll() is None else []:
                with suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
            if command[0] != "unshare":
                process.kill()


def line(process: Process) -> str:
    """Return the next line that a program says."""
    assert process.stdout is not None
    return process.stdout.readline().decode().rstrip()


def children_of(pid: int) -> list[int]:
    """Return the children of a process."""
    with open(f"/proc/{pid}/task/{pid}/children") as file:
        return [int(word) for word in file.read().split()]


def child_of(pid: int) -> int:
    """Return the only child of a process."""
    (child,) = children_of(pid)
    return child


def areas(pid: int) -> set[tuple[int, int, int, bytes]]:
    """Return what the address space of a process looks like."""
    return {
        (start, end, protection, name)
        for start, end, protection, _, _, _, _, name in read_maps(pid)
    }


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


def numbers_sent(pid: int, count: int) -> int:
    """Fork a process that sends that many numbered signals; returns its id."""
    sender = os.fork()
    if sender == 0:
        for number in range(count):
            send_number(pid, number)
            time.sleep(0.0005)
        os._exit(0)
    return sender


def send_number(pid: int, number: int) -> None:
    """Send a numbered signal."""
    SIGQUEUE(pid, signal.SIGRTMIN, ctypes.c_void_p(number))


def test_no_signal_is_lost_while_programs_run(build: Build) -> None:
    numbered = 300
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


@needs("root")
def test_no_signal_is_lost_by_holding_and_letting_go(build: Build) -> None:
    numbered = 300
    with started(*UNSHARE, build(PROGRAMS / "signals.c")) as unshare:
        assert line(unshare) == "ready"
        init = child_of(unshare.pid)
        sender = numbers_sent(init, numbered)
        while os.waitpid(sender, os.WNOHANG) == (0, 0):
            with held(init):
                pass
            time.sleep(0.001)
        send_number(init, -1)
        verdict, numbers, _ = line(unshare).split()
    assert (verdict, int(numbers)) == ("right", numbered)


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
    with started(build(PROGRAMS / "undisturbed.c"), "sleep", "500") as process:
        assert line(process) == "ready"
        begun = time.monotonic()
        time.sleep(0.4)
        with entered(process.pid) as guest:
            for _ in range(20):
                assert guest.call(SYS.GETPID) == process.pid
        let_go = 1000 * (time.monotonic() - begun)
        verdict, length = line(process).split()
    assert verdict == "right"
    # Were it begun anew, it would last 500 ms more.
    assert 500 <= int(length) < let_go + 400


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


def _sleeps(pid: int) -> bool:
    return read_stat(f"/proc/{pid}").state == "S"


def test_a_killed_tracer_leaves_its_tracees_as_they_were(
    build: Build, chance: random.Random
) -> None:
    program = build(PROGRAMS / "undisturbed.c")
    for _ in range(5):
        with started(program, "sleep", "800") as one, started(program, "compute", "800") as other:
            assert [line(one), line(other)] == ["ready", "ready"]
            before = [areas(one.pid), areas(other.pid)]
            masks = [read_status(f"/proc/{p.pid}")["SigBlk"] for p in (one, other)]
            begun = time.monotonic()
            time.sleep(0.5)
            tracers = [_use_until_killed(one.pid), _use_until_killed(other.pid)]
            time.sleep(chance.uniform(0.01, 0.1))
            for tracer in tracers:
                os.kill(tracer, signal.SIGKILL)
                assert os.waitstatus_to_exitcode(os.waitpid(tracer, 0)[1]) == -signal.SIGKILL
            # The program waits in vain for its tracer, and goes on by itself: the sleeper to sleep.
            eventually(partial(_sleeps, one.pid), "the sleep goes on")
            went_on = 1000 * (time.monotonic() - begun)
            for process, areas_before, mask in zip((one, other), before, masks, strict=True):
                verdict, length = line(process).split()
                assert verdict == "right"
                # Were the sleep begun anew, it would last 800 ms more.
                assert int(length) >= 800
                assert process is other or int(length) < went_on + 700
                assert read_status(f"/proc/{process.pid}")["SigBlk"] == mask
                assert areas_before <= areas(process.pid)
                left = {area[2:] for area in areas(process.pid) - areas_before}
                assert left <= {(5, b""), (3, b"")}  # our scratch area
            for process in (one, other):
                assert process.stdin is not None
                process.stdin.close()
                assert process.wait(5) == 0


# --- whole namespaces ----------------------------------------------------------------------------


def counts(pids: list[int], address: int) -> list[int]:
    """Read the counters of many_tasks.c."""
    found: list[int] = []
    for pid in pids:
        with open(f"/proc/{pid}/mem", "rb", buffering=0) as memory:
            memory.seek(address)
            found += struct.unpack("<4q", memory.read(32))
    return found


@needs("root")
def test_all_tasks_of_a_namespace_are_held_and_let_go(build: Build) -> None:
    with started(*UNSHARE, build(PROGRAMS / "many_tasks.c")) as unshare:
        address = int(line(unshare), 16)
        init = child_of(unshare.pid)
        namespace = os.readlink(f"/proc/{init}/ns/pid")
        with held(init) as tree:
            lasting = [p.pid for p in tree.processes if len(p.tasks) == 4]
            assert len(lasting) == 3
            known = {process.pid for process in tree.processes}
            for process in tree.processes:
                inside = read_status(f"/proc/{process.pid}")["NSpid"].split()[-1]
                assert process.namespace_pid == int(inside)
            alive = {
                pid
                for pid in processes_in(HERE, namespace)
                if read_stat(f"/proc/{pid}").state not in "ZX"
            }
            assert alive == known
            for task in tree.tasks():
                assert read_stat(task.path).state == "t"
                assert read_status(task.path)["TracerPid"] == str(os.getpid())
            before = counts(lasting, address)
            time.sleep(0.02)
            assert counts(lasting, address) == before
        for task in tree.tasks():
            if task.pid in lasting:
                assert read_status(task.path)["TracerPid"] == "0"
        deadline = time.monotonic() + 5
        while any(now <= then for now, then in zip(counts(lasting, address), before, strict=True)):
            assert time.monotonic() < deadline, "a thread did not go on"
            time.sleep(0.01)


def _all_go_on(pids: list[int], address: int) -> None:
    before = counts(pids, address)
    deadline = time.monotonic() + 5
    while any(now <= then for now, then in zip(counts(pids, address), before, strict=True)):
        assert time.monotonic() < deadline, "a thread did not go on"
        time.sleep(0.01)


def _lasting(tree: Held) -> list[HeldProcess]:
    """Return the processes of many_tasks.c that don't end soon."""
    return [process for process in tree.processes if len(process.tasks) == 4]


def _asked(scratch: Scratch, tasks: Iterable[HeldTask], extra: int = 0) -> list[tuple[int, int]]:
    """Have threads tell their ids side by side, after an `extra` call; as (told, known)."""
    side = SideBySide()
    answers = []
    for task in tasks:
        lender = scratch.by(task.tracee)
        program = side.program(lender)
        for _ in range(30):
            tid = program.call(SYS.GETTID)
        if extra and task is not task.process.leader:
            program.call(extra, 9999)
        answers.append((program, tid, task.ids[-1]))
        side.run(lender, program, f"asking thread {task.pid}")
    side.finish()
    return [(program[tid], known) for program, tid, known in answers]


@needs("root")
def test_threads_of_a_process_run_programs_side_by_side(build: Build) -> None:
    with started(*UNSHARE, build(PROGRAMS / "many_tasks.c")) as unshare:
        address = int(line(unshare), 16)
        with held(child_of(unshare.pid)) as tree:
            pids = [process.pid for process in _lasting(tree)]
            for process in _lasting(tree):
                before = areas(process.pid)
                vdso = vdso_start(process.pid)
                with Scratch(process.leader.tracee, process.memory, vdso, VDSO, 65536) as scratch:
                    for _ in range(5):
                        for told, known in _asked(scratch, process.tasks):
                            assert told == known
                # One that fails while others are on their way: all come back.
                with (
                    pytest.raises(ProgramError, match="close"),
                    Scratch(process.leader.tracee, process.memory, vdso, VDSO, 65536) as scratch,
                ):
                    _asked(scratch, process.tasks, SYS.CLOSE)
                assert areas(process.pid) == before
        _all_go_on(pids, address)


def _use_threads_until_killed(init: int) -> int:
    """Fork a tracer that never stops running programs in many threads; returns its id."""
    tracer = os.fork()
    if tracer:
        return tracer
    try:
        with held(init) as tree:
            while True:
                for process in _lasting(tree):
                    leader, vdso = process.leader.tracee, vdso_start(process.pid)
                    with Scratch(leader, process.memory, vdso, VDSO, 65536) as scratch:
                        for _ in range(20):
                            _asked(scratch, process.tasks)
    finally:
        os._exit(1)


@needs("root")
def test_a_killed_tracer_of_many_threads_leaves_all_as_they_were(
    build: Build, chance: random.Random
) -> None:
    with started(*UNSHARE, build(PROGRAMS / "many_tasks.c")) as unshare:
        address = int(line(unshare), 16)
        init = child_of(unshare.pid)
        with held(init) as tree:
            pids = [process.pid for process in _lasting(tree)]
        for _ in range(8):
            tracer = _use_threads_until_killed(init)
            time.sleep(chance.uniform(0.1, 0.3))
            os.kill(tracer, signal.SIGKILL)
            assert os.waitstatus_to_exitcode(os.waitpid(tracer, 0)[1]) == -signal.SIGKILL
            _all_go_on(pids, address)
            time.sleep(0.5)  # none of them is on its way back any more


@needs("root")
def test_a_task_under_strict_seccomp_runs_programs(build: Build) -> None:
    with started(*UNSHARE, build(PROGRAMS / "strict.c")) as unshare:
        assert line(unshare) == "ready"
        init = child_of(unshare.pid)
        before = areas(init)
        with held(init) as tree:
            process = tree.processes[0]
            assert process.leader.seccomp == 1
            vdso = vdso_start(init)
            with Scratch(process.leader.tracee, process.memory, vdso, VDSO, 8192) as scratch:
                program = scratch.program()
                pid = program.call(SYS.GETPID)
                assert not process.leader.tracee.may_run(program)
                fd = syscalls.eventfd(program, 0)
                syscalls.close(program, fd)
                scratch.run(program)
                assert program[pid] == 1
                program = scratch.program()
                syscalls.close(program, 9999)
                syscalls.close(program, 0)
                with pytest.raises(ProgramError, match="close"):
                    scratch.run(program)
        assert areas(init) == before
        assert unshare.stdin is not None
        unshare.stdin.write(b"x")
        assert line(unshare) == "right"
        # Then it makes a call that it may not make: its filter is in force again.
        assert line(unshare) == ""
