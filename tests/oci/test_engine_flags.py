"""Flags of checkpoint and restore that engines and people bring along from runc, CRIU and runsc."""

import os
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from bundles import Bundle
from containers import CGROUPS, Woodfrog

Make = Callable[[str], Bundle]

SLEEP = "exec sleep 1000"

# What has no meaning here, and loses nothing.
HARMLESS = {
    "checkpoint": "-manage-cgroups-mode soft --file-locks -shell-job --link-remap --auto-dedup"
    " --ghost-limit 1M --empty-ns network --direct=true --exclude-committed-zero-pages"
    " --ext-unix-sk",
    "restore": "--manage-cgroups-mode=ignore --file-locks --shell-job -auto-dedup"
    " --empty-ns=network -direct --ext-unix-sk -no-subreaper",
}


def test_what_has_no_meaning_here_is_taken(
    woodfrog: Woodfrog, make_bundle: Make, tmp_path: Path
) -> None:
    container = woodfrog.run(make_bundle(SLEEP))
    container.checkpoint(tmp_path / "image", *HARMLESS["checkpoint"].split())
    restored = woodfrog.restore(
        make_bundle(SLEEP), tmp_path / "image", *HARMLESS["restore"].split()
    )
    assert restored.state()["status"] == "running"


@pytest.mark.parametrize(
    "command, flag",
    [
        ("checkpoint", "--lazy-pages"),
        ("checkpoint", "--page-server=0.0.0.0:1"),
        ("restore", "--lsm-profile=apparmor:x"),
        ("restore", "--lsm-mount-context=x"),
        ("create", "--fs-restore-image-path=x"),
        ("run", "--fs-restore-image-path=x"),
    ],
)
def test_what_cannot_be_done_is_refused_by_name(
    woodfrog: Woodfrog, command: str, flag: str
) -> None:
    name = flag.partition("=")[0]
    said = woodfrog(command, flag, "none", status=1).stderr
    assert f"{name} is not supported: " in said


def test_a_command_of_gvisors_that_is_not_there_says_what_is(woodfrog: Woodfrog) -> None:
    said = woodfrog("fscheckpoint", "--image-path=x", "none", status=1).stderr
    assert "fscheckpoint is not supported" in said
    assert "tar rootfs-upper" in said


def test_a_parent_image_is_named_relative_to_the_image(
    woodfrog: Woodfrog, make_bundle: Make, tmp_path: Path
) -> None:
    container = woodfrog.run(make_bundle(SLEEP))
    image = tmp_path / "image"
    for parent, said in (
        (str(tmp_path), "--parent-path must be relative to the image's directory"),
        ("../parent", "--parent-path=../parent: there is no such directory"),
    ):
        done = container.checkpoint(image, f"--parent-path={parent}", status=1)
        assert said in done.stderr
    assert container.state()["status"] == "running"
    assert not image.exists()


def test_a_pre_dump_is_what_the_next_image_builds_on(
    woodfrog: Woodfrog, make_bundle: Make, tmp_path: Path
) -> None:
    container = woodfrog.run(make_bundle(SLEEP))
    container.checkpoint(tmp_path / "parent", "--pre-dump", f"--work-path={tmp_path}")
    assert container.state()["status"] == "running"
    assert [one.name for one in (tmp_path / "parent").iterdir()] == ["checkpoint.img"]
    container.checkpoint(tmp_path / "image", "--parent-path=../parent")
    restored = woodfrog.restore(make_bundle(SLEEP), tmp_path / "image")
    assert restored.state()["status"] == "running"


def test_the_status_descriptor_hears_of_the_complete_image(
    woodfrog: Woodfrog, make_bundle: Make, tmp_path: Path
) -> None:
    container = woodfrog.run(make_bundle(SLEEP))
    image = tmp_path / "image"
    for flags, said in ((["--leave-running"], b"\0"), ([], b"")):
        reader, writer = os.pipe()
        flags += [f"--status-fd={writer}", f"--image-path={image}"]
        command = woodfrog.command("checkpoint", *flags, container.name)
        with subprocess.Popen(command, pass_fds=[writer], stderr=subprocess.PIPE) as process:
            os.close(writer)
            with open(reader, "rb") as file:
                assert file.read() == said
            # The second finds the image that is there, and refuses.
            assert process.wait() == (0 if said else 1)
    # One whose reader has gone is no failure.
    reader, writer = os.pipe()
    os.close(reader)
    flags = [f"--status-fd={writer}", f"--image-path={tmp_path}/again", "--leave-running"]
    command = woodfrog.command("checkpoint", *flags, container.name)
    assert subprocess.run(command, pass_fds=[writer]).returncode == 0
    os.close(writer)
    done = container.checkpoint(tmp_path / "other", "--status-fd=999", status=1)
    assert "descriptor 999 is not open" in done.stderr


def test_a_checkpoint_of_an_engine_deletes_the_container(
    woodfrog: Woodfrog, make_bundle: Make, tmp_path: Path
) -> None:
    bundle = make_bundle(SLEEP)
    container = woodfrog.run(bundle)
    work = f"--work-path={tmp_path}/work"
    image = tmp_path / "image"
    container.checkpoint(image, work, "--leave-running")
    assert container.state()["status"] == "running"
    container.checkpoint(image, work)
    assert "does not exist" in woodfrog("state", container.name, status=1).stderr
    assert not [*CGROUPS.glob(f"*/{container.name}")]
    # The same name is free for the restore, as engines do it.
    again = woodfrog.restore(bundle, image, work, name=container.name)
    assert again.state()["status"] == "running"
