"""Images that were made under another build of the kernel, whose vDSO differs."""

from collections.abc import Callable
from pathlib import Path

import msgspec
import pytest
from shells import frozen
from test_programs import PROGRAMS, Case, start

from bundles import Bundle
from containers import Container, Woodfrog, verdict
from images import RECORDS, doctored
from needs import needs
from woodfrog.image.container_file import Reader
from woodfrog.kernel import elf
from woodfrog.kernel.ptrace import Registers
from woodfrog.remote.vdso import Vdso
from woodfrog.resources.process import Process

pytestmark = needs("root", "command python3")
Build = Callable[..., Path]

# Asks the clocks before and after, by the addresses that the C library found at its start.
SCRIPT = """
import os, time
before = time.monotonic(), time.time()
open("/work/ready", "w").close()
while not os.path.exists("/work/check"):
    time.sleep(0.01)
after = time.monotonic(), time.time()
told = os.path.getmtime("/work/check")
right = 0 <= after[0] - before[0] < 60 and abs(after[1] - told) < 10
right = right and time.clock_getres(time.CLOCK_MONOTONIC) > 0
open("/work/out", "w").write("ok" if right else f"{before} {after} {told}")
"""
UD2 = b"\x0f\x0b"


def broken_vdso() -> bytes:
    """Return a vDSO whose every function would be an illegal instruction."""
    image = bytearray(Vdso().image)
    for one in elf.functions(bytes(image)).values():
        image[one.start : one.start + one.length] = UD2 * (one.length // 2) + b"\xcc" * (
            one.length % 2
        )
    return bytes(image)


@pytest.fixture
def container(woodfrog: Woodfrog) -> Container:
    bundle = Bundle(woodfrog.directory / "bundle", ["/usr/bin/python3", "-c", SCRIPT])
    bundle.add_host_programs()
    started = woodfrog.run(bundle)
    started.wait_for("ready")
    return started


def of_another_kernel(image: Path) -> Path:
    return doctored(image, image.with_name("other"), vdso=broken_vdso())


def test_the_old_vdso_leads_into_the_new(container: Container) -> None:
    image = of_another_kernel(frozen(container))

    restored = container.woodfrog.restore(container.bundle, image)

    assert verdict(restored) == "ok"


def test_it_can_be_frozen_again(container: Container) -> None:
    woodfrog = container.woodfrog
    restored = woodfrog.restore(container.bundle, of_another_kernel(frozen(container)))
    again = woodfrog.directory / "again"
    restored.checkpoint(again)
    restored.wait()
    restored.delete()

    # Once more by another kernel, too.
    third = doctored(again, again.with_name("third"), vdso=broken_vdso())

    assert verdict(woodfrog.restore(container.bundle, third)) == "ok"


def test_a_thread_in_the_middle_of_it_is_refused(container: Container) -> None:
    image = frozen(container)
    with Reader(str(image)) as reader:
        process = next(one for one in reader.records(RECORDS) if isinstance(one, Process))
    registers = Registers.from_buffer_copy(process.threads[0].registers)
    registers.rip = process.memory.vdso_text + 100
    inside = msgspec.structs.replace(process.threads[0], registers=bytes(registers))
    other = doctored(of_another_kernel(image), image.with_name("in"), Process, threads=[inside])

    refused = container.woodfrog(
        *("restore", "--detach", f"--image-path={other}"),
        *(f"--bundle={container.bundle.directory}", "never"),
        status=1,
    )

    assert "inside the vDSO" in refused.stderr


@needs("command gcc")
def test_a_call_that_was_cut_short_goes_on_behind_it(woodfrog: Woodfrog, build: Build) -> None:
    container = start(Case(PROGRAMS / "cut_short.c", ("write", "send")), woodfrog, build)
    container.wait_for("ready")
    image = frozen(container)
    with Reader(str(image)) as reader:
        processes = [one for one in reader.records(RECORDS) if isinstance(one, Process)]
    assert [one.memory.finishes_calls for one in processes] == [False, True, True]

    assert verdict(woodfrog.restore(container.bundle, of_another_kernel(image))) == "ok\n"


def test_no_thread_is_caught_in_the_middle_of_it(woodfrog: Woodfrog) -> None:
    # Most of the time this program is in the vDSO.
    script = "from time import *; c = [monotonic] * 999\nwhile 1:\n for f in c: f(); f(); f(); f()"
    bundle = Bundle(woodfrog.directory / "bundle", ["/usr/bin/python3", "-c", script])
    bundle.add_host_programs()
    container = woodfrog.run(bundle)

    for number in range(20):
        image = woodfrog.directory / f"image{number}"
        container.checkpoint(image, "--leave-running", "--sync=none")
        with Reader(str(image)) as reader:
            process = next(one for one in reader.records(RECORDS) if isinstance(one, Process))
        start = process.memory.vdso_text
        instruction = Registers.from_buffer_copy(process.threads[0].registers).rip
        assert not start <= instruction < start + len(Vdso().image)
