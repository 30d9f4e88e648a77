"""A timed system call that a thread was in, and that goes on by a restart block of the kernel.

In a new process, such a block is made by having the kernel interrupt the same call with the time
that was left.
"""

from woodfrog.image.record import Part
from woodfrog.remote.timed_calls import TimedCall, is_known


class InterruptedCall(Part, frozen=True):
    """A wait: the call's number, and the nanoseconds that were left; 0 without a timeout."""

    number: int
    left_ns: int

    def timed_call(self) -> TimedCall:
        """Return it as those who set registers know it."""
        return TimedCall(self.number, self.left_ns)


class WaitAtSocket(Part, frozen=True):
    """A wait at a socket with a timeout of its own: call, descriptor, microseconds left."""

    call: int
    descriptor: int
    left_us: int


def check(call: InterruptedCall) -> bool:
    """Tell whether a call from an image is one that can be resumed."""
    return is_known(call.number) and call.left_ns >= 0
