"""What is kept of nf_tables' messages (linux/netfilter/nf_tables.h), each by its attributes.

Handles and counts of users are only told. Numbers of sets and chains within a transaction are left
out: all are found by their names.
"""

from woodfrog.kernel.netlink import nf_messages
from woodfrog.kernel.netlink.attributes import ANY, U8, U16, U32, U64, Field, Layout, data, nest

_NAME = data(256, 1)
_USERDATA = data(256)
_VALUE = data(64)
_FLEETING_U64 = Field(8, 8, is_fleeting=True)
_INFORMATION = data(1 << 15)  # of extensions of x_tables

EXPRESSIONS: dict[bytes, Layout] = {}
# Sizes and layouts of rules' parts are each expression's own.
_EXPRESSION: Layout = {1: _NAME, 2: Field(kinds=EXPRESSIONS)}
_EXPRESSION_LIST = nest({1: nest(_EXPRESSION)})
_DATA = nest({1: _VALUE, 2: nest({1: U32, 2: _NAME})})
_COUNTER: Layout = {1: _FLEETING_U64, 2: _FLEETING_U64, 3: None}
_QUOTA: Layout = {1: U64, 2: U32, 3: None, 4: _FLEETING_U64}
_LIMIT: Layout = {1: U64, 2: U64, 3: U32, 4: U32, 5: U32, 6: None}
_CONNLIMIT: Layout = {1: U32, 2: U32}
_SYNPROXY: Layout = {1: U16, 2: U8, 3: U32}
_EXTENSION: Layout = {1: _NAME, 2: U32, 3: _INFORMATION}


def _words(*numbers: int) -> dict[int, Field | None]:
    return dict.fromkeys(numbers, U32)


EXPRESSIONS |= {
    b"bitwise": {**_words(1, 2, 3, 6, 8), 4: _DATA, 5: _DATA, 7: _DATA},
    b"byteorder": _words(1, 2, 3, 4, 5),
    b"cmp": {**_words(1, 2), 3: _DATA},
    b"connlimit": _CONNLIMIT,
    b"counter": _COUNTER,
    b"ct": {**_words(1, 2, 4), 3: U8},
    b"dup": _words(1, 2),
    b"dynset": {
        1: _NAME,
        2: None,
        **_words(3, 4, 5, 9),
        6: U64,
        7: nest(_EXPRESSION),
        8: None,
        10: _EXPRESSION_LIST,
    },
    b"exthdr": {**_words(1, 3, 4, 6, 7), 2: U8, 5: Field(4, 4, unless_zero=True)},
    b"fib": _words(1, 2, 3),
    b"fwd": _words(1, 2, 3),
    b"hash": _words(1, 2, 3, 4, 5, 6, 7),
    b"immediate": {1: U32, 2: _DATA},
    b"inner": {**_words(1, 2, 3, 4), 5: nest(_EXPRESSION)},
    b"last": {1: Field(4, 4, is_fleeting=True), 2: _FLEETING_U64, 3: None},
    b"limit": _LIMIT,
    b"log": {1: U16, 2: data(128), 3: U32, 4: U16, 5: U32, 6: U32},
    b"lookup": {1: _NAME, **_words(2, 3, 5), 4: None},
    b"masq": _words(1, 2, 3),
    b"match": {**_EXTENSION, 1: Field(1, 256, never={b"bpf": "iptables' bpf"})},
    b"meta": _words(1, 2, 3),
    b"nat": _words(1, 2, 3, 4, 5, 6, 7),
    b"notrack": {},
    b"numgen": _words(1, 2, 3, 4),
    b"objref": {1: U32, 2: _NAME, 3: U32, 4: _NAME, 5: None},
    b"osf": {1: U32, 2: U8, 3: Field(4, 4, unless_zero=True)},
    b"payload": _words(1, 2, 3, 4, 5, 6, 7, 8),
    b"queue": {1: U16, 2: U16, 3: U16, 4: U32},
    b"quota": _QUOTA,
    b"range": {**_words(1, 2), 3: _DATA, 4: _DATA},
    b"redir": _words(1, 2, 3),
    b"reject": {1: U32, 2: U8},
    b"rt": _words(1, 2),
    b"socket": {1: Field(4, 4, never={b"\0\0\0\x03": "socket cgroupv2"}), **_words(2, 3)},
    b"synproxy": _SYNPROXY,
    b"target": _EXTENSION,
    b"tproxy": _words(1, 2, 3),
    b"tunnel": _words(1, 2, 3),
    b"xfrm": {**_words(1, 2, 4), 3: U8},
}

_HOOK: Layout = {
    1: U32,
    2: U32,
    3: data(16, 1),
    4: nest({1: data(16, 1)}),
}
_TABLE: Layout = {1: _NAME, 2: U32, **dict.fromkeys((3, 4, 5, 7)), 6: _USERDATA}
_CHAIN: Layout = {
    1: _NAME,
    3: _NAME,
    4: nest(_HOOK),
    5: U32,
    7: data(32, 1),
    8: nest(_COUNTER),
    10: U32,
    12: _USERDATA,
    **dict.fromkeys((2, 6, 9, 11)),
}
_RULE: Layout = {
    1: _NAME,
    2: _NAME,
    4: _EXPRESSION_LIST,
    5: nest({1: U32, 2: U32}),
    7: _USERDATA,
    **dict.fromkeys((3, 6, 8, 9, 10, 11)),
}
_SET: Layout = {
    1: _NAME,
    2: _NAME,
    **_words(3, 4, 5, 6, 7, 8),
    9: nest({1: U32, 2: nest({1: nest({1: U32})})}),
    10: None,
    11: U64,
    12: U32,
    13: _USERDATA,
    15: U32,
    17: nest(_EXPRESSION),
    18: _EXPRESSION_LIST,
    **dict.fromkeys((14, 16, 19, 20)),
}
_ELEMENT: Layout = {
    1: _DATA,
    2: _DATA,
    3: U32,
    4: U64,
    5: _FLEETING_U64,
    6: _USERDATA,
    7: nest(_EXPRESSION),
    8: None,
    9: _NAME,
    10: _DATA,
    11: _EXPRESSION_LIST,
}
_ELEMENTS: Layout = {1: _NAME, 2: _NAME, 3: nest({ANY: nest(_ELEMENT)}), 4: None}
# Of objects, by the four bytes of their type; tunnels are not among them.
_OBJECTS: dict[bytes, Layout] = {
    number.to_bytes(4, "big"): layout
    for number, layout in {
        1: _COUNTER,
        2: _QUOTA,
        3: {1: _NAME, 2: U16, 3: U8},
        4: _LIMIT,
        5: _CONNLIMIT,
        7: {1: U16, 2: U8, 3: nest({ANY: U32})},
        8: {1: data(256, 1)},
        9: {1: U16, 2: U8, 3: U16, 4: U32, 5: U8},
        10: _SYNPROXY,
    }.items()
}
_OBJECT: Layout = {
    1: _NAME,
    2: _NAME,
    3: U32,
    4: Field(kinds=_OBJECTS),
    8: _USERDATA,
    **dict.fromkeys((5, 6, 7)),
}
_FLOWTABLE: Layout = {
    1: _NAME,
    2: _NAME,
    3: nest({1: U32, 2: U32, 3: nest({1: data(16, 1)})}),
    7: U32,
    **dict.fromkeys((4, 5, 6)),
}
# By the numbers of messages that make them, in the order in which they are made.
MESSAGES: dict[int, Layout] = {
    nf_messages.NEW_TABLE: _TABLE,
    nf_messages.NEW_CHAIN: _CHAIN,
    nf_messages.NEW_OBJECT: _OBJECT,
    nf_messages.NEW_FLOWTABLE: _FLOWTABLE,
    nf_messages.NEW_SET: _SET,
    nf_messages.NEW_ELEMENTS: _ELEMENTS,
    nf_messages.NEW_RULE: _RULE,
}
