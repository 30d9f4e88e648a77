"""What processes share since clone(2): found by kcmp(2)."""

import os
from collections.abc import Mapping, Sequence
from functools import cmp_to_key
from typing import Any, NamedTuple, Protocol

from woodfrog.engine import kinship, undo_lists
from woodfrog.engine.obstacles import Obstacles
from woodfrog.errors import UnsupportedResource
from woodfrog.kernel.kcmp import (
    KCMP_FILES,
    KCMP_FS,
    KCMP_SIGHAND,
    KCMP_SYSVSEM,
    KCMP_VM,
    compare,
    same,
)
from woodfrog.remote.held import (
    Held,
    HeldProcess,
)
from woodfrog.resources import process


def refuse_shared_parts(tree: Held, obstacles: Obstacles) -> None:
    """Note what processes share by clone(2), and refuse what threads don't share."""
    ids = {one.group: one.namespace_pid for one in tree.processes}
    kin = {
        one.group: _Kin(one.namespace_pid, ids.get(one.leader.stat.parent, 0), one.exit_signal)
        for one in tree.processes
    }
    for kind in _SHARED_BY_CLONE:
        _note_shared(kind, tree.processes, kin)
    _note_shared(KCMP_SYSVSEM, undo_lists.owners(tree), kin)
    for one in tree.processes:
        if one.has_kernel_threads:
            with obstacles.at(one.name):
                raise UnsupportedResource(
                    "has the kernel work for it in threads (vhost), which cannot be saved yet"
                )
        with obstacles.at(one.name):
            alone, with_tables = [one.leader], [one.leader]
            for task in one.tasks:
                if not same(KCMP_FILES, one.pid, task.pid):
                    task.has_own_descriptors = True
                    others = (*with_tables, *(other.leader for other in tree.processes))
                    if KCMP_FILES in one.shares or any(
                        same(KCMP_FILES, other.pid, task.pid) for other in others
                    ):
                        raise UnsupportedResource(
                            "has a thread that shares a descriptor table with others, but not with"
                            " its process, which cannot be saved yet"
                        )
                    with_tables.append(task)
                if not same(KCMP_FS, one.pid, task.pid):
                    task.has_own_directory = True
                    if any(same(KCMP_FS, other.pid, task.pid) for other in alone):
                        raise UnsupportedResource(
                            "has threads of which some share a working directory, which cannot be"
                            " saved yet"
                        )
                    alone.append(task)
                for child in task.strangers:
                    if os.path.exists(f"/proc/{child}"):
                        raise UnsupportedResource(
                            f"has a child in another pid namespace ({child} on the host),"
                            " which cannot be saved yet"
                        )


# What processes may share by clone(2); what else they share with threads they can't.
_SHARED_BY_CLONE = (KCMP_VM, KCMP_SIGHAND, KCMP_FILES, KCMP_FS)


class Collected(Protocol):
    """A process whose record's fields are known."""

    held: HeldProcess
    fields: dict[str, Any]


class _Kin(NamedTuple):
    """A held process, as far as it counts for who can make it."""

    pid: int
    parent: int
    exit_signal: int
    child_subreaper: bool = False
    shares: process.Shares = process.Shares()
    is_first: bool = False


def _note_shared(kind: int, processes: Sequence[HeldProcess], kin: Mapping[int, _Kin]) -> None:
    """Note which of some processes share a part with whom; `kin` are all, by our ids."""
    # kcmp(2) puts them in an order, in which those that share are neighbours.
    order = {0: 0, 1: -1, 2: 1}

    def by_kernel(one: HeldProcess, two: HeldProcess) -> int:
        return order[compare(kind, one.pid, two.pid)]

    ordered = sorted(processes, key=cmp_to_key(by_kernel))
    groups: list[list[HeldProcess]] = []
    for one in ordered:
        if groups and same(kind, groups[-1][0].pid, one.pid):
            groups[-1].append(one)
        else:
            groups.append([one])
    for sharers in groups:
        if len(sharers) == 1:
            continue
        owner = kinship.owner([kin[one.group] for one in sharers], list(kin.values()))
        (first,) = (one for one in sharers if one.namespace_pid == owner.pid)
        for one in sharers:
            if one is not first:
                one.shares[kind] = first


def refuse_unmade(collected: Sequence[Collected], obstacles: Obstacles) -> None:
    """Refuse processes that share something with others who could not make them again."""
    kin = [
        _Kin(*(one.fields[name] for name in _Kin._fields[:-1]))._replace(
            is_first=one.held.ids[-1] == 1
        )
        for one in collected
    ]
    makers = kinship.makers(kin)
    for one in collected:
        shares = one.fields["shares"]
        if one.fields["pid"] != 1 and any(shares.owners) and one.fields["pid"] not in makers:
            with obstacles.at(one.held.name):
                raise UnsupportedResource(
                    f"shares memory, descriptors or the like with process"
                    f" {max(shares.owners)}, which is neither its parent nor a sibling; that"
                    " cannot be saved yet"
                )


def shares(held: HeldProcess) -> process.Shares:
    """Return what a process shares, with whom."""
    owners = {kind: owner.namespace_pid for kind, owner in held.shares.items()}
    return process.Shares(
        memory=owners.get(KCMP_VM, 0),
        actions=owners.get(KCMP_SIGHAND, 0),
        descriptors=owners.get(KCMP_FILES, 0),
        directory=owners.get(KCMP_FS, 0),
        undo=owners.get(KCMP_SYSVSEM, 0),
    )
