"""Containers with a user namespace of their own, frozen and thawed."""

import os
from pathlib import Path

import pytest
from shells import WAIT, frozen, shell
from test_programs import Build, Case, cases, restored

from bundles import Bundle, bind
from containers import Container, Woodfrog, verdict
from needs import needs

pytestmark = needs("root", "command gcc")

USERS, GROUPS, SIZE = 1 << 24, 1 << 25, 1 << 23

# What a user namespace could matter to: ids, rights, and what only the host's root may do.
PROGRAMS = (
    *("capabilities", "credentials", "file_signals", "limits", "memfd", "pidfd", "posix_queue"),
    *("process_image", "proc_files", "seccomp_filter", "sysv_ipc", "timer_rung", "tree"),
    *("mounts tmpfs", "mounts part", "mounts file", "mounts remount", "mounts removed"),
    *("mounts moved", "mounts shared", "mounts slave", "mounts overlay", "sysctls"),
    *(
        "network bridge",
        "network_groups bridge",
        "network routes",
        "network loopback",
        "network settings",
    ),
    *("packets sockets", "packets ring 2", "packets ring 3", "packets sending", "tcp_waiting 4"),
    *("tcp_signed 4", "inet_options", "netlink_unread", "fanotify identities"),
    *("tcp_connections 4", "unix_names", "unix_pair stream", "working_directory"),
    *("socket_owners", "pipe"),
    *("namespaces ipc", "namespace_sockets", "namespace_time", "namespace_users nested"),
    *("namespace_mounts pivoted", "namespace_mounts sandbox", "namespace_pid sandbox"),
    *("aio", "io_uring 0x3100", "io_uring_polled 2", "io_uring_registered 0"),
)


def give_user_namespace(bundle: Bundle) -> None:
    """Give a bundle's container a user namespace, whose root owns the root file system."""
    linux = bundle.config["linux"]
    linux["namespaces"].append({"type": "user"})
    linux["uidMappings"] = [{"containerID": 0, "hostID": USERS, "size": SIZE}]
    linux["gidMappings"] = [{"containerID": 0, "hostID": GROUPS, "size": SIZE}]
    for directory, _, _ in os.walk(bundle.rootfs):
        os.chown(directory, USERS, GROUPS)


def start(case: Case, woodfrog: Woodfrog, build: Build) -> Container:
    """Start a program in a container whose root is nobody outside."""
    program = build(case.source, *case.wishes.get("flags", "").split())
    program.parent.chmod(0o755)
    bundle = Bundle(woodfrog.directory / "bundle", ["/programs/" + program.name, *case.arguments])
    (bundle.rootfs / "programs").mkdir()
    bundle.add_mount(bind(program.parent, "/programs"))
    bundle.add_capabilities(*case.wishes.get("capabilities", "").split())
    give_user_namespace(bundle)
    return woodfrog.run(bundle)


@pytest.mark.parametrize(
    "case", [case for case in cases() if case.name in PROGRAMS], ids=lambda case: case.name
)
def test_a_program_finds_everything_as_it_was(case: Case, woodfrog: Woodfrog, build: Build) -> None:
    container = start(case, woodfrog, build)
    container.wait_for("ready")
    assert verdict(restored(container, case.seconds("apart"))) == "ok\n"


def test_owners_are_the_same_inside_and_outside(woodfrog: Woodfrog) -> None:
    script = (
        "echo hello > /tmp/file; mkdir /tmp/d; chown 7:8 /tmp/file; chown 9:10 /tmp/d;"
        f" chmod 700 /tmp/d; : > /work/ready; {WAIT};"
        " stat -c %u:%g:%a /tmp/file /tmp/d > /work/out; cat /tmp/file >> /work/out;"
        " cat /proc/self/uid_map >> /work/out; exec sleep 1000"
    )
    bundle = shell(woodfrog, script)
    give_user_namespace(bundle)
    container = woodfrog.run(bundle)
    container.wait_for("ready")
    woodfrog("exec", "--detach", "--user", "5:6", container.name, "sh", "-c", "exec sleep 999")
    image = frozen(container)

    thawed = woodfrog.restore(bundle, image)
    (bundle.work / "check").touch()

    thawed.wait_for("out")
    lines = ["7:8:644", "9:10:700", "hello"]
    command = "until [ $(wc -l < /work/out) = 4 ]; do :; done; ps -eo uid,args"
    done = woodfrog("exec", thawed.name, "sh", "-c", command)
    assert ["5", "sleep", "999"] in [line.split() for line in done.stdout.splitlines()]
    said = (bundle.work / "out").read_text().splitlines()
    assert said[:3] == lines
    assert said[3].split() == ["0", str(USERS), str(SIZE)]
    tasks = [Path(f"/proc/{pid}") for pid in children_of_all(thawed.init)]
    assert {USERS, USERS + 5} <= {task.stat().st_uid for task in tasks}


ATTRIBUTES = """
import os, struct, sys
acl = b"\\2\\0\\0\\0" + b"".join(struct.pack("<HHI", *one) for one in
    [(1, 6, 2**32 - 1), (2, 7, 7), (4, 4, 2**32 - 1), (16, 7, 2**32 - 1), (32, 4, 2**32 - 1)])
found = {"system.posix_acl_access": acl,
    "security.capability": struct.pack("<5I", 0x02000001, 1 << 13, 0, 0, 0)}
if "set" in sys.argv:
    open("/tmp/file", "w").close()
    for name, value in found.items():
        os.setxattr("/tmp/file", name, value)
print({name: os.getxattr("/tmp/file", name) == value for name, value in found.items()})
"""


def test_attributes_name_the_same_users(woodfrog: Woodfrog) -> None:
    look = "python3 -I -S /work/attributes.py"
    bundle = shell(woodfrog, f"{look} set; : > /work/ready; {WAIT}; {look} > /work/out")
    (bundle.work / "attributes.py").write_text(ATTRIBUTES)
    give_user_namespace(bundle)
    container = woodfrog.run(bundle)
    container.wait_for("ready")
    image = frozen(container)

    thawed = woodfrog.restore(bundle, image)
    (bundle.work / "check").touch()

    assert thawed.wait() == 0, thawed.told()
    said = (bundle.work / "out").read_text()
    assert said == "{'system.posix_acl_access': True, 'security.capability': True}\n"


def children_of_all(init: int) -> list[int]:
    """Return the processes of a container's pid namespace."""
    namespace = os.readlink(f"/proc/{init}/ns/pid")
    found = []
    for entry in os.listdir("/proc"):
        try:
            if entry.isdigit() and os.readlink(f"/proc/{entry}/ns/pid") == namespace:
                found.append(int(entry))
        except OSError:
            continue
    return found


def test_other_id_mappings_are_refused(woodfrog: Woodfrog) -> None:
    bundle = shell(woodfrog, f": > /work/ready; {WAIT}")
    give_user_namespace(bundle)
    container = woodfrog.run(bundle)
    container.wait_for("ready")
    image = frozen(container)
    linux = bundle.config["linux"]
    maps, namespaces = linux["uidMappings"], linux["namespaces"]

    def refused(words: str) -> None:
        bundle.save()
        where = (f"--bundle={bundle.directory}", f"--image-path={image}")
        try_it = "--restore-spec-validation=ignore"
        done = woodfrog("restore", "--detach", try_it, *where, "other", status=1)
        assert words in done.stderr

    linux["uidMappings"] = [{"containerID": 0, "hostID": USERS, "size": SIZE - 1}]
    refused("had other id mappings than the new one")
    linux["namespaces"] = [one for one in namespaces if one["type"] != "user"]
    gid_maps = linux.pop("gidMappings")
    del linux["uidMappings"]
    refused("had a user namespace, the new one has none")
    linux |= {"uidMappings": maps, "gidMappings": gid_maps, "namespaces": namespaces}
    thawed = woodfrog.restore(bundle, image)
    (bundle.work / "check").touch()
    assert thawed.wait() == 0
