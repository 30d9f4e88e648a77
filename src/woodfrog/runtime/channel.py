"""Messages between a command and the half of it that runs inside the container."""

from __future__ import annotations

import os

from woodfrog import errors
from woodfrog.errors import WoodfrogError
from woodfrog.runtime import jsontext

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any


class Gone(WoodfrogError):
    """The process at the other end has ended, and said nothing."""


class Channel:
    """One end of two pipes: JSON, a line per message. The end of the other side reads as None."""

    def __init__(self, incoming: int, outgoing: int) -> None:
        self._incoming = incoming
        self._outgoing = outgoing
        self._buffer = b""

    def send(self, **message: Any) -> None:
        """Send one message."""
        data = jsontext.write(message).encode() + b"\n"
        try:
            while data:
                data = data[os.write(self._outgoing, data) :]
        except BrokenPipeError:
            raise Gone("a process in the container ended before it was ready") from None

    def send_error(self, error: BaseException) -> None:
        """Send what went wrong, so that `receive` raises it on the other side."""
        self.send(**describe(error))

    def receive(self) -> dict[str, Any] | None:
        """Return the next message, or None when the other side is gone; raise what it raised."""
        while b"\n" not in self._buffer:
            data = os.read(self._incoming, 65536)
            if not data:
                return None
            self._buffer += data
        line, _, self._buffer = self._buffer.partition(b"\n")
        message: dict[str, Any] = jsontext.parse(line.decode())
        if "error" in message:
            raise recreate(message)
        return message

    @property
    def ends(self) -> tuple[int, int]:
        """The descriptors that this end consists of, incoming and outgoing."""
        return self._incoming, self._outgoing

    @property
    def descriptors(self) -> set[int]:
        """The descriptors that this end consists of."""
        return {self._incoming, self._outgoing}

    def close(self) -> None:
        """Close this end."""
        os.close(self._incoming)
        os.close(self._outgoing)


def pair() -> tuple[Channel, Channel]:
    """Return two ends; what is sent at one is received at the other."""
    left_in, right_out = os.pipe()
    right_in, left_out = os.pipe()
    return Channel(left_in, left_out), Channel(right_in, right_out)


def describe(error: BaseException) -> dict[str, Any]:
    """Return an error as plain values."""
    text = str(error)
    if isinstance(error, OSError) and error.filename and error.strerror:
        text = f"{os.fsdecode(error.filename)}: {error.strerror}"
    elif not isinstance(error, (WoodfrogError, OSError)):
        text = f"{type(error).__name__}: {text}"
    frames = []
    step = error.__traceback__
    while step:
        code = step.tb_frame.f_code
        frames.append(f"{code.co_filename}:{step.tb_lineno} in {code.co_name}")
        step = step.tb_next
    return {
        "error": text,
        "class": type(error).__name__,
        "notes": list(getattr(error, "__notes__", ())),
        "hint": getattr(error, "hint", ""),
        "frames": frames,
    }


def recreate(message: dict[str, Any]) -> WoodfrogError:
    """Return the error that `describe` described; `frames` says where it came from."""
    kind = getattr(errors, message["class"], WoodfrogError)
    error: WoodfrogError = kind(message["error"], hint=message["hint"])
    for note in message["notes"]:
        error.add_note(note)
    error.frames = message["frames"]  # type: ignore[attr-defined] # shown by --debug only
    return error
