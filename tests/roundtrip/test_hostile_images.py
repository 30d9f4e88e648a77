"""Images that no checkpoint makes: they ask for what the new container could not have itself."""

import os
import stat
import struct

import msgspec
import pytest
from hostile import ID, Attack, attack

from bundles import bind
from containers import Woodfrog
from needs import needs
from woodfrog.kernel.caller import HERE
from woodfrog.kernel.process import pidfd_getfd
from woodfrog.resources.aio import Context
from woodfrog.resources.cgroups import Group, Hierarchy
from woodfrog.resources.deleted_files import DeletedFile
from woodfrog.resources.descriptor import Descriptor
from woodfrog.resources.file_entry import Moment
from woodfrog.resources.files.bpf_map import BpfMap
from woodfrog.resources.files.deleted import OpenDeletedFile
from woodfrog.resources.files.fanotify import Fanotify, FanotifyMark
from woodfrog.resources.files.io_uring import IoUring
from woodfrog.resources.files.pidfd import PidFd
from woodfrog.resources.files.proc_file import ProcFile
from woodfrog.resources.files.pty import ControllingTerminal, PtyMaster
from woodfrog.resources.files.regular import RegularFile
from woodfrog.resources.files.stdio import Stdio
from woodfrog.resources.memory import Extent, Mapping, Source
from woodfrog.resources.process import Lock, Zombie
from woodfrog.resources.timers import PosixTimer

__all__ = ["attack"]  # the fixture
pytestmark = needs("root")


@pytest.mark.parametrize(
    ("init_flags", "kind", "mask"),
    [(0, 0, 0x20), (0x200, 0x10, 0x20), (0x200, 0x100, 0x20), (0x204, 0, 0x10000)],
)
def test_no_fanotify_that_needs_a_right(
    attack: Attack, init_flags: int, kind: int, mask: int
) -> None:
    mark = FanotifyMark(kind=kind, flags=0, mask=mask, ignored=0, path=b"/work", deleted=0)
    group = Fanotify(
        id=ID, flags=0, init_flags=init_flags, event_flags=0, marks=[mark], overflow=False
    )

    assert "CAP_SYS_ADMIN" in attack.refusal(group)


def test_no_fanotify_on_a_file_that_it_may_not_read(attack: Attack) -> None:
    attack.leave_secret(0o600)
    mark = FanotifyMark(kind=0, flags=0, mask=2, ignored=0, path=b"/work/secret", deleted=0)
    group = Fanotify(id=ID, flags=0, init_flags=0x200, event_flags=0, marks=[mark], overflow=False)

    assert "ermission denied" in attack.refusal(group)


def test_no_bpf_maps_without_the_right_or_with_half_elements(attack: Attack) -> None:
    whole = BpfMap(
        id=ID,
        flags=2,
        map_type=1,
        key_size=4,
        value_size=8,
        max_entries=1,
        map_flags=0,
        map_extra=0,
        name=b"",
        frozen=False,
        btf=b"",
        btf_key=0,
        btf_value=0,
        cpus=1,
        keys=bytes(4),
        values=bytes(8),
    )
    half = msgspec.structs.replace(whole, values=bytes(7))
    more = msgspec.structs.replace(whole, keys=bytes(8), values=bytes(16))
    other = msgspec.structs.replace(whole, map_type=3)

    assert "CAP_BPF" in attack.refusal(whole)
    assert "elements are incomplete" in attack.refusal(half)
    assert "too many elements" in attack.refusal(more)
    assert "unknown type" in attack.refusal(other)


def proc_file(point: bytes, pid: int, name: bytes) -> ProcFile:
    return ProcFile(id=ID, flags=0, point=point, pid=pid, name=name, position=0, ended=False)


def test_no_page_frames_of_the_machine(attack: Attack) -> None:
    slots = [*attack.process.descriptors, Descriptor(number=9, file=ID, cloexec=False)]
    image = attack.hostile(proc_file(b"/proc", 1, b"pagemap"), descriptors=slots)

    restored = attack.woodfrog.restore(attack.bundle, image)
    pidfd = os.pidfd_open(restored.init)
    pagemap = pidfd_getfd(HERE, pidfd, 9)
    page = attack.process.memory.pages[0].start >> 12
    (entry,) = struct.unpack("<Q", os.pread(pagemap, 8, page * 8))
    for descriptor in (pidfd, pagemap):
        os.close(descriptor)
    (attack.bundle.work / "check").write_text("go on\n")

    assert restored.wait() == 0
    assert entry >> 63, "the page is not there"
    assert not entry & (1 << 55) - 1


@pytest.mark.parametrize("name", [b"../kallsyms", b"net/../environ", b"task/1/../../../kallsyms"])
def test_no_files_of_proc_but_those_of_processes(attack: Attack, name: bytes) -> None:
    assert "impossible process" in attack.refusal(proc_file(b"/proc", 1, name))


@pytest.mark.parametrize("point", [b"/host", b"/proc/../host"])
def test_no_processes_of_the_host(attack: Attack, point: bytes) -> None:
    attack.bundle.add_mount(bind("/proc", "/host"))

    assert "none of the container's own" in attack.refusal(proc_file(point, 1, b"status"))


@pytest.mark.parametrize(
    ("mode", "flags"), [(0o600, os.O_RDONLY), (0o644, os.O_RDWR), (0o644, os.O_WRONLY)]
)
def test_no_files_that_it_may_not_open(attack: Attack, mode: int, flags: int) -> None:
    attack.leave_secret(mode)
    linked = DeletedFile(
        id=ID,
        path=b"/work/other",
        link=b"/work/secret",
        unnamed=False,
        mode=stat.S_IFREG | 0o644,
        uid=0,
        gid=0,
        mtime=Moment(seconds=0, nanoseconds=0),
        device=0,
        target=b"",
        attributes=[],
        size=0,
        extents=[],
        store=0,
    )
    opened = OpenDeletedFile(id=ID + 1, flags=flags, deleted=ID, position=0, file_kind=stat.S_IFREG)

    assert "ermission denied" in attack.refusal(linked, opened)


def test_no_root_of_the_host(attack: Attack) -> None:
    attack.bundle.add_mount(bind("/proc", "/host"))

    assert "cannot open" in attack.refusal(root=b"/host/%d/root" % os.getpid())


def test_no_root_of_its_own_without_the_right(woodfrog: Woodfrog) -> None:
    attack = Attack(woodfrog, "CAP_SYS_CHROOT")

    assert "CAP_SYS_CHROOT" in attack.refusal(root=b"/work")


def test_no_guard_pages_where_nothing_is(attack: Attack) -> None:
    memory = attack.process.memory
    hostile = msgspec.structs.replace(memory, guards=[Extent(start=0x10000, length=4096)])

    assert "guard pages" in attack.refusal(memory=hostile)


def timer(number: int, clock: int) -> PosixTimer:
    return PosixTimer(
        timer=number,
        clock=clock,
        signal=14,
        value=0,
        notify=0,
        thread=0,
        interval_ns=0,
        left_ns=0,
    )


def test_no_timers_out_of_reach(attack: Attack) -> None:
    assert "out of reach" in attack.refusal(posix_timers=[timer(1 << 31, 0), timer(1 << 29, 0)])


def test_no_timers_of_impossible_times(attack: Attack) -> None:
    before_all = {"at_ns": 5, "interval_ns": 3, "rung": 2}
    for wrong in ({"left_ns": (1 << 64) - 1}, before_all, {"rung": -1}):
        impossible = msgspec.structs.replace(timer(0, 1), **wrong)
        assert "impossible time" in attack.refusal(posix_timers=[impossible])


def test_no_timers_that_wake_the_machine(attack: Attack) -> None:
    assert "CAP_WAKE_ALARM" in attack.refusal(posix_timers=[timer(0, 8)])


@pytest.mark.parametrize("signal", [17, 18, 65])
def test_no_stops_that_never_come(attack: Attack, signal: int) -> None:
    assert "impossible signal" in attack.refusal(stopped_by=signal)


@pytest.mark.parametrize("status", [19, 0x7F, -1])
def test_no_ends_that_never_come(attack: Attack, status: int) -> None:
    zombie = Zombie(pid=500, parent=1, group=1, session=1, name=b"dead", status=status)

    assert "impossible way" in attack.refusal(zombie)
    assert "impossible way" in attack.refusal(PidFd(id=ID, flags=2, pid=0, status=status))


def test_nothing_is_opened_as_a_terminal_that_is_none(attack: Attack) -> None:
    attack.leave_secret(0o600)
    master = PtyMaster(
        id=ID,
        flags=2,
        path=b"/dev/pts/ptmx",
        index=0,
        terminal=b"/dev/pts/0",
        uid=0,
        gid=0,
        mode=0o600,
        settings=bytes(36),
        size=bytes(8),
        locked=False,
        packet_mode=False,
        opened=True,
        input=[],
        output=b"",
        stopped=False,
    )
    opened = ControllingTerminal(id=ID + 1, flags=0, path=b"/work/secret", index=0)

    assert "is not a terminal" in attack.refusal(master, opened, controlling=0)


def test_no_leases_of_the_files_of_others(attack: Attack) -> None:
    attack.leave_secret(0o644)
    opened = RegularFile(
        id=ID, flags=0, path=b"/work/secret", position=0, file_kind=stat.S_IFREG, device=0
    )
    lease = Lock(how="lease", descriptor=9, write=False, start=0, length=0)
    slots = [*attack.process.descriptors, Descriptor(number=9, file=ID, cloexec=False)]

    assert "taking the file locks" in attack.refusal(opened, descriptors=slots, locks=[lease])


def test_no_advice_that_no_mapping_keeps(attack: Attack) -> None:
    memory = attack.process.memory
    dont_need = 4
    mappings = [msgspec.structs.replace(one, advice=[dont_need]) for one in memory.mappings]
    hostile = msgspec.structs.replace(memory, mappings=mappings)

    assert "unknown advice" in attack.refusal(memory=hostile)


def test_no_more_locked_memory_than_it_may_lock(attack: Attack) -> None:
    memory = attack.process.memory
    mappings = [msgspec.structs.replace(one, locked=True) for one in memory.mappings]
    attack.bundle.process["rlimits"] = [{"type": "RLIMIT_MEMLOCK", "soft": 4096, "hard": 4096}]
    hostile = msgspec.structs.replace(memory, mappings=mappings)

    assert "bytes of locked memory" in attack.refusal(memory=hostile)


def test_no_limit_is_left_as_stubs_have_it(attack: Attack) -> None:
    fewer = attack.process.limits[:7]

    assert "has 7 limits, not 16" in attack.refusal(limits=fewer)


def test_no_other_standard_streams(attack: Attack) -> None:
    hostile = Stdio(id=ID, flags=0, number=7, was=b"", opened_inside=False)

    assert "standard stream" in attack.refusal(hostile)


def test_no_more_cgroups_by_repeating_them(attack: Attack) -> None:
    hostile = Hierarchy(name="pids", groups=[Group(path=b".")])

    assert "two hierarchies" in attack.refusal(hostile, hostile)


def test_no_cgroups_for_a_container_that_could_make_none(attack: Attack) -> None:
    hostile = Hierarchy(name="pids", groups=[Group(path=b"."), Group(path=b"more")])

    assert "may not make" in attack.refusal(hostile)


def io_uring(**fields: object) -> IoUring:
    whole = IoUring(
        id=ID,
        flags=2,
        owner=1,
        sq_entries=4,
        cq_entries=8,
        single_issuer=False,
        defer_taskrun=False,
        layout=[0] * 7,
        submitted=0,
        completed=0,
        ring=b"",
        requests=b"",
    )
    return msgspec.structs.replace(whole, **fields)


def test_no_io_urings_that_its_profile_forbids(attack: Attack) -> None:
    attack.bundle.config["linux"]["seccomp"] = {
        "defaultAction": "SCMP_ACT_ALLOW",
        "syscalls": [{"names": ["io_uring_setup"], "action": "SCMP_ACT_ERRNO"}],
    }

    assert "seccomp profile forbids" in attack.refusal(io_uring())


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"sq_entries": 3}, "impossible sizes"),
        ({"cq_entries": 1 << 30}, "impossible sizes"),
        ({"sq_entries": 0, "cq_entries": 0}, "impossible sizes"),
        ({"submitted": 1 << 32}, "impossible contents"),
        ({"reissued": [bytes(64)]}, "impossible contents"),
        ({"submitted": 1, "reissued": [bytes(65)]}, "impossible contents"),
        ({"cancelled": [0] * 9}, "impossible contents"),
        ({"requests": bytes(4 * 64 + 1)}, "impossible contents"),
        ({"layout": [0]}, "no known layout"),
        ({"owner": 77}, "a thread that the image lacks"),
        ({}, "has no descriptor of its io_uring"),
    ],
)
def test_no_impossible_io_urings(attack: Attack, fields: dict[str, object], said: str) -> None:
    assert said in attack.refusal(io_uring(**fields))


def test_no_memory_of_an_io_uring_or_aio_that_is_not_there(attack: Attack) -> None:
    memory = attack.process.memory
    place = {"start": 0x10000000, "end": 0x10001000, "protection": 3, "shared": True}
    ring = Mapping(**place, source=Source.IO_URING, object=ID)
    context = Mapping(**place, source=Source.AIO)

    def refusal(mapping: Mapping, **fields: object) -> str:
        mappings = sorted([*memory.mappings, mapping], key=lambda one: one.start)
        return attack.refusal(memory=msgspec.structs.replace(memory, mappings=mappings, **fields))

    assert "shows an io_uring that the image lacks" in refusal(ring)
    assert "without a context" in refusal(context)
    impossible = Context(start=0x10000000, length=4096, head=127, tail=0, alive=True, events=b"")
    assert "impossible context" in refusal(context, contexts=[impossible])
