"""Has a child at a terminal, with what was typed and shown in its queues; knows how they were."""

import fcntl
import os
import pty
import signal
import struct
import subprocess
import termios
import time

from told import obey

SIZE = struct.pack("4H", 33, 99, 0, 0)


def be_child() -> None:
    """Read a line for each SIGUSR1, and say what it was."""
    settings = termios.tcgetattr(0)
    settings[3] &= ~termios.ECHO
    termios.tcsetattr(0, termios.TCSANOW, settings)
    signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGUSR1, signal.SIGUSR2])
    os.write(1, b"prompt> ")
    while True:
        if signal.sigwait([signal.SIGUSR1, signal.SIGUSR2]) == signal.SIGUSR2:
            other = subprocess.Popen(["sleep", "1000"], process_group=0)
            os.tcsetpgrp(0, other.pid)
            continue
        os.write(1, b"got " + os.read(0, 100))


child, master = pty.fork()
if child == 0:
    be_child()


def output() -> bytes:
    """Return what is shown within a moment, or as soon as it is."""
    return os.read(master, 999)


fcntl.ioctl(master, termios.TIOCSWINSZ, SIZE)
while termios.tcgetattr(master)[3] & termios.ECHO:
    time.sleep(0.01)
os.write(master, b"typed\n")


def change_settings() -> None:
    """Let the terminal be another one in all ways."""
    settings = termios.tcgetattr(master)
    settings[3] ^= termios.ICANON | termios.ECHO
    termios.tcsetattr(master, termios.TCSANOW, settings)
    fcntl.ioctl(master, termios.TIOCSWINSZ, struct.pack("4H", 1, 2, 0, 0))
    os.write(master, b"more")


def change_group() -> None:
    """Have another group in the foreground."""
    os.kill(child, signal.SIGUSR2)
    while os.tcgetpgrp(master) == child:
        time.sleep(0.01)


CHANGES = {
    "read": lambda: (output(), os.kill(child, signal.SIGUSR1), output()),
    "set": change_settings,
    "group": change_group,
    "kill": lambda: (os.kill(child, signal.SIGKILL), os.waitpid(child, 0)),
    "close": lambda: (os.close(master), os.waitpid(child, 0)),
}


def check() -> None:
    """Raise AssertionError unless all is as it was, and works."""
    assert fcntl.ioctl(master, termios.TIOCGWINSZ, bytes(8)) == SIZE
    assert termios.tcgetattr(master)[3] & (termios.ICANON | termios.ECHO) == termios.ICANON
    assert os.tcgetpgrp(master) == child
    assert output() == b"prompt> "
    os.kill(child, signal.SIGUSR1)
    assert output() == b"got typed\r\n"
    os.write(master, b"again\n")
    os.kill(child, signal.SIGUSR1)
    assert output() == b"got again\r\n"
    os.close(master)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == -signal.SIGHUP


obey(CHANGES, check)
