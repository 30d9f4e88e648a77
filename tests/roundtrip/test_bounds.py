"""A restored process has no more rights than the new container's own config gives."""

import os
import re
import subprocess
from pathlib import Path

import msgspec
import pytest
from shells import WAIT, frozen, shell

from bundles import bind
from containers import Woodfrog, verdict
from images import RECORDS, doctored
from needs import needs
from woodfrog.image.container_file import Reader
from woodfrog.resources.cgroups import Group, Hierarchy, Value
from woodfrog.resources.memory import Mapping, Source
from woodfrog.resources.mount_tree.records import Base, Given, MountTree, Node
from woodfrog.resources.process import Process

pytestmark = needs("root")

# No directory can be made.
PROFILE = {
    "defaultAction": "SCMP_ACT_ALLOW",
    "architectures": ["SCMP_ARCH_X86_64"],
    "syscalls": [{"names": ["mkdir", "mkdirat"], "action": "SCMP_ACT_ERRNO", "errnoRet": 13}],
}


def status_after(work: Path, name: str) -> int:
    """Return a number of the status that the restored shell has written down."""
    found = re.search(rf"^{name}:\s*([0-9a-f]+)$", (work / "status").read_text(), re.MULTILINE)
    assert found is not None
    return int(found[1], 16)


@pytest.mark.parametrize("before", [False, True], ids=["without one before", "with the same one"])
def test_the_new_seccomp_profile_holds_once(before: bool, woodfrog: Woodfrog) -> None:
    script = f": > /work/ready; {WAIT}; cat /proc/self/status > /work/status; mkdir /work/made"
    bundle = shell(woodfrog, f"{script}; echo $? > /work/out; exit 0")
    if before:
        bundle.config["linux"]["seccomp"] = PROFILE
    container = woodfrog.run(bundle)
    container.wait_for("ready")
    image = frozen(container)
    bundle.config["linux"]["seccomp"] = PROFILE

    restored = woodfrog.restore(bundle, image)
    (bundle.work / "check").touch()

    assert restored.wait() == 0
    assert (bundle.work / "out").read_text() != "0\n"
    assert not (bundle.work / "made").exists()
    assert status_after(bundle.work, "Seccomp_filters") == 1


def test_no_new_privs_of_the_new_config_is_set(woodfrog: Woodfrog) -> None:
    bundle = shell(woodfrog, f": > /work/ready; {WAIT}; cat /proc/self/status > /work/status")
    bundle.process["noNewPrivileges"] = False
    container = woodfrog.run(bundle)
    container.wait_for("ready")
    image = frozen(container)
    bundle.process["noNewPrivileges"] = True

    restored = woodfrog.restore(bundle, image)
    (bundle.work / "check").touch()

    assert restored.wait() == 0
    assert status_after(bundle.work, "NoNewPrivs") == 1


def test_capabilities_that_the_new_config_lacks_are_refused(woodfrog: Woodfrog) -> None:
    bundle = shell(woodfrog, f": > /work/ready; {WAIT}")
    bundle.add_capabilities("CAP_SYS_PTRACE")
    container = woodfrog.run(bundle)
    container.wait_for("ready")
    image = frozen(container)
    for masks in bundle.process["capabilities"].values():
        masks[:] = [name for name in masks if name != "CAP_SYS_PTRACE"]
    bundle.save()

    refused = woodfrog(
        "restore",
        "--detach",
        f"--bundle={bundle.directory}",
        f"--image-path={image}",
        "narrower",
        status=None,
    )

    assert refused.status == 1
    assert "capabilities" in refused.stderr
    assert "CAP_SYS_PTRACE" in refused.stderr


@pytest.mark.parametrize("lacking", ["CAP_SYS_ADMIN", "seccomp", "namespace", "mount"])
def test_mounts_that_the_new_config_does_not_allow_are_refused(
    lacking: str, woodfrog: Woodfrog
) -> None:
    bundle = shell(woodfrog, f"mount --bind /tmp /dev/shm; : > /work/ready; {WAIT}")
    bundle.add_capabilities("CAP_SYS_ADMIN")
    container = woodfrog.run(bundle)
    container.wait_for("ready")
    image = frozen(container)
    if lacking == "CAP_SYS_ADMIN":
        for masks in bundle.process["capabilities"].values():
            masks.remove("CAP_SYS_ADMIN")
    elif lacking == "seccomp":
        call = {"names": ["mount"], "action": "SCMP_ACT_ERRNO"}
        bundle.config["linux"]["seccomp"] = PROFILE | {"syscalls": [call]}
    elif lacking == "mount":
        bundle.config["mounts"] = [
            one for one in bundle.config["mounts"] if one["destination"] != "/dev/shm"
        ]
        (bundle.rootfs / "dev").mkdir(exist_ok=True)
    else:
        bundle.config["linux"]["rootfsPropagation"] = "shared"
    bundle.save()
    flags = ("--detach", "--restore-spec-validation=ignore", f"--bundle={bundle.directory}")

    refused = woodfrog("restore", *flags, f"--image-path={image}", "narrower", status=1)

    wanted = {"mount": "need the one at /dev/shm", "namespace": "shares with the outside"}
    assert wanted.get(lacking, lacking) in refused.stderr
    woodfrog("state", "narrower", status=1)


@pytest.mark.parametrize("lacking", ["/proc/sys", "(ipc)"])
def test_settings_that_the_new_config_does_not_allow_are_refused(
    lacking: str, woodfrog: Woodfrog
) -> None:
    bundle = shell(woodfrog, f"echo 12345 > /proc/sys/kernel/msgmax; : > /work/ready; {WAIT}")
    container = woodfrog.run(bundle)
    container.wait_for("ready")
    image = frozen(container)
    if lacking == "/proc/sys":
        bundle.config["linux"]["readonlyPaths"] = ["/proc/sys"]
    else:
        own = {"type": "ipc"}
        bundle.config["linux"]["namespaces"].remove(own)
        bundle.config["linux"]["namespaces"].append(own | {"path": "/proc/self/ns/ipc"})
    bundle.save()
    flags = ("--detach", "--restore-spec-validation=ignore", f"--bundle={bundle.directory}")

    refused = woodfrog("restore", *flags, f"--image-path={image}", "narrower", status=1)

    assert "kernel.msgmax" in refused.stderr
    assert lacking in refused.stderr
    woodfrog("state", "narrower", status=1)


def test_a_restore_that_fails_leaves_no_cgroups(woodfrog: Woodfrog) -> None:
    bundle = shell(woodfrog, f": > /work/ready; {WAIT}")
    bundle.add_capabilities("CAP_SYS_ADMIN")
    path = f"/frog-{os.getpid()}"
    bundle.config["linux"]["cgroupsPath"] = path
    container = woodfrog.run(bundle)
    container.wait_for("ready")
    image = frozen(container)
    container.delete()
    name = "" if list(Path("/sys/fs/cgroup").rglob("cgroup.controllers")) else "pids"
    value = Value(name="pids.max" if name else "cgroup.max.depth", text=b"frog")
    groups = [Group(path=b"."), Group(path=b"a"), Group(path=b"a/b", values=[value])]
    hostile = doctored(image, image / "hostile", more=[Hierarchy(name=name, groups=groups)])
    bundle.save()
    flags = ("--detach", f"--bundle={bundle.directory}", f"--image-path={hostile}")

    refused = woodfrog("restore", *flags, "hostile", status=1)

    assert "frog" in refused.stderr
    assert "a/b" in refused.stderr
    assert not list(Path("/sys/fs/cgroup").glob(f"**{path}"))
    woodfrog("state", "hostile", status=1)


def test_cgroups_that_a_bind_of_the_hosts_lets_programs_make_come_back(woodfrog: Woodfrog) -> None:
    """As podman's containers with systemd in them have it, on hosts with cgroups of version 1."""
    wait = WAIT.replace("check", "where")
    move = 'g=/cgroups$(cat /work/where); mkdir "$g/a" && echo 1 > "$g/a/cgroup.procs"'
    script = f"{wait}; {move}; : > /work/ready; {WAIT}; cat /proc/1/cgroup > /work/out"
    bundle = shell(woodfrog, script)
    second = any(Path("/sys/fs/cgroup").glob("cgroup.controllers"))
    source, line = ("/sys/fs/cgroup", "0::") if second else ("/sys/fs/cgroup/pids", ":pids:")
    (bundle.rootfs / "cgroups").mkdir()
    bundle.add_mount(bind(source, "/cgroups", "rw"))
    container = woodfrog.run(bundle)
    groups = Path(f"/proc/{container.init}/cgroup").read_text()
    where = next(one.partition(line)[2] for one in groups.splitlines() if line in one)
    (bundle.work / "new").write_text(where)
    (bundle.work / "new").rename(bundle.work / "where")
    container.wait_for("ready")
    image = frozen(container)
    assert ":/a\n" in verdict(woodfrog.restore(bundle, image))


@pytest.mark.parametrize("place", [b"link/in", b"link", b"tmp/in"], ids=os.fsdecode)
def test_a_mount_of_an_image_follows_no_link_and_hides_nothing_of_another(
    place: bytes, woodfrog: Woodfrog
) -> None:
    bundle = shell(woodfrog, f": > /work/ready; {WAIT}")
    bundle.add_capabilities("CAP_SYS_ADMIN")
    (bundle.rootfs / "elsewhere" / "in").mkdir(parents=True)
    (bundle.rootfs / "link").symlink_to("elsewhere")
    container = woodfrog.run(bundle)
    container.wait_for("ready")
    image = frozen(container)
    container.delete()
    root = Node(given=Given(point=b"/", nth=0))
    tree = MountTree(
        bases=[Base(type="tmpfs", source=b"none")],
        nodes=[root, Node(base=0, parent=0, place=place, attributes=0)],
        removed=[],
    )
    hostile = doctored(image, image / "hostile", more=[tree])
    flags = ("--detach", f"--bundle={bundle.directory}", f"--image-path={hostile}")

    refused = woodfrog("restore", *flags, "hostile", status=1)

    assert os.fsdecode(place) in refused.stderr
    woodfrog("state", "hostile", status=1)


def test_what_is_unmounted_outside_is_no_business_of_the_container(woodfrog: Woodfrog) -> None:
    bundle = shell(woodfrog, f": > /work/ready; {WAIT}; ls /volume/in > /work/out")
    volume = woodfrog.directory / "volume"
    (volume / "in" / "below").mkdir(parents=True)
    bundle.add_mount(bind(volume, "/volume"))
    bundle.config["mounts"][-1]["options"].append("rslave")
    (bundle.rootfs / "volume").mkdir()
    mount("--bind", volume, volume)
    try:
        mount("--make-shared", volume)
        mount("-t", "tmpfs", "none", volume / "in")
        container = woodfrog.run(bundle)
        container.wait_for("ready")
    finally:
        subprocess.run(["umount", "--recursive", volume], check=True)
    image = frozen(container)

    restored = woodfrog.restore(bundle, image)
    (bundle.work / "check").touch()

    assert restored.wait() == 0
    assert (bundle.work / "out").read_text() == "below\n"


def mount(*arguments: str | Path) -> None:
    """Mount something on the host."""
    subprocess.run(["mount", *arguments], check=True)


def test_limits_are_no_higher_than_the_new_configs(woodfrog: Woodfrog) -> None:
    bundle = shell(woodfrog, f": > /work/ready; {WAIT}; ulimit -Hn > /work/out")
    container = woodfrog.run(bundle)
    container.wait_for("ready")
    image = frozen(container)
    bundle.process["rlimits"] = [{"type": "RLIMIT_NOFILE", "soft": 50, "hard": 77}]

    restored = woodfrog.restore(bundle, image)
    (bundle.work / "check").touch()

    assert restored.wait() == 0
    assert (bundle.work / "out").read_text() == "77\n"


def test_memory_comes_back_below_the_new_configs_limit(woodfrog: Woodfrog) -> None:
    # Less than what a restore itself takes: what is set is the limit of what comes of it.
    limit = {"type": "RLIMIT_AS", "soft": 24 << 20, "hard": 24 << 20}
    bundle = shell(woodfrog, f": > /work/ready; {WAIT}; ulimit -Hv > /work/out")
    bundle.process["rlimits"] = [limit]
    container = woodfrog.run(bundle)
    container.wait_for("ready")

    restored = woodfrog.restore(bundle, frozen(container))
    (bundle.work / "check").touch()

    assert restored.wait() == 0
    assert (bundle.work / "out").read_text() == f"{24 << 10}\n"


def test_more_mappings_than_this_machine_allows_are_refused_by_its_setting(
    woodfrog: Woodfrog,
) -> None:
    most = int(Path("/proc/sys/vm/max_map_count").read_text())
    bundle = shell(woodfrog, f": > /work/ready; {WAIT}")
    container = woodfrog.run(bundle)
    container.wait_for("ready")
    image = frozen(container)
    with Reader(str(image)) as reader:
        found = [one for one in reader.records(RECORDS) if isinstance(one, Process)]
    (space,) = (one.memory for one in found if one.pid == 1)
    first = 1 << 40
    more = [
        Mapping(
            start=first + number * 8192,
            end=first + number * 8192 + 4096,
            protection=1,
            shared=False,
            source=Source.ANONYMOUS,
        )
        for number in range(most)
    ]
    mappings = sorted([*space.mappings, *more], key=lambda one: one.start)
    memory = msgspec.structs.replace(space, mappings=mappings)
    full = doctored(image, image / "full", Process, which=lambda one: one.pid == 1, memory=memory)
    flags = ("--bundle", str(bundle.directory), f"--image-path={full}")

    refused = woodfrog("restore", *flags, "full", status=1)

    assert f"process 1 of the image has {len(mappings)} mappings" in refused.stderr
    assert f"this machine allows {most} (vm.max_map_count)" in refused.stderr
