"""Containers that are forked from an image that lies ready: `warm` and `restore --template`."""

import json
import os
import re
import shutil
import signal
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest
from test_background import ACTS, frozen

from bundles import Bundle
from containers import Woodfrog, eventually, is_gone, launcher_without_python, verdict
from needs import needs

pytestmark = needs("root", "command gcc")

Build = Callable[..., Path]
KEEPER = Path(__file__).parent / "templates" / "keeper.c"
MiB = 1 << 20
WITH_A_CHILD = "sleep 1000 & : > /work/ready; wait"


def keeper(
    woodfrog: Woodfrog, build: Build, processors: set[int] | None = None
) -> tuple[Bundle, Path]:
    """Freeze a program with 32 MiB that ends with status 7 on SIGTERM; returns bundle and image.

    It may be bound to some processors.
    """
    program = build(KEEPER)
    bundle = Bundle(woodfrog.directory / "bundle", ["/" + program.name])
    shutil.copy(program, bundle.rootfs / program.name)
    container = woodfrog.run(bundle)
    container.wait_for("ready")
    if processors:
        os.sched_setaffinity(container.init, processors)
    container.checkpoint(woodfrog.directory / "image", "--sync=none")
    container.delete()
    return bundle, woodfrog.directory / "image"


def listed(woodfrog: Woodfrog) -> dict[str, int]:
    """Return the templates that are ready, and their supervisors' pids."""
    lines = woodfrog("warm", "--list").stdout.splitlines()[1:]
    return {line.split()[0]: int(line.split()[1]) for line in lines}


def private_bytes(pid: int) -> int:
    """Return how much anonymous memory a process has for itself."""
    text = Path(f"/proc/{pid}/smaps").read_text()
    found = 0
    for mapping in re.split(r"\n(?=[0-9a-f]+-)", text):
        if " 00:00 0 " in mapping:
            found += sum(int(size) for size in re.findall(r"Private_Dirty: +(\d+)", mapping))
    return found * 1024


@pytest.mark.parametrize("act", sorted(ACTS))
def test_memory_from_a_template_behaves_like_any(
    act: str, woodfrog: Woodfrog, build: Build
) -> None:
    bundle, image = frozen(woodfrog, build, act)
    assert verdict(woodfrog.restore_from_template(bundle, image)) == "ok\n"


def test_one_maker_makes_each_clone_like_the_first(woodfrog: Woodfrog, build: Build) -> None:
    bundle, image = frozen(woodfrog, build, "forks")
    woodfrog("warm", f"--image-path={image}", "t")
    supervisor = listed(woodfrog)["t"]
    before = makers(supervisor)
    for _ in range(3):
        container = woodfrog.clone("t", bundle)
        assert verdict(container) == "ok\n"
        container.delete()
        for name in ("check", "out"):
            (bundle.work / name).unlink()
    eventually(lambda: makers(supervisor) == before, "the maker is idle")
    woodfrog("warm", "--drop", "t")


@pytest.mark.parametrize("is_bound", (False, True))
def test_a_clone_runs_on_all_processors_that_it_had(
    woodfrog: Woodfrog, build: Build, is_bound: bool
) -> None:
    everything = os.sched_getaffinity(0)
    its = {max(everything)} if is_bound else everything
    bundle, image = keeper(woodfrog, build, its if is_bound else None)
    woodfrog("warm", f"--image-path={image}", "t")
    for _ in range(3):
        container = woodfrog.clone("t", bundle)
        assert os.sched_getaffinity(container.init) == its
        container.delete()
    # Who made it has been on one processor only meanwhile.
    for maker in makers(listed(woodfrog)["t"]):
        eventually(lambda pid=maker: os.sched_getaffinity(pid) == everything, "it runs everywhere")
    woodfrog("warm", "--drop", "t")


def test_a_clone_may_tell_what_happens(woodfrog: Woodfrog, build: Build) -> None:
    bundle, image = keeper(woodfrog, build)
    woodfrog("warm", f"--image-path={image}", "t")
    flags = ("--template=t", f"--bundle={bundle.directory}", "--detach")
    woodfrog.names.append("told")
    woodfrog("--debug", f"--log={woodfrog.directory}/log", "restore", *flags, "told")
    woodfrog("warm", "--drop", "t")
    woodfrog("kill", "told", "TERM")
    assert json.loads(woodfrog("wait", "told").stdout)["exitStatus"] == 7


def test_who_asks_for_clones_starts_no_interpreter(woodfrog: Woodfrog, build: Build) -> None:
    bundle, image = keeper(woodfrog, build)
    woodfrog("warm", f"--image-path={image}", "t")
    woodfrog.names.append("one")
    flags = ("restore", "--detach", "--template=t", f"--bundle={bundle.directory}", "one")
    launcher = launcher_without_python(woodfrog.directory / "clone")
    _, *words = woodfrog.command(*flags)
    subprocess.run([launcher, *words], check=True, stdout=subprocess.DEVNULL)
    assert '"running"' in woodfrog("state", "one").stdout
    # What is wrong is told as ever.
    assert "exists: --template makes a new one" in woodfrog(*flags, status=1).stderr
    supervisor = listed(woodfrog)["t"]
    woodfrog("warm", "--drop", "t")
    assert "hint: restore into that container" in woodfrog(*flags, status=1).stderr
    woodfrog("delete", "--force", "one")
    eventually(lambda: is_gone(supervisor), "it ends")


def test_many_share_what_none_of_them_writes_to(woodfrog: Woodfrog, build: Build) -> None:
    bundle, image = keeper(woodfrog, build)
    woodfrog("warm", f"--image-path={image}", "t")
    shutil.rmtree(image)  # it isn't needed any more
    del bundle.config["linux"]["cgroupsPath"]  # each has its own
    bundle.save()
    woodfrog("restore", "--template=t", f"--bundle={bundle.directory}", "--count=3", "many")
    names = [f"many-{number}" for number in (1, 2, 3)]
    woodfrog.names += names
    for name in names:
        state = json.loads(woodfrog("state", name).stdout)
        assert state["status"] == "running"
        assert private_bytes(state["pid"]) <= 1 * MiB
    woodfrog("warm", "--drop", "t")
    assert listed(woodfrog) == {}
    for name in names:
        woodfrog("kill", name, "TERM")
        assert json.loads(woodfrog("wait", name).stdout)["exitStatus"] == 7


def test_the_exit_status_comes_back(woodfrog: Woodfrog, build: Build) -> None:
    bundle, image = keeper(woodfrog, build)
    woodfrog("warm", f"--image-path={image}", "t")
    woodfrog.names.append("one")
    command = woodfrog.command("restore", "--template=t", f"--bundle={bundle.directory}", "one")
    with subprocess.Popen(command, stdin=subprocess.DEVNULL) as process:
        eventually(lambda: '"running"' in woodfrog("state", "one", status=None).stdout, "it runs")
        process.send_signal(signal.SIGTERM)  # which is passed on
        assert process.wait(60) == 7
    assert "does not exist" in woodfrog("state", "one", status=1).stderr
    woodfrog("warm", "--drop", "t")


def test_a_supervisor_that_is_killed_takes_its_template_along(
    woodfrog: Woodfrog, build: Build
) -> None:
    bundle, image = keeper(woodfrog, build)
    woodfrog("warm", f"--image-path={image}", "t")
    assert (
        "there is a template t already"
        in woodfrog("warm", f"--image-path={image}", "t", status=1).stderr
    )
    flags = ("--template=t", f"--bundle={bundle.directory}")
    woodfrog.names.append("early")
    woodfrog("restore", *flags, "--detach", "early")
    supervisor = listed(woodfrog)["t"]

    os.kill(supervisor, signal.SIGKILL)
    eventually(lambda: is_gone(supervisor), "the supervisor ends")

    assert listed(woodfrog) == {}
    failed = woodfrog("restore", *flags, "late", status=1)
    assert "there is no template t" in failed.stderr
    assert '"running"' in woodfrog("state", "early").stdout


def hook(script: str) -> dict[str, list[dict[str, object]]]:
    """Return hooks that run a script when a container has been made, before it is restored."""
    return {"createRuntime": [{"path": "/bin/sh", "args": ["sh", "-c", script]}]}


def makers(supervisor: int) -> list[int]:
    """Return the pids of a supervisor's makers."""
    children = Path(f"/proc/{supervisor}/task/{supervisor}/children").read_text().split()
    names = {int(pid): Path(f"/proc/{pid}/comm").read_text() for pid in children}
    return [pid for pid, name in names.items() if name == "woodfrog-warm\n"]


def test_a_maker_that_is_killed_makes_way_for_another(woodfrog: Woodfrog, build: Build) -> None:
    bundle, image = keeper(woodfrog, build)
    woodfrog("warm", f"--image-path={image}", "t")
    supervisor = listed(woodfrog)["t"]
    flags = ("--template=t", f"--bundle={bundle.directory}", "--detach")
    (idle,) = makers(supervisor)
    os.kill(idle, signal.SIGKILL)
    woodfrog.names += ["halves", "whole", "after"]

    # In the middle: its container goes with it, all that is left is what `delete` finds.
    bundle.config["hooks"] = hook("kill -KILL $PPID")
    bundle.save()
    failed = woodfrog("restore", *flags, "halves", status=1)
    assert "template t has ended, or who worked for it" in failed.stderr
    eventually(lambda: '"stopped"' in woodfrog("state", "halves").stdout, "its init ends")
    woodfrog("delete", "halves")

    del bundle.config["hooks"]
    bundle.save()
    for name in ("whole", "after"):
        woodfrog("restore", *flags, name)
        assert '"running"' in woodfrog("state", name).stdout
        woodfrog("delete", "--force", name)
    # One stays for the next, and goes with the template.
    (idle,) = makers(supervisor)
    woodfrog("warm", "--drop", "t")
    eventually(lambda: is_gone(idle) and is_gone(supervisor), "both end")


def test_a_clone_that_fails_leaves_nothing(woodfrog: Woodfrog, build: Build) -> None:
    bundle, image = keeper(woodfrog, build)
    woodfrog("warm", f"--image-path={image}", "t")
    flags = ("--template=t", f"--bundle={bundle.directory}", "--detach")
    bundle.config["hooks"] = hook("exit 3")
    bundle.save()

    failed = woodfrog("restore", *flags, "one", status=1)

    assert "createRuntime hook" in failed.stderr
    assert "does not exist" in woodfrog("state", "one", status=1).stderr
    assert woodfrog("list", "-q").stdout == ""
    del bundle.config["linux"]["cgroupsPath"]  # each has its own
    bundle.save()
    failed = woodfrog("restore", *flags, "--count=2", "two", status=1)
    assert failed.stderr.count("createRuntime hook") == 2
    assert woodfrog("list", "-q").stdout == ""
    supervisor = listed(woodfrog)["t"]
    woodfrog("warm", "--drop", "t")
    eventually(lambda: is_gone(supervisor), "it ends")


def test_a_clone_that_fails_leaves_its_siblings_alone(woodfrog: Woodfrog) -> None:
    """The first one fails when whoever made the second one has ended, and nobody has waited yet."""
    bundle = Bundle(woodfrog.directory / "bundle", ["/bin/sh", "-c", WITH_A_CHILD])
    bundle.add_host_programs()
    container = woodfrog.run(bundle)
    container.wait_for("ready")
    image = woodfrog.directory / "image"
    container.checkpoint(image, "--sync=none")
    container.delete()
    woodfrog("warm", f"--image-path={image}", "t")
    del bundle.config["linux"]["cgroupsPath"]  # each has its own
    bundle.config["linux"]["resources"] = {"pids": {"limit": 1}}
    maker = woodfrog.directory / "maker"
    bundle.config["hooks"] = hook(
        f"""case $(cat) in
            *'"many-2"'*) echo $PPID > {maker}.new; mv {maker}.new {maker};;
            *) until [ -e {maker} ] && ! grep -q '^State:.[^Z]' /proc/$(cat {maker})/status
            do sleep 0.01; done;;
        esac"""
    )
    bundle.save()
    woodfrog.names += ["many-1", "many-2"]

    flags = ("--template=t", f"--bundle={bundle.directory}", "--count=2")
    failed = woodfrog("restore", *flags, "many", status=1)

    assert failed.stderr.count("Resource temporarily unavailable") == 2
    assert failed.stderr.count("woodfrog:") == 2
    assert woodfrog("list", "-q").stdout == ""
    woodfrog("warm", "--drop", "t")


def test_each_config_is_checked_and_warned_of(woodfrog: Woodfrog, build: Build) -> None:
    bundle, image = keeper(woodfrog, build)
    woodfrog("warm", f"--image-path={image}", "t")
    flags = ("--template=t", f"--bundle={bundle.directory}")
    woodfrog.names += ["one", "more-1", "more-2"]

    def attempt(status: int = 0) -> str:
        """Make a clone, by the maker that has made the one before, and remove it."""
        done = woodfrog("restore", *flags, "--detach", "one", status=status)
        woodfrog("delete", "--force", "one")
        return done.stderr

    assert attempt() == attempt() == ""
    bundle.process["rlimits"] = [{"type": "RLIMIT_SLEEP", "soft": 1, "hard": 1}]
    bundle.save()
    assert "there is no limit named 'RLIMIT_SLEEP'" in attempt(status=1)
    del bundle.process["rlimits"]
    bundle.save()
    assert attempt() == ""
    # Of this one each is told.
    bundle.process["capabilities"]["bounding"].append("CAP_SLEEP")
    del bundle.config["linux"]["cgroupsPath"]
    bundle.save()
    assert "CAP_SLEEP is unknown" in attempt()
    assert "CAP_SLEEP is unknown" in attempt()
    done = woodfrog("restore", *flags, "--count=2", "more")
    assert done.stderr.count("CAP_SLEEP is unknown") == 2
    # What doesn't fit the image is seen in the next one all the same.
    bundle.config["linux"]["namespaces"] = [
        one for one in bundle.config["linux"]["namespaces"] if one["type"] != "ipc"
    ]
    bundle.save()
    assert "doesn't fit the image" in attempt(status=1)
    supervisor = listed(woodfrog)["t"]
    for name in ("more-1", "more-2"):
        woodfrog("delete", "--force", name)
    woodfrog("warm", "--drop", "t")
    eventually(lambda: is_gone(supervisor), "it ends")


def test_a_clone_comes_up_without_who_asked_for_it(woodfrog: Woodfrog, build: Build) -> None:
    bundle, image = keeper(woodfrog, build)
    woodfrog("warm", f"--image-path={image}", "t")
    here, on = woodfrog.directory / "here", woodfrog.directory / "on"
    bundle.config["hooks"] = hook(f"touch {here}; until [ -e {on} ]; do sleep 0.01; done")
    bundle.save()
    woodfrog.names.append("alone")
    flags = ("--template=t", f"--bundle={bundle.directory}", "--detach", "alone")
    with subprocess.Popen(woodfrog.command("restore", *flags), stdin=subprocess.DEVNULL) as command:
        eventually(here.exists, "it is half-way")
        command.kill()
    on.touch()
    eventually(lambda: '"running"' in woodfrog("state", "alone").stdout, "it runs")
    woodfrog("kill", "alone", "TERM")
    assert json.loads(woodfrog("wait", "alone").stdout)["exitStatus"] == 7
    supervisor = listed(woodfrog)["t"]
    woodfrog("warm", "--drop", "t")
    eventually(lambda: is_gone(supervisor), "it ends")


def test_a_killed_supervisor_leaves_no_maker(woodfrog: Woodfrog, build: Build) -> None:
    bundle, image = keeper(woodfrog, build)
    woodfrog("warm", f"--image-path={image}", "t")
    supervisor = listed(woodfrog)["t"]
    (idle,) = makers(supervisor)
    os.kill(supervisor, signal.SIGKILL)
    eventually(lambda: is_gone(idle), "its maker ends")
    assert listed(woodfrog) == {}

    # While one is at work: it can finish what it has begun, once the first process is there.
    woodfrog("warm", f"--image-path={image}", "t")
    (maker,) = makers(listed(woodfrog)["t"])
    bundle.config["hooks"] = hook(f"kill -KILL {listed(woodfrog)['t']}")
    bundle.save()
    woodfrog.names.append("late")
    woodfrog("restore", "--template=t", f"--bundle={bundle.directory}", "--detach", "late")
    assert '"running"' in woodfrog("state", "late").stdout
    eventually(lambda: is_gone(maker), "the maker ends")


def test_what_a_template_cannot_do_is_refused(woodfrog: Woodfrog, build: Build) -> None:
    bundle, image = keeper(woodfrog, build)
    (image / "checkpoint.img").rename(image / "whole")
    data = bytearray((image / "whole").read_bytes())
    data[4096 + 5000] ^= 1
    (image / "checkpoint.img").write_bytes(data)
    failed = woodfrog("warm", f"--image-path={image}", "t", status=1)
    assert "checksum of page chunk 0" in failed.stderr
    (image / "whole").rename(image / "checkpoint.img")
    assert listed(woodfrog) == {}
    failed = woodfrog("warm", f"--image-path={image}", "../t", status=1)
    assert "invalid name of a template '../t'" in failed.stderr

    woodfrog("warm", f"--image-path={image}", "t")
    container = woodfrog.create(bundle)
    for flags, words in (
        ((container.name,), "exists: --template makes a new one"),
        (("--background", "new"), "--background has no meaning with --template"),
        (("--count=0", "new"), "--count must be at least 1"),
        (("--count=2", "--pid-file=/x", "new"), "--pid-file has no meaning with --count"),
    ):
        common = ("--template=t", f"--bundle={bundle.directory}")
        assert words in woodfrog("restore", *common, *flags, status=1).stderr
    woodfrog("warm", "--drop", "t")
