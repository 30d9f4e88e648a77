"""The rings of packet(7) sockets (PACKET_RX_RING, PACKET_TX_RING), and what is in them.

The kernel counts for itself where in a ring it stands, and tells nobody; a program counts, too. So
a new ring is brought to the old one's place by packets that nobody else sees.
"""

import mmap
import socket
import struct
import time
from collections.abc import Iterator

import msgspec
from msgspec.structs import asdict

from woodfrog.errors import ImageError, UnsupportedResource
from woodfrog.image.record import Part
from woodfrog.kernel.abi.x86_64 import PAGE, SYS
from woodfrog.kernel.netlink.packet_diag import PacketRing
from woodfrog.remote.program import Program

SOL_PACKET = 263
_PACKET_RX_RING, _PACKET_TX_RING, _PACKET_LOSS = 5, 13, 14
TPACKET_V1, TPACKET_V2, TPACKET_V3 = 0, 1, 2
_REQUEST = struct.Struct("<7I")  # struct tpacket_req3, of which tpacket_req is the beginning
_LARGEST = 1 << 30
_MOST_FRAMES = 1 << 20

# struct tpacket_hdr, tpacket2_hdr, tpacket3_hdr: where tp_status, tp_len and the time are.
_STATUS = {TPACKET_V1: 0, TPACKET_V2: 0, TPACKET_V3: 20}
_LENGTH = {TPACKET_V1: 8, TPACKET_V2: 4, TPACKET_V3: 16}
_TIME = {TPACKET_V1: 20, TPACKET_V2: 16}
# struct tpacket_block_desc: block_status, seq_num
_BLOCK_STATUS, _SEQUENCE = 8, 24
_TP_STATUS_USER = _TP_STATUS_SEND_REQUEST = 1
_TP_STATUS_WRONG_FORMAT = 4

# Of an EtherType for experiments (IEEE 802), which no protocol has.
_ETHERTYPE = 0x88B5
_PACKET = bytes(12) + _ETHERTYPE.to_bytes(2, "big") + bytes(46)
_LONGEST = 65000  # what a loopback device takes
_PATIENCE_S = 10


class RingPage(Part, frozen=True, array_like=True):
    """A page of a ring that isn't empty."""

    offset: int
    data: bytes


class Ring(Part, frozen=True):
    """A ring: its frames in blocks, where the kernel stands, and its contents.

    The last numbers are those of TPACKET_V3.
    """

    block_size: int
    blocks: int
    frame_size: int
    frames: int
    timeout_ms: int
    private_bytes: int
    features: int
    head: int
    contents: list[RingPage]

    @property
    def size(self) -> int:
        """How many bytes it has."""
        return self.block_size * self.blocks

    def frame(self, number: int) -> int:
        """Return where a frame begins."""
        block, rest = divmod(number, self.block_size // self.frame_size)
        return block * self.block_size + rest * self.frame_size


def collect(
    one: socket.socket, version: int, receiving: PacketRing | None, sending: PacketRing | None
) -> tuple[Ring | None, Ring | None]:
    """Read the rings of a socket, through a descriptor of ours."""
    rings = [
        Ring(**asdict(found), head=0, contents=[]) if found else None
        for found in (receiving, sending)
    ]
    size = sum(ring.size for ring in rings if ring)
    if not size:
        return None, None
    if size > _LARGEST:
        raise UnsupportedResource("is a packet socket with a ring of more than 1 GiB")
    with mmap.mmap(one.fileno(), size, mmap.MAP_SHARED, mmap.PROT_READ) as memory:
        contents = memory[:]
    taking, giving = rings
    split = taking.size if taking else 0
    if taking:
        taking = _with_contents(taking, contents[:split], _receive_head(taking, version, contents))
    if giving:
        inside = contents[split:]
        head = _send_head(giving, version, inside)
        if head is None:
            head = _tried_head(one, size, split, version, giving)
        giving = _with_contents(giving, inside, head)
    return taking, giving


def _with_contents(ring: Ring, contents: bytes, head: int) -> Ring:
    pages = [
        RingPage(offset=at, data=contents[at : at + PAGE])
        for at in range(0, len(contents), PAGE)
        if any(contents[at : at + PAGE])
    ]
    return msgspec.structs.replace(ring, head=head, contents=pages)


def _receive_head(ring: Ring, version: int, contents: bytes) -> int:
    """Return which frame, or block, the kernel will fill next: the one behind the newest."""
    if version == TPACKET_V3:
        # A block is numbered when the kernel begins to fill it.
        (newest, at) = max(
            (struct.unpack_from("<Q", contents, block * ring.block_size + _SEQUENCE)[0], block)
            for block in range(ring.blocks)
        )
        status = struct.unpack_from("<I", contents, at * ring.block_size + _BLOCK_STATUS)[0]
        is_closed = bool(status & _TP_STATUS_USER)
        return (at + 1) % ring.blocks if newest and is_closed else at
    times = [
        struct.unpack_from("<2I", contents, ring.frame(number) + _TIME[version])
        for number in range(ring.frames)
    ]
    newest_time = max(times)
    if not any(newest_time):
        return 0
    # Of neighbours of one moment it is the last.
    heads = (
        (number + 1) % ring.frames
        for number in range(ring.frames)
        if times[number] == newest_time and times[(number + 1) % ring.frames] != newest_time
    )
    return next(heads, 0)


def _send_head(ring: Ring, version: int, contents: bytes) -> int | None:
    """Return which frame the kernel will send next, if the contents tell."""
    frames = range(ring.frames)
    statuses = _statuses(ring, version, contents)
    waiting = [bool(status & _TP_STATUS_SEND_REQUEST) for status in statuses]
    for number in frames:
        if waiting[number] and not waiting[number - 1]:
            return number
    for number in frames:
        if struct.unpack_from("<I", contents, ring.frame(number) + _LENGTH[version]) == (0,):
            return number
    return None


def _tried_head(one: socket.socket, size: int, start: int, version: int, ring: Ring) -> int:
    """Find that out in a ring of which no frame waits: which of impossible frames is refused?

    One that is refused is neither sent nor left behind, unless the socket has PACKET_LOSS.
    """
    if one.getsockopt(SOL_PACKET, _PACKET_LOSS):
        raise UnsupportedResource(
            "is a packet socket with PACKET_LOSS that has gone around its ring (PACKET_TX_RING),"
            " of which nothing tells where it stands",
            hint="let a frame wait to be sent, or do without PACKET_LOSS",
        )
    with mmap.mmap(one.fileno(), size) as memory:
        places = [start + ring.frame(number) for number in range(ring.frames)]
        words = [(at + _STATUS[version], at + _LENGTH[version]) for at in places]
        before = [[bytes(memory[at : at + 4]) for at in both] for both in words]
        for status, length in words:
            struct.pack_into("<I", memory, length, ring.frame_size)
            struct.pack_into("<I", memory, status, _TP_STATUS_SEND_REQUEST)
        try:
            one.sendto(b"", socket.MSG_DONTWAIT, ("lo", _ETHERTYPE))
        except OSError:
            pass  # that is the answer
        found = [struct.unpack_from("<I", memory, status)[0] for status, _ in words]
        for both, values in zip(words, before, strict=True):
            for at, value in zip(both, values, strict=True):
                memory[at : at + 4] = value
    if _TP_STATUS_WRONG_FORMAT not in found:
        raise UnsupportedResource("is a packet socket with a PACKET_TX_RING that does not answer")
    return found.index(_TP_STATUS_WRONG_FORMAT)


def _statuses(ring: Ring, version: int, contents: bytes) -> Iterator[int]:
    for number in range(ring.frames):
        yield struct.unpack_from("<I", contents, ring.frame(number) + _STATUS[version])[0]


def check(ring: Ring) -> None:
    """Check what an image says; the kernel checks the rest when the ring is made."""
    if not (
        0 < ring.block_size <= _LARGEST
        and 0 < ring.blocks <= _MOST_FRAMES
        and ring.size <= _LARGEST
        and 0 < ring.frame_size <= ring.block_size
        and 0 < ring.frames <= _MOST_FRAMES
        and ring.frames == ring.blocks * (ring.block_size // ring.frame_size)
        and 0 <= ring.head < max(ring.frames, ring.blocks)
    ):
        raise ImageError("the image has an impossible ring of packets")
    if any(
        not 0 <= page.offset <= ring.size - len(page.data) or len(page.data) > PAGE
        for page in ring.contents
    ):
        raise ImageError("the image has pages outside a ring of packets")


def make(program: Program, fd: int, version: int, taking: Ring | None, giving: Ring | None) -> None:
    """Give a socket its rings, empty ones."""
    for name, ring in ((_PACKET_RX_RING, taking), (_PACKET_TX_RING, giving)):
        if ring:
            request = _REQUEST.pack(
                ring.block_size,
                ring.blocks,
                ring.frame_size,
                ring.frames,
                ring.timeout_ms,
                ring.private_bytes,
                ring.features,
            )
            length = len(request) if version == TPACKET_V3 else 16
            program.call(SYS.SETSOCKOPT, fd, SOL_PACKET, name, request[:length], length)


def bring_back(
    one: socket.socket,
    sender: socket.socket,
    version: int,
    taking: Ring | None,
    giving: Ring | None,
) -> None:
    """Bring new rings, of a socket of ours that hears nothing yet, to where the old ones were.

    `sender` is a packet socket in the same network namespace.
    """
    split = taking.size if taking else 0
    size = split + (giving.size if giving else 0)
    if not size:
        return
    with mmap.mmap(one.fileno(), size) as memory:
        if giving:
            _send(one, memory, split, version, giving)
            _fill(memory, split, giving, None)
        if taking:
            if taking.head:
                one.bind(("lo", _ETHERTYPE))
                receive = _receive_blocks if version == TPACKET_V3 else _receive_frames
                receive(sender, memory, taking)
            _fill(memory, 0, taking, taking.head if version == TPACKET_V3 else None)


def _send(one: socket.socket, memory: mmap.mmap, start: int, version: int, ring: Ring) -> None:
    """Send as many frames as the old ring had: from a loopback device to nobody."""
    for number in range(ring.head):
        at = start + ring.frame(number)
        struct.pack_into("<I", memory, at + _LENGTH[version], len(_PACKET))
        struct.pack_into("<I", memory, at + _STATUS[version], _TP_STATUS_SEND_REQUEST)
    if ring.head:
        one.sendto(b"", ("lo", _ETHERTYPE))


def _receive_frames(sender: socket.socket, memory: mmap.mmap, ring: Ring) -> None:
    for number in range(ring.head):
        sender.sendto(_PACKET, ("lo", _ETHERTYPE))
        _await(memory, ring.frame(number))


def _receive_blocks(sender: socket.socket, memory: mmap.mmap, ring: Ring) -> None:
    """Fill blocks up to the head; the last of them the kernel closes when its time is over."""
    length = min(_LONGEST, ring.block_size // 2)
    packet = _PACKET + bytes(max(0, length - len(_PACKET)))
    for block in range(ring.head - 1):
        end = time.monotonic() + _PATIENCE_S
        while not _is_users(memory, block * ring.block_size + _BLOCK_STATUS):
            sender.sendto(packet, ("lo", _ETHERTYPE))
            _refuse_after(end)
    last = (ring.head - 1) * ring.block_size
    if ring.head == 1:
        sender.sendto(_PACKET, ("lo", _ETHERTYPE))
    _await(memory, last + _BLOCK_STATUS)


def _await(memory: mmap.mmap, at: int) -> None:
    end = time.monotonic() + _PATIENCE_S
    while not _is_users(memory, at):
        time.sleep(0.0001)
        _refuse_after(end)


def _refuse_after(end: float) -> None:
    if time.monotonic() > end:
        raise UnsupportedResource(
            "a ring of packets can't be filled: packets must pass the container's loopback device",
            hint="switch it on, and let filters pass EtherType 0x88b5",
        )


def _is_users(memory: mmap.mmap, at: int) -> bool:
    return bool(struct.unpack_from("<I", memory, at)[0] & _TP_STATUS_USER)


def _fill(memory: mmap.mmap, start: int, ring: Ring, but: int | None) -> None:
    """Write the contents, but those of a block that the kernel fills just now."""
    for block in range(ring.blocks):
        if block != but:
            at = start + block * ring.block_size
            memory[at : at + ring.block_size] = bytes(ring.block_size)
    for page in ring.contents:
        if page.offset // ring.block_size != but:
            at = start + page.offset
            memory[at : at + len(page.data)] = page.data
