"""The parsers of /proc agree with what this process knows of itself."""

import mmap
import os
import subprocess
import threading
import time
from pathlib import Path

import pytest
from msgspec.structs import astuple

from needs import needs
from woodfrog.kernel import syscalls
from woodfrog.kernel.abi.x86_64 import SYS
from woodfrog.kernel.caller import HERE
from woodfrog.kernel.procfs.fdinfo import read_fdinfo
from woodfrog.kernel.procfs.maps import read_maps, read_smaps
from woodfrog.kernel.procfs.mountinfo import read_mounts
from woodfrog.kernel.procfs.status import read_stat, read_status
from woodfrog.kernel.waiting import SchedulerClocks, look_before_the_hold
from woodfrog.remote.vdso import Vdso

PAGE = 4096
US = os.getpid()


def test_our_own_stat_is_as_we_know_it() -> None:
    found = read_stat("/proc/self")
    assert (found.state, found.parent) == ("R", os.getppid())
    assert (found.group, found.session) == (os.getpgid(0), os.getsid(0))
    assert found.nice == os.getpriority(os.PRIO_PROCESS, 0)
    assert found.comm == Path("/proc/self/comm").read_bytes()[:-1]
    arguments = Path("/proc/self/cmdline").read_bytes()
    assert found.arg_end - found.arg_start == len(arguments)


@pytest.mark.parametrize("name", [b"a) b (", b") R 1 1", b"\n", b"\xff\xfe", b"((", b"))"])
def test_any_name_is_read(name: bytes) -> None:
    pr_set_name = 15
    own = Path("/proc/thread-self/comm").read_bytes()[:-1]
    syscalls.prctl(HERE, pr_set_name, name + b"\0")
    try:
        found = read_stat("/proc/thread-self")
        status = read_status("/proc/thread-self")
    finally:
        syscalls.prctl(HERE, pr_set_name, own + b"\0")
    assert found.comm == status.comm == name
    assert (found.state, found.parent) == ("R", os.getppid())
    assert status["PPid"] == str(os.getppid())


def test_the_status_of_a_thread_is_its_own() -> None:
    seen: dict[str, str] = {}

    def look() -> None:
        status = read_status("/proc/thread-self")
        seen.update(Pid=status["Pid"], Tgid=status["Tgid"], id=str(threading.get_native_id()))

    thread = threading.Thread(target=look)
    thread.start()
    thread.join()
    assert (seen["Pid"], seen["Tgid"]) == (seen["id"], str(US))
    assert read_status("/proc/self")["Uid"].split() == [str(n) for n in os.getresuid()] + [
        str(os.geteuid())
    ]


def test_mappings_are_those_that_we_made(tmp_path: Path) -> None:
    path = tmp_path / "a name with blanks\nand a line"
    path.write_bytes(bytes(3 * PAGE))
    with path.open("r+b") as file:
        start = syscalls.mmap(HERE, 0, PAGE, 3, mmap.MAP_SHARED, file.fileno(), 2 * PAGE)
        inode = os.fstat(file.fileno())
    syscalls.madvise(HERE, start, PAGE, mmap.MADV_DONTFORK)
    (found,) = [m for m in read_smaps(US) if m.start == start]
    plain = [m for m in read_maps("self") if m[0] == start]
    path.unlink()
    (after,) = [m for m in read_maps(US) if m[0] == start]
    syscalls.munmap(HERE, start, PAGE)
    assert astuple(found)[:5] == (start, start + PAGE, 3, True, 2 * PAGE)
    assert found.device == (os.major(inode.st_dev), os.minor(inode.st_dev))
    assert (found.inode, found.name) == (inode.st_ino, os.fsencode(path))
    assert found.flags >= {"rd", "wr", "sh", "dc"}
    assert plain == [astuple(found)[:8]]
    assert after[7] == os.fsencode(path) + b" (deleted)"


def test_smaps_and_maps_tell_of_the_same_mappings(sleeper: int) -> None:
    assert [astuple(m)[:8] for m in read_smaps(sleeper)] == read_maps(sleeper)
    assert all(m.flags for m in read_smaps(sleeper))


def test_a_descriptors_position_and_flags_are_told(tmp_path: Path) -> None:
    fd = os.open(tmp_path / "file", os.O_RDWR | os.O_CREAT | os.O_APPEND)
    os.ftruncate(fd, 100)
    os.lseek(fd, 42, os.SEEK_SET)
    fields, lines = read_fdinfo(US, fd)
    assert fields["pos"] == "42"
    assert int(fields["flags"], 8) & 0o2002003 == os.O_RDWR | os.O_APPEND | os.O_CLOEXEC
    assert fields["ino"] == str(os.fstat(fd).st_ino)
    assert lines[0].split() == ["pos:", "42"]
    mounts = {str(mount.mnt_id): mount for mount in read_mounts("self")}
    assert mounts[fields["mnt_id"]].device == (
        os.major(os.fstat(fd).st_dev),
        os.minor(os.fstat(fd).st_dev),
    )
    os.close(fd)


@needs("root")
def test_a_mount_with_an_odd_name_is_read(tmp_path: Path) -> None:
    point = tmp_path / "blank tab\tline\nback\\slash"
    point.mkdir()
    mount = [
        "unshare",
        "--mount",
        "sh",
        "-c",
        'mount -t tmpfs "odd source" "$1" -o ro,nosuid; echo ready; read line',
        "sh",
        str(point),
    ]
    pipe = subprocess.PIPE
    with subprocess.Popen(mount, stdin=pipe, stdout=pipe) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"ready\n"
        (found,) = [m for m in read_mounts(process.pid) if m.point == os.fsencode(point)]
        process.kill()
    assert (found.root, found.type, found.source) == (b"/", "tmpfs", b"odd source")
    assert set(found.options.split(",")) >= {"ro", "nosuid"}


def test_the_vdso_has_room_and_a_call() -> None:
    vdso = Vdso()
    assert vdso.image.startswith(b"\x7fELF")
    assert len(vdso.image) % PAGE == 0
    assert not any(vdso.image[vdso.padding :])
    assert vdso.image[vdso.syscall : vdso.syscall + 2] == b"\x0f\x05"
    # Call, spin, and way back (remote/scratch.py).
    assert vdso.room >= 200


@needs("root")
def test_what_a_task_waits_for_is_told_with_its_time(sleeper: int) -> None:
    found = look_before_the_hold(f"/proc/{sleeper}/task/{sleeper}", SchedulerClocks())
    assert found is not None
    assert found.number in (SYS.CLOCK_NANOSLEEP, SYS.NANOSLEEP)
    assert "nanosleep" in found.channel
    if found.since:  # kernels without CONFIG_SCHED_DEBUG don't tell
        first = found.slept_ns
        time.sleep(0.05)
        assert 0 <= first < 10_000_000_000
        assert 50_000_000 <= found.slept_ns - first < 10_000_000_000


def test_a_task_that_runs_waits_for_nothing() -> None:
    with subprocess.Popen(["sh", "-c", "echo; while :; do :; done"], stdout=-1) as process:
        assert process.stdout is not None
        process.stdout.readline()
        found = look_before_the_hold(f"/proc/{process.pid}/task/{process.pid}", SchedulerClocks())
        process.kill()
    assert found is None or found.number == SYS.WRITE  # the echo, just before the loop


def test_a_task_that_is_gone_waits_for_nothing() -> None:
    assert look_before_the_hold("/proc/0/task/0", SchedulerClocks()) is None
