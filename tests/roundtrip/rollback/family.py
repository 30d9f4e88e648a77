"""Has children and theirs, of whom some end when it is told; knows how they were."""

import os
import signal
import subprocess
import sys
import threading
from typing import Any

from told import obey

WORKER = """
import os, signal, sys, threading, time
kept = bytearray(os.urandom(1 << 20))
seen = sum(kept)
told = []
signal.signal(signal.SIGUSR1, lambda *_: told.append(1))
threading.Thread(target=time.sleep, args=(1000,), daemon=True).start()
os.chdir("/work")
os.umask(0o27)
child = os.fork()
if child == 0:
    signal.pause()
    os._exit(7)
print(child, flush=True)
for line in sys.stdin:
    if line == "end\\n":
        if child:
            os.kill(child, signal.SIGKILL)
        break
    if line == "child\\n":
        os.kill(child, signal.SIGUSR1)
        print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)
        child = 0
        continue
    here = os.getcwd(), os.umask(0o27), len(threading.enumerate()), sum(kept) == seen, len(told)
    print(*here, os.getppid(), flush=True)
"""


def start(*words: str, **how: Any) -> subprocess.Popen[str]:
    """Start a child that can be talked to."""
    pipe = subprocess.PIPE
    return subprocess.Popen(words, stdin=pipe, stdout=pipe, text=True, **how)


def ask(child: subprocess.Popen[str], what: str) -> str:
    """Tell a child a line, and return the one that it answers."""
    assert child.stdin
    assert child.stdout
    child.stdin.write(what + "\n")
    child.stdin.flush()
    return child.stdout.readline().strip()


def identity(pid: int) -> tuple[object, ...]:
    """Return what identifies a process and what it runs."""
    with open(f"/proc/{pid}/status") as file:
        lines = [line for line in file if line.startswith(("Uid", "Gid", "Cap", "Name", "PPid"))]
    with open(f"/proc/{pid}/cmdline") as file:
        words = file.read()
    try:
        program = os.readlink(f"/proc/{pid}/exe")
    except PermissionError:
        program = "another user's"
    return os.getsid(pid), os.getpgid(pid), program, words, *lines


worker = start(sys.executable, "-c", WORKER)
# Its child is born of one that isn't root's.
theirs = start(sys.executable, "-c", WORKER, user=1000, group=1000)
assert worker.stdout
assert theirs.stdout
grandchildren = int(worker.stdout.readline()), int(theirs.stdout.readline())
echo = start("cat", start_new_session=True)
user = start("cat", user=1000, group=1000, extra_groups=[5], process_group=0)
ask(echo, "one")
ask(user, "two")
ended = start("sh", "-c", "exit 3")
os.waitid(os.P_PID, ended.pid, os.WEXITED | os.WNOWAIT)
family = worker.pid, theirs.pid, *grandchildren, echo.pid, user.pid
were = [identity(pid) for pid in family]

CHANGES = {
    "end": lambda: (worker.communicate("end\n"), echo.communicate(), user.communicate()),
    "kill": lambda: [os.kill(pid, signal.SIGKILL) for pid in family],
    "child": lambda: (ask(worker, "child"), ask(theirs, "child"), ended.wait()),
    "be many": lambda: [start("sleep", "1000") for _ in range(9)] + [worker.kill()],
    "end a thread": lambda: (worker.send_signal(signal.SIGUSR1), ask(worker, "?")),
}


def check() -> None:
    """Raise AssertionError unless all are as they were, and live."""
    assert [identity(pid) for pid in family] == were
    assert ask(worker, "?") == f"/work {0o27} 2 True 0 1"
    worker.send_signal(signal.SIGUSR1)
    assert ask(worker, "?") == f"/work {0o27} 2 True 1 1"
    assert ask(theirs, "?") == f"/work {0o27} 2 True 0 1"
    assert (ask(worker, "child"), ask(theirs, "child")) == ("7", "7")
    assert (ask(echo, "three"), ask(user, "four")) == ("three", "four")
    for one in (worker, theirs):
        one.communicate("end\n")
        assert one.wait() == 0
    echo.terminate()
    assert echo.wait() == -signal.SIGTERM
    user.communicate()
    assert user.wait() == 0
    assert ended.wait() == 3
    try:
        raise AssertionError(os.waitpid(-1, os.WNOHANG))
    except ChildProcessError:
        pass
    assert threading.active_count() == 1


obey(CHANGES, check)
