"""Calls that the hold has cut short, which nothing but a signal does: they return what was done.

A write to a full pipe then says that it has written a part, as no program expects that has no
handler of signals; many take it for an error. So the task goes on with the rest of the call, in
code at the very end of its vDSO's padding, which adds up and returns to the program. That code
stays, as does what it needs on the stack (below the red zone, where the stack pointer is meanwhile)
until the call returns.
"""

import os
import socket
import stat
import struct
import termios

from woodfrog.kernel import fuse
from woodfrog.kernel.abi.x86_64 import SYS
from woodfrog.kernel.procfs.fdinfo import parse_fdinfo
from woodfrog.kernel.ptrace import NO_CALL, Registers
from woodfrog.remote.descriptors import fetch
from woodfrog.remote.scratch import room_needed
from woodfrog.remote.vdso import SYSCALL_INSTRUCTION, Vdso

# An image may have a task in the midst of it.
CODE = (
    SYSCALL_INSTRUCTION
    # test rax, rax; jns over the next; xor eax, eax: what has failed adds nothing
    + b"\x48\x85\xc0\x79\x02\x31\xc0"
    # add rax, [rsp]; pop rdi, twice; pop rsi; pop rdx; pop rcx
    + b"\x48\x03\x04\x24\x5f\x5f\x5e\x5a\x59"
    # popfq; pop rsp; jmp rcx
    + b"\x9d\x5c\xff\xe1"
).ljust(32, b"\x90")

# What it takes from the stack: the bytes done, rdi, rsi, rdx, where to return, flags, and rsp.
_BLOCK = struct.Struct("<7Q")
_IOVEC, _MSGHDR = struct.Struct("<QQ"), struct.Struct("<QQQQQQQ")
_RED_ZONE = 128
_MOST_VECTORS, _MOST_ASKED = 8, 1024  # ours; the kernel's
_MOST_BYTES = 0x7FFFF000  # MAX_RW_COUNT
_SOURCES = ((1, 5), (1, 8), (1, 9))  # /dev/zero, random and urandom
_TERMINALS = range(136, 144)
_WRITES = (SYS.WRITE, SYS.WRITEV)
_SENDS = (SYS.SENDTO, SYS.SENDMSG)
_RECEIVES = (SYS.RECVFROM, SYS.RECVMSG)
_MESSAGES = (SYS.SENDMSG, SYS.RECVMSG)
_CALLS = (*_WRITES, *_SENDS, *_RECEIVES, SYS.READ, SYS.GETRANDOM)
_MSG_ERRQUEUE, _MSG_ZEROCOPY, _MSG_FASTOPEN = 0x2000, 0x4000000, 0x20000000
_NOT_WHOLE = socket.MSG_DONTWAIT | socket.MSG_OOB | _MSG_ERRQUEUE | _MSG_ZEROCOPY | _MSG_FASTOPEN


def place(vdso_end: int) -> int:
    """Return where the code is, or would be, in a process whose vDSO ends there."""
    return vdso_end - len(CODE)


def is_there(memory: int, vdso_end: int) -> bool:
    """Tell whether a process has the code."""
    return os.pread(memory, len(CODE), place(vdso_end)) == CODE


def put(memory: int, vdso_end: int) -> None:
    """Give a process the code."""
    os.pwrite(memory, CODE, place(vdso_end))


def is_inside(rip: int, vdso_end: int) -> bool:
    """Tell whether an instruction is one of the code's."""
    return place(vdso_end) <= rip < vdso_end


def may_be(registers: Registers) -> bool:
    """Tell at little cost whether a task may be in a call that was cut short."""
    return registers.orig_rax in _CALLS and registers.result > 0


class CutCall:
    """A call of a task that has just been stopped, and that has returned too early."""

    def __init__(
        self, process: int, path: str, memory: int, vdso: tuple[int, int], registers: Registers
    ) -> None:
        """`path` is the task's directory in /proc."""
        self._process = process
        self._path = path
        self._memory = memory
        self._code = place(vdso[1])
        self._vdso = vdso
        self._registers = registers
        self._number = registers.orig_rax

    def goes_on(self, ours: Vdso) -> Registers | None:
        """Return registers with which the rest of the call is made; None if it wasn't cut short.

        What they need is written to the process's memory. Raises OSError if that can't be.
        """
        start, end = self._vdso
        if end - start != len(ours.image) or ours.room < room_needed() + len(CODE):
            return None
        vectors = self._vectors()
        asked = min(sum(length for _, length in vectors), _MOST_BYTES)
        done = self._registers.result
        total = self._else(asked) if done < asked else 0
        if done >= total:
            return None
        left = _after(vectors, done, total)
        if len(left) > _MOST_VECTORS:
            return None
        return self._going_on(done, left)

    def _vectors(self) -> list[tuple[int, int]]:
        """Return the memory that the call is about: addresses and lengths."""
        registers = self._registers
        if self._number == SYS.GETRANDOM:
            return [(registers.rdi, registers.rsi)]
        if self._number not in (SYS.WRITEV, *_MESSAGES):
            return [(registers.rsi, registers.rdx)]
        address, count = registers.rsi, registers.rdx
        if self._number in _MESSAGES:
            _, _, address, count, *_ = _MSGHDR.unpack(self._read(registers.rsi, _MSGHDR.size))
        if count > _MOST_ASKED:
            return []
        return list(_IOVEC.iter_unpack(self._read(address, count * _IOVEC.size)))

    def _else(self, asked: int) -> int:
        """Return how many bytes the call does at least, unless a signal comes."""
        if self._number == SYS.GETRANDOM:
            return asked
        number = self._registers.rdi & 0xFFFFFFFF
        # Who serves a file system may be held already: it can't be asked.
        file = fuse.look(f"{self._path}/fd/{number}")
        device = file.special
        if not stat.S_ISCHR(file.mode):
            device = 0, 0
        if self._number == SYS.READ and device in _SOURCES:
            return asked
        with open(f"{self._path}/fdinfo/{number}", encoding="utf-8") as told:
            fields, _ = parse_fdinfo(told.read())
        if int(fields["flags"], 8) & os.O_NONBLOCK:
            return 0
        if stat.S_ISSOCK(file.mode):
            return asked if self._is_whole_at_socket(file.inode) else 0
        is_terminal = device[0] in _TERMINALS
        if self._number == SYS.READ:
            return min(asked, self._least_of_terminal(os.makedev(*device))) if is_terminal else 0
        return asked if stat.S_ISFIFO(file.mode) or is_terminal else 0

    def _least_of_terminal(self, device: int) -> int:
        """Return for how many bytes a read waits, for as long as it takes."""
        descriptor = fetch(self._process, self._registers.rdi & 0xFFFFFFFF)
        try:
            if os.fstat(descriptor).st_rdev != device:
                return 0
            settings = termios.tcgetattr(descriptor)
        except termios.error:
            return 0
        finally:
            os.close(descriptor)
        if settings[3] & termios.ICANON or settings[6][termios.VTIME]:
            return 0
        return int(settings[6][termios.VMIN])  # which Python has as a number just then

    def _is_whole_at_socket(self, inode: int) -> bool:
        """Tell whether a call on a socket does all at once."""
        if self._number == SYS.READ:
            return False
        registers = self._registers
        option, flags = socket.SO_SNDTIMEO, 0
        if self._number not in _WRITES:
            flags = registers.rdx if self._number in _MESSAGES else registers.r10
        if self._number in _RECEIVES:
            option = socket.SO_RCVTIMEO
            if flags & (socket.MSG_WAITALL | socket.MSG_PEEK) != socket.MSG_WAITALL:
                return False
        if flags & _NOT_WHOLE:
            return False
        with socket.socket(fileno=fetch(self._process, registers.rdi & 0xFFFFFFFF)) as one:
            # A thread may have a table of descriptors of its own.
            return (
                os.fstat(one.fileno()).st_ino == inode
                and one.type == socket.SOCK_STREAM
                and not any(one.getsockopt(socket.SOL_SOCKET, option, 16))
            )

    def _going_on(self, done: int, left: list[tuple[int, int]]) -> Registers:
        registers = self._registers.copy()
        block = (
            0,
            registers.rdi,
            registers.rsi,
            registers.rdx,
            registers.rip,
            registers.eflags,
            registers.rsp,
        )
        if registers.rip - len(SYSCALL_INSTRUCTION) == self._code:
            # Once more: what it has below the program's stack is replaced.
            block = _BLOCK.unpack(self._read(registers.rsp, _BLOCK.size))
        below = (block[-1] - _RED_ZONE) & -16
        pieces = []
        address, length = left[0]
        if self._number == SYS.GETRANDOM:
            registers.rdi, registers.rsi = address, length
        elif self._number not in (SYS.WRITEV, *_MESSAGES):
            registers.rsi, registers.rdx = address, length
        else:
            below -= _MOST_VECTORS * _IOVEC.size
            pieces.append((below, b"".join(_IOVEC.pack(*one) for one in left)))
            vectors = below
            if self._number in _MESSAGES:
                below -= _MSGHDR.size + 8
                name, size, *_, flags = _MSGHDR.unpack(self._read(registers.rsi, _MSGHDR.size))
                # Descriptors have gone with the first part, and come with it.
                message = _MSGHDR.pack(name, size, vectors, len(left), 0, 0, flags)
                pieces.append((below, message))
                registers.rsi = below
            else:
                registers.rsi, registers.rdx = vectors, len(left)
        registers.rsp = below - _BLOCK.size - 8
        pieces.append((registers.rsp, _BLOCK.pack(block[0] + done, *block[1:])))
        for address, data in pieces:
            if os.pwrite(self._memory, data, address) != len(data):
                raise OSError("the stack has no room")
        if not is_there(self._memory, self._vdso[1]):
            put(self._memory, self._vdso[1])
        registers.rip, registers.rax, registers.orig_rax = self._code, self._number, NO_CALL
        return registers

    def _read(self, address: int, length: int) -> bytes:
        return os.pread(self._memory, length, address)


def _after(vectors: list[tuple[int, int]], done: int, total: int) -> list[tuple[int, int]]:
    """Return what is left of memory when so many bytes of all are done."""
    left = []
    if len(vectors) == 1:
        vectors = [(vectors[0][0], total)]
    for address, length in vectors:
        skipped = min(done, length)
        done -= skipped
        if length > skipped:
            left.append((address + skipped, length - skipped))
    return left
