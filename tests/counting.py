"""A container that counts into its log: what it has in memory, and whether it goes on there."""

from containers import eventually
from docker_engine import Docker

LOOP = "while :; do i=$((i+1)); {}; sleep 0.05; done"
# Counts in memory; what it says is in the container's log.
COUNTER = "i=0; " + LOOP.format("echo $i")


def counted(docker: Docker, name: str) -> int:
    """Return how far a counter's log has come; not one number may be missing or twice there."""
    lines = docker.logs(name)
    assert lines == [str(number) for number in range(1, len(lines) + 1)]
    return len(lines)


def goes_on(docker: Docker, name: str) -> int:
    """Wait until a counter has counted on a bit."""
    before = counted(docker, name)
    eventually(lambda: counted(docker, name) > before + 1, f"{name} counts on")
    return counted(docker, name)
