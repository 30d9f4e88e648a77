"""Signals that wait, more than may since: they say what they said, or the rollback is refused."""

import os
import resource
import signal
import sys
import time
from ctypes import CDLL, c_void_p

LIBC = CDLL(None, use_errno=True)
WAITING = (signal.SIGUSR1, *[signal.SIGRTMIN + number % 2 for number in range(9)])
ALL = signal.valid_signals()


def taken():
    found = []
    while info := signal.sigtimedwait(ALL, 0):
        found.append((info.si_signo, info.si_code))
    return sorted(found)


os.setuid(54321)  # nobody else's signals count
signal.pthread_sigmask(signal.SIG_BLOCK, ALL)
for number in WAITING:
    assert LIBC.sigqueue(os.getpid(), number, c_void_p(7)) == 0
_, hard = resource.getrlimit(resource.RLIMIT_SIGPENDING)
limit = (3, 3) if "hard" in sys.argv else (3, hard)
resource.setrlimit(resource.RLIMIT_SIGPENDING, limit)
open("/work/ready", "w").close()
while not os.path.exists("/work/check"):
    if os.path.exists("/work/change"):
        os.unlink("/work/change")
        taken()
        open("/work/changed", "w").close()
    time.sleep(0.005)
si_queue = -1
says = taken()
is_same = says == sorted((number, si_queue) for number in WAITING)
is_same = is_same and resource.getrlimit(resource.RLIMIT_SIGPENDING) == limit
with open("/work/out", "w") as out:
    out.write("ok\n" if is_same else f"{says}\n")
