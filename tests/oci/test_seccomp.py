"""Seccomp profiles: what becomes of calls, by action, argument, architecture and listener."""

import array
import contextlib
import fcntl
import json
import os
import signal
import socket
import struct
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from bundles import Bundle
from containers import Done, Woodfrog

Make = Callable[[str], Bundle]
Name = Callable[[Bundle], str]
Run = Callable[..., Done]

# Makes the calls of /work/calls.json in turn, each as [way, number, argument...], and writes what
# they returned. The ways: system calls of x86-64, and of 32-bit programs (int 0x80).
PROBE = """
import ctypes, json, mmap
libc = ctypes.CDLL(None, use_errno=True)
code = mmap.mmap(-1, 4096, prot=7)
code.write(bytes.fromhex("5389f889f389d1cd805bc3"))
entry = ctypes.CFUNCTYPE(ctypes.c_int, *[ctypes.c_int] * 3)(
    ctypes.addressof(ctypes.c_char.from_buffer(code)))
for way, number, *arguments in json.load(open("/work/calls.json")):
    if way == 32:
        result = entry(number, *arguments)
    else:
        result = libc.syscall(number, *map(ctypes.c_uint64, arguments))
        result = -ctypes.get_errno() if result == -1 else result
    print(result, flush=True)
"""

FSYNC, FCHDIR, FCHMOD, FCHOWN, FSTATFS, FDATASYNC, LSEEK = 74, 81, 91, 93, 138, 75, 8
EBADF, EPERM, ENOSYS = 9, 1, 38
BIG = 5 << 32 | 7


@pytest.fixture
def probe(run: Run, make_bundle: Make) -> Callable[..., list[int]]:
    """Return what makes calls under a profile and returns their results."""

    def make_calls(profile: dict[str, Any], calls: list[list[int]], status: int = 0) -> list[int]:
        bundle = make_bundle("exec python3 -I -S /work/probe.py")
        (bundle.work / "probe.py").write_text(PROBE)
        (bundle.work / "calls.json").write_text(json.dumps(calls))
        bundle.config["linux"]["seccomp"] = profile
        return [int(word) for word in run(bundle, status=status).stdout.split()]

    return make_calls


Probe = Callable[..., list[int]]


def denied(names: list[str], errno: int, *arguments: tuple[int, str, int, int]) -> dict[str, Any]:
    """Return an entry that gives these calls an error, if the arguments are such."""
    return {
        "names": names,
        "action": "SCMP_ACT_ERRNO",
        "errnoRet": errno,
        "args": [
            {"index": index, "op": f"SCMP_CMP_{op}", "value": value, "valueTwo": second}
            for index, op, value, second in arguments
        ],
    }


def test_arguments_are_compared_in_all_ways_and_all_their_bits(probe: Probe) -> None:
    # Calls that fail with EBADF by themselves: their second argument can be anything.
    ways = {
        FSYNC: ("fsync", "NE", BIG, 0, [BIG - 1, BIG + (1 << 32)], [BIG]),
        FCHDIR: ("fchdir", "LT", BIG, 0, [0, 6, 4 << 32 | 9, BIG - 1], [BIG, 6 << 32]),
        FCHMOD: ("fchmod", "LE", BIG, 0, [7, BIG], [BIG + 1, 6 << 32 | 1]),
        FCHOWN: ("fchown", "EQ", BIG, 0, [BIG], [7, 5 << 32, BIG + 1]),
        FSTATFS: ("fstatfs", "GE", BIG, 0, [BIG, 6 << 32], [7, 4 << 32 | 9]),
        FDATASYNC: ("fdatasync", "GT", BIG, 0, [BIG + 1, 6 << 32], [BIG, 8]),
        LSEEK: ("lseek", "MASKED_EQ", 0xF << 32 | 0xF, BIG, [BIG, BIG | 0xF0 << 32], [7]),
    }
    profile = {
        "defaultAction": "SCMP_ACT_ALLOW",
        "syscalls": [denied([w[0]], 77, (1, w[1], w[2], w[3])) for w in ways.values()],
    }
    calls, expected = [], []
    for number, (_, _, _, _, matching, others) in ways.items():
        calls += [[64, number, (1 << 64) - 1, value] for value in matching + others]
        expected += [-77] * len(matching) + [-EBADF] * len(others)
    assert probe(profile, calls) == expected


def test_conditions_on_one_argument_are_alternatives_and_on_several_hold_together(
    probe: Probe,
) -> None:
    profile = {
        "defaultAction": "SCMP_ACT_ALLOW",
        "syscalls": [
            denied(["fsync"], 71, (1, "EQ", 3, 0), (1, "EQ", 4, 0), (2, "EQ", 5, 0)),
            denied(["fchdir"], 72, (1, "EQ", 3, 0), (2, "EQ", 4, 0)),
            denied(["fchdir"], 73, (3, "EQ", 9, 0)),
        ],
    }
    calls = [
        *([64, FSYNC, 99, 3, 0], [64, FSYNC, 99, 4, 0], [64, FSYNC, 99, 0, 5], [64, FSYNC, 99, 0]),
        *([64, FCHDIR, 99, 3, 4], [64, FCHDIR, 99, 3, 0], [64, FCHDIR, 99, 0, 0, 9]),
    ]
    assert probe(profile, calls) == [-71, -71, -71, -EBADF, -72, -EBADF, -73]


def test_calls_newer_than_the_profile_do_not_exist(probe: Probe) -> None:
    allowed = {"defaultAction": "SCMP_ACT_ALLOW", "syscalls": [denied(["fsync"], 71)]}
    assert probe(allowed, [[64, 9999], [64, FSYNC, 99]]) == [-ENOSYS, -71]
    # Python runs with few calls indeed: deny only what is asked for, by default and by number.
    names = [name for name, number in every_call().items() if number not in (FSYNC, 452)]
    strict = {
        "defaultAction": "SCMP_ACT_ERRNO",
        "defaultErrnoRet": 71,
        "syscalls": [
            {"names": [*names, "no_such_call"], "action": "SCMP_ACT_ALLOW"},
            # As the default has it: this tells only that the profile knows the call.
            denied(["fchmodat2"], 71),
        ],
    }
    last = max(every_call().values())
    assert probe(strict, [[64, FSYNC, 99], [64, 452], [64, last + 1]]) == [-71, -71, -ENOSYS]


def every_call() -> dict[str, int]:
    """Return the calls that woodfrog knows."""
    from woodfrog.kernel.abi.x86_64 import SYS

    return {name.lower(): number for name, number in vars(SYS).items() if name.isupper()}


@pytest.mark.parametrize(
    ("action", "status", "results"),
    [
        ("SCMP_ACT_KILL_PROCESS", 128 + signal.SIGSYS, []),
        ("SCMP_ACT_KILL_THREAD", 128 + signal.SIGSYS, []),
        ("SCMP_ACT_TRAP", 128 + signal.SIGSYS, []),
        ("SCMP_ACT_TRACE", 0, [-ENOSYS]),
        ("SCMP_ACT_LOG", 0, [-EBADF]),
        ("SCMP_ACT_ERRNO", 0, [-EPERM]),
    ],
)
def test_each_action_is_taken(probe: Probe, action: str, status: int, results: list[int]) -> None:
    profile = {
        "defaultAction": "SCMP_ACT_ALLOW",
        "flags": ["SECCOMP_FILTER_FLAG_LOG", "SECCOMP_FILTER_FLAG_TSYNC"],
        "syscalls": [{"names": ["fsync"], "action": action}],
    }
    assert probe(profile, [[64, FSYNC, 99]], status=status) == results


def test_32_bit_calls_are_filtered_in_all_their_ways(probe: Probe) -> None:
    architectures = ["SCMP_ARCH_X86_64", "SCMP_ARCH_X86", "SCMP_ARCH_AARCH64"]
    profile = {
        "defaultAction": "SCMP_ACT_ALLOW",
        "architectures": architectures,
        "syscalls": [
            denied(["listen", "semget"], 71),
            denied(["fsync"], 72, (1, "EQ", 0xFFFFFFFF_FFFFFFFE, 0)),
        ],
    }
    listen, semget, fsync, socketcall, ipc, close = 363, 393, 118, 102, 117, 6
    calls = [
        *([32, listen, 0, 0], [32, socketcall, 4, 0], [32, socketcall, 99, 0]),
        *([32, semget, 0, 0], [32, ipc, 2, 0], [32, ipc, 1 << 16 | 2, 0], [32, ipc, 99, 0]),
        *([32, fsync, 99, -2], [32, fsync, 99, -3], [32, close, 99, 0]),
    ]
    assert probe(profile, calls) == [
        *(-71, -71, -22),
        *(-71, -71, -71, -ENOSYS),
        *(-72, -EBADF, -EBADF),
    ]


def test_other_architectures_than_the_profiles_are_killed(probe: Probe) -> None:
    profile = {"defaultAction": "SCMP_ACT_ALLOW", "architectures": ["SCMP_ARCH_X86_64"]}
    assert probe(profile, [[64, FSYNC, 99], [32, 6, 99, 0]], status=128 + signal.SIGSYS) == [-EBADF]
    assert probe(profile, [[64, 1 << 30 | 3, 99]], status=128 + signal.SIGSYS) == []


def test_a_start_container_hook_is_under_the_profile(
    woodfrog: Woodfrog, make_bundle: Make, new_name: Name
) -> None:
    bundle = make_bundle("true")
    bundle.config["linux"]["seccomp"] = {
        "defaultAction": "SCMP_ACT_ALLOW",
        "syscalls": [{"names": ["mkdir", "mkdirat"], "action": "SCMP_ACT_KILL_PROCESS"}],
    }
    hook = {"path": "/bin/sh", "args": ["sh", "-c", "exec mkdir /tmp/x"]}
    bundle.config["hooks"] = {"startContainer": [hook]}
    done = woodfrog("run", "-b", str(bundle.directory), new_name(bundle), status=1)
    assert "startContainer hook" in done.stderr
    assert "bad system call" in done.stderr


RECEIVE, SEND = 0xC0502100, 0xC0182101


class Agent:
    """What answers notifications: with the error number 64 + the call's second argument."""

    def __init__(self, path: str) -> None:
        self.told: list[dict[str, Any]] = []
        self.answered: list[int] = []
        self._server = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self._server.bind(path)
        self._server.listen()
        self._threads = [threading.Thread(target=self._serve)]
        self._threads[0].start()

    def _serve(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                connection = self._server.accept()[0]
                text, ancillary, _, _ = connection.recvmsg(65536, 1024)
                self.told.append(json.loads(text))
                listener = array.array("i", ancillary[0][2])[0]
                self._threads.append(threading.Thread(target=self._answer, args=(listener,)))
                self._threads[-1].start()
                connection.close()

    def _answer(self, listener: int) -> None:
        with contextlib.suppress(OSError):  # the last process under the filter has ended
            while True:
                asked = bytearray(80)
                fcntl.ioctl(listener, RECEIVE, asked)
                identity, second = struct.unpack_from("Q", asked)[0], asked[40]
                answer = struct.pack("QqiI", identity, 0, -64 - second, 0)
                fcntl.ioctl(listener, SEND, answer)
                self.answered.append(second)
        os.close(listener)

    def close(self) -> None:
        """Stop listening; those that answer stop with their containers."""
        self._server.shutdown(socket.SHUT_RDWR)
        self._server.close()
        for thread in self._threads:
            thread.join(timeout=60)
            assert not thread.is_alive()


@pytest.fixture
def agent_path() -> str:
    return f"@woodfrog-test-agent-{os.getpid()}"


@pytest.fixture
def agent(agent_path: str) -> Iterator[Agent]:
    """An agent at an abstract socket."""
    running = Agent("\0" + agent_path[1:])
    yield running
    running.close()


def asking(agent_path: str) -> dict[str, Any]:
    """Return a profile that asks the agent about fsync."""
    return {
        "defaultAction": "SCMP_ACT_ALLOW",
        "listenerPath": agent_path,
        "listenerMetadata": "a pond",
        "flags": ["SECCOMP_FILTER_FLAG_WAIT_KILLABLE_RECV"],
        "syscalls": [{"names": ["fsync"], "action": "SCMP_ACT_NOTIFY"}],
    }


@pytest.mark.parametrize("no_new_privs", [True, False])
def test_a_listener_answers_for_all_that_runs_in_the_container(
    woodfrog: Woodfrog, make_bundle: Make, agent: Agent, agent_path: str, no_new_privs: bool
) -> None:
    bundle = make_bundle(
        "exec > /work/said; python3 -I -S /work/probe.py; touch /work/up; exec sleep 1000"
    )
    (bundle.work / "probe.py").write_text(PROBE)
    (bundle.work / "calls.json").write_text(json.dumps([[64, FSYNC, 99, 6]]))
    bundle.process["noNewPrivileges"] = no_new_privs
    bundle.config["linux"]["seccomp"] = asking(agent_path)
    container = woodfrog.run(bundle)
    container.wait_for("up")
    assert (bundle.work / "said").read_text() == "-70\n"
    (bundle.work / "calls.json").write_text(json.dumps([[64, FSYNC, 99, 7]]))
    done = woodfrog("exec", container.name, "python3", "-I", "-S", "/work/probe.py")
    assert done.stdout == "-71\n"
    assert agent.answered == [6, 7]
    first, second = agent.told
    assert first["fds"] == second["fds"] == ["seccompFd"]
    assert first["metadata"] == second["metadata"] == "a pond"
    assert first["pid"] == first["state"]["pid"] == second["state"]["pid"] == container.init
    assert second["pid"] not in (0, container.init)
    assert (first["state"]["id"], second["state"]["status"]) == (container.name, "running")
    # Whoever listens can't be frozen with it.
    done = container.checkpoint(bundle.directory / "image", status=1)
    assert "has a seccomp filter that asks a listener" in done.stderr
    assert not container.has_ended()
    container.delete()


def test_a_profile_that_asks_needs_an_agent(
    woodfrog: Woodfrog, make_bundle: Make, new_name: Name, tmp_path: Path
) -> None:
    bundle = make_bundle("true")
    bundle.config["linux"]["seccomp"] = asking(str(tmp_path / "nobody"))
    done = woodfrog("run", "-b", str(bundle.directory), new_name(bundle), status=1)
    assert "failed to connect with seccomp agent" in done.stderr


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"defaultAction": "SCMP_ACT_NOTIFY"}, "cannot be used as default action"),
        ({"defaultAction": "SCMP_ACT_DREAM"}, "'SCMP_ACT_DREAM' is not one of"),
        ({"listenerPath": ""}, "listenerPath is not set"),
        ({"flags": ["SECCOMP_FILTER_FLAG_DREAM"]}, "SECCOMP_FILTER_FLAG_DREAM is not known"),
        ({"architectures": ["SCMP_ARCH_DREAM"]}, "'SCMP_ARCH_DREAM' is no architecture"),
        (
            {"syscalls": [{"names": ["write"], "action": "SCMP_ACT_NOTIFY"}]},
            "SCMP_ACT_NOTIFY cannot be used for the write syscall",
        ),
        ({"syscalls": [denied(["fsync"], 1, (6, "EQ", 0, 0))]}, "is not possible"),
        ({"syscalls": [denied(["fsync"], 1, (1, "IS", 0, 0))]}, "is not possible"),
    ],
)
def test_a_profile_that_cannot_be_is_refused(
    woodfrog: Woodfrog, make_bundle: Make, new_name: Name, change: dict[str, Any], words: str
) -> None:
    bundle = make_bundle("true")
    bundle.config["linux"]["seccomp"] = asking("/nobody") | change
    done = woodfrog("create", "-b", str(bundle.directory), new_name(bundle), status=1)
    assert words in done.stderr
