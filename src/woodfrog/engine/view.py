"""Where the container's root directory and mounts are seen from."""

import os
from collections.abc import Iterator
from contextlib import contextmanager

from woodfrog.errors import WoodfrogError
from woodfrog.kernel import namespaces, syscalls
from woodfrog.kernel.abi.x86_64 import SYS
from woodfrog.kernel.caller import HERE
from woodfrog.kernel.process import PR_SET_PDEATHSIG
from woodfrog.resources.signals import SIGKILL


@contextmanager
def view_of(init: int) -> Iterator[int]:
    """Give a process whose root directory is the container's.

    That is the first process, unless it has gone to another root (chroot(2)): then a process of
    ours joins its mount namespace for as long.
    """
    if os.readlink(f"/proc/{init}/root") == "/":
        yield init
        return
    mounts = os.open(f"/proc/{init}/ns/mnt", os.O_RDONLY | os.O_CLOEXEC)
    try:
        with standing_in(mounts) as child:
            yield child
    finally:
        os.close(mounts)


@contextmanager
def standing_in(mounts: int) -> Iterator[int]:
    """Give a process whose root directory is that of the mount namespace of a descriptor."""
    told, tell = os.pipe()
    child = os.fork()
    if child == 0:
        _stand_at_the_root(mounts, tell)
    try:
        os.close(tell)
        if not os.read(told, 1):
            raise WoodfrogError("cannot join the container's mount namespace")
        yield child
    finally:
        os.close(told)
        os.kill(child, SIGKILL)
        os.waitpid(child, 0)


def _stand_at_the_root(mounts: int, tell: int) -> None:
    """Enter a mount namespace, which leads to its root, and wait for the end. Never returns."""
    try:
        syscalls.prctl(HERE, PR_SET_PDEATHSIG, SIGKILL)
        namespaces.setns(HERE, mounts, namespaces.CLONE_NEWNS)
        os.write(tell, b"x")
        # Pipes that others wait for the end of must not stay open here.
        os.closerange(0, 1 << 16)
        while True:
            HERE.call(SYS.PAUSE)
    finally:
        os._exit(1)
