"""Containers with a user namespace of their own, set back in place."""

import os

import pytest
from shells import WAIT, shell
from talking import set_back_after, talking, tell
from test_programs import Build, Case, cases, set_back
from test_user_ids import GROUPS, USERS, give_user_namespace, start

from bundles import Bundle
from containers import Woodfrog, verdict
from needs import needs

pytestmark = needs("root", "command gcc", "command python3")

# What a user namespace could matter to.
PROGRAMS = (
    *("capabilities", "credentials", "file_signals", "memfd", "posix_queue", "seccomp_filter"),
    *("mounts tmpfs", "mounts shared", "mounts removed", "sysv_ipc", "sysctls"),
    *("network bridge", "unix_names", "packets ring 3"),
)


def own_users(bundle: Bundle) -> None:
    """Give a bundle's container a user namespace, whose root may write to its files."""
    give_user_namespace(bundle)
    os.chown(bundle.work, USERS, GROUPS)


@pytest.mark.parametrize(
    "case", [case for case in cases() if case.name in PROGRAMS], ids=lambda case: case.name
)
def test_a_program_finds_everything_as_it_was(case: Case, woodfrog: Woodfrog, build: Build) -> None:
    container = start(case, woodfrog, build)
    container.wait_for("ready")
    assert verdict(set_back(container, case.seconds("apart"))) == "ok\n"


@pytest.mark.parametrize(
    ("program", "changes"),
    [
        ("family.py", ("end", "kill", "child", "be many", "kill", "end a thread")),
        ("terminal.py", ("read", "set", "group", "kill", "close", "set")),
        pytest.param(
            "open_files.py",
            ("read", "close one end", "close all", "be others", "in a thread"),
            marks=needs("file /proc/pressure/cpu"),
        ),
        ("unix_sockets.py", ("read a stream", "take files", "close the listeners", "close all")),
        ("locks.py", ("unlock", "lock more", "open and close", "lock another")),
    ],
    ids=["processes", "terminals", "files", "sockets", "locks"],
)
def test_what_has_ended_or_moved_on_comes_back(
    program: str, changes: tuple[str, ...], woodfrog: Woodfrog
) -> None:
    container = talking(woodfrog, program, own_users)
    image = woodfrog.directory / "image"
    container.checkpoint(image, "--leave-running", "--sync=none")
    for change in changes:
        set_back_after(change, container, image)
    tell(container, "check")
    assert verdict(container) == "ok\n"


def test_files_in_memory_have_their_owners_and_those_that_are_right_are_left_alone(
    woodfrog: Woodfrog,
) -> None:
    look = "stat -c %u:%g:%a /tmp/changed /tmp/gone /tmp/d; stat -c %i /tmp/same"
    bundle = shell(
        woodfrog,
        "cd /tmp; echo 1 > changed; echo 2 > gone; echo 3 > same; mkdir d;"
        " chown 7:8 changed gone same; chown 9:10 d; chmod 700 d; stat -c %i same > /work/same;"
        f" : > /work/ready; {WAIT}; chown 0:0 changed d; rm gone; : > more; : > /work/changed;"
        f" while :; do sleep 0.02; test -e /work/look && break; done; {{ {look}; }} > /work/out",
    )
    own_users(bundle)
    container = woodfrog.run(bundle)
    container.wait_for("ready")
    image = woodfrog.directory / "image"
    container.checkpoint(image, "--leave-running", "--sync=none")
    (bundle.work / "check").touch()
    container.wait_for("changed")
    (bundle.work / "check").unlink()

    woodfrog("rollback", f"--image-path={image}", container.name)

    done = woodfrog("exec", container.name, "sh", "-c", f"{look}; ls /tmp")
    *owners, inode = done.stdout.split()[:4]
    assert owners == ["7:8:644", "7:8:644", "9:10:700"]
    assert inode == (bundle.work / "same").read_text().strip()
    assert done.stdout.split()[4:] == ["changed", "d", "gone", "same"]


def test_other_id_mappings_are_refused(woodfrog: Woodfrog) -> None:
    bundle = shell(woodfrog, f": > /work/ready; {WAIT}")
    own_users(bundle)
    container = woodfrog.run(bundle)
    container.wait_for("ready")
    image = woodfrog.directory / "image"
    container.checkpoint(image, "--leave-running", "--sync=none")
    container.delete()
    linux = bundle.config["linux"]
    for mapping in (*linux["uidMappings"], *linux["gidMappings"]):
        mapping["size"] -= 1
    (bundle.work / "ready").unlink()
    other = woodfrog.run(bundle)
    other.wait_for("ready")
    said = woodfrog("rollback", f"--image-path={image}", other.name, status=1).stderr
    assert "had other id mappings than the new one" in said
    assert not other.has_ended()
