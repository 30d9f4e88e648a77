"""Containers whose pid or user namespace is not theirs alone, or not the one they began in."""

import pytest

from bundles import Bundle
from containers import Container, Woodfrog, verdict
from needs import needs

pytestmark = needs("root")

WAIT = ": > /work/ready; while [ ! -e /work/check ]; do sleep 0.02; done; echo ok > /work/out"


def waiting(woodfrog: Woodfrog, name: str, script: str = WAIT, *, pids: str = "") -> Container:
    """Start a script that waits; `pids` is a pid namespace to join."""
    bundle = Bundle(woodfrog.directory / name, ["/bin/sh", "-c", script])
    bundle.add_host_programs()
    bundle.add_capabilities("CAP_SYS_ADMIN")
    if pids:
        for entry in bundle.config["linux"]["namespaces"]:
            if entry["type"] == "pid":
                entry["path"] = pids
    container = woodfrog.run(bundle)
    container.wait_for("ready")
    return container


def refused(container: Container, *flags: str) -> str:
    """Demand that a checkpoint fails; returns what it said."""
    image = container.woodfrog.directory / "refused"
    return container.checkpoint(image, *flags, status=1).stderr


def test_containers_that_share_a_pid_namespace_are_refused_by_name(woodfrog: Woodfrog) -> None:
    host = waiting(woodfrog, "host")
    guest = waiting(woodfrog, "guest", pids=f"/proc/{host.init}/ns/pid")

    for flags in ((), ("--pre-dump",)):
        assert "has joined the pid namespace of another one" in refused(guest, *flags)
    said = refused(host)
    assert "(sh) is of another container, which has joined the pid namespace of this one" in said
    assert verdict(guest) == "ok\n"
    # Once its guest has ended, it can be saved.
    image = woodfrog.directory / "image"
    host.checkpoint(image)
    assert verdict(woodfrog.restore(host.bundle, image)) == "ok\n"


@pytest.mark.parametrize("also", ["", "--mount"])
def test_a_first_process_that_has_left_its_user_namespace_is_refused(
    also: str, woodfrog: Woodfrog
) -> None:
    leave = f"exec unshare --user --map-root-user {also} sh -c '{WAIT}'"
    container = waiting(woodfrog, "bundle", leave)

    assert "has gone to a user namespace that it made" in refused(container)
    assert verdict(container) == "ok\n"
