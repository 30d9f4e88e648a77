"""Sockets of ours connect to a listener in a held container, as whoever had connected before.

That process does it, if it still can; else a child of ours in the container, which is that user.
"""

from __future__ import annotations

import fcntl
import os
import socket
import struct
from collections.abc import Callable
from contextlib import ExitStack
from typing import TYPE_CHECKING

from woodfrog.engine.collected import scratch_in
from woodfrog.errors import UnsupportedResource
from woodfrog.kernel import namespaces, syscalls
from woodfrog.kernel.abi.x86_64 import SYS
from woodfrog.kernel.caller import HERE, checked
from woodfrog.kernel.netlink.messages import socket_of
from woodfrog.remote import descriptors
from woodfrog.resources.files import unix_names, unix_paths
from woodfrog.resources.files.open_file import OpenFile
from woodfrog.resources.files.unix_socket import UnixSocketFile

if TYPE_CHECKING:
    from woodfrog.engine.looking import Looked
    from woodfrog.remote.held import HeldProcess

_PR_SET_SECUREBITS, _SECBIT_NO_SETUID_FIXUP = 28, 4


class Reconnecting:
    """Connects sockets of ours to a listener of a held container."""

    def __init__(self, looked: Looked, opened: OpenFile, listener: UnixSocketFile) -> None:
        self._looked = looked
        self._world = looked.world
        self._opened = opened
        self._listener = listener

    def connected(self, author: tuple[int, int, int]) -> socket.socket:
        """Make a socket that is connected to the listener, by who had connected the old one."""
        kind = self._listener.type
        maker = self._process(author)
        address = self._address_in(maker) if maker else b""
        if maker and address:
            try:
                return self._connected_by(maker, kind, address)
            except (OSError, UnsupportedResource):
                pass  # it may not, or it has no room for another descriptor
        with ExitStack() as undo:
            made = socket_of(self._world.init, socket.AF_UNIX, kind, 0)
            undo.callback(made.close)
            made.setblocking(False)
            path = -1
            if self._listener.name[:1] != b"\0":
                path = fcntl.ioctl(self._opened.descriptor, unix_paths.SIOCUNIXFILE)
            try:
                self._connect_for(made, author, path)
            finally:
                if path >= 0:
                    os.close(path)
            undo.pop_all()
        return made

    def _process(self, author: tuple[int, int, int]) -> HeldProcess | None:
        """Return a process that is still the user that it was, and in the container's places."""
        pid, uid, gid = author
        for one in self._looked.tree.processes:
            status = one.leader.status
            users = int(status["Uid"].split()[1]), int(status["Gid"].split()[1])
            if one.group == pid and users == (uid, gid) and one.ids[1:] == []:
                within = self._world.namespaces.of(one.pid)
                return None if {"net", "mnt", "user"} & within.keys() else one
        return None

    def _address_in(self, maker: HeldProcess) -> bytes:
        """Return the listener's address if a process finds it by its name."""
        name = self._listener.name
        if name[:1] == b"/":
            bound = unix_paths.bound_path(name, self._opened.descriptor, self._world)
            root = os.stat(f"{maker.path}/root")
            own = os.stat(self._world.root)
            is_there = bound.mode and not (bound.alias or bound.directory)
            if not is_there or (root.st_dev, root.st_ino) != (own.st_dev, own.st_ino):
                return b""
        elif name[:1] != b"\0":
            return b""
        return unix_names.address_of(name)

    def _connected_by(self, maker: HeldProcess, kind: int, address: bytes) -> socket.socket:
        with scratch_in(maker, self._looked.vdso) as scratch:
            program = scratch.program()
            how = kind | socket.SOCK_CLOEXEC | socket.SOCK_NONBLOCK
            fd = program.call(SYS.SOCKET, socket.AF_UNIX, how, 0)
            connected = program.call(SYS.CONNECT, fd, address, len(address))
            program.may_fail(connected)
            scratch.run(program)
            try:
                made = socket.socket(fileno=descriptors.fetch(maker.pid, program[fd]))
            finally:
                closing = scratch.program()
                syscalls.close(closing, program[fd])
                scratch.run(closing)
        try:
            checked(SYS.CONNECT, program[connected])
        except OSError:
            made.close()
            raise
        return made

    def _connect_for(self, made: socket.socket, author: tuple[int, int, int], path: int) -> None:
        """Connect a socket of ours in a child that is of the container, that user, and then gone.

        `path` is a descriptor of the listener's file, if it has one.
        """
        name = self._listener.name
        address = unix_names.address_of(b"/proc/self/fd/%d" % path if path >= 0 else name)
        (error,) = in_container(
            self._world.init, lambda: [_connected_as(made.fileno(), address, author)]
        )
        if error:
            raise OSError(error, f"connecting once more: {os.strerror(error)}")


def in_container(init: int, work: Callable[[], list[int]]) -> list[int]:
    """Have a child of ours do something in the container's pid namespace."""
    reading, writing = os.pipe()
    with ExitStack() as undo:
        undo.callback(os.close, reading)
        theirs = os.open(f"/proc/{init}/ns/pid", os.O_RDONLY | os.O_CLOEXEC)
        undo.callback(os.close, theirs)
        ours = os.open("/proc/self/ns/pid_for_children", os.O_RDONLY | os.O_CLOEXEC)
        undo.callback(os.close, ours)
        namespaces.setns(HERE, theirs, namespaces.CLONE_NEWPID)
        undo.callback(namespaces.setns, HERE, ours, namespaces.CLONE_NEWPID)
        child = os.fork()
        if not child:
            try:
                numbers = work()
                os.write(writing, struct.pack(f"<{len(numbers)}i", *numbers))
            finally:
                os._exit(0)
        os.close(writing)
        found = b""
        while data := os.read(reading, 1 << 16):
            found += data
        os.waitpid(child, 0)
    if not found:
        raise UnsupportedResource("a process could not be made in the container")
    return [number for (number,) in struct.iter_unpack("<i", found)]


def _connected_as(fd: int, address: bytes, author: tuple[int, int, int]) -> int:
    """Connect as a user, with all rights; in a child of ours. Returns an error, or 0."""
    _, user, group = author
    try:
        HERE.call(SYS.PRCTL, _PR_SET_SECUREBITS, _SECBIT_NO_SETUID_FIXUP, 0, 0, 0)
        HERE.call(SYS.SETRESGID, group, group, group)
        HERE.call(SYS.SETRESUID, user, user, user)
        HERE.call(SYS.CONNECT, fd, address, len(address))
    except OSError as error:
        return error.errno or 1
    return 0
