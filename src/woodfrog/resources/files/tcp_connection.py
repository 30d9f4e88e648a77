"""The two queues and the state of a TCP connection, by TCP_REPAIR (linux/tcp.h)."""

import errno
import fcntl
import os
import select
import socket
import struct
from collections.abc import Iterable
from typing import NamedTuple

from woodfrog.errors import UnsupportedResource
from woodfrog.image.record import Part
from woodfrog.kernel.abi.x86_64 import SYS
from woodfrog.kernel.caller import HERE
from woodfrog.kernel.netlink.sock_diag import (
    TCP_CLOSE,
    TCP_CLOSE_WAIT,
    TCP_CLOSING,
    TCP_ESTABLISHED,
    TCP_FIN_WAIT1,
    TCP_FIN_WAIT2,
    TCP_LAST_ACK,
    InetSocket,
)
from woodfrog.remote.program import Program
from woodfrog.resources.files import inet, socket_options
from woodfrog.resources.files.inet import End
from woodfrog.resources.files.making import Making
from woodfrog.resources.files.socket_options import SO_SNDBUFFORCE, Option

STATES = frozenset(
    (TCP_ESTABLISHED, TCP_FIN_WAIT1, TCP_FIN_WAIT2, TCP_CLOSE_WAIT, TCP_LAST_ACK, TCP_CLOSING)
)
_WE_FINISHED = frozenset((TCP_FIN_WAIT1, TCP_FIN_WAIT2, TCP_CLOSING, TCP_LAST_ACK, TCP_CLOSE))
_PEER_FINISHED = frozenset((TCP_CLOSE_WAIT, TCP_CLOSING, TCP_LAST_ACK, TCP_CLOSE))

_TCP_MAXSEG, _TCP_INFO = 2, 11
_TCP_REPAIR, _TCP_REPAIR_QUEUE, _TCP_QUEUE_SEQ, _TCP_REPAIR_OPTIONS = 19, 20, 21, 22
_TCP_TIMESTAMP, _TCP_REPAIR_WINDOW = 24, 29
_REPAIR_ON, _REPAIR_OFF, _REPAIR_OFF_QUIETLY = 1, 0, -1
_NO_QUEUE, _RECEIVE_QUEUE, _SEND_QUEUE = 0, 1, 2
_SIOCINQ, _SIOCOUTQ, _SIOCOUTQNSD = 0x541B, 0x5411, 0x894B
_SIOCATMARK = 0x8905
_SO_PEEK_OFF = 42
_WINDOW_BYTES = 20
# Where tcp_info has tcpi_segs_out, and tcpi_min_rtt: the highest number until one is measured.
_SEGMENTS_OUT, _MIN_RTT = 136, 148
_SHUT_WR = 1
# Bits of tcp_info.tcpi_options, and the TCP options that they stand for.
_TIMESTAMPS, _SACK, _WINDOW_SCALE = 1, 2, 4
_OPTION_MSS, _OPTION_WINDOW_SCALE, _OPTION_SACK, _OPTION_TIMESTAMPS = 2, 3, 4, 8
_FIN, _ACK, _URG = 0x01, 0x10, 0x20
_CHECKSUM_OFFSET = 16
_WORD = 0xFFFFFFFF
# A write into a queue under repair takes no more than a buffer's 17 pages.
_PIECE = 1 << 16
_ROOM = 1 << 20
_SOME_MSS = 1460
_SOME_WINDOW = 1 << 14
_COMES_WITHIN_MS = 1000


class Connection(Part, frozen=True):
    """A connection: its peer, where both directions stand, and what is queued.

    `sent_to` and `received_to` are the sequence numbers behind the last byte of data; `unsent` is
    how much of the send queue has never been sent. `scales` are both window scales, ours in the
    high half; `window` is a struct tcp_repair_window. `urgent` is which byte of those received is
    urgent (MSG_OOB), or -1; who asks for such has read it, maybe.
    """

    remote: bytes
    remote_port: int
    outside: bool
    mss: int
    features: int
    scales: int
    timestamp: int
    window: bytes
    sent_to: int
    send: bytes
    unsent: int
    received_to: int
    receive: bytes
    shut_for_reading: bool
    urgent: int = -1
    urgent_read: bool = False


def begin_repair(one: socket.socket) -> None:
    """Have a connection be read and changed, and end silently if it is closed."""
    one.setsockopt(socket.IPPROTO_TCP, _TCP_REPAIR, _REPAIR_ON)


def end_repair(one: socket.socket) -> None:
    """Undo `begin_repair`, without a word to the peer; SO_REUSEADDR is 0 then."""
    one.setsockopt(socket.IPPROTO_TCP, _TCP_REPAIR, _REPAIR_OFF_QUIETLY)


def set_repair(program: Program, fd: int, *, on: bool) -> None:
    """Have either done by a program."""
    _set(program, fd, _TCP_REPAIR, _REPAIR_ON if on else _REPAIR_OFF_QUIETLY)


def received(one: socket.socket) -> tuple[bytes, int, int]:
    """Return what a connection under repair has received, and nobody has read.

    And which byte of that is urgent (MSG_OOB), or -1, and the sequence number behind it.
    """
    waiting = _received(one)
    end, data = _queue(one, _RECEIVE_QUEUE, waiting)
    return data, waiting.urgent, end


def to_be_sent(one: socket.socket, received_to: int) -> bytes:
    """Return what a connection under repair has sent, or will, behind what its peer has."""
    finished = one.getsockopt(socket.IPPROTO_TCP, _TCP_INFO, 1)[0] in _WE_FINISHED
    end, data = _queue(one, _SEND_QUEUE, _Queue(max(_ask(one, _SIOCOUTQ) - finished, 0)))
    return data[received_to - (end - finished - len(data)) & _WORD :]


def collect(one: socket.socket, found: InetSocket, *, outside: bool) -> Connection:
    """Read a connection that nothing comes for; it is left as it was."""
    reuse = one.getsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR)
    begin_repair(one)
    try:
        return _collect(one, found, outside)
    finally:
        end_repair(one)
        # The end of a repair clears it.
        one.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, reuse)


def _collect(one: socket.socket, found: InetSocket, outside: bool) -> Connection:
    waiting = _received(one)
    _refuse_announced(waiting)
    info = one.getsockopt(socket.IPPROTO_TCP, _TCP_INFO, 16)
    state = info[0]
    sent = _ask(one, _SIOCOUTQ)
    unsent = _ask(one, _SIOCOUTQNSD)
    if state in _WE_FINISHED:
        # The FIN counts as a byte in both, until it has been acknowledged and been sent.
        sent = max(sent - 1, 0)
        unsent = max(unsent - 1, 0)
    received_to, receive = _queue(one, _RECEIVE_QUEUE, waiting)
    sent_to, send = _queue(one, _SEND_QUEUE, _Queue(sent))
    return Connection(
        remote=found.remote[0],
        remote_port=found.remote[1],
        outside=outside,
        mss=one.getsockopt(socket.IPPROTO_TCP, _TCP_MAXSEG),
        features=info[5],
        scales=info[6],
        timestamp=one.getsockopt(socket.IPPROTO_TCP, _TCP_TIMESTAMP) & _WORD,
        window=one.getsockopt(socket.IPPROTO_TCP, _TCP_REPAIR_WINDOW, _WINDOW_BYTES),
        sent_to=(sent_to - (state in _WE_FINISHED)) & _WORD,
        send=send,
        unsent=unsent,
        received_to=(received_to - (state in _PEER_FINISHED)) & _WORD,
        receive=receive,
        shut_for_reading=bool(found.shutdown & 1) and state not in _PEER_FINISHED,
        urgent=waiting.urgent,
        urgent_read=waiting.urgent_read,
    )


def collect_ended(one: socket.socket, local: bytes) -> Connection:
    """Read a connection that both sides have closed: what has been received is still there."""
    waiting = _received(one)
    _refuse_announced(waiting)
    info = one.getsockopt(socket.IPPROTO_TCP, _TCP_INFO, 16)
    return Connection(
        # Nobody is told any more whom it was connected to.
        remote=local,
        remote_port=1,
        outside=False,
        mss=_SOME_MSS,
        features=info[5],
        scales=info[6],
        timestamp=0,
        window=b"",
        sent_to=1,
        send=b"",
        unsent=0,
        received_to=1,
        receive=_peek(one, waiting),
        shut_for_reading=False,
        urgent=waiting.urgent,
        urgent_read=waiting.urgent_read,
    )


def was_refused(one: socket.socket) -> bool:
    """Tell whether a socket that is not connected has tried to be, and was refused."""
    info = one.getsockopt(socket.IPPROTO_TCP, _TCP_INFO, _MIN_RTT + 4)
    sent, _, _, fastest = struct.unpack_from("<4I", info, _SEGMENTS_OUT)
    return bool(sent) and not info[5] and fastest == _WORD


class _Queue(NamedTuple):
    """How many bytes wait in a queue, and which of them is urgent (-1: none), and read already.

    Or such a byte is `announced`, and has yet to come.
    """

    length: int
    urgent: int = -1
    urgent_read: bool = False
    announced: bool = False


def _queue(one: socket.socket, queue: int, waiting: _Queue) -> tuple[int, bytes]:
    """Return the sequence number behind a queue, and the bytes in it."""
    one.setsockopt(socket.IPPROTO_TCP, _TCP_REPAIR_QUEUE, queue)
    end = one.getsockopt(socket.IPPROTO_TCP, _TCP_QUEUE_SEQ) & _WORD
    data = _peek(one, waiting)
    one.setsockopt(socket.IPPROTO_TCP, _TCP_REPAIR_QUEUE, _NO_QUEUE)
    if len(data) != waiting.length:
        raise UnsupportedResource(
            f"is a TCP connection of whose queue of {waiting.length} bytes only {len(data)} can be"
            " read",
            hint="urgent data (MSG_OOB), before Linux 6.9? Try again when they have been read",
        )
    return end, data


def _received(one: socket.socket) -> _Queue:
    """Ask what has been received.

    Of what has come, only what is before urgent data is told, but to those who get them in line.
    """
    inline = one.getsockopt(socket.SOL_SOCKET, socket.SO_OOBINLINE)
    told = []
    for value in (1, 0):
        one.setsockopt(socket.SOL_SOCKET, socket.SO_OOBINLINE, value)
        told.append(_ask(one, _SIOCINQ))
    try:
        error = 0 if one.recv(1, socket.MSG_OOB | socket.MSG_PEEK | socket.MSG_DONTWAIT) else -1
    except OSError as refused:
        error = refused.errno or -1
    one.setsockopt(socket.SOL_SOCKET, socket.SO_OOBINLINE, inline)
    length, before = told
    if length > before:
        return _Queue(length, before, error != 0)
    return _Queue(length, announced=error == errno.EAGAIN or bool(_ask(one, _SIOCATMARK)))


def _refuse_announced(waiting: _Queue) -> None:
    if waiting.announced:
        raise UnsupportedResource(
            "is a TCP connection with urgent data (MSG_OOB) that were announced, and have yet to"
            " come",
            hint="try again when all up to there has been read",
        )


def _peek(one: socket.socket, waiting: _Queue) -> bytes:
    """Look at a queue. A look ends before an urgent byte, and another may begin there."""
    if not waiting.length:
        return b""
    flags = socket.MSG_PEEK | socket.MSG_DONTWAIT
    inline = one.getsockopt(socket.SOL_SOCKET, socket.SO_OOBINLINE)
    offset = _peek_from(one, -1)
    try:
        if waiting.urgent < 0:
            return one.recv(waiting.length, flags)
        one.setsockopt(socket.SOL_SOCKET, socket.SO_OOBINLINE, 1)
        before = one.recv(waiting.urgent, flags) if waiting.urgent else b""
        if waiting.urgent and _peek_from(one, waiting.urgent) is None:
            return before
        return before + one.recv(waiting.length - waiting.urgent, flags)
    finally:
        one.setsockopt(socket.SOL_SOCKET, socket.SO_OOBINLINE, inline)
        if offset is not None:
            _peek_from(one, offset)


def _peek_from(one: socket.socket, offset: int) -> int | None:
    """Have looks begin there; returns where they did. None: TCP has that since Linux 6.9."""
    try:
        before = one.getsockopt(socket.SOL_SOCKET, _SO_PEEK_OFF)
        one.setsockopt(socket.SOL_SOCKET, _SO_PEEK_OFF, offset)
    except OSError:
        return None
    return before


def _ask(one: socket.socket, request: int) -> int:
    answer = bytearray(4)
    fcntl.ioctl(one.fileno(), request, answer)
    return int.from_bytes(answer, "little")


def begin(program: Program, fd: int, record: Connection, *, force: bool) -> None:
    """Before the socket has its name: put it under repair, with room for what is queued."""
    _set(program, fd, _TCP_REPAIR, _REPAIR_ON)
    for name, data in ((socket.SO_RCVBUF, record.receive), (socket.SO_SNDBUF, record.send)):
        socket_options.set_buffer(program, fd, name, 2 * len(data) + _ROOM, force=force)


def restore(
    making: Making, fd: int, record: Connection, family: int, state: int, local: End
) -> None:
    """Connect a socket under repair that has its name, and put it into its state."""
    program = making.program
    _set_sequence(program, fd, _RECEIVE_QUEUE, record.received_to - len(record.receive))
    _set_sequence(program, fd, _SEND_QUEUE, record.sent_to - len(record.send))
    remote = End(record.remote, record.remote_port)
    address = remote.packed(family)
    program.call(SYS.CONNECT, fd, address, len(address))
    options = _options(record)
    program.call(SYS.SETSOCKOPT, fd, socket.IPPROTO_TCP, _TCP_REPAIR_OPTIONS, options, len(options))
    if record.features & _TIMESTAMPS:
        _set(program, fd, _TCP_TIMESTAMP, record.timestamp)
    _fill_received(making, fd, record, remote, local)
    sent = len(record.send) - (0 if state in _WE_FINISHED else record.unsent)
    _fill(program, fd, _SEND_QUEUE, record.send[:sent])
    acknowledged = record.sent_to - len(record.send)
    if state in _PEER_FINISHED and state != TCP_CLOSING:
        _receive_from_peer(making, remote, local, _FIN | _ACK, record.received_to, acknowledged)
    if state in _WE_FINISHED:
        # As if the FIN had been sent.
        _set(program, fd, _TCP_REPAIR_QUEUE, _SEND_QUEUE)
        program.call(SYS.SHUTDOWN, fd, _SHUT_WR)
    if state == TCP_CLOSING:
        _receive_from_peer(making, remote, local, _FIN | _ACK, record.received_to, acknowledged)
    if state in (TCP_FIN_WAIT2, TCP_CLOSE):
        # The peer's FIN counts, too.
        received_to = record.received_to + (state == TCP_CLOSE)
        _receive_from_peer(making, remote, local, _ACK, received_to, record.sent_to + 1)
    _set(program, fd, _TCP_REPAIR_QUEUE, _NO_QUEUE)
    if record.window:
        program.call(
            SYS.SETSOCKOPT, fd, socket.IPPROTO_TCP, _TCP_REPAIR_WINDOW, record.window, _WINDOW_BYTES
        )
    if record.shut_for_reading:
        program.call(SYS.SHUTDOWN, fd, 0)


def resume(descriptor: int, record: Connection, state: int, options: Iterable[Option]) -> None:
    """Let a connection hear and send again, through a descriptor of ours."""
    with socket.socket(fileno=os.dup(descriptor)) as one:
        unsent = (
            b"" if state in _WE_FINISHED or not record.unsent else record.send[-record.unsent :]
        )
        try:
            one.setsockopt(socket.IPPROTO_TCP, _TCP_REPAIR, _REPAIR_OFF)
            if unsent:
                one.setsockopt(socket.SOL_SOCKET, SO_SNDBUFFORCE, 2 * len(record.send) + _ROOM)
                one.send(unsent, socket.MSG_DONTWAIT | socket.MSG_NOSIGNAL)
        except ConnectionError:
            pass  # the peer is gone already: its program will hear of it
        # The end of a repair clears SO_REUSEADDR.
        again = (socket.SO_REUSEADDR, socket.SO_SNDBUF, socket_options.SO_BUF_LOCK)
        for option in options:
            if option.level == socket.SOL_SOCKET and option.name in again:
                socket_options.restore_here(one, option)


def connect_again(descriptor: int, address: bytes) -> None:
    """Begin to connect, as before; the program waits for the end of it, or asks."""
    flags = fcntl.fcntl(descriptor, fcntl.F_GETFL)
    fcntl.fcntl(descriptor, fcntl.F_SETFL, flags | os.O_NONBLOCK)
    try:
        HERE.call(SYS.CONNECT, descriptor, address, len(address))
    except OSError:
        pass  # EINPROGRESS; should it be refused at once, the program asks for the error
    fcntl.fcntl(descriptor, fcntl.F_SETFL, flags)


def _set(program: Program, fd: int, name: int, value: int) -> None:
    word = (value & _WORD).to_bytes(4, "little")
    program.call(SYS.SETSOCKOPT, fd, socket.IPPROTO_TCP, name, word, 4)


def _set_sequence(program: Program, fd: int, queue: int, number: int) -> None:
    _set(program, fd, _TCP_REPAIR_QUEUE, queue)
    _set(program, fd, _TCP_QUEUE_SEQ, number)


def _options(record: Connection) -> bytes:
    """Return what was agreed on at the start, as struct tcp_repair_opt."""
    found = [struct.pack("<2I", _OPTION_MSS, record.mss)]
    if record.features & _TIMESTAMPS:
        found.append(struct.pack("<2I", _OPTION_TIMESTAMPS, 0))
    if record.features & _SACK:
        found.append(struct.pack("<2I", _OPTION_SACK, 0))
    if record.features & _WINDOW_SCALE:
        scales = record.scales & 0xF | (record.scales >> 4) << 16
        found.append(struct.pack("<2I", _OPTION_WINDOW_SCALE, scales))
    return b"".join(found)


def _fill(program: Program, fd: int, queue: int, data: bytes) -> None:
    if not data:
        return
    _set(program, fd, _TCP_REPAIR_QUEUE, queue)
    for at in range(0, len(data), _PIECE):
        piece = data[at : at + _PIECE]
        program.expect(program.call(SYS.SENDTO, fd, piece, len(piece), 0, 0, 0), len(piece))


def _fill_received(making: Making, fd: int, record: Connection, remote: End, local: End) -> None:
    """Have a socket under repair have received what is recorded; an urgent byte has to come."""
    program = making.program
    at = record.urgent
    if at < 0:
        _fill(program, fd, _RECEIVE_QUEUE, record.receive)
        return
    _fill(program, fd, _RECEIVE_QUEUE, record.receive[:at])
    sequence = (record.received_to - len(record.receive) + at) & _WORD
    window = struct.pack("<5I", sequence, _SOME_WINDOW, _SOME_WINDOW, _SOME_WINDOW, sequence)
    name = socket.IPPROTO_TCP, _TCP_REPAIR_WINDOW
    program.call(SYS.SETSOCKOPT, fd, *name, window, _WINDOW_BYTES)
    acknowledged = record.sent_to - len(record.send)
    byte = record.receive[at : at + 1]
    _receive_from_peer(making, remote, local, _URG | _ACK, sequence, acknowledged, byte)
    # The loopback device hands it over at once, but where the kernel has more to do.
    wait = program.address_of(struct.pack("<IHH", 0, select.POLLPRI, 0))
    program.store(wait, fd)
    program.call(SYS.POLL, wait, 1, _COMES_WITHIN_MS)
    if record.urgent_read:
        place = program.address_of(bytes(8))
        program.call(SYS.RECVFROM, fd, place, 1, socket.MSG_OOB | socket.MSG_DONTWAIT, 0, 0)
    _fill(program, fd, _RECEIVE_QUEUE, record.receive[at + 1 :])


def _receive_from_peer(
    making: Making,
    remote: End,
    local: End,
    flags: int,
    sequence: int,
    acknowledged: int,
    data: bytes = b"",
) -> None:
    """Have a segment arrive as if the peer had sent it; what `data` end with is urgent."""
    source, target = remote.unmapped(), local.unmapped()
    numbers = sequence & _WORD, acknowledged & _WORD
    head = struct.pack(
        ">2H2I2B3H", source.port, target.port, *numbers, 5 << 4, flags, 0xFFFF, 0, len(data)
    )
    packet = inet.packet(
        socket.IPPROTO_TCP, source.address, target.address, head + data, _CHECKSUM_OFFSET
    )
    # Twice: the acknowledgement of a repeated segment isn't delayed, and so sent while all is
    # dropped. Later, a peer that is gone would answer it by a reset.
    for _ in range(2):
        inet.arrive(making, packet, target.address)
