"""Hooks: when and with what they run, and what comes of their failure."""

import json
from collections.abc import Callable

import pytest

from bundles import Bundle
from containers import Done, Woodfrog, eventually

Make = Callable[[str], Bundle]
Name = Callable[[Bundle], str]
Run = Callable[..., Done]

FOREVER = "touch /work/up; exec sleep 1000"
# Each moment's hook, by where it sees the bundle's work directory, and the status it is told.
MOMENTS = {
    "prestart": ("host", "created"),
    "createRuntime": ("host", "creating"),
    "createContainer": ("host", "creating"),
    "startContainer": ("container", "created"),
    "poststart": ("host", "running"),
    "poststop": ("host", "stopped"),
}


def shell(command: str, **more: object) -> dict[str, object]:
    """Return a hook that runs a shell command."""
    return {"path": "/bin/sh", "args": ["sh", "-c", command], **more}


def test_they_run_in_their_order_with_the_state_on_stdin(
    woodfrog: Woodfrog, make_bundle: Make
) -> None:
    bundle = make_bundle(FOREVER)
    bundle.config["annotations"] = {"some.key": "some value"}
    places = {"host": bundle.work, "container": "/work"}
    bundle.config["hooks"] = {
        moment: [shell(f"{{ cat; echo; }} >> {places[where]}/hooks")]
        for moment, (where, _) in MOMENTS.items()
    }
    container = woodfrog.run(bundle)
    container.wait_for("up")
    woodfrog("delete", "--force", container.name)
    states = [json.loads(line) for line in (bundle.work / "hooks").read_text().splitlines()]
    assert [state["status"] for state in states] == [status for _, status in MOMENTS.values()]
    assert {state["pid"] for state in states} == {container.init}
    assert {state["id"] for state in states} == {container.name}
    assert {state["bundle"] for state in states} == {str(bundle.directory)}
    assert all(state["annotations"] == {"some.key": "some value"} for state in states)


def test_one_in_the_container_has_the_programs_environment_unless_it_lists_another(
    make_bundle: Make, run: Run
) -> None:
    bundle = make_bundle("true")
    bundle.process["env"] += ["GREETING=hello"]
    bundle.config["hooks"] = {
        "startContainer": [
            shell("echo $GREETING > /work/own"),
            shell("echo $GREETING > /work/listed", env=["GREETING=moin"]),
        ]
    }
    run(bundle)
    assert (bundle.work / "own").read_text() == "hello\n"
    assert (bundle.work / "listed").read_text() == "moin\n"


@pytest.mark.parametrize("moment", [moment for moment in MOMENTS if moment != "poststop"])
def test_one_that_fails_is_an_error_and_the_end_of_the_container(
    woodfrog: Woodfrog, make_bundle: Make, run: Run, moment: str
) -> None:
    bundle = make_bundle(FOREVER)
    work = bundle.work if MOMENTS[moment][0] == "host" else "/work"
    bundle.config["hooks"] = {
        moment: [shell("true"), shell("echo no >&2; exit 3"), shell(f"touch {work}/third")],
        "poststop": [shell(f"touch {bundle.work}/stopped")],
    }
    done = run(bundle, status=1)
    assert f"error running {moment} hook #1: /bin/sh failed with exit status 3: no" in done.stderr
    assert not (bundle.work / "third").exists()
    assert (bundle.work / "stopped").exists()
    assert woodfrog("list", "-q").stdout == ""


def test_those_after_the_end_all_run_and_their_failure_is_a_warning(
    make_bundle: Make, run: Run
) -> None:
    bundle = make_bundle("true")
    bundle.config["hooks"] = {"poststop": [shell("exit 4"), shell(f"touch {bundle.work}/second")]}
    done = run(bundle)
    assert "warning: error running poststop hook #0: /bin/sh failed" in done.stderr
    assert (bundle.work / "second").exists()


def test_one_that_hangs_is_ended_by_its_timeout(
    woodfrog: Woodfrog, make_bundle: Make, new_name: Name
) -> None:
    bundle = make_bundle(FOREVER)
    bundle.config["hooks"] = {"createRuntime": [shell("exec sleep 1000", timeout=1)]}
    done = woodfrog("create", "-b", str(bundle.directory), new_name(bundle), status=1)
    assert "did not end within its timeout of 1 s" in done.stderr


def test_those_that_see_the_host_from_inside_start_in_the_containers_root(
    make_bundle: Make, run: Run
) -> None:
    bundle = make_bundle("true")
    bundle.config["hooks"] = {"createContainer": [shell(f"pwd > {bundle.work}/where")]}
    run(bundle)
    assert (bundle.work / "where").read_text() == f"{bundle.rootfs}\n"


def test_the_pid_that_a_hook_gets_is_there_to_be_entered(
    woodfrog: Woodfrog, make_bundle: Make, run: Run
) -> None:
    bundle = make_bundle("cat /proc/sys/kernel/domainname > /work/name")
    enter = "nsenter --uts --target $pid sh -c 'echo told > /proc/sys/kernel/domainname'"
    script = f"pid=$(sed 's/.*\"pid\":\\([0-9]*\\).*/\\1/'); {enter}"
    bundle.config["hooks"] = {"createRuntime": [shell(script)]}
    run(bundle)
    eventually((bundle.work / "name").exists, "the program has run")
    assert (bundle.work / "name").read_text() == "told\n"
