"""FILES: the root stub opens every file once, at descriptors that no process of the image uses."""

from __future__ import annotations

import fcntl
import os
import select
import stat
from collections.abc import Callable, Container, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING

from woodfrog.engine.workshop import Workshop
from woodfrog.errors import ImageError, UnsupportedResource, while_
from woodfrog.kernel import syscalls
from woodfrog.kernel.capability import CAP_NET_ADMIN, CAP_NET_RAW
from woodfrog.remote import descriptors
from woodfrog.remote.address import page_up
from woodfrog.remote.program import Program
from woodfrog.resources import shared_memory
from woodfrog.resources.files import socket_options
from woodfrog.resources.files.base import DescriptorTable, FileRecord
from woodfrog.resources.files.making import MUCH, Maker
from woodfrog.resources.files.unix_paths import SIOCUNIXFILE
from woodfrog.resources.membership import Membership

if TYPE_CHECKING:
    from woodfrog.resources.deleted_files import DeletedFile
    from woodfrog.resources.files.deleted import OpenDeletedFile
    from woodfrog.resources.memory import PageRange
    from woodfrog.resources.shared_memory import SharedMemory

_PROGRAM_CALLS = 4000
_ANYBODYS = 0o666  # who connects to a socket writes to its file
# For SO_SNDBUFFORCE and TCP_REPAIR, and for a peer's last segments.
_FOR_SOCKETS = 1 << CAP_NET_ADMIN | 1 << CAP_NET_RAW


class Making(Workshop):
    """Makes shared memory, deleted files and open files, as the records of an image say."""

    def make_shared_memory(
        self,
        objects: Iterable[SharedMemory],
        written: Container[int],
        only_read: Container[int],
        pages: int,
        base: int,
        inherit: Callable[[Sequence[PageRange]], None],
    ) -> None:
        """Make and fill all shared memory; shared mappings may write to those in `written`.

        Those in `only_read` some shared mapping may only read, whatever mprotect(2) asks for later.
        `inherit` fills pages in that the stub has mapped, from whichever image of a chain has them.
        """
        for one in objects:
            with while_("making shared memory"):
                made = shared_memory.create(self.program, one)
                self._run_for(made)
                if one.memfd is None:
                    fd = self._descriptor_of_mapping(self._made, one.size)
                else:
                    fd = self._made
                high = syscalls.duplicate_above(self.program, fd, self.high)
                syscalls.close(self.program, fd)
                self.objects[one.id] = high
                shared_memory.fill(self.program, one, high, pages, base)
                if one.inherited:
                    # Written to by the stub's mapping, it counts as the container's memory.
                    mapped = shared_memory.map_whole(self.program, one, high)
                    self._run_for(mapped)
                    inherit(one.inherited_at(self._made))
                    syscalls.munmap(self.program, self._made, page_up(one.size))
                if one.id in written and one.seals & shared_memory.F_SEAL_FUTURE_WRITE:
                    self._unsealed.append((self.ours(self.settle(high)), one.seals))
                else:
                    shared_memory.seal(self.program, one, high)
                self.run()
                if one.id in only_read and one.memfd is not None:
                    reader = self.reopen_descriptor(self.objects[one.id], os.O_RDONLY)
                    self._read_only[one.id] = self._up(reader)
                    self.run()

    def seal(self) -> None:
        """Seal what may be written to by no mapping but those that stand now."""
        for descriptor, seals in self._unsealed:
            fcntl.fcntl(descriptor, fcntl.F_ADD_SEALS, seals)

    def make_deleted_files(
        self,
        files: Iterable[DeletedFile],
        opened: Mapping[int, Sequence[OpenDeletedFile]],
        written: Container[int],
        pages: int,
        base: int,
    ) -> None:
        """Make and fill all deleted files, and open them as `opened` says by their ids.

        Shared mappings may write to those in `written`.

        They are made by all rights that the stub has: the container's own need not reach as far as
        where the file was made, and nobody else can reach what has no name.
        """
        for one in sorted(files, key=lambda one: one.mounts):
            with while_(f"making the deleted file {os.fsdecode(one.path)}"):
                self._be_within({"mnt": one.mounts} if one.mounts else {})
                self._make_deleted_file(one, opened.get(one.id, ()), one.id in written, pages, base)
                self._run_if_full()
        self.run()
        self._be_within({})

    def _make_deleted_file(
        self,
        one: DeletedFile,
        wanted: Sequence[OpenDeletedFile],
        is_written: bool,
        pages: int,
        base: int,
    ) -> None:
        from woodfrog.resources import deleted_files

        fd, by_name = self._open_deleted_file(one, wanted)
        if one.link:
            self._linked.add(one.id)
            # Opened anew below, which runs the program that this is of.
            fd = self.settle(fd)
            self._set_capabilities(self.capabilities)
            self.refuse_forbidden(fd, os.O_RDWR if is_written else os.O_RDONLY)
            self._set_capabilities(self.permitted)
        for file, early in zip(wanted, by_name[1:], strict=False):
            self._kept[file.early] = early
        if one.kind == stat.S_IFREG and not one.link:
            deleted_files.fill(self.program, one, fd, pages, base)
        if not one.link:
            self._set_capabilities(self.capabilities)
            deleted_files.finish(self.program, one, fd)
            self._set_capabilities(self.permitted)
        if is_written or one.unnamed:
            both = self.reopen_descriptor(fd, os.O_RDWR) if one.link else fd
            self._written[one.id] = syscalls.duplicate_above(self.program, both, self.high)
            if one.link:
                self._spare.append(both)
        if one.kind == stat.S_IFREG:
            # Not for writing: what might be written to can't be executed.
            self._spare.append(fd)
            fd = by_name[0] if by_name else self.reopen_descriptor(fd, os.O_RDONLY)
        self.objects[one.id] = self._up(fd)

    def _open_deleted_file(
        self, one: DeletedFile, wanted: Sequence[OpenDeletedFile]
    ) -> tuple[int, list[int]]:
        """Make a deleted file, still empty, and open it as is `wanted` while it has a name."""
        from woodfrog.resources import deleted_files
        from woodfrog.resources.mount_tree import ghosts

        ways = [os.O_RDONLY | os.O_CLOEXEC, *(file.way for file in wanted)]
        original = next((file for file in wanted if file.access is not None), None)
        access = original.access if original and original.access else os.O_RDWR
        if one.id in self._left:
            left = self._left[one.id]
            fd, by_name = ghosts.take_over(self.program, one, self.stub.pid, ways, left)
        else:
            fd, by_name = deleted_files.make(self, one, self.stub.pid, ways, access)
        if original and one.unnamed:
            self._kept[original.early] = syscalls.duplicate_above(self.program, fd, self.high)
            if access != os.O_RDWR:
                self._spare.append(fd)
                fd = self.reopen_descriptor(fd, os.O_RDWR)
        return fd, by_name

    def take_object(self, number: int, fd: int, *, for_writing: bool) -> None:
        """Take a descriptor of the stub's for shared memory or a deleted file that stands."""
        (self._written if for_writing else self.objects)[number] = fd

    def mapped(self, number: int, writable: bool) -> int:
        """Return the stub's descriptor for a mapping of shared memory or a deleted file."""
        if not writable and number in self._read_only:
            return self._read_only[number]
        return self.memory_object(number, for_writing=writable)

    def stands(self, maker: Maker | None) -> bool:
        """See the protocol."""
        del maker
        return False

    def owner(self, file: int) -> Maker | None:
        """See the protocol."""
        del file
        return None

    def by_process(
        self,
        maker: Maker,
        given: list[int],
        act: Callable[[Program, list[int]], tuple[int, ...]],
    ) -> tuple[int, ...]:
        """See the protocol."""
        raise AssertionError(f"process {maker.pid} does not stand yet")

    @contextmanager
    def file_of(self, listener: int) -> Iterator[int]:
        """See the protocol."""
        with ExitStack() as undo:
            ours = descriptors.fetch(self.stub.pid, self.settle(listener))
            undo.callback(os.close, ours)
            file = fcntl.ioctl(ours, SIOCUNIXFILE)
            undo.callback(os.close, file)
            mode = stat.S_IMODE(os.fstat(file).st_mode)
            link = f"/proc/self/fd/{file}"
            os.chmod(link, mode | _ANYBODYS)
            undo.callback(os.chmod, link, mode)
            yield self.spare(self.send(file))
            # The container's /proc is what its programs have made of it.
            if not socket_options.ready_for(ours, select.POLLIN):
                raise UnsupportedResource("the container's /proc has led a connection elsewhere")

    @property
    def descriptors(self) -> list[int]:
        """Return all descriptors of the root stub that processes are made from."""
        mapped = (*self.objects.values(), *self._written.values(), *self._read_only.values())
        return [*self.files.values(), *mapped]

    def _run_for(self, placeholder: int) -> None:
        program = self.program
        self.run()
        self._made = program[placeholder]

    def _descriptor_of_mapping(self, start: int, size: int) -> int:
        """Return the stub's descriptor for a shared anonymous mapping of its own."""
        end = start + page_up(size)
        path = f"/proc/{self.stub.pid}/map_files/{start:x}-{end:x}"
        ours = os.open(path, os.O_RDWR | os.O_CLOEXEC)
        try:
            fd = self.send(ours)
        finally:
            os.close(ours)
        syscalls.munmap(self.program, start, end - start)
        return fd

    def make_files(
        self,
        records: Iterable[FileRecord],
        unheld: Container[int],
        within: Mapping[int, Membership],
    ) -> None:
        """Make all files, then verify what can be verified only on the made ones.

        `within` are the nested namespaces in which some are made, by their ids.
        Those in `unheld` are in flight, and no process will tie them to others.
        No file is opened by a capability that the new container doesn't have; only sockets' queues
        are filled past the limits for it.
        """
        made: list[FileRecord] = []
        self._set_capabilities(self.capabilities | _FOR_SOCKETS & self.permitted)

        def turn(record: FileRecord) -> tuple[int, list[tuple[str, int]]]:
            return record.turn(), sorted(within.get(record.id, {}).items())

        self.records = sorted((r for r in records if not r.late), key=turn)
        for record in self.records:
            self._be_within(within.get(record.id, {}))
            with while_(f"opening file {record.id} ({type(record).__name__})"):
                fd = record.restore(self)
                self.files[record.id] = self._up(fd)
                made.append(record)
            self._run_if_full()
        self.run()
        for namespaces, action in self._at_end:
            self._be_within(namespaces)
            action(self)
            self._run_if_full()
        self._be_within({})
        with self.by_all_rights():
            for record in made:
                record.give_away(self)
                self._run_if_full()
        self.run()
        self._delegates.end()
        for fd in self._spare:
            syscalls.close(self.program, fd)
        self._spare, self._settled_spare = [], 0
        table = DescriptorTable({fd: number for number, fd in self.files.items()}, frozenset())
        for record in made:
            if record.id in unheld:
                record.connect(self.program, self.files[record.id], table)
        self._set_capabilities(self.permitted)
        self.run()
        for record in made:
            kind = type(record)
            if kind.complete is not FileRecord.complete:
                self._keep_for_last(record)
            if kind.verify is FileRecord.verify and kind.missing is FileRecord.missing:
                continue
            descriptor = descriptors.fetch(self.stub.pid, self.files[record.id])
            try:
                record.verify(descriptor)
                if missing := record.missing(descriptor):
                    self.missing.append(missing)
            finally:
                os.close(descriptor)

    def _run_if_full(self) -> None:
        if len(self.program) > _PROGRAM_CALLS or not self.has_room(MUCH):
            self.run()

    def _keep_for_last(self, record: FileRecord) -> None:
        """Fetch what `complete` needs, while the root stub still has it, and stands in its root."""
        if self._root < 0:
            self._root = os.open(f"/proc/{self.stub.pid}/root", os.O_PATH | os.O_CLOEXEC)
            self._undo.callback(os.close, self._root)
        ours = descriptors.fetch(self.stub.pid, self.files[record.id])
        self._undo.callback(os.close, ours)
        deleted = {one: self._named(self.memory_object(one)) for one in record.needs_deleted()}
        needed = record.needs_files()
        if not needed <= self.files.keys():
            raise ImageError(f"file {record.id} of the image needs others that the image lacks")
        files = {one: self._named(self.files[one]) for one in needed}
        self._last.append((record, ours, deleted, files))

    def _named(self, fd: int) -> int:
        """Return a descriptor of ours, to the end, that only names what the stub has."""
        ours = os.open(f"/proc/{self.stub.pid}/fd/{fd}", os.O_PATH | os.O_CLOEXEC)
        self._undo.callback(os.close, ours)
        return ours

    def complete(self) -> None:
        """Have files do what must come last."""
        for record, descriptor, deleted, files in self._last:
            with while_(f"completing file {record.id} ({type(record).__name__})"):
                record.complete(descriptor, self._root, deleted, files)
