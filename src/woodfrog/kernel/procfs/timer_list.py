"""/proc/timer_list: when the machine's POSIX timers ring, by clock."""

import re

_REALTIME = ("1", "5")  # HRTIMER_BASE_REALTIME, and that of soft interrupts
_BASE = re.compile(r"^  \.index:\s+(\d+)$", re.MULTILINE)
_EXPIRY = re.compile(r", posix_timer_fn, .*\n # expires at (\d+)-")


def realtime_expirations() -> list[int]:
    """Return when timers ring that are set to a time of CLOCK_REALTIME, in nanoseconds.

    Those of a relative time are of another clock, whatever they were made with.
    """
    try:
        with open("/proc/timer_list", encoding="ascii", errors="replace") as file:
            text = file.read()
    except OSError:
        return []
    _, *parts = _BASE.split(text)
    return [
        int(expiry)
        for index, part in zip(parts[::2], parts[1::2], strict=True)
        if index in _REALTIME
        for expiry in _EXPIRY.findall(part)
    ]
