"""The daemons, which start once for all tests here."""

from collections.abc import Iterator

import pytest

from docker_engine import Docker
from needs import require


@pytest.fixture(scope="package")
def docker_daemon(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Docker]:
    """Docker's daemon; at its end nothing is left."""
    for need in ("root", "command dockerd", "command docker", "command redis-server"):
        require(need)
    daemon = Docker(tmp_path_factory.mktemp("docker"))
    leftovers = ["it was not closed"]
    try:
        yield daemon
    finally:
        leftovers = daemon.close()
    assert leftovers == []


@pytest.fixture
def docker(docker_daemon: Docker) -> Iterator[Docker]:
    """Docker without any containers; afterwards there is none again."""
    yield docker_daemon
    docker_daemon.remove_all()
