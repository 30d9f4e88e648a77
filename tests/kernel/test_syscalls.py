"""Each call of the catalogue does the same in our process and in a program in another."""

import errno
import os
import resource
import signal
import struct
from collections.abc import Iterator

import pytest

from entering import Entered
from woodfrog.kernel import syscalls
from woodfrog.kernel.abi.x86_64 import SYS
from woodfrog.kernel.caller import HERE, Caller
from woodfrog.kernel.mounts import RESOLVE_IN_ROOT
from woodfrog.kernel.procfs.fdinfo import read_fdinfo
from woodfrog.kernel.procfs.maps import Mapping, read_smaps
from woodfrog.kernel.procfs.status import read_status
from woodfrog.remote.program import ProgramError

PAGE = 4096
PRIVATE_ANONYMOUS = 0x22
MFD_CLOEXEC = 1


class Place:
    """Where a test makes its calls: the caller, and the process to look at."""

    def __init__(self, on: Caller, pid: int) -> None:
        self.on = on
        self.pid = pid

    def flags(self, fd: int) -> int:
        """Return the flags of a descriptor, among them O_CLOEXEC."""
        return int(read_fdinfo(self.pid, fd)[0]["flags"], 8)

    def position(self, fd: int) -> int:
        """Return where a file stands."""
        return int(read_fdinfo(self.pid, fd)[0]["pos"])

    def target(self, fd: int) -> str:
        """Return what a descriptor names."""
        return os.readlink(f"/proc/{self.pid}/fd/{fd}")

    def contents(self, fd: int) -> bytes:
        """Read a file from its beginning."""
        with open(f"/proc/{self.pid}/fd/{fd}", "rb") as file:
            return file.read()

    def memory(self, address: int, length: int) -> bytes:
        """Read memory."""
        with open(f"/proc/{self.pid}/mem", "rb", buffering=0) as file:
            file.seek(address)
            return file.read(length)

    def mapping(self, address: int) -> Mapping | None:
        """Return the mapping at an address."""
        found = [m for m in read_smaps(self.pid) if m.start <= address < m.end]
        return found[0] if found else None


@pytest.fixture(params=["here", "in a program"])
def place(request: pytest.FixtureRequest) -> Iterator[Place]:
    """Every call must behave the same in our process and in another."""
    if request.param == "here":
        before = set(os.listdir("/proc/self/fd"))
        yield Place(HERE, os.getpid())
        for fd in set(os.listdir("/proc/self/fd")) - before:
            try:
                os.close(int(fd))
            except OSError:
                pass  # that of the listing itself
    else:
        inside: Entered = request.getfixturevalue("guest")
        yield Place(inside, inside.pid)


@pytest.fixture
def memfd(place: Place) -> int:
    """An empty anonymous file at the place."""
    return syscalls.memfd_create(place.on, b"wood frog", MFD_CLOEXEC)


def test_a_refusal_is_an_os_error_that_names_the_call(place: Place) -> None:
    with pytest.raises(OSError, match=r"^\[Errno 9\] write.*: Bad file descriptor$") as refusal:
        syscalls.write(place.on, 9999, b"x")
    assert refusal.value.errno == errno.EBADF


def test_a_call_that_the_kernel_does_not_know_is_refused(place: Place) -> None:
    with pytest.raises(OSError, match="system call 1000") as refusal:
        place.on.call(1000)
    assert refusal.value.errno == errno.ENOSYS


def test_a_path_is_opened_with_its_flags(place: Place) -> None:
    fd = syscalls.openat2(place.on, b"/dev/null", os.O_WRONLY | os.O_CLOEXEC)
    assert place.target(fd) == "/dev/null"
    assert place.flags(fd) & (os.O_ACCMODE | os.O_CLOEXEC) == os.O_WRONLY | os.O_CLOEXEC


def test_no_path_goes_through_a_magic_link(place: Place, memfd: int) -> None:
    with pytest.raises(OSError) as refusal:
        syscalls.openat2(place.on, f"/proc/self/fd/{memfd}".encode(), os.O_RDONLY)
    assert refusal.value.errno == errno.ELOOP


def test_a_path_is_taken_from_a_directory_and_its_root(place: Place) -> None:
    directory = syscalls.openat2(place.on, b"/dev", os.O_PATH | os.O_DIRECTORY)
    fd = syscalls.openat2(
        place.on, b"/null", os.O_RDONLY, directory=directory, resolve=RESOLVE_IN_ROOT
    )
    assert place.target(fd) == "/dev/null"


def test_a_closed_descriptor_is_gone(place: Place, memfd: int) -> None:
    syscalls.close(place.on, memfd)
    assert not os.path.lexists(f"/proc/{place.pid}/fd/{memfd}")


def test_a_range_of_descriptors_is_closed(place: Place, memfd: int) -> None:
    for new in (700, 701, 703):
        syscalls.duplicate_to(place.on, memfd, new, cloexec=False)
    syscalls.close_range(place.on, 700, 702)
    left = set(os.listdir(f"/proc/{place.pid}/fd"))
    assert left & {"700", "701", "702", "703"} == {"703"}


@pytest.mark.parametrize("cloexec", [False, True])
def test_a_duplicate_gets_the_number_and_the_flag(place: Place, memfd: int, cloexec: bool) -> None:
    assert syscalls.duplicate_to(place.on, memfd, 500, cloexec=cloexec) == 500
    assert place.target(500) == place.target(memfd)
    assert bool(place.flags(500) & os.O_CLOEXEC) is cloexec


def test_a_duplicate_is_made_above_a_number(place: Place, memfd: int) -> None:
    assert syscalls.duplicate_above(place.on, memfd, 600) == 600
    assert syscalls.duplicate_above(place.on, memfd, 600) == 601
    assert place.target(601) == place.target(memfd)


def test_status_flags_are_set(place: Place, memfd: int) -> None:
    wanted = os.O_APPEND | os.O_NONBLOCK
    syscalls.set_status_flags(place.on, memfd, wanted)
    assert place.flags(memfd) & wanted == wanted
    syscalls.set_status_flags(place.on, memfd, 0)
    assert place.flags(memfd) & wanted == 0


def test_a_file_is_written_moved_in_and_cut(place: Place, memfd: int) -> None:
    assert syscalls.write(place.on, memfd, b"hops\0away") == 9
    assert place.position(memfd) == 9
    assert syscalls.lseek(place.on, memfd, 1 << 40) == 1 << 40
    assert place.position(memfd) == 1 << 40
    syscalls.ftruncate(place.on, memfd, 6)
    assert place.contents(memfd) == b"hops\0a"


def test_a_pipe_has_two_ends(place: Place) -> None:
    reading, writing = struct.unpack("<2i", syscalls.pipe2(place.on, os.O_NONBLOCK))
    assert place.target(reading) == place.target(writing)
    assert place.flags(reading) & (os.O_ACCMODE | os.O_NONBLOCK) == os.O_RDONLY | os.O_NONBLOCK
    assert place.flags(writing) & os.O_ACCMODE == os.O_WRONLY


def test_an_event_counter_starts_at_zero(place: Place) -> None:
    fd = syscalls.eventfd(place.on, os.EFD_SEMAPHORE)
    assert read_fdinfo(place.pid, fd)[0]["eventfd-count"].strip() == "0"
    syscalls.write(place.on, fd, (2**40 + 3).to_bytes(8, "little"))
    assert int(read_fdinfo(place.pid, fd)[0]["eventfd-count"], 16) == 2**40 + 3


def test_an_anonymous_file_has_its_name(place: Place, memfd: int) -> None:
    assert place.target(memfd) == "/memfd:wood frog (deleted)"


def test_memory_is_mapped_protected_advised_and_unmapped(place: Place) -> None:
    madv_dontfork = 10
    start = syscalls.mmap(place.on, 0, 3 * PAGE, 3, PRIVATE_ANONYMOUS)
    syscalls.mprotect(place.on, start + PAGE, PAGE, 1)
    syscalls.madvise(place.on, start + PAGE, PAGE, madv_dontfork)
    middle = place.mapping(start + PAGE)
    assert middle is not None
    assert (middle.start, middle.end) == (start + PAGE, start + 2 * PAGE)
    assert (middle.protection, middle.shared) == (1, False)
    assert "dc" in middle.flags
    syscalls.munmap(place.on, start, 3 * PAGE)
    assert place.mapping(start + PAGE) is None


def test_a_file_is_mapped_from_its_offset(place: Place, memfd: int) -> None:
    syscalls.ftruncate(place.on, memfd, 3 * PAGE)
    start = syscalls.mmap(place.on, 0, PAGE, 1, 1, memfd, 2 * PAGE)
    found = place.mapping(start)
    assert found is not None
    assert (found.offset, found.shared) == (2 * PAGE, True)
    assert found.name == b"/memfd:wood frog (deleted)"
    syscalls.munmap(place.on, start, PAGE)


@pytest.mark.parametrize("offset", [0, 5 << 32 | 0xFFFF_F123])
def test_memory_is_filled_from_a_far_offset(place: Place, memfd: int, offset: int) -> None:
    start = syscalls.mmap(place.on, 0, PAGE, 3, PRIVATE_ANONYMOUS)
    syscalls.lseek(place.on, memfd, offset)
    syscalls.write(place.on, memfd, b"coldwarm")
    vectors = struct.pack("<4Q", start + 100, 4, start, 4)
    assert syscalls.preadv(place.on, memfd, vectors, 2, offset) == 8
    assert place.memory(start + 100, 4) == b"cold"
    assert place.memory(start, 4) == b"warm"
    syscalls.munmap(place.on, start, PAGE)


def test_a_prctl_fills_its_buffer(place: Place) -> None:
    pr_get_name = 16
    name = bytearray(16)
    syscalls.prctl(place.on, pr_get_name, name)
    with open(f"/proc/{place.pid}/comm", "rb") as file:
        assert name.rstrip(b"\0") == file.read().rstrip(b"\n")


def test_a_signal_action_is_set_and_told(place: Place) -> None:
    before = bytearray(32)
    syscalls.rt_sigaction(place.on, signal.SIGUSR2, struct.pack("<4Q", 1, 0, 0, 0), before)
    try:
        now = bytearray(32)
        syscalls.rt_sigaction(place.on, signal.SIGUSR2, None, now)
        assert struct.unpack("<4Q", now)[0] == signal.SIG_IGN
        ignored = int(read_status(f"/proc/{place.pid}")["SigIgn"], 16)
        assert ignored >> (signal.SIGUSR2 - 1) & 1
    finally:
        syscalls.rt_sigaction(place.on, signal.SIGUSR2, bytes(before), None)
    ignored = int(read_status(f"/proc/{place.pid}")["SigIgn"], 16)
    assert not ignored >> (signal.SIGUSR2 - 1) & 1


def test_an_alternate_signal_stack_is_set_and_told(place: Place) -> None:
    stack = syscalls.mmap(place.on, 0, 4 * PAGE, 3, PRIVATE_ANONYMOUS)
    before, now = bytearray(24), bytearray(24)
    syscalls.sigaltstack(place.on, struct.pack("<QiiQ", stack, 0, 0, 4 * PAGE), before)
    syscalls.sigaltstack(place.on, None, now)
    syscalls.sigaltstack(place.on, bytes(before), None)
    syscalls.munmap(place.on, stack, 4 * PAGE)
    assert struct.unpack("<QiiQ", now) == (stack, 0, 0, 4 * PAGE)


def test_a_limit_is_set_and_told(place: Place) -> None:
    soft, hard = resource.prlimit(place.pid, resource.RLIMIT_CORE)
    old = bytearray(16)
    wanted = struct.pack("<2Q", min(12345, hard % 2**64), hard % 2**64)
    syscalls.prlimit(place.on, 0, resource.RLIMIT_CORE, wanted, old)
    assert old == struct.pack("<2Q", soft % 2**64, hard % 2**64)
    now = resource.prlimit(place.pid, resource.RLIMIT_CORE)
    syscalls.prlimit(place.on, 0, resource.RLIMIT_CORE, bytes(old), None)
    assert struct.pack("<2Q", *(n % 2**64 for n in now)) == wanted


def test_a_clone_has_the_id_that_was_asked_for(guest: Entered) -> None:
    # Few ids as high as this are ever given: the highest is that of the machine's limit.
    with open("/proc/sys/kernel/pid_max") as file:
        wanted = int(file.read()) - 7
    program = guest.scratch.program()
    # The child gets 0 instead: it stops the program, goes its parent's way back, and sleeps.
    program.expect(syscalls.clone3(program, 0, signal.SIGCHLD, [wanted]), wanted)
    try:
        guest.scratch.run(program)
        assert int(read_status(f"/proc/{wanted}")["PPid"]) == guest.pid
    finally:
        os.kill(wanted, signal.SIGKILL)
    program = guest.scratch.program()
    status = bytearray(4)
    program.expect(program.call(SYS.WAIT4, wanted, status, 0, 0), wanted)
    guest.scratch.run(program)
    assert os.WTERMSIG(int.from_bytes(status, "little")) == signal.SIGKILL


def test_a_buffer_keeps_its_bytes_if_the_program_fails(guest: Entered) -> None:
    buffer = bytearray(b"as it was.......")
    program = guest.scratch.program()
    syscalls.prctl(program, 16, buffer)
    syscalls.close(program, 9999)
    with pytest.raises(ProgramError):
        guest.scratch.run(program)
    assert buffer == b"as it was......."
