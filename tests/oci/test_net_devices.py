"""Network devices of the host's that a container takes over."""

import json
import subprocess
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from bundles import Bundle
from containers import Woodfrog
from needs import needs

pytestmark = needs("root", "command ip")

Make = Callable[[str], Bundle]
Name = Callable[[Bundle], str]


class Host:
    """A network namespace that stands for the host's, with a device in it."""

    def __init__(self, woodfrog: Woodfrog) -> None:
        self._woodfrog = woodfrog
        self._place = subprocess.Popen(
            ["unshare", "--net", "sh", "-c", "echo ready; exec sleep infinity"],
            stdout=subprocess.PIPE,
        )
        assert self._place.stdout
        assert self._place.stdout.readline() == b"ready\n"

    def prepare(self) -> None:
        """Make the device."""
        self.ip("link", "add", "pond0", "type", "veth", "peer", "name", "bank0")
        self.ip("address", "add", "192.0.2.7/24", "dev", "pond0")
        self.ip("address", "add", "2001:db8::7/64", "dev", "pond0", "nodad")

    def run(self, *command: str) -> subprocess.CompletedProcess[str]:
        """Run a command there."""
        where = f"--net=/proc/{self._place.pid}/ns/net"
        return subprocess.run(
            ["nsenter", where, *command], capture_output=True, text=True, check=False, timeout=60
        )

    def ip(self, *words: str) -> str:
        """Run ip there."""
        done = self.run("ip", *words)
        assert done.returncode == 0, done.stderr
        return done.stdout

    def woodfrog(self, *words: str) -> subprocess.CompletedProcess[str]:
        """Run woodfrog there."""
        return self.run(*self._woodfrog.command(*words))

    def has_device(self) -> bool:
        """Tell whether the device is there."""
        return self.run("ip", "link", "show", "pond0").returncode == 0

    def close(self) -> None:
        """End the namespace, and the device with it."""
        self._place.kill()
        self._place.wait()
        assert self._place.stdout
        self._place.stdout.close()


@pytest.fixture
def host(woodfrog: Woodfrog) -> Iterator[Host]:
    """A host with a device pond0."""
    one = Host(woodfrog)
    try:
        one.prepare()
        yield one
    finally:
        one.close()


@pytest.mark.parametrize("inside", ["pond0", "eth0"])
def test_it_comes_with_its_addresses(
    host: Host, make_bundle: Make, new_name: Name, inside: str
) -> None:
    bundle = make_bundle(f"ip -json address show dev {inside}")
    wish: dict[str, Any] = {"name": inside} if inside != "pond0" else {}
    bundle.config["linux"]["netDevices"] = {"pond0": wish}
    done = host.woodfrog("run", "-b", str(bundle.directory), new_name(bundle))
    assert done.returncode == 0, done.stderr
    (device,) = json.loads(done.stdout)
    assert "UP" in device["flags"]
    addresses = {(one["local"], one["prefixlen"]) for one in device["addr_info"]}
    assert {("192.0.2.7", 24), ("2001:db8::7", 64)} <= addresses
    assert not host.has_device()


def test_it_goes_back_if_the_container_cannot_be_made(
    host: Host, make_bundle: Make, new_name: Name
) -> None:
    bundle = make_bundle("true")
    bundle.config["linux"]["netDevices"] = {"pond0": {"name": "eth0"}}
    bundle.process["args"] = ["/no/such/program"]
    # The init ends after the device has been moved for the hook.
    bundle.config["hooks"] = {"createRuntime": [{"path": "/bin/true"}]}
    done = host.woodfrog("create", "-b", str(bundle.directory), new_name(bundle))
    assert done.returncode == 1
    assert "/no/such/program" in done.stderr
    assert "192.0.2.7/24" in host.ip("address", "show", "dev", "pond0")


@pytest.mark.parametrize(
    ("devices", "words"),
    [
        ({"pond0": {"name": "a/b"}}, "can't be the name of a network device"),
        ({"pond0": {"name": "sixteen-letters-"}}, "can't be the name of a network device"),
        ({"pond0": {"name": "x"}, "lo": {"name": "x"}}, "two devices would have the same name"),
        ({"pond1": {}}, "looking for the network device pond1: no such device"),
        ({"pond0": {}, "pond1": {}}, "looking for the network device pond1: no such device"),
    ],
)
def test_what_cannot_be_is_refused(
    host: Host, make_bundle: Make, new_name: Name, devices: dict[str, Any], words: str
) -> None:
    bundle = make_bundle("true")
    bundle.config["linux"]["netDevices"] = devices
    done = host.woodfrog("create", "-b", str(bundle.directory), new_name(bundle))
    assert done.returncode == 1
    assert words in done.stderr
    assert host.has_device()


def test_it_needs_a_network_namespace(host: Host, make_bundle: Make, new_name: Name) -> None:
    bundle = make_bundle("true")
    linux = bundle.config["linux"]
    linux["netDevices"] = {"pond0": {}}
    linux["namespaces"] = [one for one in linux["namespaces"] if one["type"] != "network"]
    done = host.woodfrog("create", "-b", str(bundle.directory), new_name(bundle))
    assert "unable to move network devices without a NET namespace" in done.stderr
