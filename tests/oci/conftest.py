"""What the tests of the runtime share: a small bundle, and a way to run it and read its output."""

import itertools
import os
from collections.abc import Callable
from pathlib import Path

import pytest

from bundles import Bundle
from containers import Done, Woodfrog

_numbers = itertools.count()


@pytest.fixture
def make_bundle(tmp_path: Path) -> Callable[..., Bundle]:
    """Return what makes bundles that run a shell script with the host's programs."""

    def make(script: str) -> Bundle:
        bundle = Bundle(tmp_path / f"bundle{next(_numbers)}", ["/bin/sh", "-c", script])
        bundle.add_host_programs()
        return bundle

    return make


@pytest.fixture
def new_name(woodfrog: Woodfrog) -> Callable[[Bundle], str]:
    """Return what saves a bundle and gives a container of it a name, under which it's removed."""

    def name(bundle: Bundle) -> str:
        found = f"oci-{os.getpid()}-{next(_numbers)}"
        bundle.config["linux"]["cgroupsPath"] = f"/{found}"
        bundle.save()
        woodfrog.names.append(found)
        return found

    return name


@pytest.fixture
def run(woodfrog: Woodfrog, new_name: Callable[[Bundle], str]) -> Callable[..., Done]:
    """Return what runs a bundle in the foreground."""

    def run_it(bundle: Bundle, *flags: str, status: int = 0) -> Done:
        return woodfrog("run", *flags, "-b", str(bundle.directory), new_name(bundle), status=status)

    return run_it
