"""A daemon of docker's that gives its containers a user namespace (userns-remap)."""

import os
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from containers import eventually
from counting import COUNTER, counted, goes_on
from docker_engine import IMAGE, Docker
from needs import needs

pytestmark = needs("root", "command dockerd", "command docker", "command redis-server")


@pytest.fixture
def remapped() -> Iterator[Docker]:
    """Return such a daemon; its directory is one that others may walk through."""
    with tempfile.TemporaryDirectory() as directory:
        os.chmod(directory, 0o711)
        daemon = Docker(Path(directory), **{"userns-remap": "daemon:daemon"})
        leftovers = ["it was not closed"]
        try:
            yield daemon
        finally:
            leftovers = daemon.close()
    assert leftovers == []


def test_containers_in_a_user_namespace_go_on(remapped: Docker) -> None:
    assert remapped.say("cat /proc/self/uid_map; touch /x").split() == ["0", "100000", "65536"]
    remapped.run("web", f"echo ribbit > /changed; {COUNTER}")
    goes_on(remapped, "web")
    remapped("checkpoint", "create", "web", "one")
    remapped.is_frozen("web")
    last = counted(remapped, "web")
    remapped("start", "--checkpoint=one", "web")
    goes_on(remapped, "web")
    # Into another, with the files of the first.
    remapped("woodfrog", "restore", "--from=web:one", "--name=web2", IMAGE)
    eventually(lambda: remapped.logs("web2"), "web2 counts")
    assert remapped.logs("web2")[0] == str(last + 1)
    told = remapped("exec", "web2", "stat", "-c", "%u", "/changed", "/proc/1").stdout
    assert told.split() == ["0", "0"]
