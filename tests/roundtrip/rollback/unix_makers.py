"""Has sockets of makers that can't make them again."""

import os
import signal
import socket
import sys

from told import obey

ours, theirs = socket.socketpair()
child = os.fork()
if not child:
    ours.close()
    os.setgid(1000)
    if "zombie" in sys.argv:
        os.setuid(1000)
    made = socket.socketpair()
    socket.send_fds(theirs, [b"m"], [end.fileno() for end in made])
    os.setuid(1000)
    theirs.recv(1)
    os._exit(0)
_, files, _, _ = socket.recv_fds(ours, 9, 9)
near, far = (socket.socket(fileno=fd) for fd in files)
near.send(b"then")
if "zombie" in sys.argv:
    os.kill(child, signal.SIGKILL)
    os.waitid(os.P_PID, child, os.WEXITED | os.WNOWAIT)

obey({"write": lambda: near.send(b"now")}, lambda: None)
