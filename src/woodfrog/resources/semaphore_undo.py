"""What semaphores get back when a process ends: its list of changes by SEM_UNDO (semop(2)).

No call tells. But semop(2) fails with ERANGE if a change by SEM_UNDO would bring what the list has
for a semaphore out of its range, and with EAGAIN if a later operation of the same call would have
to wait; in both cases nothing was changed, and nobody woken. So what is in the list is found by
calls that never succeed. To write it down again, a call takes by SEM_UNDO and gives without.
"""

import errno
import struct
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence

from woodfrog.errors import ImageError, UnsupportedResource
from woodfrog.image.record import Part
from woodfrog.kernel.abi.x86_64 import SYS
from woodfrog.remote.program import Program

_HIGHEST = 0x7FFF  # of a semaphore, and of what it gets back; that may be lower than its negative
_IPC_NOWAIT, _SEM_UNDO = 0o4000, 0x1000
# What is asked about one semaphore: is it to get something, is it to lose something, and the end.
_LONGEST_QUESTION = 9

# One operation: by how much, and whether the end of the process undoes it.
_Operation = tuple[int, bool]
# The results of semop(2) calls, each given by the set's id and its operations.
Asked = Callable[[list[tuple[int, bytes]]], list[int]]


class Undo(Part, frozen=True):
    """What the semaphores of one set get, by their numbers; what they lose is negative."""

    semaphores: int
    changes: dict[int, int]


def find(sets: Mapping[int, Sequence[int]], most_operations: int, asked: Asked) -> list[Undo]:
    """Find what is in the list of the task that makes the calls.

    `sets` are the values of all semaphores by the ids of their sets, `most_operations` is how many
    a call may have.
    """
    at_once = (most_operations - 1) // (_LONGEST_QUESTION - 1)
    if at_once < 1:
        raise UnsupportedResource(
            "may have changed System V semaphores with SEM_UNDO, which cannot be looked at",
            hint=f"kernel.sem allows {most_operations} operations in a call,"
            f" {_LONGEST_QUESTION} are needed",
        )
    groups = [
        (one, range(first, min(first + at_once, len(values))))
        for one, values in sets.items()
        for first in range(0, len(values), at_once)
    ]
    touched = _told(
        asked,
        [(one, _assembled((n, _is_any(sets[one][n])) for n in numbers)) for one, numbers in groups],
    )
    suspects = [
        (one, number)
        for (one, numbers), is_touched in zip(groups, touched, strict=True)
        if is_touched
        for number in numbers
    ]
    found: dict[int, dict[int, int]] = {}
    for sign in (1, -1):
        for (one, number), amount in _search(sets, suspects, sign, asked).items():
            found.setdefault(one, {})[number] = sign * amount
    return [Undo(semaphores=one, changes=changes) for one, changes in found.items()]


def _search(
    sets: Mapping[int, Sequence[int]], suspects: list[tuple[int, int]], sign: int, asked: Asked
) -> dict[tuple[int, int], int]:
    """Return how much suspects get, or with the other sign lose, if they do, by bisection."""
    most = _HIGHEST + (sign < 0)
    bounds = dict.fromkeys(suspects, (0, most))
    while open_ := [one for one, (low, high) in bounds.items() if low < high]:
        middles = [sum(bounds[one]) // 2 for one in open_]
        questions = [
            (one, _assembled([(number, _is_more(sets[one][number], sign, middle))]))
            for (one, number), middle in zip(open_, middles, strict=True)
        ]
        for suspect, middle, more in zip(open_, middles, _told(asked, questions), strict=True):
            low, high = bounds[suspect]
            bounds[suspect] = (middle + 1, high) if more else (low, middle)
    return {one: low for one, (low, _) in bounds.items() if low}


def _told(asked: Asked, questions: list[tuple[int, bytes]]) -> list[bool]:
    """Return for each question whether it was out of range."""
    answers = asked(questions)
    for (one, _), answer in zip(questions, answers, strict=True):
        if answer == -errno.EACCES:
            raise UnsupportedResource(
                f"may have changed the System V semaphores {one} with SEM_UNDO, but may not do so"
                " any more, by which alone it could be told"
            )
        if answer not in (-errno.ERANGE, -errno.EAGAIN):
            raise UnsupportedResource(
                f"has System V semaphores, {one}, that cannot be looked at (semop: {answer})"
            )
    return [answer == -errno.ERANGE for answer in answers]


def _is_any(value: int) -> list[_Operation]:
    """Return operations that are out of range if a semaphore of this value gets or loses any."""
    return [
        (_HIGHEST - value, False),
        (-_HIGHEST, True),  # out of range if it gets any
        (_HIGHEST, True),
        (-_HIGHEST, False),
        (_HIGHEST, True),
        (-1, False),
        (1, True),  # out of range if it loses any
    ]


def _is_more(value: int, sign: int, than: int) -> list[_Operation]:
    """Return operations that are out of range if a semaphore gets more, or loses, by the sign."""
    rest = _HIGHEST - than
    if sign > 0:
        return [(_HIGHEST - value, False), (-rest, True), (-than, False), (_HIGHEST, False)]
    return [(-value, False), (1, True), (-1, False), (rest, True), (than, False)]


def _assembled(parts: Iterable[tuple[int, list[_Operation]]]) -> bytes:
    """Return an array of struct sembuf that ends in a wait; each part leaves a value above zero."""
    packed, number = bytearray(), 0
    for number, operations in parts:
        for change, undo in operations:
            # No change would be a wait.
            if change:
                packed += struct.pack("<Hhh", number, change, _SEM_UNDO if undo else 0)
    return bytes(packed + struct.pack("<Hhh", number, 0, _IPC_NOWAIT))


# --- restore -------------------------------------------------------------------------------------


def check(who: str, undo: Sequence[Undo], sets: Mapping[int, Sequence[int]]) -> None:
    """Check a list from an image."""
    for one in undo:
        values = sets.get(one.semaphores, ())
        if any(
            not 0 <= number < len(values) or not -_HIGHEST - 1 <= change <= _HIGHEST
            for number, change in one.changes.items()
        ):
            raise ImageError(f"{who} has impossible changes of semaphores to undo")


def calls(undo: Iterable[Undo], sets: Mapping[int, Sequence[int]]) -> Iterator[tuple[int, bytes]]:
    """Yield calls of semop(2), by set and operations, that leave all values as they are."""
    for one in undo:
        for number, change in one.changes.items():
            value = sets[one.semaphores][number]
            yield one.semaphores, _written(number, value, change)


def _written(number: int, value: int, change: int) -> bytes:
    amount = abs(change)
    operations: list[_Operation] = [(-value, False)]
    if change > 0:
        operations += [(amount, False), (-amount, True)]
    else:
        first = min(amount, _HIGHEST)
        operations += [
            (first, True),
            (-first, False),
            (amount - first, True),
            (first - amount, False),
        ]
    operations.append((value, False))
    return b"".join(
        struct.pack("<Hhh", number, step, _SEM_UNDO if undo else 0)
        for step, undo in operations
        if step
    )


def add(program: Program, semaphores: int, operations: bytes) -> int:
    """Add a call of semop(2)."""
    return program.call(SYS.SEMOP, semaphores, operations, len(operations) // 6)
