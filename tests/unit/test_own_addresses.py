"""Sockets at an address that the new container doesn't have."""

import os

import pytest

from woodfrog.kernel.netlink.sock_diag import TCP_LISTEN
from woodfrog.resources.files import own_addresses
from woodfrog.resources.files.tcp_socket import TcpSocket

OLD, OTHER = bytes([10, 0, 0, 2]), bytes([10, 0, 0, 3])
NEW = bytes([10, 0, 0, 9])
LOOPBACK = bytes([127, 0, 0, 1])
MAPPED = bytes(10) + b"\xff\xff"


def listener(address: bytes) -> TcpSocket:
    """Return a server's socket at an address."""
    return TcpSocket(
        id=1,
        flags=2,
        family=2 if len(address) == 4 else 10,
        state=TCP_LISTEN,
        local=address,
        port=80,
        backlog=1,
        reset=False,
        connection=None,
        connecting=b"",
        options=[],
        filter=None,
    )


@pytest.mark.parametrize(
    "there, before, after",
    [
        ([LOOPBACK, NEW], [OLD, LOOPBACK, bytes(4)], [NEW, LOOPBACK, bytes(4)]),
        ([LOOPBACK, NEW], [OLD, MAPPED + OLD], [NEW, MAPPED + NEW]),
        ([LOOPBACK, OLD], [OLD], [OLD]),
        ([LOOPBACK, OLD, NEW], [OLD], [OLD]),
        # Nobody knows which.
        ([LOOPBACK, NEW, OTHER], [OLD], [OLD]),
        ([LOOPBACK, NEW], [OLD, OTHER], [OLD, OTHER]),
        ([LOOPBACK], [OLD], [OLD]),
        ([LOOPBACK, NEW], [OLD, NEW], [OLD, NEW]),
    ],
)
def test_what_was_at_the_old_address_is_at_the_new_one(
    monkeypatch: pytest.MonkeyPatch, there: list[bytes], before: list[bytes], after: list[bytes]
) -> None:
    monkeypatch.setattr(own_addresses, "read_addresses", lambda pid: there)
    records, told = own_addresses.moved(map(listener, before), os.getpid())
    assert [record.local for record in records if isinstance(record, TcpSocket)] == after
    assert told == (["what was at 10.0.0.2 is at 10.0.0.9 now"] if before != after else [])


def test_what_programs_had_added_is_no_new_address(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(own_addresses, "read_addresses", lambda pid: [LOOPBACK, NEW, OTHER])
    records, told = own_addresses.moved([listener(OLD)], os.getpid(), {OTHER})
    assert [record.local for record in records if isinstance(record, TcpSocket)] == [NEW]
    assert len(told) == 1
