"""Is connected to itself, where what looks like /proc leads to sockets of another process."""

import os
import socket
import time

from told import obey

os.makedirs("/tmp/fds")
os.makedirs(f"/proc/{os.getpid()}/fd")
os.makedirs("/proc/self")
os.symlink("/tmp/fds", "/proc/self/fd")
listener = socket.create_server("/work/listening", family=socket.AF_UNIX)
near = socket.socket(socket.AF_UNIX)
near.connect("/work/listening")
far = listener.accept()[0]
reader, writer = os.pipe()
if not os.fork():
    paths = [f"/tmp/fds/{number}" for number in range(50)]
    others = [socket.create_server(path, family=socket.AF_UNIX) for path in paths]
    os.write(writer, b"x")
    while True:
        time.sleep(1)
os.read(reader, 1)
obey({"send": lambda: near.send(b"now")}, lambda: None)
