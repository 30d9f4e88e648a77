"""What has been made, and goes again if what it was made for fails."""

from __future__ import annotations

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from types import TracebackType


class Undo:
    """What has been made and must go again, last first, should the `with` block fail.

    (contextlib's ExitStack can do it as well, but costs each command 3 ms to import.)
    """

    def __init__(self) -> None:
        self._steps: list[Callable[[], object]] = []

    def callback(self, step: Callable[..., object], *arguments: object) -> None:
        """Have a function called at the end."""
        self._steps.append(lambda: step(*arguments))

    def forget(self) -> None:
        """Keep everything: all went well."""
        self._steps.clear()

    def __enter__(self) -> Undo:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        at: TracebackType | None,
    ) -> None:
        while self._steps:
            step = self._steps.pop()
            try:
                step()
            except Exception as wrong:
                # The other steps are due all the same, and the first error is what matters.
                if error:
                    error.add_note(f"while cleaning up: {wrong}")
