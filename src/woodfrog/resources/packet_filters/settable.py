"""What the kernel tells of nf_tables, but refuses when it is set, as nothing else would be."""

from collections.abc import Callable

from woodfrog.kernel.netlink.messages import attribute, attributes_of, each_attribute, nested

_NESTED = 0x8000
_LIST_OF_ELEMENTS, _LIST_OF_EXPRESSIONS = 3 | _NESTED, 4 | _NESTED
_FLAGS, _TIMEOUT, _EXPIRATION = 3, 4, 5
_INTERVAL_END = 1
_NAME, _DATA = 1, 2 | _NESTED
_EXTHDR_DREG, _EXTHDR_OFFSET, _EXTHDR_LEN, _EXTHDR_SREG = 1, 3, 4, 7


def elements(told: bytes) -> bytes:
    """Return the elements of a set.

    Since Linux 6.12 ends of intervals in a set with a time-out are told to have none.
    """

    def one(element: bytes) -> bytes:
        flags = attributes_of(memoryview(element)).get(_FLAGS, b"")
        is_end = int.from_bytes(flags, "big") & _INTERVAL_END
        return _without(element, (_TIMEOUT, _EXPIRATION)) if is_end else element

    return _each(told, _LIST_OF_ELEMENTS, one)


def rule(told: bytes) -> bytes:
    """Return a rule. What removes a TCP option is told to be at a place in it, 0, and as long."""

    def one(expression: bytes) -> bytes:
        parts = attributes_of(memoryview(expression))
        data = parts.get(_DATA, b"")
        registers = {_EXTHDR_DREG, _EXTHDR_SREG} & attributes_of(memoryview(data)).keys()
        if parts.get(_NAME, b"").rstrip(b"\0") != b"exthdr" or registers:
            return expression
        place = (_EXTHDR_OFFSET, _EXTHDR_LEN)
        return attribute(_NAME, parts[_NAME]) + nested(_DATA, _without(data, place))

    return _each(told, _LIST_OF_EXPRESSIONS, one)


def _each(told: bytes, number: int, change: Callable[[bytes], bytes]) -> bytes:
    """Change each part of the attribute of that number, which is a list."""
    return b"".join(
        nested(
            kind, *(nested(part, change(one)) for part, one in each_attribute(memoryview(value)))
        )
        if kind == number
        else attribute(kind, value)
        for kind, value in each_attribute(memoryview(told))
    )


def _without(told: bytes, numbers: tuple[int, ...]) -> bytes:
    return b"".join(
        attribute(kind, value)
        for kind, value in each_attribute(memoryview(told))
        if kind not in numbers
    )
