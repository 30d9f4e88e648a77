"""`check` and `checkpoint --dry-run`: what stands in the way, without touching anything."""

import json
import os
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from bundles import Bundle
from containers import Container, Woodfrog

Make = Callable[[str], Bundle]

# A device that can't be saved.
DEVICE = {"type": "c", "major": 10, "minor": 229}


@pytest.fixture
def container(woodfrog: Woodfrog, make_bundle: Make) -> Container:
    found = woodfrog.run(make_bundle(": > /work/ready; exec sleep 1000"))
    found.wait_for("ready")
    return found


@pytest.fixture
def unsavable(woodfrog: Woodfrog, make_bundle: Make) -> Container:
    """A container with two processes that each have what can't be saved."""
    script = "exec 9< /dev/odd; sleep 1000 & : > /work/ready; exec sleep 1000"
    bundle = make_bundle(script)
    linux = bundle.config["linux"]
    linux.setdefault("devices", []).append({"path": "/dev/odd", "fileMode": 0o666, **DEVICE})
    rules = linux.setdefault("resources", {}).setdefault("devices", [])
    rules.append({"allow": True, "access": "rwm", **DEVICE})
    bundle.process["args"][-1] = f"({script}) & {script}"
    found = woodfrog.run(bundle)
    found.wait_for("ready")
    return found


def test_a_container_that_can_be_saved_runs_on(container: Container) -> None:
    done = container.woodfrog("check", container.name)
    assert done.stdout.startswith(f"container {container.name} can be saved\n")
    assert "looked at 1 processes with 1 threads" in done.stdout
    assert container.state()["status"] == "running"
    assert "checkpoint" not in container.state()
    container.woodfrog("pause", container.name)
    container.woodfrog("check", container.name)
    assert container.state()["status"] == "paused"


def test_every_obstacle_is_told_at_once(unsavable: Container, tmp_path: Path) -> None:
    woodfrog = unsavable.woodfrog
    done = woodfrog("check", unsavable.name, status=1)
    assert f"container {unsavable.name} cannot be saved:" in done.stdout
    assert done.stdout.count("/dev/odd, which cannot be saved") == 2
    dry = woodfrog(
        "checkpoint", "--dry-run", f"--image-path={tmp_path}/image", unsavable.name, status=1
    )
    assert dry.stdout.splitlines()[:-1] == done.stdout.splitlines()[:-1]
    assert not (tmp_path / "image").exists()
    assert unsavable.state()["status"] == "running"

    found = json.loads(woodfrog("check", "--json", unsavable.name, status=1).stdout)
    assert [one["what"].count("/dev/odd") for one in found["obstacles"]] == [1, 1]


def test_no_name_of_a_container_commands_a_terminal(
    woodfrog: Woodfrog, make_bundle: Make, tmp_path: Path
) -> None:
    bundle = make_bundle(
        "mkdir -p /work/dir; cd /work/dir; mknod \"$(printf '\\033[2J\\377')\" c 10 229;"
        ' for name in *; do exec 9< "$name"; done; : > /work/ready; exec sleep 1000'
    )
    rules = bundle.config["linux"].setdefault("resources", {}).setdefault("devices", [])
    rules.append({"allow": True, "access": "rwm", **DEVICE})
    container = woodfrog.run(bundle)
    container.wait_for("ready")
    checked = woodfrog("check", container.name, status=1).stdout
    refused = container.checkpoint(tmp_path / "image", status=1).stderr
    for said in (checked, refused):
        assert r"/work/dir/\x1b[2J\udcff" in said
        assert said.replace("\n", "").isprintable()


def test_a_container_that_does_not_run_has_nothing_to_check(container: Container) -> None:
    container.kill()
    done = container.woodfrog("check", container.name, status=1)
    assert "cannot checkpoint container" in done.stderr


def test_what_the_kernel_offers_is_found_by_trying(woodfrog: Woodfrog) -> None:
    found = json.loads(woodfrog("check", "--json").stdout)
    assert all(one["is_there"] for one in found if one["needed"])
    assert {one["name"] for one in found} >= {"CONFIG_CHECKPOINT_RESTORE", "nf_tables"}
    without = {"WOODFROG_WITHOUT": "pagemap_scan,timer_restore_ids,eventfd_semaphore"}
    done = subprocess.run(
        woodfrog.command("check"), env=os.environ | without, capture_output=True, text=True
    )
    assert done.returncode == 0
    lines = done.stdout.splitlines()
    assert len([line for line in lines if "  no: " in line]) >= 4
    assert any(line.startswith("PAGEMAP_SCAN (") and "more slowly" in line for line in lines)
