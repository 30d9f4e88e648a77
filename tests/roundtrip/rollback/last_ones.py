"""Has the last descriptors that it may have, and knows what they are."""

import os
import resource

from told import obey

LAST, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
COUNT = 250  # more than one message carries

for number in range(COUNT):
    counter = os.eventfd(number, os.EFD_NONBLOCK)
    os.dup2(counter, LAST - 1 - number)
    os.close(counter)

CHANGES = {"close": lambda: os.closerange(LAST - COUNT, LAST)}


def check() -> None:
    """Raise AssertionError unless all are there, and no more may be."""
    for number in range(1, COUNT):
        assert os.eventfd_read(LAST - 1 - number) == number
    assert resource.getrlimit(resource.RLIMIT_NOFILE)[0] == LAST


obey(CHANGES, check)
