"""What belongs to the container as a whole."""

from woodfrog.image.record import Record
from woodfrog.resources.cpu import Cpu


class ContainerRecord(Record, frozen=True, tag="container"):
    """Where an image comes from. `config` is shown, never obeyed."""

    id: str
    config: bytes
    hostname: bytes
    spec_hostname: bytes
    domainname: bytes
    spec_domainname: bytes
    vdso: bytes  # its code, which programs know by address
    monotonic_ns: int
    boottime_ns: int
    cpu: Cpu
    uid_map: bytes  # of a user namespace of its own, as in /proc/PID/uid_map
    gid_map: bytes
    losses: list[str]
    cuda: list[int]  # processes whose GPU state cuda-checkpoint has taken into their memory
