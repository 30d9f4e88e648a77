"""Statistics from the files of a v2 group, as a kernel wrote them."""

from pathlib import Path

import pytest

from woodfrog.cli.events import duration
from woodfrog.errors import UsageError
from woodfrog.runtime.cgroups import statistics, statistics_v1

PRESSURE = (
    "some avg10=1.50 avg60=0.33 avg300=0.08 total=12345\n"
    "full avg10=0.00 avg60=0.00 avg300=0.00 total=99\n"
)
V2 = {
    "cpu.stat": "usage_usec 5000\nuser_usec 3000\nsystem_usec 2000\nnr_periods 9\n"
    "nr_throttled 4\nthrottled_usec 70\n",
    "cpu.pressure": PRESSURE,
    "cpuset.cpus.effective": "0-2,5\n",
    "cpuset.mems.effective": "0\n",
    "memory.stat": "anon 4096\nfile 8192\npgfault 12\n",
    "memory.current": "20480\n",
    "memory.max": "1000000\n",
    "memory.peak": "30000\n",
    "memory.swap.current": "100\n",
    "memory.swap.max": "500\n",
    "pids.current": "3\n",
    "pids.max": "max\n",
    "io.stat": "8:0 rbytes=1 wbytes=2 rios=3 wios=0 dbytes=5 dios=6\n",
    "hugetlb.2MB.current": "2097152\n",
    "hugetlb.2MB.events": "max 7\n",
    "hugetlb.2MB.rsvd.current": "0\n",
}


def test_v2_is_shown_in_v1s_terms(tmp_path: Path) -> None:
    for name, text in V2.items():
        (tmp_path / name).write_text(text)
    found = statistics.collect({"version": 2, "paths": {"": str(tmp_path)}})
    nothing = {"limit": 0, "failcnt": 0}
    assert found["cpu"] == {
        "usage": {"total": 5000000, "kernel": 2000000, "user": 3000000},
        "throttling": {"periods": 9, "throttledPeriods": 4, "throttledTime": 70000},
        "psi": {
            "some": {"avg10": 1.5, "avg60": 0.33, "avg300": 0.08, "total": 12345},
            "full": {"avg10": 0.0, "avg60": 0.0, "avg300": 0.0, "total": 99},
        },
    }
    assert found["cpuset"]["cpus"] == [0, 1, 2, 5]
    assert found["memory"] == {
        "cache": 8192,
        "usage": {"limit": 1000000, "usage": 20480, "max": 30000, "failcnt": 0},
        "swap": {"limit": 1000500, "usage": 20580, "failcnt": 0},
        "kernel": nothing,
        "kernelTCP": nothing,
        "raw": {"anon": 4096, "file": 8192, "pgfault": 12},
    }
    assert found["pids"] == {"current": 3}
    assert found["blkio"] == {
        "ioServiceBytesRecursive": [
            {"major": 8, "op": "Read", "value": 1},
            {"major": 8, "op": "Write", "value": 2},
        ],
        "ioServicedRecursive": [
            {"major": 8, "op": "Read", "value": 3},
            {"major": 8, "op": "Write"},
        ],
    }
    assert found["hugetlb"] == {"2MB": {"usage": 2097152, "failcnt": 7}}


def test_v1s_tables_are_read(tmp_path: Path) -> None:
    for name, text in {
        "cpuacct.usage": "70\n",
        "cpuacct.usage_percpu": "30 40 \n",
        "cpuacct.usage_all": "cpu user system\n0 10 20\n1 15 25\n",
        "blkio.throttle.io_service_bytes_recursive": "8:0 Read 5\n8:0 Total 5\nTotal 5\n",
        "pids.max": "20\n",
    }.items():
        (tmp_path / name).write_text(text)
    controllers = ("cpuacct", "blkio", "pids")
    found = statistics_v1.parts(dict.fromkeys(controllers, str(tmp_path)))
    assert found["cpu"]["usage"] == {
        "total": 70,
        "percpu": [30, 40],
        "percpu_kernel": [20, 25],
        "percpu_user": [10, 15],
        "kernel": 0,
        "user": 0,
    }
    assert found["blkio"] == {
        "ioServiceBytesRecursive": [
            {"major": 8, "op": "Read", "value": 5},
            {"major": 8, "op": "Total", "value": 5},
        ]
    }
    assert found["pids"] == {"limit": 20}
    assert statistics_v1.parts({})["hugetlb"] == {}


def test_durations_are_those_of_go() -> None:
    assert [duration(text) for text in ("5s", "100ms", "1m30s", "0.5h")] == [5, 0.1, 90, 1800]
    for text in ("5", "s", "1 s", "1d"):
        with pytest.raises(UsageError, match="--interval"):
            duration(text)
