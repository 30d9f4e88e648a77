"""Programs that make a thing, are frozen, and look whether the thing is as it was.

The comments at the top of a program are its needs: `// arguments: a | b` makes two cases of it,
`// capabilities:` adds to the container's, `// after:` and `// apart:` are seconds before the
checkpoint and between it and the restore, `// hugepages:` how many of which size there must be,
`// mount:` types of file systems that are mounted for it, and where, `// sysctl: name=value`
sets one, `// device:` gives it one of the host's.
"""

import compileall
import os
import re
import resource
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from bundles import Bundle, bind, mount
from containers import REPOSITORY, Container, Woodfrog, verdict
from huge_pages import set_aside
from needs import needs, require
from records import differences

PROGRAMS = Path(__file__).parent / "programs"
Build = Callable[..., Path]


@dataclass(frozen=True)
class Case:
    """A program, its arguments, and what it needs around it."""

    source: Path
    arguments: tuple[str, ...] = ()
    wishes: dict[str, str] = field(default_factory=dict)

    @property
    def name(self) -> str:
        """Its name in the test's report."""
        return " ".join([self.source.stem, *self.arguments])

    def seconds(self, wish: str) -> float:
        """How long to wait at some point."""
        return float(self.wishes.get(wish, "0"))


def cases() -> list[Case]:
    """Read every program's wishes."""
    found = []
    for source in sorted(PROGRAMS.glob("*.c")):
        wishes = dict(re.findall(r"^// (\w+): (.*)$", source.read_text(), re.MULTILINE))
        # What a kernel without the feature doesn't have can't be lost on it.
        if wishes.get("feature", "none") in os.environ.get("WOODFROG_WITHOUT", "").split(","):
            continue
        for arguments in wishes.get("arguments", "").split("|"):
            found.append(Case(source, tuple(arguments.split()), wishes))
    return found


def start(case: Case, woodfrog: Woodfrog, build: Build, *flags: str) -> Container:
    """Start a program in a container; it hasn't told yet that it is ready."""
    program = build(case.source, *case.wishes.get("flags", "").split(), *flags)
    bundle = Bundle(woodfrog.directory / "bundle", ["/programs/" + program.name, *case.arguments])
    (bundle.rootfs / "programs").mkdir()
    bundle.add_mount(bind(program.parent, "/programs"))
    mounted = case.wishes.get("mount", "").split()
    for kind, destination in zip(mounted[::2], mounted[1::2], strict=True):
        (bundle.rootfs / destination.lstrip("/")).mkdir(parents=True, exist_ok=True)
        bundle.add_mount(mount(destination, kind))
    bundle.add_capabilities(*case.wishes.get("capabilities", "").split())
    if device := case.wishes.get("device"):
        number = os.stat(device).st_rdev
        node = {"path": device, "type": "c", "major": os.major(number), "minor": os.minor(number)}
        bundle.config["linux"].setdefault("devices", []).append(node)
    if sysctl := case.wishes.get("sysctl"):
        name, _, value = sysctl.partition("=")
        bundle.config["linux"].setdefault("sysctl", {})[name] = value
    return woodfrog.run(bundle)


def image_of(container: Container) -> Path:
    """Return where a container's image goes."""
    return container.woodfrog.directory / f"image of {container.name}"


# The ways that a program can be frozen; each returns the container in which it goes on.


def left_alone(container: Container, apart: float) -> Container:
    """Not frozen at all: the program itself is right."""
    return container


def restored(container: Container, apart: float) -> Container:
    """Frozen, ended, and thawed in a new container."""
    woodfrog = container.woodfrog
    image = image_of(container)
    container.checkpoint(image)
    container.wait()
    assert [path.name for path in image.iterdir()] == ["checkpoint.img"]
    container.delete()
    time.sleep(apart)
    return woodfrog.restore(container.bundle, image)


def restored_in_the_background(container: Container, apart: float) -> Container:
    """Thawed, and running before its memory is there, which comes only as it is touched."""
    woodfrog = container.woodfrog
    image = woodfrog.directory / "image"
    container.checkpoint(image)
    container.delete()
    time.sleep(apart)
    return woodfrog.restore(
        container.bundle, image, "--background", environment={"WOODFROG_WITHOUT": "filling_ahead"}
    )


def forked_from_a_template(container: Container, apart: float) -> Container:
    """Thawed by a process that has all the memory already."""
    image = image_of(container)
    container.checkpoint(image)
    container.delete()
    time.sleep(apart)
    return container.woodfrog.restore_from_template(container.bundle, image)


def restored_twice(container: Container, apart: float) -> Container:
    """What has been thawed can be frozen again."""
    return restored(restored(container, apart), apart)


def left_running(container: Container, apart: float) -> Container:
    """Frozen for a moment only; the same processes go on."""
    init = container.init
    container.checkpoint(container.woodfrog.directory / "image", "--leave-running")
    assert not container.has_ended(), container.told()
    assert container.state()["pid"] == init
    return container


def restored_from_a_snapshot(container: Container, apart: float) -> Container:
    """Frozen for a moment, then ended by something else: the image is as good as any."""
    woodfrog = container.woodfrog
    image = woodfrog.directory / "image"
    container.checkpoint(image, "--leave-running")
    container.delete()
    time.sleep(apart)
    return woodfrog.restore(container.bundle, image)


def restored_from_a_chain(container: Container, apart: float) -> Container:
    """Frozen twice: the second image has only what has changed, which the kernel has noted."""
    woodfrog = container.woodfrog
    first, second = woodfrog.directory / "first", woodfrog.directory / "second"
    container.checkpoint(first, "--leave-running", "--track-changes")
    container.checkpoint(second, f"--parent={first}")
    container.delete()
    time.sleep(apart)
    return woodfrog.restore(container.bundle, second)


def after_a_failed_checkpoint(container: Container, apart: float) -> Container:
    """The image can't be written to its end: the container runs on as before."""
    image = container.woodfrog.directory / "image"
    # Python itself would cut the modules that it compiles.
    compileall.compile_dir(REPOSITORY / "src", quiet=1)
    # Nothing else fails so late: the space is there, and the write is refused all the same.
    failed = container.checkpoint(image, limits={resource.RLIMIT_FSIZE: 8192}, status=None)
    assert failed.status != 0, failed
    assert "File too large" in failed.stderr
    assert not image.exists() or list(image.iterdir()) == []
    assert not container.has_ended(), container.told()
    return container


def frozen_while_paused(container: Container, apart: float) -> Container:
    """Frozen by engines that pause a container first; it stays so until it has ended."""
    container.woodfrog("pause", container.name)
    left_running(container, apart)
    assert container.state()["status"] == "paused"
    return restored(container, apart)


def set_back(container: Container, apart: float) -> Container:
    """Left running for a while, and set back to where it was; or refused, and running on."""
    image = container.woodfrog.directory / "image"
    container.checkpoint(image, "--leave-running")
    began = time.monotonic()
    time.sleep(apart)
    done = container.woodfrog("rollback", f"--image-path={image}", container.name, status=None)
    # Written first, then named: somebody may look right now.
    late = container.bundle.work / "late.new"
    late.write_text(f"{time.monotonic() - began}\n")
    late.rename(late.with_suffix(""))
    assert not container.has_ended(), done
    if done.status:
        assert "the container is running as before" in done.stderr, done
        path, *arguments = container.bundle.process["args"]
        program = Path(path).name
        cannot = {program, " ".join([program, *arguments])}
        assert not cannot.isdisjoint(CANNOT_BE_SET_BACK), done.stderr
    return container


# What a rollback in place refuses. (Those with empty datagrams: a peek leaves its mark on them.)
CANNOT_BE_SET_BACK = (
    "cgroups",
    "clones",
    "file_locks",
    "hugetlb",
    "hugetlbfs",
    "inet_datagrams",
    "inotify",
    "leases",
    "mounted_ghosts copied",
    "mounted_ghosts nested",
    "mounted_ghosts nowhere",
    "mounted_sockets",
    "mounts part",
    "mounts_hidden nested",
    "mounts_hidden nested-uncovered",
    "mounts_mapped nested",
    "namespace_bound",
    "namespace_files",
    "namespace_ghosts",
    "namespace_hidden",
    "namespace_left",
    "namespace_mounts",
    "namespace_peers",
    "namespace_pid",
    "namespace_sockets",
    "namespace_time",
    "namespace_users",
    "namespaces",
    "nested_network",
    "proc_files",
    "siginfo",
    "stopped",
    "tcp_nested",
    "tcp_waiting",
    "thread_tables",
    "unix_arrived",
    "unix_elsewhere mounts",
    "unix_filters",
    "unix_pair",
    "unix_rights",
    "waits_sockets",
    "tree",
)


WAYS = (
    set_back,
    left_alone,
    restored,
    restored_twice,
    left_running,
    restored_from_a_snapshot,
    after_a_failed_checkpoint,
)
# What a pause could matter to.
PAUSED = ("epoll", "io_uring", "pipe", "signal_masks", "stopped", "thread_exit", "tree", "zombie")
# What missing memory could matter to.
IN_THE_BACKGROUND = (
    "anonymous",
    "brk",
    "cut_short",
    "file_private",
    "forked_memory",
    "guard_pages",
    "huge_pages",
    "io_uring",
    "io_uring_registered",
    "many_mappings",
    "memory_limits",
    "mlock",
    "namespace_pid",
    "pending",
    "protections",
    "robust_list",
    "rseq",
    "seccomp_filter",
    "signal_actions",
    "stack",
    "thread_exit",
    "tls",
    "tree",
    "waits_locks",
)
# What it could matter to that no program was executed, and that memory was moved.
FROM_A_TEMPLATE = (
    "aio",
    "anonymous",
    "brk",
    "childless",
    "clocks",
    "cut_short",
    "duplicates",
    "file_private",
    "forked_memory",
    "guard_pages",
    "huge_pages",
    "io_uring",
    "many_mappings",
    "memory_limits",
    "mlock",
    "names",
    "process_image",
    "protections",
    "robust_list",
    "rseq",
    "seccomp_filter",
    "shared_with_parent",
    "signal_actions",
    "stack",
    "sysv_attachments",
    "thread_exit",
    "tls",
    "tree",
    "vdso",
    "xsave",
    "zombie",
)
SOME = (
    (forked_from_a_template, FROM_A_TEMPLATE),
    (frozen_while_paused, PAUSED),
    (restored_in_the_background, IN_THE_BACKGROUND),
    (restored_from_a_chain, (*IN_THE_BACKGROUND, "hugetlb", "odd_mappings", "droppable", "sealed")),
)
# What it could matter to that mappings' flags are read late, from a copy of the process.
TOLD_BY_COPIES = (
    "anonymous",
    "droppable",
    "file_private",
    "forked_memory",
    "guard_pages",
    "huge_pages",
    "hugetlb",
    "io_uring",
    "madvise",
    "many_mappings",
    "memory_modes",
    "mlock",
    "odd_mappings",
    "sealed",
    "stack",
    "sysv_attachments",
    "tree",
)


# Ways that are tried with one case only of those that they can't tell apart; ./soak tries all.
FEWER: dict[Callable[[Container, float], Container], Callable[[Case], str]] = {
    # Until the write fails it does what `left_running` does, and lets go of everything likewise:
    # one program of each kind, as the first word of its name tells it.
    after_a_failed_checkpoint: lambda case: case.source.stem.partition("_")[0],
    # Every program, but not with each of its arguments. (An image that is left behind by what
    # runs on differs from another one by where memory was read from.)
    set_back: lambda case: case.source.stem,
    restored_from_a_snapshot: lambda case: case.source.stem,
}


def pairs() -> list[tuple[Callable[[Container, float], Container], Case]]:
    """Return the ways with their programs, but those that a program rules out (`// never: way`)."""
    found = []
    for way in WAYS:
        tried = set()
        told_apart = FEWER.get(way) if "WOODFROG_SOAK" not in os.environ else None
        for case in cases():
            name = told_apart(case) if told_apart else case.name
            if way.__name__ not in case.wishes.get("never", "").split() and name not in tried:
                tried.add(name)
                found.append((way, case))
    return found + [
        (way, case) for way, names in SOME for case in cases() if case.source.stem in names
    ]


@pytest.fixture
def huge_pages(case: Case) -> Iterator[None]:
    """Those that a program wishes for; longer than its containers, which would keep some."""
    with set_aside(case.wishes.get("hugepages", "")):
        yield


@needs("root", "command gcc")
@pytest.mark.parametrize(
    ("way", "case"), pairs(), ids=[f"{way.__name__}-{case.name}" for way, case in pairs()]
)
def test_a_program_finds_everything_as_it_was(
    way: Callable[[Container, float], Container],
    case: Case,
    huge_pages: None,
    woodfrog: Woodfrog,
    build: Build,
) -> None:
    for need in case.wishes.get("needs", "").split(","):
        require(need.strip())
    container = start(case, woodfrog, build)
    container.wait_for("ready")
    time.sleep(case.seconds("after"))

    assert verdict(way(container, case.seconds("apart"))) == "ok\n"
    if way is restored_twice:
        first, second, _ = map(image_of, woodfrog.containers)
        assert differences(first, second, case.source.stem) == []


@needs("root", "command gcc")
@pytest.mark.parametrize(
    "case",
    [case for case in cases() if case.source.stem in TOLD_BY_COPIES],
    ids=lambda case: case.name,
)
@pytest.mark.parametrize("flags", [(), ("-DLARGE",)], ids=["small", "large"])
def test_a_program_is_told_the_same_by_its_copy(
    flags: tuple[str, ...], case: Case, huge_pages: None, woodfrog: Woodfrog, build: Build
) -> None:
    container = start(case, woodfrog, build, *flags)
    container.wait_for("ready")
    of_copy, of_itself = woodfrog.directory / "copy", woodfrog.directory / "itself"

    container.checkpoint(of_copy, "--leave-running", "--sync=none")
    container.checkpoint(of_itself, "--sync=none")

    assert differences(of_copy, of_itself, case.source.stem) == []
    container.delete()
    assert verdict(woodfrog.restore(container.bundle, of_copy)) == "ok\n"


@needs("root", "command gcc")
@pytest.mark.parametrize("case", cases(), ids=lambda case: case.name)
def test_a_program_notices_what_it_watches(
    case: Case, huge_pages: None, woodfrog: Woodfrog, build: Build
) -> None:
    for need in case.wishes.get("needs", "").split(","):
        require(need.strip())
    container = start(case, woodfrog, build, "-DSPOILED")
    container.wait_for("ready")

    said = verdict(container)
    assert said
    assert not re.search(r"^ok$", said, re.MULTILINE)
    # That something didn't work is not a finding.
    assert not re.search(r"^line \d+:", said, re.MULTILINE), said
