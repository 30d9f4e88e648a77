"""Mounts: where they land, with which flags, and what may not be covered."""

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from bundles import Bundle, bind, tmpfs
from containers import Done, Woodfrog

Make = Callable[[str], Bundle]
Name = Callable[[Bundle], str]
Run = Callable[..., Done]


def flags_by_place(mountinfo: str) -> dict[str, list[str]]:
    """Return the flags of each mount point."""
    lines = [line.split() for line in mountinfo.splitlines()]
    return {fields[4]: fields[5].split(",") for fields in lines if len(fields) > 6}


def bound(source: Path | str, destination: str, *options: str) -> dict[str, Any]:
    """Return a bind mount with just these options."""
    return {
        "destination": destination,
        "type": "bind",
        "source": str(source),
        "options": list(options),
    }


@pytest.mark.parametrize(
    ("options", "at_top", "below"),
    [
        (["rbind", "ro"], "ro relatime", "rw relatime"),
        (["rbind", "rro", "rnosuid"], "ro nosuid relatime", "ro nosuid relatime"),
        (["rbind", "rnoatime"], "rw noatime", "rw noatime"),
        (["rbind", "rnoatime", "rstrictatime"], "rw", "rw"),
        (["rbind", "rstrictatime", "ratime"], "rw relatime", "rw relatime"),
        (["rbind", "rnoexec", "rexec", "rnodev"], "rw nodev relatime", "rw nodev relatime"),
        (["bind", "nodev", "noexec", "noexec", "exec"], "rw nodev relatime", ""),
    ],
)
def test_options_reach_the_mounts_below_if_they_are_recursive(
    run: Run, make_bundle: Make, options: list[str], at_top: str, below: str
) -> None:
    bundle = make_bundle("cat /proc/self/mountinfo")
    bundle.add_mount(tmpfs("/tree"))
    bundle.add_mount(tmpfs("/tree/below"))
    for entry in bundle.config["mounts"][-2:]:
        entry["options"] = ["relatime"]
    bundle.add_mount(bound(bundle.rootfs / "tree", "/seen", *options))
    found = flags_by_place(run(bundle).stdout)
    assert " ".join(found["/seen"]) == at_top
    assert " ".join(found.get("/seen/below", [])) == below


def test_a_source_may_be_what_an_earlier_mount_shows(run: Run, make_bundle: Make) -> None:
    bundle = make_bundle("cat /second/file")
    (bundle.work / "file").write_text("through two mounts")
    bundle.add_mount(bound(bundle.work, "/first", "bind"))
    # Destinations may be given as they are seen from outside.
    bundle.add_mount(bound(bundle.rootfs / "first", f"{bundle.rootfs}/second", "bind"))
    assert run(bundle).stdout == "through two mounts"


def test_without_options_a_bind_mount_is_like_its_source(run: Run, make_bundle: Make) -> None:
    bundle = make_bundle("cat /proc/self/mountinfo")
    bundle.add_mount(tmpfs("/origin"))
    bundle.config["mounts"][-1]["options"] = ["nodev", "noexec", "noatime", "nodiratime"]
    bundle.add_mount(bound(bundle.rootfs / "origin", "/like", "bind", "rprivate"))
    bundle.add_mount(bound(bundle.rootfs / "origin", "/unlike", "bind", "exec"))
    found = flags_by_place(run(bundle).stdout)
    assert found["/like"] == found["/origin"] == ["rw", "nodev", "noexec", "noatime", "nodiratime"]
    # Access times stay as they were if nothing is said of them, as with mount(8).
    assert found["/unlike"] == ["rw", "noatime", "nodiratime"]


def test_a_dangling_link_on_the_way_is_followed_inside(run: Run, make_bundle: Make) -> None:
    bundle = make_bundle("cat /far/away/place/file; readlink /jump")
    (bundle.rootfs / "jump").symlink_to("/far/away")
    (bundle.rootfs / "link").symlink_to("/jump/place/file")
    source = bundle.directory / "source"
    source.write_text("content ")
    bundle.add_mount(bound(source, "/link", "bind"))
    assert run(bundle).stdout == "content /far/away\n"


def test_a_tmpfs_has_the_mode_of_what_it_covers(run: Run, make_bundle: Make) -> None:
    bundle = make_bundle("stat -c %a /old /given /new")
    for name in ("old", "given"):
        (bundle.rootfs / name).mkdir()
        (bundle.rootfs / name).chmod(0o710)
    bundle.add_mount(tmpfs("/old"))
    bundle.add_mount(tmpfs("/given", "mode=1750"))
    bundle.add_mount(tmpfs("/new"))
    assert run(bundle).stdout.split() == ["710", "1750", "1777"]


def test_a_tmpfs_can_begin_with_what_it_covers(run: Run, make_bundle: Make) -> None:
    bundle = make_bundle(
        "cd /full; cat sub/file; readlink link; stat -c '%n %a %u:%g %Y' sub sub/file;"
        "stat -c %F f; echo x > sub/more"
    )
    full = bundle.rootfs / "full"
    (full / "sub").mkdir(parents=True)
    (full / "sub/file").write_text("content\n")
    (full / "link").symlink_to("nowhere")
    os.mkfifo(full / "f")
    os.chown(full / "sub/file", 11, 12)
    (full / "sub/file").chmod(0o4640)
    os.chown(full / "sub", 13, 14)
    (full / "sub").chmod(0o2771)
    os.utime(full / "sub/file", (5, 77))
    os.utime(full / "sub", (5, 78))
    bundle.add_mount(tmpfs("/full", "tmpcopyup"))
    assert run(bundle).stdout.splitlines() == [
        "content",
        "nowhere",
        "sub 2771 13:14 78",
        "sub/file 4640 11:12 77",
        "fifo",
    ]
    assert not (full / "sub/more").exists()


def test_the_root_can_be_shared_with_what_it_mounts_later(run: Run, make_bundle: Make) -> None:
    bundle = make_bundle("cat /proc/self/mountinfo")
    bundle.config["linux"]["rootfsPropagation"] = "shared"
    lines = [line.split() for line in run(bundle).stdout.splitlines()]
    assert [fields[6].partition(":")[0] for fields in lines if fields[4] == "/"] == ["shared"]


def test_masked_directories_are_one_empty_file_system(run: Run, make_bundle: Make) -> None:
    bundle = make_bundle("ls -A /one /two; stat -c %d /one /two | uniq | wc -l; touch /two/x || :")
    for name in ("one", "two"):
        (bundle.rootfs / name).mkdir()
        (bundle.rootfs / name / "secret").touch()
    bundle.config["linux"]["maskedPaths"] = ["/one", "/two"]
    done = run(bundle)
    assert done.stdout.splitlines() == ["/one:", "", "/two:", "1"]
    assert "Read-only file system" in done.stderr


def test_what_lxcfs_shows_in_proc_may_be_mounted(run: Run, make_bundle: Make) -> None:
    bundle = make_bundle("cat /proc/uptime; ls /outer/self/comm")
    (bundle.work / "uptime").write_text("1.00 1.00\n")
    bundle.add_mount(bound(bundle.work / "uptime", "/proc/uptime", "bind"))
    bundle.add_mount(bound("/proc", "/outer", "rbind"))
    assert run(bundle).stdout.split() == ["1.00", "1.00", "/outer/self/comm"]


def test_options_of_a_file_system_have_no_effect_on_a_bind(run: Run, make_bundle: Make) -> None:
    bundle = make_bundle("ls /here")
    (bundle.work / "file").touch()
    bundle.add_mount(bound(bundle.work, "/here", "bind", "size=1k"))
    done = run(bundle)
    assert "file" in done.stdout.split()
    assert "size=1k has no effect on a bind mount" in done.stderr


def in_the_kernels_files(bundle: Bundle) -> str:
    bundle.add_mount(bind(bundle.work, "/proc/self/attr"))
    return "it is inside /proc"


def in_the_kernels_files_by_a_link(bundle: Bundle) -> str:
    (bundle.rootfs / "innocent").symlink_to("/proc/sys")
    bundle.add_mount(tmpfs("/innocent"))
    return '"/proc/sys" cannot be mounted'


def instead_of_the_kernels_files(bundle: Bundle) -> str:
    bundle.add_mount(bind(bundle.work, "/proc"))
    return "it is not of type proc"


def over_the_root(bundle: Bundle) -> str:
    bundle.add_mount(tmpfs("/"))
    return "is the root itself"


def from_nowhere(bundle: Bundle) -> str:
    bundle.add_mount(bound("nowhere", "/here", "bind"))
    return "does not exist"


@pytest.mark.parametrize(
    "wrong",
    [
        in_the_kernels_files,
        in_the_kernels_files_by_a_link,
        instead_of_the_kernels_files,
        over_the_root,
        from_nowhere,
    ],
)
def test_a_mount_that_cannot_be_is_refused(
    woodfrog: Woodfrog, make_bundle: Make, new_name: Name, wrong: Callable[[Bundle], str]
) -> None:
    bundle = make_bundle("true")
    words = wrong(bundle)
    done = woodfrog("create", "-b", str(bundle.directory), new_name(bundle), status=1)
    assert words in done.stderr


def test_without_a_mount_namespace_nothing_stays_on_the_host(
    woodfrog: Woodfrog, make_bundle: Make
) -> None:
    bundle = make_bundle("touch /work/up; exec sleep 1000")
    kinds = bundle.config["linux"]["namespaces"]
    bundle.config["linux"]["namespaces"] = [kind for kind in kinds if kind["type"] != "mount"]
    container = woodfrog.run(bundle)
    container.wait_for("up")
    assert "the container's mounts are also the host's" in container.told()
    assert os.readlink(f"/proc/{container.init}/ns/mnt") == os.readlink("/proc/self/ns/mnt")
    assert f" {bundle.rootfs}/proc " in Path("/proc/self/mountinfo").read_text()
    inside = woodfrog("exec", container.name, "sh", "-c", "pwd; cat /proc/1/comm; ls /work")
    assert inside.stdout.split() == ["/work", "sleep", "up"]
    refused = container.checkpoint(bundle.directory / "image", status=1)
    assert "shares the host's mounts" in refused.stderr
    woodfrog("delete", "--force", container.name)
    assert str(bundle.directory) not in Path("/proc/self/mountinfo").read_text()


def test_a_create_without_a_mount_namespace_that_fails_leaves_none(
    woodfrog: Woodfrog, make_bundle: Make, new_name: Name
) -> None:
    bundle = make_bundle("true")
    bundle.config["linux"]["namespaces"] = []
    del bundle.config["hostname"]
    bundle.add_mount(bound("nowhere", "/here", "bind"))
    woodfrog("create", "-b", str(bundle.directory), new_name(bundle), status=1)
    assert str(bundle.directory) not in Path("/proc/self/mountinfo").read_text()
