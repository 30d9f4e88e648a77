"""What is loaded and read before a container is held, so that it need not wait for that."""

from __future__ import annotations

import codecs
from typing import TYPE_CHECKING

from woodfrog.engine import asking_processes, collecting_networks
from woodfrog.engine.collecting_namespaces import any_in
from woodfrog.kernel import reading_elsewhere
from woodfrog.kernel.caller import HERE
from woodfrog.kernel.namespaces import processes_in
from woodfrog.resources import catalogue, sysctls

if TYPE_CHECKING:
    from woodfrog.engine.looking import Container


def prepare(init: int, container: Container) -> bool:
    """Do what takes time, before anything is held; tell whether a container may change settings.

    That is to import what is needed for the files that there are, and to read new settings.
    """
    codecs.lookup("ascii")
    reading_elsewhere.prepare()
    asking_processes.usual()
    if not catalogue.has_all():  # as who stands by for this has loaded everything
        _import_kinds(init, container)
    if sysctls.is_read_only(init):
        return False
    _ = sysctls.usual().settings
    return True


def _import_kinds(init: int, container: Container) -> None:
    pids = processes_in(HERE, init)
    if container.rootfs:
        from woodfrog.resources import layer  # noqa: F401
    looks = catalogue.prepare(pids)
    if is_nested := any_in(pids):
        from woodfrog.resources import nested  # noqa: F401
    if is_nested or container.network is not None:
        collecting_networks.prepare()
    if any(look.startswith("socket ") for look in looks):
        from woodfrog.engine import backlogs, connections, sockets  # noqa: F401
