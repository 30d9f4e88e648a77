"""Settings of an image are checked before any is made."""

import pytest

from woodfrog.errors import ImageError
from woodfrog.resources import sysctls
from woodfrog.resources.sysctls import Sysctls


def test_what_is_on_the_list_passes() -> None:
    changed = Sysctls(ipc=[("kernel/sem", b"1 2 3 4")], network=[("net/core/somaxconn", b"7")])
    sysctls.check(changed)


@pytest.mark.parametrize(
    "changed",
    [
        Sysctls(ipc=[("kernel/core_pattern", b"|/bin/sh")], network=[]),
        Sysctls(ipc=[("net/core/somaxconn", b"7")], network=[]),
        Sysctls(ipc=[], network=[("net/core/rmem_max", b"7")]),
        Sysctls(ipc=[], network=[("net/ipv4/tcp_mem", b"7 7 7")]),
        Sysctls(ipc=[], network=[("net/ipv4/conf/eth0/rp_filter", b"7")]),
        Sysctls(ipc=[], network=[("net/ipv4/conf/all", b"7")]),
        Sysctls(ipc=[], network=[("net/../kernel/core_pattern", b"|/bin/sh")]),
        Sysctls(ipc=[], network=[("net/core/somaxconn", b"7" * 5000)]),
    ],
)
def test_nothing_else_is_set(changed: Sysctls) -> None:
    with pytest.raises(ImageError):
        sysctls.check(changed)
