"""events: what a container uses, and when it runs out of memory."""

import json
import subprocess
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from bundles import Bundle
from containers import CGROUPS, Container, Woodfrog

Make = Callable[[str], Bundle]


def lines_of(container: Container, *flags: str) -> Iterator[str]:
    """Yield what `events` says, until it ends with the container."""
    command = container.woodfrog.command("events", *flags, container.name)
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout
        yield from process.stdout
    assert process.returncode == 0


def test_statistics_have_runcs_form(woodfrog: Woodfrog, make_bundle: Make) -> None:
    container = woodfrog.run(make_bundle("sleep 1000 & touch /work/up; exec sleep 1000"))
    container.wait_for("up")
    done = woodfrog("events", "--stats", container.name)
    assert done.stdout.startswith(f'{{"type":"stats","id":"{container.name}","data":{{"cpu":')
    assert done.stdout.count("\n") == 1
    data: dict[str, Any] = json.loads(done.stdout)["data"]
    assert list(data)[:6] == ["cpu", "cpuset", "memory", "pids", "blkio", "hugetlb"]
    if (CGROUPS / "pids").exists():
        assert data["pids"] == {"current": 2}
    if (CGROUPS / "memory").exists():
        assert data["cpu"]["usage"]["total"] > 0
        assert data["memory"]["usage"]["usage"] > 0
        assert data["memory"]["usage"]["limit"] > 1 << 60
        assert data["memory"]["raw"]["pgfault"] > 0
        assert data["cpuset"]["cpus"][0] == 0
    container.kill()
    ended = woodfrog("events", "--stats", container.name, status=1)
    assert "is not running" in ended.stderr


def test_they_come_again_and_again_until_the_end(woodfrog: Woodfrog, make_bundle: Make) -> None:
    container = woodfrog.run(make_bundle("exec sleep 1000"))
    lines = lines_of(container, "--interval", "10ms")
    for _ in range(3):
        assert json.loads(next(lines))["type"] == "stats"
    container.kill()
    assert {json.loads(line)["type"] for line in lines} <= {"stats"}
    wrong = woodfrog("events", "--interval=often", container.name, status=1)
    assert "5s or 100ms" in wrong.stderr
    woodfrog("events", "--interval=0s", container.name, status=1)


def test_running_out_of_memory_is_told(woodfrog: Woodfrog, make_bundle: Make) -> None:
    if not (CGROUPS / "memory").exists():
        pytest.skip("this machine has no v1 memory controller")
    bundle = make_bundle(
        "read line < /work/go; x=$(head -c 200m /dev/zero | tr '\\0' x); echo survived"
    )
    limit = 64 << 20
    bundle.config["linux"]["resources"] = {"memory": {"limit": limit, "swap": limit}}
    subprocess.run(["mkfifo", str(bundle.work / "go")], check=True)
    container = woodfrog.run(bundle)
    lines = lines_of(container, "--interval=20ms")
    next(lines)  # it watches
    (bundle.work / "go").write_text("\n")
    assert f'{{"type":"oom","id":"{container.name}"}}\n' in list(lines)
    container.wait()
    assert "survived" not in container.told()
