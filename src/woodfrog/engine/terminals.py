"""Controlling terminals: which sessions have which, and who in them has left it."""

import os
import struct
import termios

from woodfrog.engine.plan import Plan
from woodfrog.errors import while_
from woodfrog.kernel import syscalls
from woodfrog.kernel.abi.x86_64 import SYS
from woodfrog.remote.program import Program
from woodfrog.remote.stub import Stub
from woodfrog.resources.process import Process

_OWN = b"/dev/tty"


def take(program: Program, plan: Plan, leader: Process) -> None:
    """Let a session have its terminal, before its leader has children: they inherit it.

    Nobody but a leader can take one (tiocsctty() of the kernel).
    """
    if leader.controlling >= 0 and (path := plan.terminal(leader.controlling)):
        terminal = syscalls.openat2(program, path, os.O_RDWR | os.O_NOCTTY)
        program.call(SYS.IOCTL, terminal, termios.TIOCSCTTY, 0)
        syscalls.close(program, terminal)


def leave(stub: Stub, plan: Plan, process: Process, leader: Process) -> None:
    """Have a process leave the terminal of its session, which it was born with."""
    path = plan.terminal(leader.controlling) if leader.controlling >= 0 else _OWN
    if not path:
        return
    program = stub.program()
    terminal = syscalls.openat2(program, path, os.O_RDWR | os.O_NOCTTY)
    left = program.call(SYS.IOCTL, terminal, termios.TIOCNOTTY, 0)
    closed = program.call(SYS.CLOSE, terminal)
    if path == _OWN:
        for call in (terminal, left, closed):
            program.may_fail(call)  # the new container has none
    with while_(f"having process {process.pid} leave its terminal"):
        stub.run(program)


def set_foreground(stub: Stub, plan: Plan, leader: Process) -> None:
    """Give a session's terminal its foreground group."""
    group = leader.foreground_group and plan.pids.seen_by(leader, leader.foreground_group)
    if not group:
        return
    path = plan.terminal(leader.controlling) if leader.controlling >= 0 else b""
    program = stub.program()
    terminal = syscalls.openat2(program, path or _OWN, os.O_RDWR | os.O_NOCTTY | os.O_CLOEXEC)
    given = program.call(SYS.IOCTL, terminal, termios.TIOCSPGRP, struct.pack("<i", group))
    closed = program.call(SYS.CLOSE, terminal)
    if not path:
        for call in (terminal, given, closed):
            program.may_fail(call)  # the new container has none
    with while_(f"giving the terminal of process {leader.pid} its foreground group"):
        stub.run(program)
