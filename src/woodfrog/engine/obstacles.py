"""Everything that keeps a container from being saved: all of it, not the first."""

from collections.abc import Iterator
from contextlib import contextmanager

from woodfrog.errors import UnsupportedResource, while_


class Obstacles:
    """A list of refusals, raised as one."""

    def __init__(self) -> None:
        self.found: list[tuple[str, str]] = []

    @contextmanager
    def at(self, what: str) -> Iterator[None]:
        """Note a refusal inside, name the thing, and go on."""
        try:
            with while_(f"looking at {what}"):
                yield
        except UnsupportedResource as error:
            for one in (error, *error.also):
                self.found.append((f"{what}: {one}", one.hint))

    def unless(self, doomed: bool) -> "Obstacles":
        """Return these, or others that stand in nobody's way: what is doomed need not be kept."""
        return Obstacles() if doomed else self

    def raise_if_any(self) -> None:
        """Raise UnsupportedResource that names every obstacle."""
        if not self.found:
            return
        first, hint = self.found[0]
        hints = dict.fromkeys(hint for _, hint in self.found if hint)
        error = UnsupportedResource(first, hint="; ".join(hints) or hint)
        for more, _ in self.found[1:]:
            error.add_note(f"also {more}")
        raise error
