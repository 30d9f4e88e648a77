"""Read every process of a held container into its record."""

import os
from collections.abc import Callable
from collections.abc import Set as AbstractSet
from contextlib import ExitStack
from functools import partial
from typing import Any

from woodfrog.engine import collecting_locks, collecting_shares, mapped
from woodfrog.engine.asking_processes import AskingProcesses
from woodfrog.engine.asking_threads import AskingThreads
from woodfrog.engine.collected import CollectedProcess, scratch_in
from woodfrog.engine.collecting_files import Files
from woodfrog.engine.collecting_memory import Policies, contexts, modes_of, refuse_parted_vdso
from woodfrog.engine.obstacles import Obstacles
from woodfrog.engine.reading_ahead import MappingsAhead
from woodfrog.engine.undo_lists import UndoLists
from woodfrog.engine.world import World
from woodfrog.errors import UnsupportedResource, while_
from woodfrog.kernel import ptrace
from woodfrog.kernel.kcmp import KCMP_VM
from woodfrog.kernel.procfs.status import Status
from woodfrog.remote import cut_calls
from woodfrog.remote.held import (
    Held,
    HeldProcess,
    HeldTask,
    Zombie,
)
from woodfrog.remote.scratch import Scratch
from woodfrog.remote.vdso import Vdso
from woodfrog.resources import (
    keyrings,
    login,
    memory,
    memory_fields,
    process,
    scheduling,
    seccomp_filters,
    signals,
    threads,
    timers,
)
from woodfrog.resources.files.base import FileRecord
from woodfrog.resources.waits_at_sockets import WaitAtSocket

# Programs of so many calls, with what they fill, have room in our scratch memory.
_FEW = 20  # that fit into a program with all else
_ASKED_AT_ONCE = 200


def refuse_dispatched(tree: Held) -> None:
    """Refuse tasks whose system calls, and so ours in them, may become signals (SIGSYS)."""
    for one in tree.processes:
        for task in one.tasks:
            if ptrace.has_syscall_dispatch(task.pid):
                raise UnsupportedResource(
                    f"{one.name} has its system calls dispatched to itself"
                    " (PR_SET_SYSCALL_USER_DISPATCH), which cannot be saved yet"
                )


def collect_processes(
    tree: Held,
    world: World,
    files: Files,
    records: list[FileRecord],
    obstacles: Obstacles,
    vdso: Vdso,
    lent: ExitStack,
    ahead: MappingsAhead,
    asking: AskingProcesses,
    doomed: AbstractSet[int] = frozenset(),
) -> list[CollectedProcess]:
    """Read all processes but the `doomed`; refusals are noted, and leave a process out.

    What only they can tell of their files goes into `records`. They lend us memory until `lent`
    unwinds.
    """
    found = []
    of_threads = AskingThreads(world.confined)
    for one in tree.processes:
        if one.pid in doomed:
            continue
        with obstacles.at(one.name), while_(f"collecting {one.name}"), ExitStack() as lending:
            scratch = lending.enter_context(scratch_in(one, vdso))
            found.append(
                _collect(one, world, files, records, vdso, asking, of_threads, scratch, ahead)
            )
            # Else who shares an address space with others would find ours among theirs.
            if KCMP_VM not in one.shares:
                lent.push(lending.pop_all())
    note_inherited(found)
    _note_terminals(found)
    return found


def note_inherited(processes: list[CollectedProcess]) -> None:
    """Note which huge pages a process got by fork(2), which reserves none for it."""
    by_pid = {one.held.pid: one for one in processes}
    for one in processes:
        parent = by_pid.get(one.held.leader.stat.parent)
        if parent is not None:
            one.space.note_inherited(parent.space)


def _note_terminals(processes: list[CollectedProcess]) -> None:
    """Note who hasn't the terminal of its session: it left that, or was there before."""
    terminals = {one.held.pid: one.held.leader.stat.terminal for one in processes}
    for one in processes:
        stat = one.held.leader.stat
        one.fields["left_terminal"] = not stat.terminal and bool(terminals.get(stat.session))


def _collect(
    held: HeldProcess,
    world: World,
    files: Files,
    records: list[FileRecord],
    vdso: Vdso,
    asking: AskingProcesses,
    of_threads: AskingThreads,
    scratch: Scratch,
    ahead: MappingsAhead,
) -> CollectedProcess:
    is_owner = KCMP_VM not in held.shares  # of its memory
    space = _space(held, world, scratch, vdso, ahead) if is_owner else memory.Collected.none()
    program = asking.program(scratch)
    confined = world.confined.ask(world.confined.whom(held.leader), program)
    inherited = files.ask_inherited(held, program)
    children = list(world.children(held).items())
    news = process.ask_news(program, children[:_FEW])
    policies = Policies(program, space.mappings)
    # Filters often forbid this one, and then all would run call by call.
    rings = None if held.leader.tracee.filters else keyrings.ask(program)
    scratch.run(program)
    program = scratch.program()
    peers = files.ask_peers(held, program, records)
    if len(program):
        scratch.run(program)
        peers()
    world.news |= news()
    _ask_more_news(scratch, children[_FEW:], world)
    fields: dict[str, Any] = {
        "keyring": world.keyrings.of(scratch, rings),
        "actions": asking.actions(),
        "interval_timers": asking.interval_timers(),
        "limits": asking.limits(),
        **asking.attributes(),
    }
    confined()
    told = [asking.leader.fields(held.leader.status), *of_threads.ask(scratch, held.tasks[1:])]
    told[0]["personality"] = threads.read_personality(held.path)
    world.confined.note(held, dumpable=fields["dumpable"] == 1)
    _add_undo(held, scratch, world, fields, told[1:])
    space.set_policies(policies.of(scratch))
    if is_owner:
        space.fields["contexts"] = contexts(scratch, held, space.mappings, files)
        space.fields["finishes_calls"] = cut_calls.is_there(held.memory, held.vdso[1])
        fields["modes"] = modes_of(scratch, *asking.modes())
    posix_timers = _posix_timers(held, scratch)
    fields["threads"] = [
        _thread(task, answer, world, files) for task, answer in zip(held.tasks, told, strict=True)
    ]
    fields |= _surroundings(held, world) | _identity(held, world)
    fields.update(
        pending=signals.collect_pending(held.pid, shared=True, shown=held.leader.status["ShdPnd"]),
        posix_timers=posix_timers() if posix_timers else [],
        descriptors=files.descriptors(held, inherited()),
        locks=collecting_locks.locks(held, files, world),
        file_signals=files.signals(held),
        queue_notices=world.notices.of(held),
    )
    _refuse_in_user_namespace(held, fields, world)
    return CollectedProcess(held, space, fields)


def _ask_more_news(scratch: Scratch, children: list[tuple[int, int]], world: World) -> None:
    """Ask of which more children a process hasn't waited for the news."""
    for first in range(0, len(children), _ASKED_AT_ONCE):
        program = scratch.program()
        news = process.ask_news(program, children[first : first + _ASKED_AT_ONCE])
        scratch.run(program)
        world.news |= news()


def _add_undo(
    held: HeldProcess,
    scratch: Scratch,
    world: World,
    fields: dict[str, Any],
    fields_of_threads: list[dict[str, Any]],
) -> None:
    """Add what the kernel undoes of semaphores when a process, or a thread of its own, ends."""
    undo = UndoLists(held, scratch, world.ipc)
    fields["undo"] = undo.of_process(world.ipc_of(held.pid))
    for task, of_thread in zip(held.tasks[1:], fields_of_threads, strict=True):
        of_thread["undo"] = undo.of_thread(task, world.ipc_of(task.pid))


def _surroundings(held: HeldProcess, world: World) -> dict[str, Any]:
    """Return where a process works, and how it is to be treated."""
    place = world.place_of(held.pid)
    directory, directory_deleted = world.links.object_at(f"{held.path}/cwd", place)
    root, root_deleted = world.links.object_at(f"{held.path}/root", place)
    return {
        "directory": directory,
        "directory_deleted": directory_deleted,
        "root": root,
        "root_deleted": root_deleted,
        "umask": int(held.leader.status["Umask"], 8),
        "oom_score_adj": process.read_oom_score_adj(held.path),
    }


def _identity(held: HeldProcess, world: World) -> dict[str, Any]:
    """Return who a process is to others."""
    stat, status = held.leader.stat, held.leader.status
    return {
        "pid": held.namespace_pid,
        "parent": world.identify(stat.parent),
        "group": held.ids_of(status["NSpgid"])[0],
        "session": held.ids_of(status["NSsid"])[0],
        "nested_ids": _nested_ids(held.ids, held.ids_of, status),
        "stopped_by": held.leader.stopped_by,
        "shares": collecting_shares.shares(held),
        "exit_signal": held.exit_signal,
        "login": login.collect(held.path, f"/proc/{world.init}"),
        "session_nice": scheduling.autogroup_nice(held.path) if _leads_session(held) else 0,
        "foreground_group": _foreground_group(held, world),
        "controlling": _controlling(held, world),
        "ended_thread": threads.ended(f"/proc/{held.group}/task/{held.group}")
        if held.is_headless
        else None,
    }


def _space(
    held: HeldProcess, world: World, scratch: Scratch, vdso: Vdso, ahead: MappingsAhead
) -> memory.Collected:
    """Look at a process's mappings, among which our scratch memory is."""
    listed = ahead.of(held)
    refuse_parted_vdso(listed, vdso)
    place = world.place_of(held.pid)
    listed = place.named(held.pid, listed)
    space = memory.collect(
        held.pid,
        held.leader.stat,
        listed,
        scratch.range,
        partial(mapped.object_of, world),
        place.root,
        memory_fields.read_core_dump_filter(held.pid),
        world.links.object_at(f"{held.path}/exe", place),
        noted=held.pid in world.noted,
    )
    space.lacks_flags = ahead.lacks_flags(held)
    world.links.refuse_unseen(held.pid, place, space.mappings, listed)
    space.find_shared_guards(held.pid)
    return space


def _posix_timers(
    held: HeldProcess, scratch: Scratch
) -> Callable[[], list[timers.PosixTimer]] | None:
    """Ask for timers, if there are any; what is returned tells them when nothing runs any more."""
    listed = timers.listed(held.path)
    if not listed:
        return None
    from woodfrog.engine.collecting_timers import CollectedTimers

    return CollectedTimers(held, scratch, listed).records


def _refuse_in_user_namespace(held: HeldProcess, fields: dict[str, Any], world: World) -> None:
    """Refuse what only the container's root could make again, who can't go there and back."""
    within = world.namespaces.of(held.pid)
    owner = world.namespaces.owner(within.get("pid", 0))
    deeper = within.get("user") not in (None, owner) and len(held.tasks) > 1
    if owner and (deeper or len(held.ids) > 2):
        raise UnsupportedResource(
            "has threads, or a pid namespace deeper, in a user namespace below the one that its pid"
            " namespace belongs to, which cannot be saved yet"
        )
    if "user" not in within:
        return
    what = ""
    if fields["file_signals"]:
        what = "files that send it signals (F_SETOWN)"
    elif fields["queue_notices"]:
        what = "a notification by a message queue (mq_notify)"
    elif any(lock.how == "lease" for lock in fields["locks"]):
        what = "a lease on a file"
    elif held.is_headless:
        what = "a first thread that has ended"
    elif "pid" in within and not owner and len(held.tasks) > 1:
        what = "several threads in a pid namespace of its own"
    if what:
        raise UnsupportedResource(
            f"has {what}, and is in a user namespace that a program made, which cannot be saved yet"
        )


def _nested_ids(
    ids: list[int], ids_of: Callable[[str], list[int]], status: Status
) -> process.NestedIds | None:
    if len(ids) == 1:
        return None
    return process.NestedIds(
        pid=ids[1:], group=ids_of(status["NSpgid"])[1:], session=ids_of(status["NSsid"])[1:]
    )


def _leads_session(held: HeldProcess) -> bool:
    return held.namespace_pid == held.ids_of(held.leader.status["NSsid"])[0]


def _foreground_group(held: HeldProcess, world: World) -> int:
    """Return the foreground process group of the session's terminal, for its leader; else 0."""
    stat = held.leader.stat
    if not stat.terminal or not _leads_session(held):
        return 0
    with open(f"{held.path}/stat", "rb") as file:
        group = int(file.read().rpartition(b")")[2].split()[5])
    return world.identify_group(group)


def _controlling(held: HeldProcess, world: World) -> int:
    """Return the number of the pseudoterminal that a session has, for its leader; else -1."""
    device = held.leader.stat.terminal
    if not _leads_session(held) or not device:
        return -1
    return os.minor(device) if world.controls_sessions(os.minor(device)) else -1


def _thread(task: HeldTask, told: dict[str, Any], world: World, files: Files) -> threads.Thread:
    wait = task.socket_wait
    return threads.Thread(
        tid=task.namespace_pid,
        nested_tid=task.ids[1:],
        namespaces=dict(world.namespaces.of(task.pid)),
        name=task.status.comm,
        registers=threads.packed_registers(task.tracee.registers),
        xstate=_stripped(ptrace.xstate(task.pid)),
        mask=ptrace.signal_mask(task.pid),
        pending=signals.collect_pending(task.pid, shared=False, shown=task.status["SigPnd"]),
        robust_list=threads.robust_list(task.pid),
        rseq=threads.rseq_area(task.rseq),
        scheduling=scheduling.collect(task.pid),
        seccomp=task.seccomp,
        filters=seccomp_filters.collect(task.pid, task.seccomp),
        socket_wait=WaitAtSocket(call=wait.call, descriptor=wait.descriptor, left_us=wait.left_us)
        if wait
        else None,
        descriptors=files.thread_descriptors(task),
        **(_own_directory(task, world) if task.has_own_directory else {}),
        **told,
    )


def _own_directory(task: HeldTask, world: World) -> dict[str, Any]:
    """Return where a thread works that shares no directory with its process (unshare(2))."""
    directory, deleted = world.links.object_at(f"{task.path}/cwd", world.place_of(task.pid))
    roots = {os.readlink(f"{path}/root") for path in (task.path, task.process.path)}
    if deleted or roots != {"/"}:
        raise UnsupportedResource(
            "has a thread with a working directory of its own that was removed, or in a process"
            " with another root than the container's, which cannot be saved yet"
        )
    return {"directory": directory, "umask": int(task.status["Umask"], 8)}


def _stripped(xstate: bytes) -> bytes:
    """Leave out the zeros at the end of an XSAVE area, but not its header."""
    return xstate[:576] + xstate[576:].rstrip(b"\0")


def parents_first(processes: list[CollectedProcess]) -> list[CollectedProcess]:
    """Order processes so that each comes after its parent."""
    by_pid = {one.held.group: one for one in processes}
    ordered: dict[int, CollectedProcess] = {}

    def place(one: CollectedProcess) -> None:
        parent = by_pid.get(one.held.leader.stat.parent)
        if parent is not None and parent.held.group not in ordered:
            place(parent)
        ordered[one.held.group] = one

    for one in processes:
        if one.held.group not in ordered:
            place(one)
    return list(ordered.values())


def zombie_record(zombie: Zombie, world: World) -> process.Zombie:
    """Return the record of an ended process."""
    return process.Zombie(
        pid=zombie.namespace_pid,
        parent=world.identify(zombie.stat.parent),
        group=zombie.ids_of(zombie.status["NSpgid"])[0],
        session=zombie.ids_of(zombie.status["NSsid"])[0],
        pid_namespace=world.namespaces.of(zombie.pid).get("pid", 0),
        nested_ids=_nested_ids(zombie.ids, zombie.ids_of, zombie.status),
        name=zombie.stat.comm,
        status=zombie.stat.exit_code,
        exit_signal=zombie.stat.exit_signal,
    )
