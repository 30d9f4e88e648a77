"""BODY: processes that a signal had stopped stop again, and their parents know what they knew."""

import os
from collections.abc import Collection, Mapping

from woodfrog.engine import kinship
from woodfrog.engine.body import Body
from woodfrog.kernel import ptrace
from woodfrog.kernel.abi.x86_64 import SYS
from woodfrog.kernel.ptrace import Event
from woodfrog.resources import signals

_WNOHANG, _WUNTRACED = 1, 2


def restore(bodies: Mapping[int, Body], missing: list[str]) -> None:
    """Stop all processes that were stopped; `missing` gets whose parent is told of another."""
    orphaned = kinship.orphaned_groups([body.record for body in bodies.values()])
    for body in bodies.values():
        _stop_again(body, orphaned, missing)
    for body in bodies.values():
        _forget_news(body, bodies)


def _stop_again(body: Body, orphaned: Collection[int], missing: list[str]) -> None:
    """Stop a process by the signal that had stopped it, before its parent listens.

    In `orphaned` groups only SIGSTOP stops.
    """
    record = body.record
    signal = record.stopped_by or (signals.SIGSTOP if record.continued else 0)
    if not signal:
        return
    if signal != signals.SIGSTOP and record.group in orphaned:
        if not record.stop_heard:
            missing.append(f"{body.name}: its stop is told as one by SIGSTOP, not {signal}")
        signal = signals.SIGSTOP
    pid = body.stub.pid
    mask = ptrace.signal_mask(pid)
    ptrace.set_signal_mask(pid, 0)
    os.kill(pid, signal)
    # The process has stopped, and its parent hears of it, when all its threads have.
    for task in body.tasks:
        ptrace.resume(task.pid)
        while True:
            status = ptrace.wait(task.pid)
            if status.event is Event.SIGNAL:
                ptrace.resume(task.pid, status.signal)
            elif status.event is Event.STOPPED and status.signal == signal:
                break
            else:
                ptrace.resume(task.pid)
    if record.continued:
        # Taken by the kernel as it is sent; the threads run their next program from where they
        # are.
        os.kill(pid, signals.SIGCONT)
    ptrace.set_signal_mask(pid, mask)
    if record.continued:
        # Queued all the same, as we trace it, and its handler has run already.
        program = body.stub.program()
        signals.forget(program, signals.SIGCONT)
        body.stub.run(program)


def _forget_news(parent: Body, bodies: Mapping[int, Body]) -> None:
    """Take the news that a child was stopped, as the parent had taken it."""
    stopped = [
        body.record.ids[len(parent.record.ids) - 1]
        for body in bodies.values()
        if body.record.stop_heard and body.record.parent == parent.record.pid
    ]
    if not stopped:
        return
    program = parent.stub.program()
    for pid in stopped:
        program.may_fail(program.call(SYS.WAIT4, pid, 0, _WNOHANG | _WUNTRACED, 0))
    signals.forget_children(program)
    parent.stub.run(program)
