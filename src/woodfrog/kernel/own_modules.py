"""Our own modules: whoever sees a container's files loads none.

Python loads modules, and codecs, when they are first needed. Who has gone to a container's files
would find there what the container has at our paths, and run that with our rights.
"""

from __future__ import annotations

import _imp
import sys
from _thread import get_ident

_elsewhere: set[int] = set()


class _Guard:
    """Looks for modules before all others do, and stops the search."""

    @staticmethod
    def find_spec(name: str, _path: object = None, _target: object = None) -> None:
        """Raise ImportError if a module would be searched for among a container's files."""
        if get_ident() not in _elsewhere:
            return
        if name not in sys.builtin_module_names and not _imp.is_frozen(name):
            raise ImportError(
                f"{name} must have been loaded before going to a container's files", name=name
            )


def load_no_more() -> None:
    """Have this thread load no module from a file from now on; those that are there will do."""
    if _Guard not in sys.meta_path:
        sys.meta_path.insert(0, _Guard)
    _elsewhere.add(get_ident())


def load_again() -> None:
    """Have this thread, which ends, or another of its id, load modules again."""
    _elsewhere.discard(get_ident())
