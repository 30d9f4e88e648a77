"""What systemd is told, and the bytes in which it's told."""

import struct
from typing import Any

import pytest

from woodfrog.errors import SpecError
from woodfrog.runtime.cgroups import dbus, unit_annotations, units


def properties(resources: dict[str, Any], version: int) -> list[tuple[str, Any]]:
    """Return the names and values for some resources; a warning fails the test."""
    found = units.of_resources(resources, version, pytest.fail)
    return [(name, value) for name, (_, value) in found]


def test_paths_name_a_slice_and_a_unit() -> None:
    assert units.parse_path("system.slice:docker:abc", "x") == ("system.slice", "docker-abc.scope")
    assert units.parse_path("", "web") == ("system.slice", "woodfrog-web.scope")
    assert units.parse_path(":pod:web", "x") == ("system.slice", "pod-web.scope")
    assert units.parse_path("a.slice:x:b.slice", "x") == ("a.slice", "b.slice")
    assert units.slice_path("a-b-c.slice") == "/a.slice/a-b.slice/a-b-c.slice"
    assert units.slice_path("-.slice") == ""
    for path in ("/a/b", "a:b", "a:b:c:d", "a.slice:b:", "a.slice:b:c/d"):
        with pytest.raises(SpecError):
            units.parse_path(path, "x")
    for name in ("a", ".slice", "a--b.slice", "-a.slice", "a/b.slice"):
        with pytest.raises(SpecError, match="invalid slice name"):
            units.slice_path(name)


def test_limits_become_properties_of_either_version() -> None:
    resources = {
        "memory": {"limit": 1000, "swap": 1500, "reservation": 300},
        "cpu": {"shares": 1024, "quota": 12345, "period": 50000, "cpus": "0-1,9", "mems": "0"},
        "pids": {"limit": -1},
        "blockIO": {"weight": 300},
    }
    both = [
        ("CPUQuotaPeriodUSec", 50000),
        ("CPUQuotaPerSecUSec", 250000),  # 246900, but in whole percent
        ("TasksMax", units.INFINITY),
        ("AllowedCPUs", b"\x03\x02"),
        ("AllowedMemoryNodes", b"\x01"),
    ]
    one = [("MemoryLimit", 1000), ("CPUShares", 1024), ("BlockIOWeight", 300)]
    two = [("MemoryMax", 1000), ("MemoryLow", 300), ("MemorySwapMax", 500), ("CPUWeight", 100)]
    assert properties(resources, 1) == one + both
    assert properties(resources, 2) == two + both
    assert properties({"cpu": {"quota": -1}}, 2) == [("CPUQuotaPerSecUSec", units.INFINITY)]
    assert properties({}, 2) == []


def test_unified_settings_become_properties_where_there_are_some() -> None:
    unified = {
        "memory.high": "max",
        "pids.max": " 7\n",
        "cpu.max": "max 100000",
        "cpu.weight": "42",
        "cpuset.cpus": "1",
        "memory.oom.group": "1",
        "hugetlb.2MB.max": "0",
    }
    assert properties({"unified": unified}, 2) == [
        ("MemoryHigh", units.INFINITY),
        ("TasksMax", 7),
        ("CPUQuotaPeriodUSec", 100000),
        ("CPUQuotaPerSecUSec", units.INFINITY),
        ("CPUWeight", 42),
        ("AllowedCPUs", b"\x02"),
    ]
    assert units.of_start({"unified": unified}) == [("OOMPolicy", ("s", "kill"))]
    assert units.of_start({}) == []
    for name, text in (("a/b.c", "1"), ("memory", "1"), ("memory.max", "much")):
        with pytest.raises(SpecError, match="unified resource"):
            properties({"unified": {name: text}}, 2)


def test_an_idle_container_has_no_weight() -> None:
    warnings: list[str] = []
    found = units.of_resources({"cpu": {"idle": 1, "shares": 200}}, 2, warnings.append)
    assert found == [("CPUWeight", ("t", 0))]
    assert "unable to apply both" in warnings[0]


def test_device_rules_become_properties() -> None:
    deny = {"allow": False, "access": "rwm"}
    allow = [
        {"allow": True, "type": "c", "major": 10, "minor": 200, "access": "rwm"},
        {"allow": True, "type": "b", "major": 7, "access": "r"},
        {"allow": True, "type": "c", "minor": 3, "access": "w"},  # systemd can't say that
    ]
    policy, empty, (_, allowed) = properties({"devices": [deny, *allow]}, 2)
    assert policy == ("DevicePolicy", "strict")
    assert empty == ("DeviceAllow", [])
    assert ("/dev/char/10:200", "rwm") in allowed
    assert ("block-7", "r") in allowed
    assert ("char-136", "rwm") in allowed  # pseudo-terminals, always
    assert not [path for path, _ in allowed if path.endswith(":3") and ":" not in path]
    everything = properties({"devices": [{"allow": True, "access": "rwm"}]}, 2)
    assert everything == [("DevicePolicy", "auto"), ("DeviceAllow", [])]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("true", ("b", True)),
        ("5", ("i", 5)),
        ("uint64 5", ("t", 5)),
        ("0x10", ("i", 16)),
        ("1.5", ("d", 1.5)),
        ("'a\\'b'", ("s", "a'b")),
        ('"a"', ("s", "a")),
        ("['a', 'b']", ("as", ["a", "b"])),
        ("@as []", ("as", [])),
        ("[('/dev/sda', uint64 7)]", ("a(st)", [("/dev/sda", 7)])),
    ],
)
def test_annotations_hold_gvariant_text(text: str, expected: tuple[str, Any]) -> None:
    assert unit_annotations.parse(text) == expected


def test_annotations_become_properties() -> None:
    prefix = unit_annotations.PREFIX
    found = unit_annotations.properties(
        {"other": "1", f"{prefix}CollectMode": "'inactive'", f"{prefix}TimeoutStopSec": "uint32 2"}
    )
    assert found == [("CollectMode", ("s", "inactive")), ("TimeoutStopUSec", ("t", 2000000))]
    wrong = {"a1b": "1", "ab": "1", "Name": "[", "What": "", "Two": "1 2", "StopSec": "'a'"}
    wrong |= {"Big": "5000000000", "Text": "string 5", "Number": "uint64 'a'", "Kind": "@z 5"}
    for name, text in wrong.items():
        with pytest.raises(SpecError, match=r"name incorrect|value parse error"):
            unit_annotations.properties({prefix + name: text})


VALUES: list[tuple[str, Any]] = [
    ("s", "woodfrog"),
    ("b", True),
    ("t", units.INFINITY),
    ("ay", [1, 2, 3]),
    ("as", []),
    ("a(sv)", [("A", ("t", 7)), ("B", ("a(ss)", [("x", "y")])), ("C", ("b", False))]),
    ("a(sa(sv))", []),
    ("(yu)", (1, 2)),
]


@pytest.mark.parametrize(("kind", "value"), VALUES)
@pytest.mark.parametrize("before", [0, 1, 4, 7])
def test_values_come_back_from_their_bytes(kind: str, value: Any, before: int) -> None:
    data = bytearray(before)
    dbus.put(data, kind, value)
    assert dbus.take(bytes(data), before, kind) == (value, len(data))


def test_a_call_is_laid_out_as_the_specification_says() -> None:
    data = dbus.message(7, {1: "/a", 3: "Go"}, "su", ("hi", 5))
    order, kind, flags, version, body, serial, fields = struct.unpack_from("<cBBBIII", data)
    assert (order, kind, flags, version, body, serial) == (b"l", 1, 0, 1, 12, 7)
    assert data[16 : 16 + 11] == b"\x01\x01o\0\x02\0\0\0/a\0"
    assert len(data) == 16 + fields + -fields % 8 + body
    assert data[-12:] == b"\x02\0\0\0hi\0\0\x05\0\0\0"
    assert dbus.split("sa(sv)a(sa(sv))uas") == ["s", "a(sv)", "a(sa(sv))", "u", "as"]
