"""Which files can be made anew only together with others, as sockets that are connected."""

from collections import defaultdict
from collections.abc import Iterable

from woodfrog.engine.plan import Plan


def made_together(lost: Iterable[int], plan: Plan) -> set[int]:
    """Return these files, and all that have to be made anew with them."""
    groups: dict[object, set[int]] = defaultdict(set)
    followers: dict[object, set[int]] = defaultdict(set)
    leaders: dict[object, set[int]] = defaultdict(set)
    carriers: dict[int, set[int]] = defaultdict(set)
    for number, record in plan.files.items():
        for bond in record.bonds():
            groups[bond].add(number)
        for bond in record.follows():
            followers[bond].add(number)
        for bond in record.leads():
            leaders[bond].add(number)
        for carried in record.carries():
            carriers[carried].add(number)
    unheld = plan.unheld
    found: set[int] = set()
    waiting = [*lost]
    while waiting:
        number = waiting.pop()
        if number in found:
            continue
        found.add(number)
        record = plan.files[number]
        waiting += carriers[number]
        for bond in record.bonds():
            waiting += groups[bond]
        for bond in record.leads():
            waiting += followers[bond]
        for bond in record.follows():
            # What leads may stay, if somebody has it, and there is nothing else in its way.
            waiting += groups[bond] | (leaders[bond] & unheld)
            if not leaders[bond]:
                waiting += followers[bond]
    return found
