"""What can't be saved is refused by name before anything is touched, and the container runs on."""

import contextlib
import os
import resource
import socket
import subprocess
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from bundles import Bundle, bind, tmpfs
from containers import Container, Woodfrog, eventually, verdict
from needs import needs
from woodfrog.resources import limits

pytestmark = needs("root", "command gcc")
PROGRAMS = Path(__file__).parent / "refused"
Build = Callable[..., Path]


def start(
    woodfrog: Woodfrog,
    build: Build,
    source: str,
    *arguments: str,
    joined: str = "",
    flags: tuple[str, ...] = (),
) -> Container:
    """Start a program that holds something; `joined` is a namespace it shares with the host."""
    program = build(PROGRAMS / source, *flags)
    bundle = Bundle(woodfrog.directory / "bundle", ["/programs/" + program.name, *arguments])
    (bundle.rootfs / "programs").mkdir()
    bundle.add_mount(bind(program.parent, "/programs"))
    namespaces = bundle.config["linux"]["namespaces"]
    namespaces[:] = [entry for entry in namespaces if entry["type"] != joined]
    bundle.add_capabilities("CAP_NET_ADMIN", "CAP_PERFMON", "CAP_SYS_ADMIN")
    return woodfrog.run(bundle)


@pytest.fixture
def echo(tmp_path: Path) -> Iterator[Callable[[socket.socket], None]]:
    """Echo to one client of a listening socket, until the test's end."""
    open_sockets: list[socket.socket] = []
    threads: list[threading.Thread] = []

    def serve(listener: socket.socket) -> None:
        open_sockets.append(listener)
        client, _ = listener.accept()
        open_sockets.append(client)
        try:
            while text := client.recv(6):
                client.sendall(text)
        except OSError:
            pass

    def begin(listener: socket.socket) -> None:
        threads.append(threading.Thread(target=serve, args=(listener,)))
        threads[-1].start()

    yield begin
    for opened in open_sockets:
        with contextlib.suppress(OSError):
            opened.shutdown(socket.SHUT_RDWR)
        opened.close()
    for thread in threads:
        thread.join(10)
        assert not thread.is_alive()


@pytest.fixture(params=["unix", "tcp"])
def outside(
    request: pytest.FixtureRequest, woodfrog: Woodfrog, build: Build, echo: Callable[..., None]
) -> Container:
    """A container whose program is connected with a server of the host's."""
    work = woodfrog.directory / "bundle" / "work"
    if request.param == "tcp":
        listener = socket.create_server(("127.0.0.1", 0))
        arguments = ["tcp", str(listener.getsockname()[1])]
    else:
        work.mkdir(parents=True)
        listener = socket.socket(socket.AF_UNIX)
        listener.bind(str(work / "outside"))
        listener.listen()
        arguments = ["unix"]
    echo(listener)
    joined = "network" if request.param == "tcp" else ""
    container = start(woodfrog, build, "outside.c", *arguments, joined=joined)
    container.wait_for("ready")
    return container


@pytest.mark.parametrize(
    ("program", "kind"),
    [
        ("io_uring.c credentials", "registered credentials"),
        ("io_uring.c disabled", "IORING_SETUP_R_DISABLED"),
        ("io_uring.c restricted", "IORING_REGISTER_RESTRICTIONS"),
        ("io_uring.c own-memory", "IORING_SETUP_NO_MMAP"),
        ("io_uring.c buffers", "buffers were provided"),
        ("io_uring.c buffer-ring", "buffers were provided"),
        ("io_uring.c closed-file", "a registered file, /proc/1/status"),
        ("io_uring.c eventfd", "a registered eventfd, and the process has 2"),
        ("perf_event.c", "stop the profiler first"),
        ("dnotify.c", "F_NOTIFY"),
        ("others.c program", "a BPF program (anon_inode:bpf-prog, prog type 1"),
        ("others.c ring", 'is the BPF map "ring" (id '),
        ("others.c xdp", "AF_XDP, protocol 0 (XDP sockets)"),
        ("others.c under-repair", "under repair (TCP_REPAIR)"),
        ("others.c vsock", "vsock"),
        ("tcp_unread.c announced", "with urgent data (MSG_OOB) that were announced"),
        ("tcp_unread.c orphaned", "which is closed there but has yet to bring"),
        ("tcp_unread.c unaccepted", "or were closed by clients who had sent more than has come"),
        ("tcp_unread.c notified", "with notifications (SO_ZEROCOPY)"),
    ],
)
def test_a_descriptor_that_cannot_be_saved_is_refused_by_name(
    program: str, kind: str, woodfrog: Woodfrog, build: Build
) -> None:
    container = start(woodfrog, build, *program.split())
    container.wait_for("ready")
    image = woodfrog.directory / "image"

    refused = container.checkpoint(image, status=None)

    assert refused.status not in (0, None)
    assert kind in refused.stderr
    assert "77" in refused.stderr
    assert "process 1 " in refused.stderr or str(container.init) in refused.stderr
    assert "running as before" in refused.stderr
    assert "Traceback" not in refused.stderr
    assert not image.exists() or list(image.iterdir()) == []
    assert verdict(container) == "ok\n"


@pytest.mark.parametrize("flags", [(), ("-DLARGE",)], ids=["small", "large"])
@pytest.mark.parametrize("how", [(), ("--leave-running",)], ids=["ended", "left running"])
def test_memory_whose_faults_somebody_outside_handles_is_refused(
    flags: tuple[str, ...], how: tuple[str, ...], woodfrog: Woodfrog, build: Build
) -> None:
    (woodfrog.directory / "bundle" / "work").mkdir(parents=True)
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(woodfrog.directory / "bundle" / "work" / "handler"))
        listener.listen()
        container = start(woodfrog, build, "userfaultfd_outside.c", flags=flags)
        client, _ = listener.accept()
        with client:
            _, (handler,), *_ = socket.recv_fds(client, 1, 1)
    container.wait_for("ready")
    image = woodfrog.directory / "image"

    refused = container.checkpoint(image, *how, status=1)
    os.close(handler)

    assert "is registered with a userfaultfd" in refused.stderr
    assert not image.exists() or list(image.iterdir()) == []
    assert verdict(container) == "ok\n"


def test_all_mappings_that_cannot_be_saved_are_named(woodfrog: Woodfrog, build: Build) -> None:
    container = start(woodfrog, build, "userfaultfd.c")
    container.wait_for("ready")
    addresses = (container.bundle.work / "addresses").read_text().split()

    refused = container.checkpoint(woodfrog.directory / "image", status=1)
    checked = woodfrog("check", container.name, status=1)

    assert len(set(addresses)) == 2
    for said in (refused.stderr, checked.stdout):
        assert "descriptor 77" in said
        for address in addresses:
            assert said.count(f"the mapping at {address} (anonymous) is registered") == 1
    assert verdict(container) == "ok\n"


@pytest.mark.parametrize(
    ("program", "named"),
    [
        ("landlock.c child", "is confined by Landlock"),
        ("landlock.c thread", "is confined by Landlock"),
        ("keys.c", "has keys of its own"),
        ("undo.c", "but may not do so any more"),
        ("bound.c", "mounted or changed at /work/file shows a namespace, pid:["),
        ("hidden.c covered-directory", "/run/place is not found in the process's mount namespace"),
        ("detached.c tree", "attached nowhere and has others mounted in it"),
        ("detached.c shared", "attached nowhere and shares what is mounted in it"),
        ("detached.c deleted", "file (deleted) is in a mount that is attached nowhere"),
        ("hidden.c detached-directory", "/ is not found in the process's mount namespace"),
        ("hidden.c covered-mapping", "has /run/place/file mapped, which is not found"),
        ("hidden.c forbidden-mapping", "on a mount that forbids this by now (noexec)"),
        ("hidden.c terminal", "/run/terminal was opened where a terminal or the file of a socket"),
        ("hidden.c layers-gone", "over a directory that is not found any more: /run/layers/lower"),
        ("hidden.c other-layers", "is an overlay that shows below, which is in none"),
        ("hidden.c pidfd-by-path", "is anon_inode:[pidfd] by O_PATH, which cannot be saved yet"),
        ("clone.c", "waits in vfork(2) for its child"),
        ("traced.c", "process 2 (debugged) is traced by process 1 (traced), which cannot be"),
        ("memory.c secret", "is secret memory (memfd_secret), which nobody else can read, which"),
        ("memory.c secret", "(memory): is secret memory (memfd_secret)"),
        (
            "memory.c vdso",
            "unmapped a part of its vDSO, or of its data ([vvar]), alone",
        ),
        ("memory.c received", "shows what a TCP socket has received (TCP_ZEROCOPY_RECEIVE)"),
        ("memory.c dispatch", "has its system calls dispatched to itself"),
        ("unix_waiting.c", "or are closed, of which one is bound to a path"),
        ("unix_room.c full", "or are closed, while one's process may open no more files"),
    ],
)
def test_ties_that_cannot_be_saved_are_refused_by_name(
    program: str, named: str, woodfrog: Woodfrog, build: Build
) -> None:
    container = start(woodfrog, build, *program.split())
    container.wait_for("ready")
    image = woodfrog.directory / "image"

    refused = container.checkpoint(image, status=None)

    assert refused.status not in (0, None)
    assert named in refused.stderr
    assert "running as before" in refused.stderr
    assert "Traceback" not in refused.stderr
    assert not image.exists() or list(image.iterdir()) == []
    assert verdict(container) == "ok\n"


@pytest.mark.parametrize(
    ("what", "named"),
    [
        ("space", "bytes of the memory that RLIMIT_AS is about"),
        ("data", "bytes of the memory that RLIMIT_DATA is about"),
        ("locked", "bytes of the memory that RLIMIT_MEMLOCK is about"),
        ("mappings", "(vm.max_map_count), and 2 more are needed for a moment"),
    ],
)
def test_a_process_that_has_used_up_its_memory_is_refused_by_the_limit_s_name(
    what: str, named: str, woodfrog: Woodfrog, build: Build
) -> None:
    container = start(woodfrog, build, "memory_full.c", what)
    container.wait_for("ready")
    image = woodfrog.directory / "image"

    refused = container.checkpoint(image, "--leave-running", status=None)

    if what == "mappings" or not limits.may_exceed_hard():
        assert "process 1 (memory_full): has " in refused.stderr
        assert named in refused.stderr
        assert "running as before" in refused.stderr
        assert not image.exists() or list(image.iterdir()) == []
    else:
        assert refused.status == 0, refused
    assert verdict(container) == "ok\n"


def test_an_ended_first_thread_is_refused_where_its_process_cannot_be_reached(
    woodfrog: Woodfrog, build: Build
) -> None:
    container = start(woodfrog, build, "../programs/ended_leader.c")
    container.wait_for("ready")

    refused = container.checkpoint(
        woodfrog.directory / "image", environment={"WOODFROG_WITHOUT": "pidfd_thread"}, status=None
    )

    assert refused.status not in (0, None)
    assert f"the first thread of process {container.init} has ended" in refused.stderr
    assert "running as before" in refused.stderr
    assert verdict(container) == "ok\n"


def test_a_namespace_that_somebody_outside_is_in_is_refused(
    woodfrog: Woodfrog, build: Build
) -> None:
    container = start(woodfrog, build, "../programs/namespaces.c", "uts")
    container.wait_for("ready")
    child = Path(f"/proc/{container.init}/task/{container.init}/children").read_text().split()[0]
    with subprocess.Popen(["nsenter", "--uts", "--target", child, "sleep", "1000"]) as guest:
        try:
            own = os.readlink("/proc/self/ns/uts")
            eventually(lambda: os.readlink(f"/proc/{guest.pid}/ns/uts") != own, "nsenter")
            refused = container.checkpoint(woodfrog.directory / "image", status=None)
        finally:
            guest.kill()

    assert refused.status not in (0, None)
    assert "is in a uts namespace that others outside the container are in, too" in refused.stderr
    assert "running as before" in refused.stderr
    assert verdict(container) == "ok\n"


@pytest.mark.parametrize(
    ("script", "named"),
    [
        (
            "mount -t devpts -o newinstance none /mnt && exec 5<> /mnt/ptmx",
            "/mnt is a devpts of its own with terminals in use",
        ),
        (
            "cd /tmp && mkdir up work && mount -t overlay -o lowerdir=/etc,upperdir=up,workdir=work"
            " none /mnt",
            "/mnt is mounted with the option upperdir=up",
        ),
        (
            ": > /mnt/file && mount -t tmpfs none /tmp && : > /tmp/file"
            " && mount --bind /tmp/file /mnt/file && umount /tmp",
            "/mnt/file shows a single file of a file system that is mounted nowhere else",
        ),
    ],
    ids=["terminals", "a relative overlay", "a file alone"],
)
def test_mounts_that_cannot_be_made_again_are_refused_by_name(
    script: str, named: str, woodfrog: Woodfrog
) -> None:
    script = f"{script}; : > /work/ready; while [ ! -e /work/check ]; do sleep 0.02; done"
    bundle = Bundle(
        woodfrog.directory / "bundle", ["/bin/sh", "-c", f"{script}; echo ok > /work/out"]
    )
    bundle.add_host_programs()
    (bundle.rootfs / "mnt").mkdir()
    bundle.add_capabilities("CAP_SYS_ADMIN")
    container = woodfrog.run(bundle)
    container.wait_for("ready")

    refused = container.checkpoint(woodfrog.directory / "image", status=None)

    assert refused.status not in (0, None)
    assert named in refused.stderr
    assert "running as before" in refused.stderr
    assert named in woodfrog("check", container.name, status=1).stdout
    assert verdict(container) == "ok\n"


def test_files_in_what_the_config_hides_are_refused_by_name(woodfrog: Woodfrog) -> None:
    script = ": > /work/ready; while [ ! -e /work/check ]; do sleep 0.02; done; echo ok > /work/out"
    script = f"umount /mnt; : > /mnt/file; {script}"
    script = f"unshare --mount --propagation unchanged sh -c '{script}'; :"
    bundle = Bundle(woodfrog.directory / "bundle", ["/bin/sh", "-c", script])
    bundle.add_host_programs()
    (bundle.rootfs / "mnt").mkdir()
    for size in ("1m", "2m"):
        bundle.add_mount(tmpfs("/mnt", f"size={size}"))
    bundle.add_capabilities("CAP_SYS_ADMIN")
    container = woodfrog.run(bundle)
    container.wait_for("ready")

    refused = container.checkpoint(woodfrog.directory / "image", status=None)

    assert refused.status not in (0, None)
    assert "/mnt has file in a tmpfs that another mount of the config's hides" in refused.stderr
    assert "running as before" in refused.stderr
    assert verdict(container) == "ok\n"


def test_a_connection_to_the_outside_is_refused_by_name(outside: Container) -> None:
    image = outside.woodfrog.directory / "image"

    refused = outside.checkpoint(image, status=None)

    assert refused.status not in (0, None)
    assert "77" in refused.stderr
    assert "-close" in refused.stderr, "the flag that allows the loss isn't named"
    assert not image.exists() or list(image.iterdir()) == []
    assert verdict(outside) == "ok\n"


def test_a_connection_to_the_outside_goes_on_when_left_running(outside: Container) -> None:
    image = outside.woodfrog.directory / "image"

    outside.checkpoint(image, "--leave-running", "--tcp-close", "--ext-unix-close")

    assert verdict(outside) == "ok\n"


def test_a_connection_to_the_outside_is_reset_if_a_flag_allows_it(outside: Container) -> None:
    woodfrog = outside.woodfrog
    image = woodfrog.directory / "image"
    outside.checkpoint(image, "--tcp-close", "--ext-unix-close")
    outside.wait()
    outside.delete()

    restored = woodfrog.restore(outside.bundle, image)

    said = verdict(restored)
    assert said.startswith("reset: "), said
    assert "woodfrog: warning: lost" in restored.told(), "the restore doesn't tell what was lost"


def test_datagrams_to_the_outside_are_given_up_only_if_a_flag_allows_it(
    woodfrog: Woodfrog, build: Build
) -> None:
    work = woodfrog.directory / "bundle" / "work"
    work.mkdir(parents=True)
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as outside:
        outside.bind(str(work / "outside"))
        container = start(woodfrog, build, "outside_datagrams.c")
        container.wait_for("ready")
        image = woodfrog.directory / "image"

        refused = container.checkpoint(image, status=None)
        container.checkpoint(image, "--ext-unix-close")
        container.wait()
        container.delete()
        restored = woodfrog.restore(container.bundle, image)

        assert refused.status not in (0, None)
        assert "77" in refused.stderr
        assert "--ext-unix-close restores it as not connected" in refused.stderr
        assert "not connected: Transport endpoint" in verdict(restored)
        assert "woodfrog: warning: lost" in restored.told()


def test_a_server_keeps_its_name_when_its_client_outside_is_given_up(
    woodfrog: Woodfrog, build: Build
) -> None:
    container = start(woodfrog, build, "accepted.c")
    container.wait_for("listening")
    with socket.socket(socket.AF_UNIX) as client:
        client.connect(str(container.bundle.work / "inside"))
        client.sendall(b"hello")
        container.wait_for("ready")
        image = woodfrog.directory / "image"
        container.checkpoint(image, "--ext-unix-close")
        container.wait()
        container.delete()

    assert verdict(woodfrog.restore(container.bundle, image)) == "ok\n"


@pytest.mark.parametrize(
    ("what", "joined", "names"), [("queue", "", "/frog"), ("memory", "ipc", "SYSV")]
)
def test_ipc_that_cannot_be_saved_is_refused_by_name(
    what: str, joined: str, names: str, woodfrog: Woodfrog, build: Build
) -> None:
    container = start(woodfrog, build, "ipc.c", what, joined=joined)
    container.wait_for("ready")
    image = woodfrog.directory / "image"

    refused = container.checkpoint(image, status=None)

    assert refused.status not in (0, None)
    assert names in refused.stderr
    assert "Traceback" not in refused.stderr
    assert not image.exists() or list(image.iterdir()) == []
    assert verdict(container) == "ok\n"


def test_ipc_is_not_restored_into_a_namespace_of_others(woodfrog: Woodfrog, build: Build) -> None:
    container = start(woodfrog, build, "ipc.c", "memory")
    container.wait_for("ready")
    image = woodfrog.directory / "image"
    container.checkpoint(image)
    container.wait()
    container.delete()
    namespaces = container.bundle.config["linux"]["namespaces"]
    namespaces[:] = [entry for entry in namespaces if entry["type"] != "ipc"]
    container.bundle.save()

    refused = woodfrog(
        "restore",
        "--detach",
        "--restore-spec-validation=ignore",  # which would refuse it, too
        f"--image-path={image}",
        f"--bundle={container.bundle.directory}",
        container.name,
        status=None,
    )

    assert refused.status not in (0, None)
    assert "ipc namespace" in refused.stderr
    assert "Traceback" not in refused.stderr


@pytest.mark.parametrize("most", [128, 180, 230])
def test_clients_that_wait_are_not_lost_for_want_of_descriptors(
    most: int, woodfrog: Woodfrog, build: Build
) -> None:
    container = start(woodfrog, build, "unix_room.c", "many")
    container.wait_for("ready")
    limits = {resource.RLIMIT_NOFILE: most}

    refused = container.checkpoint(woodfrog.directory / "image", limits=limits, status=1)

    assert "ulimit -n" in refused.stderr
    assert verdict(container) == "ok\n"


def test_clients_that_wait_at_a_unix_socket_are_given_up_by_a_flag(
    woodfrog: Woodfrog, build: Build
) -> None:
    container = start(woodfrog, build, "unix_waiting.c")
    container.wait_for("ready")
    image = woodfrog.directory / "image"

    done = container.checkpoint(image, "--ext-unix-close", "--leave-running")

    assert "1 clients that wait at unix sockets are restored as closed" in done.stderr
    assert verdict(container) == "ok\n"
