"""nf_tables (libnftables(3), linux/netfilter/nf_tables.h); keep TCP connections from hearing."""

import socket
import struct
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import NamedTuple

from woodfrog.kernel.netlink.messages import (
    NLM_F_ACK,
    NLM_F_APPEND,
    NLM_F_CREATE,
    answers,
    attribute,
    message,
    nested,
    socket_at,
    socket_in,
)
from woodfrog.kernel.netlink.nf_messages import (
    NETLINK_NETFILTER,
    NEW_CHAIN,
    NEW_RULE,
    NEW_TABLE,
    SUBSYSTEM,
)

_HEAD = struct.Struct(">BBH")  # nfgenmsg: family, version, resource
_BATCH_BEGIN, _BATCH_END = 0x10, 0x11
_DELETE_TABLE = 2
_GET_GENERATION = 16
_FAMILY_INET = 1
TABLE_OWNER = 2
_LOCAL_IN, _LOCAL_OUT = 1, 3
_BEFORE_CONNECTION_TRACKING = -300
_DROP, _ACCEPT = 0, 1
_NFPROTO_IPV4, _NFPROTO_IPV6 = 2, 10
# Attributes: enum nft_table_attributes and so on.
# How our own tables are called.
OURS = "woodfrog-"
_TABLE_NAME, _TABLE_FLAGS = 1, 2
_CHAIN_TABLE, _CHAIN_NAME, _CHAIN_HOOK, _CHAIN_TYPE = 1, 3, 4, 7
_HOOK_NUMBER, _HOOK_PRIORITY = 1, 2
_RULE_TABLE, _RULE_CHAIN, _RULE_EXPRESSIONS = 1, 2, 4
_LIST_ELEMENT, _EXPRESSION_NAME, _EXPRESSION_DATA = 1, 1, 2
_META_REGISTER, _META_KEY = 1, 2
_PAYLOAD_REGISTER, _PAYLOAD_BASE, _PAYLOAD_OFFSET, _PAYLOAD_LENGTH = 1, 2, 3, 4
_COMPARE_REGISTER, _COMPARE_OPERATOR, _COMPARE_DATA = 1, 2, 3
_IMMEDIATE_REGISTER, _IMMEDIATE_DATA = 1, 2
_LOG_GROUP = 1
_DATA_VALUE, _DATA_VERDICT, _VERDICT_CODE = 1, 2, 1
_REGISTER, _VERDICT_REGISTER, _EQUALS = 1, 0, 0
_MARK, _NFPROTO, _L4PROTO = 3, 15, 16
_NETWORK_HEADER, _TRANSPORT_HEADER = 1, 2
_SO_SNDBUFFORCE = 32
_MOST_BYTES = 1 << 20
_MAPPED = bytes(10) + b"\xff\xff"


class Connection(NamedTuple):
    """A TCP connection by its ends, as one of them sees it: (address, port)."""

    local: tuple[bytes, int]
    remote: tuple[bytes, int]


@contextmanager
def blocked(pid: int, connections: Iterable[Connection], *, mark: int = 0) -> Iterator[None]:
    """Drop what comes for or from connections, in the network namespace of a process.

    Packets with a mark pass. The kernel ends this by itself when we end, in whatever way.
    """
    with socket_in(pid, socket.AF_NETLINK, socket.SOCK_RAW, NETLINK_NETFILTER) as netlink:
        _block_by(netlink, connections, mark)
        yield


@contextmanager
def blocked_at(
    namespace: int, connections: Iterable[Connection], *, mark: int = 0
) -> Iterator[None]:
    """Do the same in the network namespace that a descriptor names."""
    kind = socket.SOCK_RAW
    with socket_at(namespace, socket.AF_NETLINK, kind, NETLINK_NETFILTER) as netlink:
        _block_by(netlink, connections, mark)
        yield


def _block_by(netlink: socket.socket, connections: Iterable[Connection], mark: int) -> None:
    """Drop what comes for or from connections until a socket is closed."""
    netlink.bind((0, 0))
    port, _ = netlink.getsockname()
    name = f"{OURS}of-{port}"
    transact(netlink, _table(name, TABLE_OWNER))
    rules = _mark_rules(name, mark) if mark else []
    transact(netlink, *_chains(name), *rules, *_rules(name, connections))


@contextmanager
def logged_and_dropped(namespace: int, protocol: int, port: int, group: int) -> Iterator[None]:
    """Have what leaves a port of UDP or its like go to a group of nfnetlink_log, and no farther."""
    kind = socket.SOCK_RAW
    with socket_at(namespace, socket.AF_NETLINK, kind, NETLINK_NETFILTER) as netlink:
        netlink.bind((0, 0))
        name = f"{OURS}of-{netlink.getsockname()[0]}"
        transact(netlink, _table(name, TABLE_OWNER))
        rule = _rule(
            name,
            "out",
            _meta(_L4PROTO),
            _equal(bytes((protocol,))),
            _payload(_TRANSPORT_HEADER, 0, 2),
            _equal(struct.pack(">H", port)),
            _expression("log", attribute(_LOG_GROUP, struct.pack(">H", group))),
            _verdict(_DROP),
        )
        transact(netlink, *_chains(name), rule)
        yield


def block(pid: int, name: str, connections: Iterable[Connection]) -> None:
    """Do the same in a table that stays until it is removed by its name."""
    with socket_in(pid, socket.AF_NETLINK, socket.SOCK_RAW, NETLINK_NETFILTER) as netlink:
        transact(netlink, _table(name, 0), *_chains(name), *_rules(name, connections))


def unblock(pid: int, name: str) -> None:
    """Remove such a table, if it is there."""
    with socket_in(pid, socket.AF_NETLINK, socket.SOCK_RAW, NETLINK_NETFILTER) as netlink:
        try:
            transact(netlink, _request(_DELETE_TABLE, 0, attribute(_TABLE_NAME, _text(name))))
        except FileNotFoundError:
            pass


def look(pid: int) -> None:
    """Ask for the number of the rules' generation; raises OSError if there is no nf_tables."""
    with socket_in(pid, socket.AF_NETLINK, socket.SOCK_RAW, NETLINK_NETFILTER) as netlink:
        netlink.send(_request(_GET_GENERATION, NLM_F_ACK))
        for _ in answers(netlink, "nf_tables"):
            pass


def transact(netlink: socket.socket, *requests: bytes) -> None:
    """Have requests done as one transaction."""
    batch = [_batch(_BATCH_BEGIN)]
    *others, last = requests
    batch += others
    # One acknowledgement, for all that went before.
    kind, flags = struct.unpack_from("<HH", last, 4)
    batch.append(last[:4] + struct.pack("<HH", kind, flags | NLM_F_ACK) + last[8:])
    batch.append(_batch(_BATCH_END))
    data = b"".join(batch)
    netlink.setsockopt(socket.SOL_SOCKET, _SO_SNDBUFFORCE, max(len(data), _MOST_BYTES))
    netlink.send(data)
    for _ in answers(netlink, "nf_tables"):
        pass


def _batch(kind: int) -> bytes:
    return message(kind, 0, struct.pack(">BBH", socket.AF_UNSPEC, 0, SUBSYSTEM >> 8))


def request(kind: int, flags: int, family: int, attributes: bytes) -> bytes:
    """Return a message of nf_tables."""
    return message(SUBSYSTEM | kind, flags, _HEAD.pack(family, 0, 0) + attributes)


def _request(kind: int, flags: int, *attributes: bytes) -> bytes:
    return request(kind, flags, _FAMILY_INET, b"".join(attributes))


def _text(value: str) -> bytes:
    return value.encode() + b"\0"


def _table(name: str, flags: int) -> bytes:
    return _request(
        NEW_TABLE,
        NLM_F_CREATE,
        attribute(_TABLE_NAME, _text(name)),
        attribute(_TABLE_FLAGS, _word(flags)),
    )


def _chains(name: str) -> list[bytes]:
    return [
        _request(
            NEW_CHAIN,
            NLM_F_CREATE,
            attribute(_CHAIN_TABLE, _text(name)),
            attribute(_CHAIN_NAME, _text(chain)),
            nested(
                _CHAIN_HOOK,
                attribute(_HOOK_NUMBER, _word(hook)),
                attribute(_HOOK_PRIORITY, _word(_BEFORE_CONNECTION_TRACKING)),
            ),
            attribute(_CHAIN_TYPE, _text("filter")),
        )
        for chain, hook in (("in", _LOCAL_IN), ("out", _LOCAL_OUT))
    ]


def _rule(table: str, chain: str, *expressions: bytes) -> bytes:
    return _request(
        NEW_RULE,
        NLM_F_CREATE | NLM_F_APPEND,
        attribute(_RULE_TABLE, _text(table)),
        attribute(_RULE_CHAIN, _text(chain)),
        nested(_RULE_EXPRESSIONS, *expressions),
    )


def _mark_rules(table: str, mark: int) -> list[bytes]:
    value = struct.pack("=I", mark)
    return [
        _rule(table, chain, _meta(_MARK), _equal(value), _verdict(_ACCEPT))
        for chain in ("in", "out")
    ]


def _rules(table: str, connections: Iterable[Connection]) -> list[bytes]:
    rules = []
    for local, remote in connections:
        rules.append(_drop(table, "in", remote, local))
        rules.append(_drop(table, "out", local, remote))
    return rules


def _drop(table: str, chain: str, source: tuple[bytes, int], target: tuple[bytes, int]) -> bytes:
    ends = source[0], target[0]
    if all(end.startswith(_MAPPED) for end in ends):
        ends = source[0][12:], target[0][12:]
    size = len(ends[0])
    four = size == 4
    ports = struct.pack(">HH", source[1], target[1])
    return _rule(
        table,
        chain,
        _meta(_NFPROTO),
        _equal(bytes((_NFPROTO_IPV4 if four else _NFPROTO_IPV6,))),
        _meta(_L4PROTO),
        _equal(bytes((socket.IPPROTO_TCP,))),
        _payload(_NETWORK_HEADER, 12 if four else 8, size),
        _equal(ends[0]),
        _payload(_NETWORK_HEADER, 16 if four else 24, size),
        _equal(ends[1]),
        _payload(_TRANSPORT_HEADER, 0, 4),
        _equal(ports),
        _verdict(_DROP),
    )


def _word(value: int) -> bytes:
    return struct.pack(">i", value)


def _expression(name: str, *attributes: bytes) -> bytes:
    return nested(
        _LIST_ELEMENT,
        attribute(_EXPRESSION_NAME, _text(name)),
        nested(_EXPRESSION_DATA, *attributes),
    )


def _meta(key: int) -> bytes:
    return _expression(
        "meta", attribute(_META_REGISTER, _word(_REGISTER)), attribute(_META_KEY, _word(key))
    )


def _payload(base: int, offset: int, length: int) -> bytes:
    return _expression(
        "payload",
        attribute(_PAYLOAD_REGISTER, _word(_REGISTER)),
        attribute(_PAYLOAD_BASE, _word(base)),
        attribute(_PAYLOAD_OFFSET, _word(offset)),
        attribute(_PAYLOAD_LENGTH, _word(length)),
    )


def _equal(value: bytes) -> bytes:
    return _expression(
        "cmp",
        attribute(_COMPARE_REGISTER, _word(_REGISTER)),
        attribute(_COMPARE_OPERATOR, _word(_EQUALS)),
        nested(_COMPARE_DATA, attribute(_DATA_VALUE, value)),
    )


def _verdict(code: int) -> bytes:
    return _expression(
        "immediate",
        attribute(_IMMEDIATE_REGISTER, _word(_VERDICT_REGISTER)),
        nested(_IMMEDIATE_DATA, nested(_DATA_VERDICT, attribute(_VERDICT_CODE, _word(code)))),
    )
