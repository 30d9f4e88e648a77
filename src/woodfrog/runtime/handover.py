"""Handing an image to a restore that an engine calls, without the engine carrying it.

Docker packs a checkpoint, stores it, and unpacks it again on its way to the runtime. So what it is
given is a ticket: a small file with a random name, under which a link to the image stands in a
directory that only root can write to. A ticket that somebody else wrote stands for nothing.
"""

from __future__ import annotations

import os

from woodfrog.errors import ImageError

PLACE = "/run/woodfrog-handover"
FILE = "woodfrog-ticket"

_NAME_LENGTH = 32


class Ticket:
    """What stands for an image, in a directory, until it is withdrawn; good for one restore."""

    def __init__(self, image: str, parent: str) -> None:
        secret = os.urandom(_NAME_LENGTH // 2).hex()
        self.name = f"woodfrog-{os.urandom(4).hex()}"
        self._at = f"{parent}/{self.name}"
        self._link = f"{PLACE}/{secret}"
        os.makedirs(PLACE, mode=0o700, exist_ok=True)
        os.symlink(os.path.abspath(image), self._link)
        try:
            os.makedirs(self._at, mode=0o700)
            with open(f"{self._at}/{FILE}", "x", encoding="ascii") as file:
                file.write(secret)
        except BaseException:
            self.withdraw()
            raise

    def is_taken(self) -> bool:
        """Tell whether a restore has taken the image."""
        return not os.path.lexists(self._link)

    def withdraw(self) -> None:
        """Remove what is still there of it."""
        for remove, path in (
            (os.unlink, self._link),
            (os.unlink, f"{self._at}/{FILE}"),
            (os.rmdir, self._at),
        ):
            try:
                remove(path)
            except FileNotFoundError:
                pass  # it was taken; or the container has ended and was removed with all it had


def redeemed(directory: str) -> str:
    """Return the directory that the ticket in this one stands for, and void the ticket.

    Where there is none, that is the directory itself.
    """
    try:
        with open(f"{directory}/{FILE}", encoding="ascii") as file:
            name = file.read(_NAME_LENGTH + 1)
    except (FileNotFoundError, UnicodeDecodeError):
        return directory
    try:
        if len(name) != _NAME_LENGTH or name.strip("0123456789abcdef"):
            raise FileNotFoundError
        image = os.readlink(f"{PLACE}/{name}")
        os.unlink(f"{PLACE}/{name}")
    except FileNotFoundError:
        raise ImageError(
            f"the checkpoint in {directory} is a ticket that is no longer valid",
            hint="start again: docker woodfrog start --checkpoint …",
        ) from None
    return image
