"""All tasks of a pid namespace are held, run our programs, and go on as if nothing had been."""

import fcntl
import os
import random
import shutil
import signal
import struct
import threading
import time
from collections.abc import Callable, Iterable
from pathlib import Path

import pytest

from containers import eventually
from entering import VDSO, vdso_start
from needs import needs
from started import UNSHARE, areas, child_of, children_of, line, numbers_sent, send_number, started
from woodfrog.engine.tidying import tidy
from woodfrog.engine.tracking import Tracking
from woodfrog.kernel import features, syscalls
from woodfrog.kernel.abi.x86_64 import SYS
from woodfrog.kernel.caller import HERE
from woodfrog.kernel.namespaces import processes_in
from woodfrog.kernel.procfs.maps import read_maps
from woodfrog.kernel.procfs.status import read_stat, read_status
from woodfrog.remote import descriptors
from woodfrog.remote.held import Held, HeldProcess, HeldTask
from woodfrog.remote.hold import held
from woodfrog.remote.program import ProgramError
from woodfrog.remote.scratch import Scratch
from woodfrog.remote.side_by_side import SideBySide

PROGRAMS = Path(__file__).parent / "programs"
Build = Callable[..., Path]


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


@needs("root")
def test_what_is_left_for_afterwards_is_done_when_all_run_again() -> None:
    seen: list[str] = []
    with started(*UNSHARE, "sh", "-c", "echo ready; read word") as unshare:
        assert line(unshare) == "ready"
        init = child_of(unshare.pid)
        with held(init) as tree:
            tree.afterwards.callback(lambda: seen.append(read_stat(f"/proc/{init}").state))
            assert read_stat(f"/proc/{init}").state == "t"
        assert seen
        assert "t" not in seen
        assert tree.began < tree.let_go


def _release_when_awaited(lease: int, waiter: int) -> None:
    """Give up a lease when a thread of ours waits in ptrace(2)."""
    path = Path(f"/proc/self/task/{waiter}/syscall")
    eventually(lambda: path.read_text().split()[0] == str(SYS.PTRACE), "it is to be seized")
    fcntl.fcntl(lease, fcntl.F_SETLEASE, fcntl.F_UNLCK)


@needs("root")
def test_a_process_that_is_held_in_mid_exec_is_reached_in_its_new_memory(tmp_path: Path) -> None:
    # Opening the interpreter, the kernel waits until we give up the lease, in the midst of exec.
    interpreter = tmp_path / "interpreter"
    shutil.copy("/usr/bin/tail", interpreter)
    script = tmp_path / "script"
    script.write_text(f"#!{interpreter} -f\nready\n")
    script.chmod(0o755)
    lease = os.open(interpreter, os.O_RDONLY | os.O_CLOEXEC)
    ignored = signal.signal(signal.SIGIO, signal.SIG_IGN)
    try:
        fcntl.fcntl(lease, fcntl.F_SETLEASE, fcntl.F_WRLCK)
        with started(*UNSHARE, "sh", "-c", f"exec {script}") as unshare:
            child = eventually(lambda: children_of(unshare.pid), "the shell is there")[0]
            path = Path(f"/proc/{child}/syscall")
            eventually(lambda: path.read_text().split()[0] == str(SYS.EXECVE), "it executes")
            releasing = threading.Thread(
                target=_release_when_awaited, args=(lease, threading.get_native_id())
            )
            releasing.start()
            with held(child) as tree:
                (process,) = tree.processes
                assert process.name == "process 1 (script)"
                assert os.pread(process.memory, 4, read_maps(child)[0][0]) == b"\x7fELF"
                before = areas(child)
                with Scratch(
                    process.leader.tracee, process.memory, process.vdso[0], VDSO, 8192
                ) as scratch:
                    program = scratch.program()
                    pid = program.call(SYS.GETPID)
                    scratch.run(program)
                    assert program[pid] == 1
                assert areas(child) == before
            releasing.join()
            assert line(unshare).startswith("#!")
            assert line(unshare) == "ready"
    finally:
        signal.signal(signal.SIGIO, ignored)
        os.close(lease)


def counts(pids: list[int], address: int) -> list[int]:
    """Read the counters of many_tasks.c."""
    found: list[int] = []
    for pid in pids:
        with open(f"/proc/{pid}/mem", "rb", buffering=0) as memory:
            memory.seek(address)
            found += struct.unpack("<4q", memory.read(32))
    return found


@needs("root")
def test_both_ways_find_the_processes_of_nested_namespaces_and_no_others(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    script = "sleep 60 & unshare --pid --fork --kill-child sleep 60 & echo ready; wait"
    with started(*UNSHARE, "/bin/sh", "-c", script) as unshare:
        assert line(unshare) == "ready"
        init = child_of(unshare.pid)
        found = eventually(
            lambda: len(them := processes_in(HERE, init)) == 4 and them, "all of them are there"
        )
        assert os.getpid() not in found
        monkeypatch.setattr(features, "disabled", lambda: frozenset((features.PROCFS_OF_PIDS,)))
        assert processes_in(HERE, init) == found


@needs("root")
@pytest.mark.parametrize("without", ["", features.PROCFS_OF_PIDS])
def test_all_tasks_of_a_namespace_are_held_and_let_go(
    without: str, build: Build, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(features, "disabled", lambda: frozenset((without,)))
    with started(*UNSHARE, build(PROGRAMS / "many_tasks.c")) as unshare:
        address = int(line(unshare), 16)
        init = child_of(unshare.pid)
        with held(init) as tree:
            lasting = [p.pid for p in tree.processes if len(p.tasks) == 4]
            assert len(lasting) == 3
            known = {process.pid for process in tree.processes}
            for process in tree.processes:
                inside = read_status(f"/proc/{process.pid}")["NSpid"].split()[-1]
                assert process.namespace_pid == int(inside)
            alive = {
                pid
                for pid in processes_in(HERE, init)
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
        _all_go_on(lasting, address, before)


def _all_go_on(pids: list[int], address: int, before: list[int]) -> None:
    """Wait until every thread of many_tasks.c has counted on."""

    def have() -> bool:
        return all(now > then for now, then in zip(counts(pids, address), before, strict=True))

    eventually(have, "all threads go on")


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
        _all_go_on(pids, address, counts(pids, address))


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
            # Some are on their way back still; what they run there is taken away.
            tidy(init)
            _all_go_on(pids, address, counts(pids, address))


def _note_and_be_killed(init: int) -> int:
    """Fork a tracer that dies when a process has just made a userfaultfd for it; returns its id."""
    tracer = os.fork()
    if tracer:
        return tracer
    try:
        descriptors.fetch = lambda _pid, _fd: os.kill(os.getpid(), signal.SIGKILL)  # type: ignore
        with held(init) as tree:
            [process, *_] = _lasting(tree)
            leader, vdso = process.leader.tracee, vdso_start(process.pid)
            with Scratch(leader, process.memory, vdso, VDSO, 65536) as scratch:
                Tracking().begin_with(process.pid, [], lambda: scratch)
    finally:
        os._exit(1)


def _opened(pids: list[int]) -> list[list[str]]:
    return [[os.readlink(path) for path in Path(f"/proc/{pid}/fd").iterdir()] for pid in pids]


@needs("root")
def test_a_killed_tracer_leaves_no_userfaultfd_for_long(build: Build) -> None:
    with started(*UNSHARE, build(PROGRAMS / "many_tasks.c")) as unshare:
        address = int(line(unshare), 16)
        init = child_of(unshare.pid)
        with held(init) as tree:
            pids = [process.pid for process in _lasting(tree)]
        before = [areas(pid) for pid in pids], _opened(pids)
        tracer = _note_and_be_killed(init)
        assert os.waitstatus_to_exitcode(os.waitpid(tracer, 0)[1]) == -signal.SIGKILL
        assert any("anon_inode:[userfaultfd]" in links for links in _opened(pids))

        assert tidy(init) >= 2  # its short-lived children had them, too
        assert ([areas(pid) for pid in pids], _opened(pids)) == before
        _all_go_on(pids, address, counts(pids, address))


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
