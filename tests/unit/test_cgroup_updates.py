"""How limits that are asked for later come together with those that were set before."""

from typing import Any

from woodfrog.cli.update import size
from woodfrog.runtime.cgroups.updating import complete, merged

OLD: dict[str, Any] = {
    "memory": {"limit": 100, "swap": 150},
    "cpu": {"quota": 5, "period": 10},
    "blockIO": {"throttleReadBpsDevice": [{"major": 8, "minor": 0, "rate": 1}]},
    "hugepageLimits": [{"pageSize": "2MB", "limit": 1}],
    "unified": {"memory.high": "1"},
}


def test_new_limits_replace_old_ones_one_by_one() -> None:
    new = {
        "memory": {"reservation": 7, "checkBeforeUpdate": True},
        "cpu": None,
        "pids": {"limit": 3},
        "blockIO": {
            "throttleReadBpsDevice": [
                {"major": 8, "minor": 0, "rate": 2},
                {"major": 8, "minor": 1, "rate": 3},
            ]
        },
        "hugepageLimits": [{"pageSize": "1GB", "limit": 2}],
        "unified": {"memory.high": "2", "memory.low": "3"},
    }
    assert merged(OLD, new) == {
        "memory": {"limit": 100, "swap": 150, "reservation": 7},
        "cpu": {"quota": 5, "period": 10},
        "pids": {"limit": 3},
        "blockIO": new["blockIO"],
        "hugepageLimits": [{"pageSize": "2MB", "limit": 1}, {"pageSize": "1GB", "limit": 2}],
        "unified": {"memory.high": "2", "memory.low": "3"},
    }


def test_what_is_set_as_a_whole_is_completed() -> None:
    assert complete({"cpu": {"quota": 6}}, OLD) == {"cpu": {"quota": 6, "period": 10}}
    assert complete({"cpu": {"period": 20}}, OLD) == {"cpu": {"quota": 5, "period": 20}}
    assert complete({"cpu": {"shares": 2}}, OLD) == {"cpu": {"shares": 2}}
    assert complete({"memory": {"limit": 90}}, OLD) == {"memory": {"limit": 90, "swap": 150}}
    assert complete({"memory": {"swap": 110}}, OLD) == {"memory": {"limit": 100, "swap": 110}}
    assert complete({"memory": {"reservation": 1}}, OLD) == {"memory": {"reservation": 1}}
    assert complete({"cpu": {"quota": 6}}, {}) == {"cpu": {"quota": 6}}


def test_the_swap_limit_goes_with_the_memory_limit() -> None:
    asked = {"memory": {"limit": -1}}
    assert complete(asked, OLD) == asked
    assert merged(OLD, asked)["memory"] == {"limit": -1}


def test_sizes_have_units() -> None:
    texts = ["-1", "0", "512", "512b", "1k", "1.5M", "2GiB", "3 tb"]
    expected = [-1, 0, 512, 512, 1024, 3 << 19, 2 << 30, 3 << 40]
    assert [size("memory", text) for text in texts] == expected
