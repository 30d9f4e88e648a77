"""The container's own addresses in its sockets, where the new container has got another one.

Engines give each container an address. A server that is bound to the old one would be out of
reach; so what was at the old address is at the new one, if there is but one of each.
"""

import socket
from collections.abc import Collection, Iterable

from woodfrog.kernel.procfs.addresses import read_addresses
from woodfrog.resources.files.base import FileRecord
from woodfrog.resources.files.inet import is_loopback


def moved(
    files: Iterable[FileRecord], pid: int, kept: Collection[bytes] = frozenset()
) -> tuple[list[FileRecord], list[str]]:
    """Return the files with addresses of the network namespace of `pid`, and what was changed.

    `kept` are addresses there that programs had added: they are the image's.
    """
    records = list(files)
    used = {address for record in records for address in record.own_addresses()}
    if not used:
        return records, []
    there = read_addresses(pid)
    moves: dict[bytes, bytes] = {}
    for length in (4, 16):
        old = [one for one in used if len(one) == length and one not in there]
        engines = [one for one in there if one not in kept and not is_loopback(one)]
        new = [one for one in engines if len(one) == length]
        if len(old) == len(new) == 1 and new[0] not in used:
            moves[old[0]] = new[0]
    if not moves:
        return records, []
    told = [f"what was at {_text(old)} is at {_text(new)} now" for old, new in moves.items()]
    return [record.moved(moves) for record in records], told


def _text(address: bytes) -> str:
    return socket.inet_ntop(socket.AF_INET if len(address) == 4 else socket.AF_INET6, address)
