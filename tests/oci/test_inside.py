"""What a program finds in its container."""

import json
import os
import stat
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from bundles import Bundle, tmpfs
from containers import Done, Woodfrog
from started import line, started

Make = Callable[[str], Bundle]
Name = Callable[[Bundle], str]
Run = Callable[..., Done]


def test_new_namespaces_are_its_own(run: Run, make_bundle: Make) -> None:
    kinds = ("pid", "net", "ipc", "uts", "mnt", "cgroup")
    bundle = make_bundle(f"for k in {' '.join(kinds)}; do readlink /proc/self/ns/$k; done")
    inside = run(bundle).stdout.split()
    outside = [os.readlink(f"/proc/self/ns/{kind}") for kind in kinds]
    assert len(inside) == len(kinds)
    assert not set(inside) & set(outside)


def test_namespaces_can_be_joined(woodfrog: Woodfrog, make_bundle: Make, run: Run) -> None:
    first = woodfrog.run(make_bundle("hostname first; touch /work/up; exec sleep 1000"))
    names = {"pid": "pid", "network": "net", "ipc": "ipc", "uts": "uts"}
    bundle = make_bundle("for k in pid net ipc uts; do readlink /proc/self/ns/$k; done")
    bundle.config.pop("hostname")
    for namespace in bundle.config["linux"]["namespaces"]:
        if namespace["type"] in names:
            namespace["path"] = f"/proc/{first.init}/ns/{names[namespace['type']]}"
    expected = [os.readlink(f"/proc/{first.init}/ns/{name}") for name in names.values()]
    assert run(bundle).stdout.split() == expected


def test_a_mount_namespace_can_be_joined(run: Run, make_bundle: Make) -> None:
    with started("unshare", "--mount", "sh", "-c", "echo ready; exec sleep 1000") as holder:
        assert line(holder) == "ready"
        bundle = make_bundle("readlink /proc/self/ns/mnt; touch /work/there; ls /")
        bundle.process["scheduler"] = {"policy": "SCHED_BATCH"}
        for namespace in bundle.config["linux"]["namespaces"]:
            if namespace["type"] == "mount":
                namespace["path"] = f"/proc/{holder.pid}/ns/mnt"
        link, *found = run(bundle).stdout.split()
        assert link == os.readlink(f"/proc/{holder.pid}/ns/mnt")
        assert "work" in found
        assert (bundle.work / "there").exists()


def test_a_missing_namespace_is_the_hosts(run: Run, make_bundle: Make) -> None:
    bundle = make_bundle("readlink /proc/self/ns/net; echo $$ > /work/pid")
    bundle.config["linux"]["namespaces"] = [{"type": "mount"}, {"type": "uts"}]
    assert run(bundle).stdout.strip() == os.readlink("/proc/self/ns/net")
    assert int((bundle.work / "pid").read_text()) > 1


def test_loopback_is_up_in_a_new_network(run: Run, make_bundle: Make) -> None:
    assert run(make_bundle("cat /sys/class/net/lo/flags")).stdout.strip() == "0x9"


def test_names_and_sysctls_are_set(run: Run, make_bundle: Make) -> None:
    bundle = make_bundle(
        "cat /proc/sys/kernel/hostname /proc/sys/kernel/domainname /proc/sys/kernel/msgmax"
        " /proc/sys/net/ipv4/ip_unprivileged_port_start"
    )
    bundle.config["hostname"] = "pond"
    bundle.config["domainname"] = "forest"
    bundle.config["linux"]["sysctl"] = {
        "kernel.msgmax": "4321",
        "net/ipv4/ip_unprivileged_port_start": "99",
    }
    assert run(bundle).stdout.split() == ["pond", "forest", "4321", "99"]


def test_default_devices_and_links_are_there(run: Run, make_bundle: Make) -> None:
    script = (
        "for d in null zero full random urandom tty; do stat -c '%n %F %a %t:%T' /dev/$d; done;"
        "for l in fd stdin stdout stderr ptmx; do readlink /dev/$l; done; echo x > /dev/null"
    )
    assert run(make_bundle(script)).stdout.splitlines() == [
        "/dev/null character special file 666 1:3",
        "/dev/zero character special file 666 1:5",
        "/dev/full character special file 666 1:7",
        "/dev/random character special file 666 1:8",
        "/dev/urandom character special file 666 1:9",
        "/dev/tty character special file 666 5:0",
        "/proc/self/fd",
        "/proc/self/fd/0",
        "/proc/self/fd/1",
        "/proc/self/fd/2",
        "pts/ptmx",
    ]


def test_devices_of_the_config_are_made(run: Run, make_bundle: Make) -> None:
    bundle = make_bundle("stat -c '%F %a %u %g %t:%T' /dev/loop99 /dev/sub/pipe")
    bundle.config["linux"]["devices"] = [
        {"path": "/dev/loop99", "type": "b", "major": 7, "minor": 99, "fileMode": 0o640, "gid": 6},
        {"path": "/dev/sub/pipe", "type": "p"},
    ]
    assert run(bundle).stdout.splitlines() == [
        "block special file 640 0 6 7:63",
        "fifo 666 0 0 0:0",
    ]


def test_the_root_can_be_read_only(run: Run, make_bundle: Make) -> None:
    bundle = make_bundle("touch /file 2>/dev/null; echo $?; touch /tmp/file && echo ok")
    bundle.config["root"]["readonly"] = True
    assert run(bundle).stdout.split() == ["1", "ok"]


def test_paths_are_masked_and_protected(run: Run, make_bundle: Make) -> None:
    bundle = make_bundle(
        "wc -c < /proc/keys; ls /sys/firmware | wc -l; touch /sys/firmware/x 2>&- || echo no;"
        "echo 1 > /proc/sys/kernel/msgmax || echo no"
    )
    bundle.config["linux"]["maskedPaths"] = ["/proc/keys", "/sys/firmware", "/no/such/path"]
    bundle.config["linux"]["readonlyPaths"] = ["/proc/sys", "/no/such/path"]
    assert run(bundle).stdout.split() == ["0", "0", "no", "no"]


def test_mount_options_are_applied(run: Run, make_bundle: Make) -> None:
    bundle = make_bundle("cat /proc/self/mountinfo")
    bundle.add_mount(tmpfs("/scratch", "nodev", "noexec", "noatime", "size=1m", "mode=711"))
    bundle.add_mount(
        {
            "destination": "/ro/here",
            "type": "bind",
            "source": str(bundle.work),
            "options": ["bind", "ro", "nosuid", "rslave"],
        }
    )
    lines = {line.split()[4]: line for line in run(bundle).stdout.splitlines()}
    assert "rw,nosuid,nodev,noexec,noatime" in lines["/scratch"]
    assert "size=1024k,mode=711" in lines["/scratch"]
    assert " ro,nosuid" in lines["/ro/here"]


def test_a_file_can_be_bound_and_its_place_is_made(run: Run, make_bundle: Make) -> None:
    bundle = make_bundle("cat /deep/er/file")
    source = bundle.directory / "source"
    source.write_text("content")
    bundle.add_mount(
        {"destination": "/deep/er/file", "type": "bind", "source": "source", "options": ["bind"]}
    )
    assert run(bundle).stdout == "content"


def test_a_mount_cannot_leave_the_root_by_a_symbolic_link(
    run: Run, make_bundle: Make, tmp_path: Path
) -> None:
    outside = tmp_path / "outside"
    outside.mkdir()
    bundle = make_bundle("ls -d /link; cat /proc/self/mountinfo")
    # From inside, an absolute link leads to a directory in the root, which gets made.
    (bundle.rootfs / "link").symlink_to(f"../../../../../..{outside}")
    bundle.add_mount(tmpfs("/link"))
    lines = run(bundle).stdout.splitlines()
    assert any(line.split()[4:5] == [str(outside)] for line in lines[1:])
    assert not list(outside.iterdir())


def test_proc_through_a_symbolic_link_is_refused(
    woodfrog: Woodfrog, make_bundle: Make, new_name: Name
) -> None:
    bundle = make_bundle("true")
    (bundle.rootfs / "proc").rmdir()
    (bundle.rootfs / "proc").symlink_to("tmp")
    done = woodfrog("create", "-b", str(bundle.directory), new_name(bundle), status=1)
    assert "must be mounted on ordinary directory" in done.stderr


def test_the_container_sees_its_own_cgroup(run: Run, make_bundle: Make) -> None:
    bundle = make_bundle(
        "cat /proc/self/cgroup; cat /sys/fs/cgroup/pids/cgroup.procs; ls /sys/fs/cgroup"
    )
    bundle.add_mount(
        {"destination": "/sys/fs/cgroup", "type": "cgroup", "source": "cgroup", "options": ["ro"]}
    )
    if not Path("/sys/fs/cgroup/pids").exists():
        pytest.skip("this machine has no v1 pids controller")
    lines = run(bundle).stdout.splitlines()
    assert any(line.endswith(":pids:/") for line in lines)
    assert "1" in lines
    assert "memory" in lines


def test_capabilities_are_those_of_the_config(run: Run, make_bundle: Make) -> None:
    bundle = make_bundle("grep ^Cap /proc/self/status; grep NoNew /proc/self/status")
    bundle.process["capabilities"] = {
        "bounding": ["CAP_CHOWN", "CAP_KILL", "CAP_NET_RAW"],
        "permitted": ["CAP_CHOWN", "CAP_KILL"],
        "inheritable": ["CAP_KILL"],
        "effective": ["CAP_CHOWN", "CAP_KILL"],
        "ambient": ["CAP_KILL"],
    }
    bundle.process["user"] = {"uid": 5, "gid": 6}
    bundle.process["noNewPrivileges"] = True
    found = dict(line.split(":\t") for line in run(bundle).stdout.splitlines())
    # After exec by an ordinary user the ambient ones are left.
    assert int(found["CapBnd"], 16) == 1 << 0 | 1 << 5 | 1 << 13
    assert int(found["CapInh"], 16) == 1 << 5
    assert int(found["CapPrm"], 16) == 1 << 5
    assert int(found["CapEff"], 16) == 1 << 5
    assert int(found["CapAmb"], 16) == 1 << 5
    assert found["NoNewPrivs"] == "1"


def test_no_capabilities_means_none(run: Run, make_bundle: Make) -> None:
    bundle = make_bundle("grep ^Cap /proc/self/status")
    del bundle.process["capabilities"]
    masks = {line.split()[1] for line in run(bundle).stdout.splitlines()}
    assert masks == {"0" * 16}


def test_user_groups_umask_and_cwd_apply(run: Run, make_bundle: Make) -> None:
    bundle = make_bundle("id -u; id -g; id -G; umask; pwd; echo $HOME $EXTRA; touch /work/file")
    bundle.process["user"] = {"uid": 7, "gid": 8, "additionalGids": [9, 10], "umask": 0o27}
    bundle.process["cwd"] = "/new/place"
    bundle.process["env"] = ["PATH=/usr/bin:/bin", "EXTRA=a=b"]
    lines = run(bundle).stdout.splitlines()
    assert lines[:5] == ["7", "8", "8 9 10", "0027", "/new/place"]
    assert lines[5].endswith(" a=b")
    status = (bundle.work / "file").stat()
    assert (status.st_uid, status.st_gid, status.st_mode & 0o777) == (7, 8, 0o640)


def test_limits_are_set(run: Run, make_bundle: Make) -> None:
    bundle = make_bundle("cat /proc/self/limits; cat /proc/self/oom_score_adj")
    bundle.process["rlimits"] = [
        {"type": "RLIMIT_NOFILE", "soft": 123, "hard": 456},
        {"type": "RLIMIT_CORE", "soft": 0, "hard": 0},
    ]
    bundle.process["oomScoreAdj"] = 321
    out = run(bundle).stdout
    limits = {line[:25].strip(): line[26:].split() for line in out.splitlines()}
    assert limits["Max open files"][:2] == ["123", "456"]
    assert limits["Max core file size"][:2] == ["0", "0"]
    assert out.splitlines()[-1] == "321"


def test_the_program_inherits_no_descriptor_and_no_ignored_signal(
    run: Run, make_bundle: Make
) -> None:
    bundle = make_bundle("ls /proc/$$/fd; exec grep -E 'SigIgn|SigBlk' /proc/self/status")
    lines = run(bundle).stdout.split()
    assert lines[:3] == ["0", "1", "2"]
    assert lines[3:] == ["SigBlk:", "0" * 16, "SigIgn:", "0" * 16]


def test_preserved_descriptors_are_passed_on(
    woodfrog: Woodfrog, make_bundle: Make, new_name: Name
) -> None:
    bundle = make_bundle("cat <&3")
    name = new_name(bundle)
    read, write = os.pipe()
    os.write(write, b"through\n")
    os.close(write)
    command = woodfrog.command("run", "--preserve-fds=1", "-b", str(bundle.directory), name)
    redirect = ["bash", "-c", f'exec "$@" 3<&{read}', "bash", *command]
    done = subprocess.run(redirect, pass_fds=[read], stdout=subprocess.PIPE, check=True)
    os.close(read)
    assert done.stdout == b"through\n"


@pytest.mark.parametrize("no_new_privs", [True, False])
def test_a_seccomp_profile_is_obeyed(run: Run, make_bundle: Make, no_new_privs: bool) -> None:
    bundle = make_bundle("grep Seccomp: /proc/self/status; mkdir /tmp/x; echo $?; sync; echo $?")
    bundle.process["noNewPrivileges"] = no_new_privs
    bundle.process["user"] = {"uid": 1000, "gid": 1000}
    bundle.config["linux"]["seccomp"] = {
        "defaultAction": "SCMP_ACT_ALLOW",
        "architectures": ["SCMP_ARCH_X86_64", "SCMP_ARCH_X86", "SCMP_ARCH_X32"],
        "syscalls": [
            {"names": ["mkdir", "mkdirat"], "action": "SCMP_ACT_ERRNO", "errnoRet": 99},
            {"names": ["sync", "no_such_call"], "action": "SCMP_ACT_KILL_PROCESS"},
            {
                "names": ["personality"],
                "action": "SCMP_ACT_ERRNO",
                "args": [{"index": 0, "value": 8, "op": "SCMP_CMP_EQ"}],
            },
        ],
    }
    done = run(bundle)
    assert done.stdout.split() == ["Seccomp:", "2", "1", "159"]
    assert "Cannot assign requested address" in done.stderr


def test_what_is_not_done_yet_is_warned_about(run: Run, make_bundle: Make) -> None:
    bundle = make_bundle("true")
    # No host has both.
    selinux = Path("/sys/fs/selinux/enforce").exists()
    lacking = "apparmorProfile" if selinux else "selinuxLabel"
    bundle.process[lacking] = "anything"
    bundle.process["capabilities"]["bounding"].append("CAP_NONSENSE")
    bundle.config["nonsense"] = 1
    warnings = run(bundle).stderr
    assert f"process.{lacking} has no effect" in warnings
    assert "CAP_NONSENSE is unknown" in warnings
    assert "nonsense is an unknown field" in warnings


@pytest.mark.parametrize(
    "path, value, message",
    [
        (["process", "args"], [], "process.args is missing or empty"),
        (["process", "args"], "sh", "process.args must be a list"),
        (["process", "cwd"], "relative", "process.cwd must be an absolute path"),
        (["process", "user"], {"uid": "0"}, "process.user.uid must be a whole number"),
        (["mounts"], {}, "mounts must be a list"),
        (["linux", "intelRdt"], {"closID": "x"}, "linux.intelRdt is not supported"),
        (["hooks"], {"poststop": [{"path": "sh"}]}, "hooks.poststop[0].path must be absolute"),
        (["linux", "cgroupsPath"], "a.slice:b:c", "slice:prefix:name"),
        (["ociVersion"], "2.0.0", "only 1.x is known"),
        (
            ["process", "rlimits"],
            [{"type": "RLIMIT_X", "soft": 1, "hard": 1}],
            "no limit named 'RLIMIT_X'",
        ),
    ],
)
def test_a_wrong_config_is_refused_by_its_place(
    woodfrog: Woodfrog,
    make_bundle: Make,
    path: list[str],
    value: object,
    message: str,
) -> None:
    bundle = make_bundle("true")
    place = bundle.config
    for key in path[:-1]:
        place = place[key]
    place[path[-1]] = value
    bundle.save()
    done = woodfrog("create", "-b", str(bundle.directory), "wrong", status=1)
    assert message in done.stderr
    assert not woodfrog.root.exists() or not list(woodfrog.root.iterdir())


def test_text_that_is_no_json_is_refused(woodfrog: Woodfrog, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text('{"ociVersion": }')
    assert "not valid JSON" in woodfrog("create", "-b", str(tmp_path), "x", status=1).stderr
    (tmp_path / "config.json").unlink()
    assert "no config.json" in woodfrog("create", "-b", str(tmp_path), "x", status=1).stderr


def test_the_specs_own_config_runs(
    woodfrog: Woodfrog, make_bundle: Make, tmp_path: Path, new_name: Name
) -> None:
    bundle = make_bundle("true")
    extra = bundle.config["mounts"][-len(bundle.config["mounts"]) + 7 :]
    woodfrog("spec", "--bundle", str(tmp_path))
    config = json.loads((tmp_path / "config.json").read_text())
    assert config["process"]["args"] == ["sh"]
    assert config["process"]["terminal"] is True
    config["process"]["terminal"] = False
    config["process"]["args"] = ["sh", "-c", "echo fine"]
    config["mounts"] += extra
    bundle.config = config
    name = new_name(bundle)
    done = woodfrog("run", "-b", str(bundle.directory), name)
    assert done.stdout == "fine\n"
    assert done.stderr == ""
    assert "exists already" in woodfrog("spec", "--bundle", str(tmp_path), status=1).stderr


@pytest.mark.parametrize("interpreter", ["/proc/self/exe", "/work/link"])
def test_the_runtimes_own_interpreter_cannot_be_the_program(
    woodfrog: Woodfrog, make_bundle: Make, new_name: Name, interpreter: str
) -> None:
    bundle = make_bundle("")
    (bundle.work / "link").symlink_to("/proc/self/exe")
    script = bundle.work / "script"
    script.write_text(f"#!{interpreter}\n")
    script.chmod(0o755)
    for program in (interpreter, "/work/script"):
        bundle.process["args"] = [program]
        done = woodfrog("create", "-b", str(bundle.directory), new_name(bundle), status=1)
        assert "it is a link in /proc" in done.stderr


@pytest.mark.parametrize(
    "first_line",
    ["#!/work/inner", "#! \t/work/inner -x", "#!link", "#!/work/tab\v", "#!/work/nested"],
    ids=["script", "blanks", "relative", "name-with-a-tab", "nested"],
)
def test_no_script_leads_to_the_runtimes_own_interpreter(
    woodfrog: Woodfrog, make_bundle: Make, new_name: Name, first_line: str
) -> None:
    bundle = make_bundle("")
    for name in ("link", "tab\v"):
        (bundle.work / name).symlink_to("/proc/self/exe")
    scripts = {"inner": "#!/work/link", "nested": "#!/work/inner", "script": first_line}
    for name, text in scripts.items():
        (bundle.work / name).write_text(f"{text}\n")
        (bundle.work / name).chmod(0o755)
    bundle.process["args"] = ["/work/script"]
    done = woodfrog("create", "-b", str(bundle.directory), new_name(bundle), status=1)
    assert "it is a link in /proc" in done.stderr


def test_nobody_inside_learns_how_the_runtime_was_called(
    woodfrog: Woodfrog, make_bundle: Make, new_name: Name
) -> None:
    bundle = make_bundle("")
    name = new_name(bundle)
    woodfrog("create", "-b", str(bundle.directory), name)
    pid = json.loads(woodfrog("state", name).stdout)["pid"]
    assert Path(f"/proc/{pid}/cmdline").read_bytes() == b"woodfrog\0init\0"
    woodfrog("delete", "--force", name)


def test_nobody_inside_can_change_the_hosts_null_device(
    woodfrog: Woodfrog, make_bundle: Make, new_name: Name, tmp_path: Path
) -> None:
    os.mknod(tmp_path / "null", 0o666 | stat.S_IFCHR, os.makedev(1, 3))
    (tmp_path / "null").chmod(0o666)
    bundle = make_bundle("chmod 600 /proc/self/fd/0; stat -L -c %a /proc/self/fd/0 /dev/null")
    command = woodfrog.command("run", "-b", str(bundle.directory), new_name(bundle))
    with (tmp_path / "null").open() as null:
        done = subprocess.run(command, stdin=null, capture_output=True, text=True)
    assert done.stdout.split() == ["600", "600"], done.stderr
    assert (tmp_path / "null").stat().st_mode & 0o777 == 0o666
