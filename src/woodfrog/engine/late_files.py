"""Files that can be opened only when the processes stand: pidfds, and files of theirs in proc(5).

They are opened once, and handed out to the processes.
"""

import os
from collections.abc import Iterable
from contextlib import ExitStack

from woodfrog.engine.body import Body
from woodfrog.engine.making_files import Making
from woodfrog.engine.making_namespaces import MadeNamespaces
from woodfrog.engine.plan import Plan
from woodfrog.engine.tree import Tree
from woodfrog.errors import ImageError, UnsupportedResource, while_
from woodfrog.kernel import mounts, syscalls
from woodfrog.kernel.abi.x86_64 import SYS
from woodfrog.kernel.caller import HERE
from woodfrog.kernel.capability import CAP_DAC_OVERRIDE, CAP_SYS_PTRACE, LimitedTo
from woodfrog.kernel.mounts import (
    RESOLVE_BENEATH,
    RESOLVE_IN_ROOT,
    RESOLVE_NO_MAGICLINKS,
    RESOLVE_NO_XDEV,
)
from woodfrog.kernel.namespaces import is_nested
from woodfrog.remote import descriptors
from woodfrog.remote.program import Program
from woodfrog.remote.stub import Stub
from woodfrog.resources import namespaces
from woodfrog.resources.files import base
from woodfrog.resources.files.base import FileRecord

_RIGHTS_AT_ONCE = 200
_TO_OPEN = 1 << CAP_SYS_PTRACE | 1 << CAP_DAC_OVERRIDE
_WITHIN_PROCESS = RESOLVE_BENEATH | RESOLVE_NO_XDEV | RESOLVE_NO_MAGICLINKS


class LateFiles:
    """See resources.files.making.Late. `undo` closes descriptors of ours."""

    def __init__(
        self,
        root: Stub,
        tree: Tree,
        plan: Plan,
        making: Making,
        made: MadeNamespaces,
        undo: ExitStack,
    ) -> None:
        self._root = root
        # And those to open files of processes at all.
        self._rights = making.capabilities | _TO_OPEN
        # Not in the way of those that are still to come.
        self._high = making.high
        self._plan = plan
        self._tree = tree
        self._namespaces = made
        self._undo = undo
        # Those of io_uring come later yet (engine/making_rings.py).
        self._files = {
            number: file for number, file in plan.files.items() if file.late and not file.made_last
        }
        self._terminal = -1
        self._ours: dict[int, int] = {}
        self._bodies: list[Body] = []
        if self._files:
            # Before the first process takes the root directory that it had.
            path = f"/proc/{root.pid}/root"
            self._directory = self._keep(os.open(path, os.O_PATH | os.O_CLOEXEC))
            if making.has_terminal():
                self._terminal = self._keep(descriptors.fetch(root.pid, making.stdio(0)))

    def _keep(self, fd: int) -> int:
        self._undo.callback(os.close, fd)
        return fd

    def open_those_of_ended(self) -> None:
        """Open those of processes that have ended; all processes are still blank."""
        self._open(file for file in self._files.values() if file.is_of_ended())

    def open_and_hand_out(self, bodies: Iterable[Body]) -> None:
        """Open all others, and give each process its descriptors."""
        self._bodies = list(bodies)
        self._open(file for file in self._files.values() if not file.is_of_ended())
        for body in self._bodies:
            slots = [d for d in body.record.descriptors if d.file in self._files]
            for first in range(0, len(slots), _RIGHTS_AT_ONCE):
                some = slots[first : first + _RIGHTS_AT_ONCE]
                ours = [self._ours[slot.file] for slot in some]
                program = body.stub.program()
                for got, slot in zip(descriptors.give(body.stub, ours), some, strict=True):
                    high = syscalls.duplicate_above(program, got, self._high)
                    syscalls.close(program, got)
                    syscalls.duplicate_to(program, high, slot.number, cloexec=slot.cloexec)
                    syscalls.close(program, high)
                with while_(f"handing late files to {body.name}"):
                    body.stub.run(program)

    def _open(self, files: Iterable[FileRecord]) -> None:
        for file in files:
            with while_(f"opening file {file.id} ({type(file).__name__})"):
                self._ours[file.id] = self._keep(file.restore_late(self))

    # What records ask for.

    def open_in_session(self, terminal: int, path: bytes, how: int, flags: int) -> int:
        """See the protocol."""
        for body in self._bodies:
            if body.record.controlling == terminal and self._plan.terminal(terminal):
                program = body.stub.program()
                fd = syscalls.openat2(program, path, how)
                base.set_flags(program, fd, flags)
                return self._taken_from(body.stub, program, fd)
        return self._open_own_terminal(how, flags)

    def _open_own_terminal(self, how: int, flags: int) -> int:
        """Open what the terminal of an `exec` has become."""
        if self._terminal < 0:
            raise UnsupportedResource("/dev/tty is open in a session that has no terminal any more")
        fd = os.open(f"/proc/self/fd/{self._terminal}", how | os.O_CLOEXEC)
        base.set_flags(HERE, fd, flags)
        return fd

    def open_process(self, pid: int, flags: int) -> int:
        """See the protocol."""
        program = self._root.program()
        fd = program.call(SYS.PIDFD_OPEN, pid, flags)
        return self._taken_from(self._root, program, fd)

    def open_namespace(self, name: str, number: int, flags: int) -> int:
        """See the protocol."""
        if number not in self._plan.namespaces or self._plan.namespaces[number].name != name:
            raise ImageError("the image has a file of a namespace that it lacks")
        return os.open(self._namespaces.link(name, number), flags | os.O_CLOEXEC)

    def _taken_from(self, stub: Stub, program: Program, fd: int) -> int:
        """Run a program that opens a descriptor, and make it ours alone."""
        stub.run(program)
        ours = descriptors.fetch(stub.pid, program[fd])
        closing = stub.program()
        syscalls.close(closing, program[fd])
        stub.run(closing)
        return ours

    def open_ended_process(self, status: int, flags: int) -> int:
        """See the protocol."""
        with self._tree.passing(status=status) as pid:
            return self.open_process(pid, flags)

    def open_in_proc(self, point: bytes, pid: int, name: bytes, flags: int, *, ended: bool) -> int:
        """See the protocol."""
        if ended:
            with self._tree.passing(pid):
                return self.open_in_proc(point, pid, name, flags, ended=False)
        process = self._process_directory(point, pid)
        try:
            # What some of them show or take is a matter of who has opened them (pagemap).
            with LimitedTo(self._rights):
                return syscalls.openat2(
                    HERE, name, flags | os.O_CLOEXEC, directory=process, resolve=_WITHIN_PROCESS
                )
        finally:
            os.close(process)

    def _process_directory(self, point: bytes, pid: int) -> int:
        """Open a process's directory; by our rights, that must be one of the container's own."""
        path = os.path.join(point, b"%d" % pid)
        resolve = RESOLVE_IN_ROOT | RESOLVE_NO_MAGICLINKS
        flags = os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC
        fd = syscalls.openat2(HERE, path, flags, directory=self._directory, resolve=resolve)
        # Another proc that is mounted in the container may have the host's processes.
        if not self._is_own_process(fd):
            os.close(fd)
            raise ImageError(f"{os.fsdecode(path)} is none of the container's own processes")
        return fd

    def _is_own_process(self, directory: int) -> bool:
        if mounts.file_system_type(HERE, directory) != mounts.PROC_SUPER_MAGIC:
            return False
        try:
            found = os.readlink("ns/pid", dir_fd=directory)
        except OSError:
            return False
        own = namespaces.pid_namespace(self._root.pid)
        return found == own or is_nested(HERE, f"/proc/self/fd/{directory}/ns/pid", own)
