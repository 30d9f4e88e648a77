"""All that a look has found, written to the image."""

from collections.abc import Iterable

from woodfrog.engine import collecting
from woodfrog.engine.collecting import parents_first
from woodfrog.engine.looking import Container, Looked, losses_of
from woodfrog.engine.snapshots import Snapshots
from woodfrog.engine.writing_pages import PageWriter
from woodfrog.image.container_file import Writer
from woodfrog.kernel.process_memory import ProcessMemory
from woodfrog.resources import ids, known_files, namespaces, tmpfs
from woodfrog.resources.container import ContainerRecord
from woodfrog.resources.cpu import Cpu
from woodfrog.resources.files.regular import RegularFile
from woodfrog.resources.known_files import KnownFile
from woodfrog.resources.mount_tree.looking import NOT_MOUNTED

_MOST_RING_BYTES = 8 << 20


def write(
    image: Writer,
    container: Container,
    looked: Looked,
    snapshots: Snapshots,
    pages: PageWriter,
) -> None:
    """Write everything to the image but the memory that is in snapshots."""
    _write_processes(image, looked, snapshots, pages)
    _write_namespaces(image, looked)
    _write_mounts(image, container, looked)
    _write_files(image, looked)
    for known in _known_files(looked):
        image.add(known)
    for zombie in looked.tree.zombies:
        image.add(collecting.zombie_record(zombie, looked.world))


def _write_processes(
    image: Writer, looked: Looked, snapshots: Snapshots, pages: PageWriter
) -> None:
    """Write processes and the memory that they share; those in snapshots come later."""
    world = looked.world
    for one in parents_first(looked.processes):
        if pages.has_kept(one):
            continue
        if snapshots.of(one.held) is None:
            written = pages.write(one, one.held.pid, ProcessMemory(one.held.memory))
            image.add(one.record(written, world.news))
        else:
            pages.write_unforked(one)
    for shared in world.links.objects.values():
        image.add(pages.write_object(shared))


def _write_namespaces(image: Writer, looked: Looked) -> None:
    """Write what is in namespaces, keyrings and cgroups, but for the container's own mounts."""
    world, networks = looked.world, looked.networks
    leased = world.leased
    for one_of_ipc in world.ipc.records(0):
        image.add(one_of_ipc)
    for namespace in looked.namespaces.records:
        image.add(world.ipc.furnished(namespace))
    for number, _ in looked.namespaces.descriptors("mnt"):
        image.add(world.places.record(number, image.write_pages, leased))
    for within in looked.files.within():
        image.add(within)
    for ring in world.keyrings.records.values():
        image.add(ring)
    if looked.sysctls:
        image.add(looked.sysctls)
    for part in (networks.network, networks.rules, *networks.tables, networks.tracked):
        if part:
            image.add(part)
    for hierarchy in looked.cgroups:
        image.add(hierarchy)


def _write_mounts(image: Writer, container: Container, looked: Looked) -> None:
    """Write the container's own mounts, and what files in memory and its root's layer have."""
    world, mounts = looked.world, looked.mounts
    leased = world.leased
    for destination in container.tmpfs:
        copy = mounts.copy_of(destination) if mounts else None
        if copy == NOT_MOUNTED:
            continue
        files_of_mount = tmpfs.collect(world.view, destination, image.write_pages, copy, leased)
        if files_of_mount is not None:
            image.add(files_of_mount)
    if mounts and (mount_tree := mounts.record(image.write_pages, leased)):
        image.add(mount_tree)
    if looked.overlay:
        from woodfrog.resources import layer

        image.add(layer.collect(looked.overlay, container.rootfs, image.write_pages, leased))


def _write_files(image: Writer, looked: Looked) -> None:
    """Write open files, but for io_urings whose requests are still to be cancelled."""
    rings = looked.world.rings
    unclear = {ring.file.number for ring in rings.unclear} if rings else set()
    for record in looked.file_records:
        if record.id not in unclear:
            image.add(record)


def _known_files(looked: Looked) -> Iterable[KnownFile]:
    """Return what the new container must have."""
    world = looked.world
    # What is known of files in other mount namespaces could be looked for only there.
    elsewhere = {n for one in looked.files.within() if "mnt" in one.namespaces for n in one.files}
    opened = [
        one.path
        for one in looked.file_records
        if isinstance(one, RegularFile)
        and one.is_data
        and not one.covered
        and one.id not in elsewhere
    ]
    mapped = {
        path
        for process in looked.processes
        if world.is_at_home(process.held.pid)
        for path in process.space.mapped_paths
    }
    return known_files.collect(world.view, opened, mapped)


def finish_records(
    image: Writer, init: int, container: Container, looked: Looked, cpu: Cpu
) -> None:
    """Write the records that come last."""
    rings = looked.world.rings
    if rings and rings.unclear:
        from woodfrog.engine import cancelling_rings

        image.rehearse(_MOST_RING_BYTES * len(rings.unclear))
        cancelled = cancelling_rings.cancel(rings, looked.vdso, looked.file_records)
        looked.losses.extend(losses_of(cancelled))
        for ring in cancelled:
            image.add(ring)
    image.add(_container_record(init, container, looked, cpu))


def write_snapshots(image: Writer, looked: Looked, snapshots: Snapshots, pages: PageWriter) -> None:
    """Write the memory that is in snapshots, while the container runs on."""
    for one in parents_first(looked.processes):
        if pages.has_kept(one):
            image.add(one.record(pages.write_kept(one), looked.world.news))
        elif snapshot := snapshots.of(one.held):
            snapshots.let_go_of_shared_memory(one.held, one.space.mappings)
            written = pages.write(one, snapshot.pid, snapshot.memory)
            image.add(one.record(written, looked.world.news))


def _container_record(init: int, container: Container, looked: Looked, cpu: Cpu) -> ContainerRecord:
    monotonic, boottime = looked.clocks
    maps = ids.maps_of(init)
    with namespaces.inside(init, "uts"):
        hostname, domainname = namespaces.names()
    return ContainerRecord(
        id=container.id,
        config=container.config,
        hostname=hostname,
        spec_hostname=container.spec_hostname.encode(),
        domainname=domainname,
        spec_domainname=container.spec_domainname.encode(),
        vdso=looked.vdso.image,
        monotonic_ns=monotonic,
        boottime_ns=boottime,
        cpu=cpu,
        uid_map=maps.users.text if maps else b"",
        gid_map=maps.groups.text if maps else b"",
        losses=looked.losses,
        cuda=[looked.world.identify(pid) for pid in container.suspended],
    )
