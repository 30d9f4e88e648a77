"""A wait at a socket that has a timeout of its own (SO_RCVTIMEO, SO_SNDTIMEO).

Other interrupted calls are in the registers: they are made again, with the time that was left.
"""

from woodfrog.image.record import Part


class WaitAtSocket(Part, frozen=True):
    """A wait at a socket with a timeout of its own: call, descriptor, microseconds left."""

    call: int
    descriptor: int
    left_us: int
