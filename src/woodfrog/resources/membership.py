"""Which nested namespaces processes, threads and files are in."""

from collections.abc import Iterable, Mapping
from typing import Protocol

from woodfrog.errors import ImageError

# Ids of nested namespaces, by the names that /proc/PID/ns has for their kinds. A kind is missing
# where it is the container's own.
Membership = Mapping[str, int]

FUTURE_TIME, FUTURE_PID = "time_for_children", "pid_for_children"


class Named(Protocol):
    """A namespace's record, of which only its kind counts."""

    @property
    def name(self) -> str:
        """Its kind, as /proc/PID/ns calls it."""


def check_membership(who: str, membership: Membership, found: Mapping[int, Named]) -> None:
    """Check that the namespaces that somebody is in are there, and of their kinds."""
    for name, number in membership.items():
        kind = name.removesuffix("_for_children")
        if number not in found or found[number].name != kind:
            raise ImageError(f"{who} is in a namespace that the image lacks")


def check_made_for_children(memberships: Iterable[Membership]) -> None:
    """Check that nobody but its maker has a time namespace only for future children."""
    made = [one[FUTURE_TIME] for one in memberships if FUTURE_TIME in one]
    if len(set(made)) != len(made):
        raise ImageError("two processes of the image have made one namespace")
