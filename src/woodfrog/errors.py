"""Everything that we can tell a user went wrong."""

from __future__ import annotations

TYPE_CHECKING = False
if TYPE_CHECKING:
    from types import TracebackType


# What helps against EMFILE: a restore opens each file of a container once, in one process.
MORE_DESCRIPTORS = "woodfrog needs a higher limit on open files (ulimit -n)"


class WoodfrogError(Exception):
    """A failure the user can understand and act on; printed without a traceback."""

    exit_status = 1

    def __init__(self, message: str, *, hint: str = "") -> None:
        super().__init__(message)
        self.hint = hint


class AbandonedError(Exception):
    """The command that we worked for is gone."""


class HolderEndedError(WoodfrogError):
    """Who held a container for us has ended before it was done, and put nothing in order."""


class UsageError(WoodfrogError):
    """The command line asks for something that doesn't exist or doesn't fit together."""


class SpecError(WoodfrogError):
    """The bundle's config.json is wrong; the message names the JSON path."""


class StateError(WoodfrogError):
    """The container is not in the state that the operation needs."""


class ImageError(WoodfrogError):
    """The image is missing, damaged, hostile, or of another format version."""


class UnsupportedResource(WoodfrogError):
    """The container holds something that cannot be saved or restored faithfully.

    `also` are other such things in the same place.
    """

    def __init__(
        self, message: str, *, hint: str = "", also: tuple[UnsupportedResource, ...] = ()
    ) -> None:
        super().__init__(message, hint=hint)
        self.also = also


class KernelTooOld(WoodfrogError):
    """This kernel, or this user's rights on it, lacks something that has no fallback."""


class while_:
    """Name the work in progress, so that a failure inside says where it happened.

    A class, because importing contextlib costs every command 3 ms.
    """

    def __init__(self, doing: str) -> None:
        self._doing = doing

    def __enter__(self) -> None:
        pass

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        at: TracebackType | None,
    ) -> None:
        if isinstance(error, Exception):
            error.add_note(f"while {self._doing}")
