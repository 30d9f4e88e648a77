"""A file that is there complete or not at all, in a directory that is made for it."""

import errno
import os
import stat

from woodfrog.errors import ImageError
from woodfrog.kernel.abi.x86_64 import SYS
from woodfrog.kernel.caller import HERE

_RENAME_NOREPLACE = 1


class NewFile:
    """A file open for writing that gets its name by `commit`, or vanishes by `close`."""

    def __init__(self, directory: str, name: str, *, replace: bool) -> None:
        """Make the directory if missing, and open a file in it, of mode 0600 and without a name.

        A file that already has the name is refused, or with `replace` stays until the commit.
        """
        self.fd = self.directory_fd = -1
        self._directory = directory
        self._name = name
        self._replace = replace
        self._temporary = ""
        self._linked = ""
        self._committed = False
        self._made = _make_directories(directory)
        try:
            self.directory_fd = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
            if not replace:
                self._refuse_existing()
            self.fd = self._open()
            os.fchmod(self.fd, 0o600)  # whatever the umask
        except BaseException:
            self.close()
            raise

    def link(self, name: str, directory: str) -> None:
        """Make a relative symbolic link to a directory beside the file, in place of another one.

        One that is new is gone again unless the file is committed.
        """
        here = os.path.realpath(self._directory)
        target = os.path.relpath(os.path.realpath(directory), here)
        try:
            os.symlink(target, name, dir_fd=self.directory_fd)
            self._linked = name
        except FileExistsError:
            old = os.lstat(name, dir_fd=self.directory_fd)
            if not stat.S_ISLNK(old.st_mode):
                raise ImageError(
                    f"{self._directory}/{name} is in the way of a link to {directory}",
                    hint="give another --image-path",
                ) from None
            temporary = self._temporary_name()
            os.symlink(target, temporary, dir_fd=self.directory_fd)
            os.rename(temporary, name, src_dir_fd=self.directory_fd, dst_dir_fd=self.directory_fd)

    def commit(self, *, sync: bool) -> None:
        """Give the complete file its name; with `sync` only after its bytes are on the disk."""
        if sync:
            os.fsync(self.fd)
        try:
            self._give_name()
        except FileExistsError:
            self._refuse_existing()
            raise
        self._committed = True
        if sync:
            os.fsync(self.directory_fd)
            for made in self._made:
                _sync_directory(os.path.dirname(made))

    def close(self) -> None:
        """Let go of the file; remove it, and the directories made for it, unless committed."""
        if self._temporary:
            os.unlink(self._temporary, dir_fd=self.directory_fd)
            self._temporary = ""
        if self._linked and not self._committed:
            os.unlink(self._linked, dir_fd=self.directory_fd)
            self._linked = ""
        for fd in (self.fd, self.directory_fd):
            if fd >= 0:
                os.close(fd)
        self.fd = self.directory_fd = -1
        if not self._committed:
            _remove_directories(self._made)
            self._made = []

    def _refuse_existing(self) -> None:
        try:
            os.stat(self._name, dir_fd=self.directory_fd, follow_symlinks=False)
        except FileNotFoundError:
            return
        raise ImageError(
            f"{self._directory} already holds a checkpoint ({self._name})",
            hint="give another --image-path, or remove the old checkpoint first",
        )

    def _open(self) -> int:
        """Open the file without any name, so that even a killed checkpoint leaves nothing."""
        flags = os.O_RDWR | os.O_CLOEXEC
        try:
            return os.open(".", flags | os.O_TMPFILE, 0o600, dir_fd=self.directory_fd)
        except OSError:
            # Not every file system can (NFS, overlayfs before Linux 6.3): use a temporary name.
            name = self._temporary_name()
            flags |= os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW
            fd = os.open(name, flags, 0o600, dir_fd=self.directory_fd)
            self._temporary = name
            return fd

    def _temporary_name(self) -> str:
        return f".{self._name}.{os.getpid()}.{os.urandom(4).hex()}"

    def _give_name(self) -> None:
        here = self.directory_fd
        if not self._temporary:
            # A link fails if another checkpoint was faster. By the name in /proc, as
            # AT_EMPTY_PATH needs CAP_DAC_READ_SEARCH.
            name = self._temporary_name() if self._replace else self._name
            os.link(f"/proc/self/fd/{self.fd}", name, dst_dir_fd=here, follow_symlinks=True)
            self._temporary = name if self._replace else ""
        if self._temporary and self._replace:
            os.rename(self._temporary, self._name, src_dir_fd=here, dst_dir_fd=here)
        elif self._temporary:
            _rename_to_new(here, self._temporary, self._name)
        self._temporary = ""


def _make_directories(directory: str) -> list[str]:
    """Make a directory and what is missing above it; return those made, outermost first."""
    missing = []
    path = os.path.abspath(directory)
    while not os.path.lexists(path):
        missing.append(path)
        path = os.path.dirname(path)
    made: list[str] = []
    try:
        for path in reversed(missing):
            os.mkdir(path, 0o700)
            made.append(path)
    except BaseException:
        _remove_directories(made)
        raise
    return made


def _remove_directories(made: list[str]) -> None:
    try:
        for path in reversed(made):
            os.rmdir(path)
    except OSError:
        pass  # someone else put something into it


def _sync_directory(path: str) -> None:
    fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def _rename_to_new(directory: int, old: str, new: str) -> None:
    names = (directory, os.fsencode(old), directory, os.fsencode(new))
    try:
        HERE.call(SYS.RENAMEAT2, *names, _RENAME_NOREPLACE)
    except OSError as error:
        if error.errno == errno.EEXIST:
            raise
        # Not every file system knows the flag. Here two checkpoints at once could collide, and
        # the later would win; both are whole.
        os.rename(old, new, src_dir_fd=directory, dst_dir_fd=directory)
