"""CONNECT: files that point at others are tied to these, each in a process that holds it."""

import os
from collections.abc import Iterable, Mapping
from contextlib import ExitStack

from woodfrog.engine.body import Body
from woodfrog.engine.plan import Plan
from woodfrog.errors import ImageError, while_
from woodfrog.kernel import syscalls
from woodfrog.remote import descriptors
from woodfrog.resources.files.base import DescriptorTable, FileRecord

_RIGHTS_AT_ONCE = 200


def connect_files(plan: Plan, bodies: Mapping[int, Body], *, last: bool = False) -> None:
    """Tie all files, by a process that has what they point at too, if there is one.

    Those that point at io_urings which come last are tied when these are there, by `last`.
    """
    polled = {number for number, file in plan.files.items() if file.made_last}
    tied_last = {number for number, file in plan.files.items() if file.ties() & polled}
    done = set(plan.files) - tied_last if last else tied_last
    for body in bodies.values():
        program = body.stub.program()
        table, numbers = _table(body), _numbers(body)
        for file, number in numbers.items():
            if file not in done and plan.files[file].ties() <= numbers.keys():
                done.add(file)
                with while_(f"connecting descriptor {number} of {body.name}"):
                    plan.files[file].connect(program, number, table)
        if len(program):
            with while_(f"connecting the files of {body.name}"):
                body.stub.run(program)
    for body in bodies.values():
        for file, number in _numbers(body).items():
            if file not in done:
                done.add(file)
                with while_(f"connecting descriptor {number} of {body.name}"):
                    _connect_borrowing(plan.files[file], number, body, bodies.values())


def _connect_borrowing(record: FileRecord, number: int, body: Body, bodies: Iterable[Body]) -> None:
    """Tie a file in a process that has not all it points at, but for the moment."""
    table = _table(body)
    lacking = sorted(record.ties() - set(table.files.values()))
    borrowed: dict[int, int] = {}
    above = max(table.files) + 1
    for first in range(0, len(lacking), _RIGHTS_AT_ONCE):
        some = lacking[first : first + _RIGHTS_AT_ONCE]
        with ExitStack() as undo:
            ours = [_fetch(file, bodies, undo) for file in some]
            program = body.stub.program()
            for got, file in zip(descriptors.give(body.stub, ours), some, strict=True):
                high = syscalls.duplicate_above(program, got, above)
                syscalls.close(program, got)
                borrowed[file] = high
            body.stub.run(program)
            borrowed |= {file: program[borrowed[file]] for file in some}
    numbers = dict(table.files) | {high: file for file, high in borrowed.items()}
    program = body.stub.program()
    record.connect(program, number, DescriptorTable(numbers, table.cloexec))
    for high in borrowed.values():
        syscalls.close(program, high)
    body.stub.run(program)


def _fetch(file: int, bodies: Iterable[Body], undo: ExitStack) -> int:
    for body in bodies:
        number = _numbers(body).get(file)
        if number is not None:
            ours = descriptors.fetch(body.stub.pid, number)
            undo.callback(os.close, ours)
            return ours
    raise ImageError("an open file points at one that no process has")


def _numbers(body: Body) -> dict[int, int]:
    """Return the first descriptor of each file."""
    numbers: dict[int, int] = {}
    for descriptor in body.record.descriptors:
        numbers.setdefault(descriptor.file, descriptor.number)
    return numbers


def _table(body: Body) -> DescriptorTable:
    return DescriptorTable(
        {descriptor.number: descriptor.file for descriptor in body.record.descriptors},
        frozenset(d.number for d in body.record.descriptors if d.cloexec),
    )
