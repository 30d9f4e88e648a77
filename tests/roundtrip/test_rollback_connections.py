"""What remains of later TCP connections where a rollback makes those of an image."""

import json
import socket
from pathlib import Path

import pytest

from bundles import Bundle, bind
from containers import Container, Woodfrog, eventually, verdict
from needs import needs
from woodfrog.kernel.netlink import nftables

SOURCES = Path(__file__).parent / "rollback"

pytestmark = needs("root")


@pytest.fixture
def bundle(woodfrog: Woodfrog) -> Bundle:
    bundle = Bundle(woodfrog.directory / "bundle", ["python3", "/programs/ports.py"])
    (bundle.rootfs / "programs").mkdir()
    bundle.add_mount(bind(SOURCES, "/programs"))
    bundle.add_host_programs()
    return bundle


def share_network(bundle: Bundle) -> None:
    """Have the container be in our network namespace."""
    namespaces = bundle.config["linux"]["namespaces"]
    namespaces[:] = [one for one in namespaces if one["type"] != "network"]


def begun(woodfrog: Woodfrog, bundle: Bundle) -> tuple[Container, str]:
    """Start the program and checkpoint it; returns the container and the flag for its image."""
    container = woodfrog.run(bundle)
    container.wait_for("ready")
    image = woodfrog.directory / "image"
    container.checkpoint(image, "--leave-running", "--sync=none")
    return container, f"--image-path={image}"


def ports(container: Container) -> dict[str, int]:
    """Return which ports the program has used."""
    found: dict[str, int] = json.loads((container.bundle.work / "ports").read_text())
    return found


def tell(container: Container, what: str) -> None:
    """Tell the program what to do."""
    work = container.bundle.work
    (work / "told").write_text(what)
    (work / "told").rename(work / "change")


def change(container: Container, what: str) -> None:
    """Have the program change something."""
    tell(container, what)
    container.wait_for("changed")
    (container.bundle.work / "changed").unlink()


def checked(container: Container) -> str:
    """Have the program look whether all is as it was, and return what it says."""
    tell(container, "check")
    return verdict(container)


def test_ports_that_others_used_since_are_free_again(woodfrog: Woodfrog, bundle: Bundle) -> None:
    container, image = begun(woodfrog, bundle)
    for what in ("use again", "end", "use again", "end"):
        change(container, what)
        woodfrog("rollback", image, container.name)
    assert checked(container) == "ok\n"


def test_they_are_in_a_network_that_others_have_too(woodfrog: Woodfrog, bundle: Bundle) -> None:
    share_network(bundle)
    container, image = begun(woodfrog, bundle)
    change(container, "use again")
    woodfrog("rollback", image, container.name)
    assert checked(container) == "ok\n"


def test_one_whose_place_the_kernel_keeps_is_refused_before_anything_is_touched(
    woodfrog: Woodfrog, bundle: Bundle
) -> None:
    """Without timestamps, nobody may have it for a minute."""
    bundle.config["linux"]["sysctl"] = {"net.ipv4.tcp_timestamps": "0"}
    container, image = begun(woodfrog, bundle)
    change(container, "end")
    said = woodfrog("rollback", image, container.name, status=1).stderr
    between = f"from port {ports(container)['server']} to port {ports(container)['whole']}"
    assert f"{between}, is still ending here" in said
    assert "the container is running as before" in said


def test_one_that_is_still_ending_is_refused_before_anything_is_touched(
    woodfrog: Woodfrog, bundle: Bundle
) -> None:
    container, image = begun(woodfrog, bundle)
    home = socket.inet_aton("127.0.0.1")
    server, client = ((home, ports(container)[name]) for name in ("server", "whole"))
    ends = nftables.Connection(server, client), nftables.Connection(client, server)
    with nftables.blocked(container.init, ends):
        change(container, "end")
        said = woodfrog("rollback", image, container.name, status=1).stderr
    assert "is still ending here" in said
    assert "the container is running as before" in said
    eventually(
        lambda: not woodfrog("rollback", image, container.name, status=None).status,
        "it has ended",
    )
    assert checked(container) == "ok\n"


def test_one_that_somebody_else_has_is_refused_before_anything_is_touched(
    woodfrog: Woodfrog, bundle: Bundle
) -> None:
    share_network(bundle)
    container, image = begun(woodfrog, bundle)
    change(container, "end")
    with socket.socket() as ours:
        ours.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        ours.bind(("127.0.0.1", ports(container)["whole"]))
        ours.connect(("127.0.0.1", ports(container)["server"]))
        said = woodfrog("rollback", image, container.name, status=1).stderr
    assert "in use by somebody here" in said
    assert "the container is running as before" in said
    woodfrog("rollback", image, container.name)
    assert checked(container) == "ok\n"


def test_a_restore_takes_none_from_who_has_it(woodfrog: Woodfrog, bundle: Bundle) -> None:
    share_network(bundle)
    container, image = begun(woodfrog, bundle)
    del bundle.config["linux"]["cgroupsPath"]  # each has its own
    bundle.save()
    flags = ("--detach", f"--bundle={bundle.directory}", "--tcp-established", image)
    said = woodfrog("restore", *flags, f"{container.name}-copy", status=1).stderr
    assert "in use by somebody here" in said
    assert checked(container) == "ok\n"
