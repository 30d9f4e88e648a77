"""Texts of /proc as kernels have printed them are read right."""

from pathlib import Path

import pytest

from woodfrog.kernel.abi.x86_64 import SYS
from woodfrog.kernel.procfs.addresses import has_usable, ipv4, ipv6, ipv6_local
from woodfrog.kernel.procfs.fdinfo import parse_fdinfo
from woodfrog.kernel.procfs.maps import parse_head, parse_smaps, unescape
from woodfrog.kernel.procfs.mountinfo import parse_mount
from woodfrog.kernel.procfs.reading import read_file
from woodfrog.kernel.procfs.status import read_stat, read_status
from woodfrog.kernel.waiting import Waiting, look_before_the_hold

SAMPLES = Path(__file__).parent.parent / "samples" / "proc" / "linux-6.18"


class StandingClocks:
    """Clocks of CPUs that are all as CLOCK_MONOTONIC."""

    def monotonic(self, cpu: int, time_ns: int) -> int:
        """Return the time as it is."""
        return time_ns


def fdinfo(kind: str) -> tuple[dict[str, str], list[str]]:
    """Read a sample."""
    return parse_fdinfo((SAMPLES / f"fdinfo-{kind}").read_text())


def test_a_name_with_parentheses_and_a_line_break_does_not_shift_the_fields() -> None:
    found = read_stat(str(SAMPLES))
    assert found.comm == b"a) b (\n"
    assert (found.state, found.parent, found.group, found.session) == ("S", 26586, 26585, 29902)
    assert (found.terminal, found.flags, found.nice) == (0, 0x400000, 0)
    assert (found.start_time, found.exit_code) == (627074, 0)
    assert (found.start_code, found.end_code) == (4321280, 7148169)
    assert (found.start_data, found.end_data) == (9723336, 11027064)
    assert (found.start_stack, found.start_brk) == (140726850393728, 967372800)
    assert (found.arg_start, found.arg_end) == (140726850397792, 140726850398519)
    assert (found.env_start, found.env_end) == (140726850398519, 140726850400231)


def test_status_is_read_by_field() -> None:
    found = read_status(str(SAMPLES))
    assert found["Name"] == "a) b (\\n"
    assert found.comm == b"a) b (\n"
    assert found["Uid"].split() == ["0"] * 4
    assert found["Groups"] == ""
    assert int(found["SigIgn"], 16) == 0x1001000
    assert int(found["CapEff"], 16) == 0x1FFFEFFFFFF
    assert found["Cpus_allowed_list"] == "0-1"


def test_smaps_are_read_with_their_flags() -> None:
    text = (SAMPLES / "smaps").read_bytes()
    found = {mapping.name: mapping for mapping in parse_smaps(text)}
    assert len(found) == 10  # two mappings of the program have one name
    code = found[b"/usr/bin/python3.11"]
    assert (code.start, code.end, code.protection) == (0x41F000, 0x6D2000, 5)
    assert (code.shared, code.offset, code.device, code.inode) == (
        False,
        0x1F000,
        (0xFE, 0),
        260811,
    )
    shared = found[b"/srv/frog pond/a\nline (deleted)"]
    assert (shared.start, shared.end, shared.protection) == (0x7FFAA7C28000, 0x7FFAA7C29000, 1)
    assert (shared.shared, shared.offset) == (True, 0x2000)
    assert "sh" in shared.flags
    anonymous = found[b""]
    assert (anonymous.protection, anonymous.device, anonymous.inode) == (3, (0, 0), 0)
    assert "gd" in found[b"[stack]"].flags
    vsyscall = found[b"[vsyscall]"]
    assert (vsyscall.end, vsyscall.protection) == (0xFFFFFFFFFF601000, 4)
    assert all(mapping.flags for mapping in found.values())


@pytest.mark.parametrize(
    ("permissions", "protection", "shared"),
    [(b"---p", 0, False), (b"r--s", 1, True), (b"rwxp", 7, False), (b"-w-s", 2, True)],
)
def test_permissions_are_read(permissions: bytes, protection: int, shared: bool) -> None:
    found = parse_head(b"1000-2000 %b 00000000 00:00 0 \n" % permissions)
    assert found[2:4] == (protection, shared)
    assert found[7] == b""


def test_a_name_keeps_its_blanks() -> None:
    line = b"1000-2000 r--p 00000000 00:00 7          /a  b \xff (x)\n"
    assert parse_head(line)[6:] == (7, b"/a  b \xff (x)")


def test_only_line_breaks_are_escaped_in_names_of_mappings() -> None:
    assert unescape(rb"/a\012b\040c\134d") == b"/a\nb\\040c\\134d"


def test_mounts_are_read_with_their_escapes() -> None:
    lines = (SAMPLES / "mountinfo").read_bytes().splitlines()
    mounts = [parse_mount(line) for line in lines]
    odd = mounts[3]
    assert odd.point == b"/srv/frog pond/tab\tline\nback\\slash"
    assert (odd.mnt_id, odd.parent, odd.device) == (106, 46, (0, 59))
    assert (odd.root, odd.type, odd.source) == (b"/", "tmpfs", b"odd source")
    assert odd.options == "ro,nosuid,relatime"
    assert mounts[4].root == b"/srv"
    assert mounts[0].point == b"/"


@pytest.mark.parametrize("optional", [b"", b"shared:1 ", b"shared:12 master:3 ", b"unbindable "])
def test_optional_fields_of_a_mount_are_passed_over(optional: bytes) -> None:
    found = parse_mount(b"9 8 0:7 / /x rw,noatime " + optional + b"- fuse.a\\040b none rw")
    assert (found.point, found.options, found.source) == (b"/x", "rw,noatime", b"none")


def test_a_source_may_be_empty() -> None:
    assert parse_mount(b"9 8 0:7 / /x rw - tmpfs  rw").source == b""


def test_the_common_fields_of_a_descriptor_are_read() -> None:
    fields, lines = fdinfo("regular")
    assert (fields["pos"], fields["flags"], fields["ino"]) == ("0", "02100002", "1484401")
    assert lines[-1] == "lock:\t1: POSIX  ADVISORY  WRITE 26645 fe:00:1484401 0 9"


def test_the_fields_of_an_event_counter_are_read() -> None:
    fields, _ = fdinfo("eventfd")
    assert (int(fields["eventfd-count"], 16), fields["eventfd-semaphore"]) == (255, "1")


def test_what_an_epoll_watches_is_in_its_lines() -> None:
    fields, lines = fdinfo("epoll")
    assert fields["flags"] == "02000002"
    assert [line.split()[1] for line in lines if line.startswith("tfd:")] == ["5"]


def test_the_fields_of_a_timer_are_read() -> None:
    fields, _ = fdinfo("timerfd")
    assert (fields["clockid"], fields["settime flags"]) == ("1", "00")
    assert fields["it_value"] == "(0, 0)"


def test_the_first_of_several_fields_of_a_name_counts() -> None:
    fields, lines = parse_fdinfo("pos:\t5\nlock:\t1: a\nlock:\t2: b\nno field\n")
    assert (fields["pos"], fields["lock"]) == ("5", "1: a")
    assert len(lines) == 4


def fields_of(found: Waiting | None) -> tuple[int, str, int, int]:
    assert found is not None
    return found.number, found.channel, found.since, found.switches


def test_a_sleep_is_told_with_when_it_began() -> None:
    found = look_before_the_hold(str(SAMPLES), StandingClocks())  # type: ignore[arg-type]
    assert fields_of(found) == (SYS.CLOCK_NANOSLEEP, "hrtimer_nanosleep", 6270419855171, 14)


@pytest.mark.parametrize("name", ["\nse.exec_start", "\nse.exec_start:", "\nse.exec_start:9"])
def test_what_a_task_calls_itself_is_not_its_time(tmp_path: Path, name: str) -> None:
    for file in ("syscall", "wchan", "stat", "sched"):
        (tmp_path / file).write_bytes((SAMPLES / file).read_bytes())
    usual = (SAMPLES / "sched").read_text()
    (tmp_path / "sched").write_text(f"{name} ({usual.partition(' (')[2]}")
    found = look_before_the_hold(str(tmp_path), StandingClocks())  # type: ignore[arg-type]
    assert fields_of(found) == (SYS.CLOCK_NANOSLEEP, "hrtimer_nanosleep", 6270419855171, 14)


@pytest.mark.parametrize("text", ["running\n", "-1 0x7ffd 0x7ffa\n", ""])
def test_a_task_outside_of_calls_waits_for_nothing(tmp_path: Path, text: str) -> None:
    (tmp_path / "syscall").write_text(text)
    found = look_before_the_hold(str(tmp_path), StandingClocks())  # type: ignore[arg-type]
    assert found is None


def test_a_call_without_a_time_needs_no_more_files(tmp_path: Path) -> None:
    (tmp_path / "syscall").write_text(f"{SYS.PAUSE} 0x0 0x0 0x0 0x0 0x0 0x0 0x7ffd 0x7ffa\n")
    found = look_before_the_hold(str(tmp_path), StandingClocks())  # type: ignore[arg-type]
    assert fields_of(found) == (SYS.PAUSE, "", 0, 0)


def test_addresses_of_a_network_namespace() -> None:
    """Loopback's are there, too; networks and broadcast addresses are not."""
    found = ipv4((SAMPLES / "fib_trie").read_text())
    assert found == [bytes([10, 213, 7, 2]), bytes([127, 0, 0, 1])]
    found = ipv6((SAMPLES / "if_inet6").read_text())
    assert found == [bytes.fromhex("fd07") + bytes(13) + b"\2"]


def test_addresses_of_a_device() -> None:
    routes = (SAMPLES / "ipv6_route").read_text()
    assert ipv6_local(routes, "lo") == [bytes(15) + b"\1"]
    assert ipv6_local(routes, "e0") == [
        bytes.fromhex("fd000000000000000000000000000007"),
        bytes.fromhex("fe80000000000000d4e295fffef6b7e8"),
    ]
    addresses = (SAMPLES / "if_inet6").read_text()
    assert has_usable(addresses, "d0")
    assert not has_usable(addresses, "d1")  # nobody knows yet whether another has it, too
    assert not has_usable(addresses, "d2")


@pytest.mark.parametrize("length", [0, 5, (1 << 16) - 1, 1 << 16, (3 << 16) + 7])
def test_a_file_is_read_to_its_end_however_long(tmp_path: Path, length: int) -> None:
    text = bytes(range(256)) * (length // 256) + b"." * (length % 256)
    (tmp_path / "status").write_bytes(text)
    for in_pieces in (True, False):
        assert read_file(str(tmp_path / "status"), in_pieces=in_pieces) == text
