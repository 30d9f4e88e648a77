"""What processes have of files, sessions and semaphores: locks, signals, terminals, logins."""

import fcntl
import os
import struct

from woodfrog.engine.body import Body
from woodfrog.engine.making_files import Making
from woodfrog.engine.plan import Plan
from woodfrog.errors import ImageError, while_
from woodfrog.kernel import namespaces, syscalls
from woodfrog.kernel.abi.x86_64 import PAGE, SYS
from woodfrog.kernel.procfs.id_maps import IdMaps
from woodfrog.remote import descriptors
from woodfrog.remote.program import Program
from woodfrog.resources import (
    descriptor,
    file_locks,
    file_signals,
    login,
    queue_notices,
    semaphore_undo,
)
from woodfrog.resources.process import Lock


def set_login(body: Body, bounding: int, maps: IdMaps | None) -> list[str]:
    """Belong to the login that it belonged to; returns what is missing otherwise."""
    user = body.record.login.uid if body.record.login else None
    if user is not None and maps:
        user = maps.users.outside(user)
    if user is None:
        return []
    if not login.may_be_set(body.stub.pid, bounding):
        return [f"{body.name} belongs to the login of whoever restores it (loginuid)"]
    file = os.open(f"/proc/{body.stub.pid}/loginuid", os.O_WRONLY | os.O_CLOEXEC)
    try:
        theirs = descriptors.give(body.stub, [file])[0]
    finally:
        os.close(file)
    program = body.stub.program()
    login.restore(program, theirs, user)
    syscalls.close(program, theirs)
    with while_(f"setting the login of {body.name}"):
        body.stub.run(program)
    return []


def own_files(body: Body, plan: Plan, only: int | None = None) -> None:
    """Have files, or only one of these descriptors, send their signals to whom they sent them."""
    files = {d.number: plan.files[d.file] for d in body.record.descriptors}
    program = body.stub.program()
    for one in body.record.file_signals:
        if only not in (None, one.descriptor):
            continue
        owner = plan.pids.seen_by(body.record, one.owner) if one.owner else 0
        file_signals.restore(program, one, owner, files[one.descriptor].flags)
    with while_(f"setting who gets signals from the files of {body.name}"):
        body.stub.run(program)


def notices(body: Body) -> None:
    """Have a process wait for notifications by message queues."""
    program = body.stub.program()
    for one in body.record.queue_notices:
        queue_notices.register(program, one)
    with while_(f"having {body.name} wait for notifications by message queues"):
        body.stub.run(program)


def separate_tables(body: Body, making: Making) -> None:
    """Give threads that have a table of descriptors of their own what was in it."""
    if len(body.record.tables) == 1:
        return
    at = making.files | {one.file: one.number for one in body.record.descriptors}
    numbers = {one.number for table in body.record.tables for one in table}
    above = max(*at.values(), *numbers) + 1
    with while_(f"making the descriptors of threads of {body.name}"):
        for task, thread in zip(body.tasks, body.record.threads, strict=True):
            if thread.descriptors is not None:
                program = task.program()
                descriptor.separate(program, thread.descriptors, at, above)
                task.run(program)
        if not body.record.shares.descriptors:
            program = body.stub.program()
            making.leave_room(program, (one.number for one in body.record.descriptors))
            body.stub.run(program)


def lock_files(body: Body, plan: Plan, locked: set[object], making: Making) -> None:
    """Take the locks that the process held."""
    files = {d.number: d.file for d in body.record.descriptors}
    program = body.stub.program()
    leases: list[Lock] = []
    for lock in body.record.locks:
        if lock.how != "posix":
            key = (lock.how, files[lock.descriptor], lock.start, lock.length)
            if key in locked:
                continue
            locked.add(key)
        if lock.how == "lease":
            _take_lease(body, program, lock, making)
            if lock.breaking:
                leases.append(lock)
            continue
        file_locks.put(program, lock, file_locks.kind(lock))
    with while_(f"taking the file locks of {body.name}"):
        body.stub.run(program)
        for lock in leases:
            _break_lease(body, lock, plan)


def _take_lease(body: Body, program: Program, lock: Lock, making: Making) -> None:
    """Take a lease as the file's owner, or by a right that the container has itbody."""
    kind = file_locks.kind(lock)
    body._limit_rights(program, making)
    for user in (body.record.threads[0].credentials.uids[3], 0):
        program.call(SYS.SETFSUID, user)
        program.may_fail(program.call(SYS.FCNTL, lock.descriptor, fcntl.F_SETLEASE, kind))
    body._regain_rights(program, making)
    program.expect(program.call(SYS.FCNTL, lock.descriptor, fcntl.F_GETLEASE, 0), kind)


def _break_lease(body: Body, lock: Lock, plan: Plan) -> None:
    """Have somebody want a lease broken; its holder has been told of that already."""
    program = body.stub.program()
    nobody = struct.pack("<2i", 0, 0)
    program.call(SYS.FCNTL, lock.descriptor, file_signals.F_SETOWN_EX, nobody)
    body.stub.run(program)
    how = os.O_RDONLY if lock.breaking == "downgrade" else os.O_WRONLY
    link = f"/proc/{body.stub.pid}/fd/{lock.descriptor}"
    try:
        os.close(os.open(link, how | os.O_NONBLOCK | os.O_CLOEXEC))
    except BlockingIOError:
        pass
    else:
        raise ImageError("a lease of the image breaks nobody's waiting")
    own_files(body, plan, lock.descriptor)


def restore_undo(body: Body, plan: Plan) -> None:
    """Have semaphores get back at the end of a process, or of its threads, what they shall."""
    for task, thread in zip(body.tasks, body.record.threads, strict=True):
        program = task.program()
        if thread.undo is not None:
            namespaces.unshare(program, namespaces.CLONE_SYSVSEM)
        undo = [*(thread.undo or ()), *(body.record.undo if task is body.stub else ())]
        if not undo and not len(program):
            continue
        with while_(f"restoring what semaphores get back from thread {thread.tid} of {body.name}"):
            for call in semaphore_undo.calls(undo, plan.semaphores_of(thread)):
                if program.room < PAGE:
                    task.run(program)
                    program = task.program()
                semaphore_undo.add(program, *call)
            task.run(program)
