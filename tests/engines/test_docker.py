"""Docker with woodfrog as its runtime: what people do with containers."""

import json
import os
import socket
import time
from pathlib import Path

from containers import eventually
from docker_engine import IMAGE, Docker
from terminals import set_size


def test_who_a_container_is(docker: Docker) -> None:
    told = docker.say(
        "id; hostname; pwd; echo $WORD; ulimit -n; cat /proc/self/oom_score_adj; ps; touch /x;"
        "grep -E 'CapEff|CapBnd|NoNewPrivs|Seccomp:' /proc/self/status;"
        "df /t | tail -1; df /dev/shm | tail -1; touch /t/y; cat /proc/sys/net/ipv4/ip_forward;"
        "exit 3",
        *("--init", "--user=1000:1000", "--group-add=55", "--hostname=pond", "--workdir=/srv"),
        *("--env=WORD=ribbit", "--ulimit=nofile=100:200", "--oom-score-adj=100", "--read-only"),
        *("--cap-drop=ALL", "--security-opt=no-new-privileges", "--tmpfs=/t:size=1m,mode=1777"),
        *("--shm-size=2m", "--sysctl=net.ipv4.ip_forward=0"),
        status=3,
    )
    lines = [" ".join(line.split()) for line in told.splitlines()]
    assert lines[:6] == [
        "uid=1000(frog) gid=1000(frog) groups=55,1000(frog)",
        *("pond", "/srv", "ribbit", "100", "100"),
    ]
    assert any(line.startswith("1 frog /sbin/docker-init -- sh") for line in lines)
    assert "touch: /x: Read-only file system" in lines
    assert "CapEff: 0000000000000000" in lines
    assert "CapBnd: 0000000000000000" in lines
    assert "NoNewPrivs: 1" in lines
    assert "Seccomp: 2" in lines
    assert any(line.startswith("tmpfs 1024 ") for line in lines)
    assert any(line.startswith("shm 2048 ") for line in lines)
    assert not any("touch: /t" in line for line in lines)


def test_privileges_devices_and_host_namespaces(docker: Docker) -> None:
    told = docker.say(
        "ls -l /dev/tap; head -c 4 /dev/tap | od -An -tx1; grep CapEff /proc/self/status;"
        "mount -t tmpfs x /mnt 2>&1; mkdir /tmp/m && mount -t tmpfs x /tmp/m && echo mounted;"
        "ps | grep -c dockerd; hostname",
        *("--device=/dev/zero:/dev/tap", "--privileged", "--pid=host", "--uts=host"),
        "--ipc=host",
    ).splitlines()
    assert told[0].startswith("crw")
    assert told[1] == " 00 00 00 00"
    assert int(told[2].split()[1], 16) & 1 << 21
    assert "mounted" in told
    assert int(told[-2]) > 1
    assert told[-1] == socket.gethostname()
    # Without privileges a device that wasn't given can't be made either.
    told = docker.say(
        "mknod /m c 1 1 && head -c 1 /m; head -c 1 /dev/tap | od -An -tx1",
        "--device=/dev/zero:/dev/tap:r",
    )
    assert "/m: Operation not permitted" in told
    assert " 00" in told.splitlines()


def test_volumes(docker: Docker, tmp_path: Path) -> None:
    (tmp_path / "word").write_text("ribbit\n")
    told = docker.say(
        "cat /read/word; echo no > /read/word; echo yes > /write/new; echo kept > /volume/x;"
        "cat /one",
        *("-v", f"{tmp_path}:/read:ro", "-v", f"{tmp_path}:/write", "-v", "pond:/volume"),
        *("--mount", f"type=bind,src={tmp_path}/word,dst=/one,readonly"),
    )
    assert told.count("ribbit") == 2
    assert "/read/word: Read-only file system" in told
    assert (tmp_path / "new").read_text() == "yes\n"
    assert docker.say("cat /volume/x", "-v", "pond:/volume") == "kept\n"
    docker("volume", "rm", "pond")


def test_a_seccomp_profile_of_ones_own(docker: Docker, tmp_path: Path) -> None:
    profile = {
        "defaultAction": "SCMP_ACT_ALLOW",
        "syscalls": [{"names": ["mkdir"], "action": "SCMP_ACT_ERRNO", "errnoRet": 28}],
    }
    (tmp_path / "profile.json").write_text(json.dumps(profile))
    told = docker.say("mkdir /x", f"--security-opt=seccomp={tmp_path}/profile.json", status=1)
    assert "No space left on device" in told
    told = docker.say("grep Seccomp: /proc/self/status", "--security-opt=seccomp=unconfined")
    assert told.split() == ["Seccomp:", "0"]


def test_networks(docker: Docker) -> None:
    assert docker.say("ip -o link | wc -l", "--network=none").strip() == "1"
    assert "docker0" in docker.say("ip -o link", "--network=host")
    docker("network", "create", "pond")
    docker.run(
        "web",
        "mkdir /w; echo ribbit > /w/x; httpd -f -p 80 -h /w",
        "--network=pond",
        "--network-alias=toad",
        "--publish=18080:80",
    )
    assert docker.say("wget -qO- http://toad/x", "--network=pond") == "ribbit\n"
    for address in ("127.0.0.1", "10.213.7.1"):
        with docker.connection(address, 18080) as connection:
            connection.sendall(b"GET /x HTTP/1.0\r\n\r\n")
            assert connection.makefile("rb").read().endswith(b"ribbit\n")
    docker("rm", "--force", "web")
    docker("network", "rm", "pond")


def test_a_terminal(docker: Docker) -> None:
    with docker.terminal("run", "--rm", "-it", "--name=tty", IMAGE, "sh") as terminal:
        # The client tells the daemon its size after the start, and whenever it changes.
        until = "until [ \"$(stty size 2> /dev/null)\" = '{}' ]; do :; done; tty; echo RE''ADY\r"
        terminal.write(until.format("30 90"))
        assert "/dev/pts/0" in terminal.read_until("READY")
        set_size(terminal.master, 40, 100)
        terminal.write(until.format("40 100"))
        terminal.read_until("READY")
        with docker.terminal("exec", "-it", "tty", "sh") as other:
            other.write("tty; ps -o pid,tty,args; exit 5\r")
            assert "/dev/pts/1" in other.read_until("136,1")
            assert other.status() == 5
        terminal.write("sleep 1000\r")
        eventually(lambda: "sleep 1000" in docker("top", "tty").stdout, "the sleep runs")
        terminal.write("\x03exit 6\r")
        assert terminal.status() == 6


def limits(docker: Docker, name: str) -> dict[str, str]:
    """Return limits of a container, from its cgroup as it sees it itself."""
    files = {
        "memory": ("memory/memory.limit_in_bytes", "memory.max"),
        "cpu": ("cpu/cpu.cfs_quota_us", "cpu.max"),
        "pids": ("pids/pids.max", "pids.max"),
    }
    found = {}
    for what, places in files.items():
        script = f"cd /sys/fs/cgroup; cat {' '.join(places)} 2> /dev/null; true"
        found[what] = docker("exec", name, "sh", "-c", script).stdout.split()[0]
    return found


def test_a_container_has_limits(docker: Docker) -> None:
    flags = ("--memory=32m", "--cpus=0.25", "--pids-limit=10", "--cpuset-cpus=0")
    docker.run("pond", "sleep 1000", *flags)
    assert limits(docker, "pond") == {"memory": "33554432", "cpu": "25000", "pids": "10"}
    allowed = docker("exec", "pond", "grep", "Cpus_allowed_list", "/proc/1/status").stdout
    assert allowed.split()[1] == "0"


def test_a_container_is_watched_and_steered(docker: Docker) -> None:
    docker.run(
        "pond",
        "trap 'echo ribbit' USR2; trap 'exit 7' TERM; echo begun; sleep 1000 &"
        "while :; do wait; done",
    )
    eventually(lambda: docker.logs("pond") == ["begun"], "it begins")
    docker("kill", "--signal=USR2", "pond")
    eventually(lambda: docker.logs("pond") == ["begun", "ribbit"], "it gets a signal")
    assert "sleep 1000" in docker("top", "pond").stdout
    # 2 processes in its cgroup, as the daemon counts them by itself.
    assert docker("stats", "--no-stream", "--format={{.PIDs}}", "pond").stdout.strip() == "2"

    docker("pause", "pond")
    assert docker.inspect("pond", ".State.Status") == "paused"
    assert "unpause the container" in docker("exec", "pond", "true", status=1).stderr
    docker("unpause", "pond")

    inside = docker(
        *("exec", "--env=A=b", "--workdir=/tmp", "--user=frog", "pond"),
        *("sh", "-c", "id -u; pwd; echo $A; exit 4"),
        status=4,
    )
    assert inside.stdout.split() == ["1000", "/tmp", "b"]
    assert docker("exec", "-i", "pond", "cat", given="word").stdout == "word"
    missing = docker("exec", "pond", "nonesuch", status=126)
    assert '"nonesuch": executable file not found in $PATH' in missing.stdout + missing.stderr

    docker("update", "--memory=64m", "--memory-swap=64m", "--cpus=0.5", "--pids-limit=20", "pond")
    assert limits(docker, "pond") == {"memory": "67108864", "cpu": "50000", "pids": "20"}

    docker("cp", "/etc/hostname", "pond:/tmp/copied")
    assert "C /tmp\nA /tmp/copied" in docker("diff", "pond").stdout
    docker("stop", "pond")
    assert docker.inspect("pond", ".State.ExitCode") == "7"
    docker("start", "pond")
    docker("restart", "--time=0", "pond")
    docker("kill", "pond")
    assert docker.inspect("pond", ".State.ExitCode") == "137"
    docker("rm", "pond")


def test_what_happens_is_told(docker: Docker) -> None:
    since = str(time.time())
    docker.run("fat", "tail /dev/zero", "--memory=16m")
    docker.ends("fat")
    assert docker.inspect("fat", ".State.OOMKilled") == "true"
    docker.run("again", "echo tried; exit 1", "--restart=on-failure:2")
    eventually(lambda: docker.inspect("again", ".State.Status") == "exited", "it gives up")
    assert docker.logs("again") == ["tried"] * 3
    events = docker(
        "events",
        f"--since={since}",
        f"--until={time.time() + 1}",
        "--format={{.Actor.Attributes.name}} {{.Action}}",
    ).stdout.splitlines()
    assert "fat oom" in events
    assert events.count("again start") == 3
    assert events.count("again die") == 3


def test_health_is_looked_at(docker: Docker) -> None:
    docker.run(
        "frog",
        "trap 'exit 0' TERM; sleep 1000 & wait",
        "--health-cmd=test -e /tmp/ill && exit 1 || true",
        "--health-interval=200ms",
        "--health-retries=1",
    )
    health = ".State.Health.Status"
    eventually(lambda: docker.inspect("frog", health) == "healthy", "it is healthy")
    docker("exec", "frog", "touch", "/tmp/ill")
    eventually(lambda: docker.inspect("frog", health) == "unhealthy", "it is ill")


def test_what_cannot_start_says_why(docker: Docker) -> None:
    done = docker("run", "--rm", IMAGE, "nonesuch", status=127)
    assert 'exec: "nonesuch": executable file not found in $PATH' in done.stderr
    done = docker("run", "--rm", IMAGE, "/etc/passwd", status=126)
    assert 'exec: "/etc/passwd": permission denied' in done.stderr
    done = docker("run", "--rm", "--volume=/etc/passwd:/tmp", IMAGE, "true", status=125)
    assert "Are you trying to mount a directory onto a file" in done.stderr
    assert docker("ps", "--all", "--quiet").stdout == ""
    assert os.listdir(docker.directory / "exec/runtime-runc/moby") == []
