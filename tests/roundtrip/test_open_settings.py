"""Settings (sysctl) that a keeper's worker reads by files that it keeps open."""

import os
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest
from changing import SOURCE, Changing

from containers import Woodfrog, eventually
from needs import needs
from started import child_of, line, started
from woodfrog.image.container_file import Reader
from woodfrog.resources import namespaces
from woodfrog.resources.sysctls import Opened, Usual

pytestmark = needs("root", "command gcc", "command nsenter")

LIFETIME = "net/ipv4/ip_default_ttl"


def set_in(init: int, path: str, value: str) -> None:
    """Change a setting of a process's namespaces."""
    text = f"echo {value} > /proc/sys/{path}"
    subprocess.run(
        ["nsenter", f"--target={init}", "--net", "--ipc", "sh", "-c", text], check=True, timeout=60
    )


def settings_in(image: Path) -> dict[str, bytes]:
    """Return the settings of the network that an image has."""
    with Reader(str(image)) as reader:
        [found] = [one for one in reader.raw_records() if one["kind"] == "sysctls"]
    return dict(found["network"])


def test_what_is_changed_after_they_were_opened_is_saved(
    woodfrog: Woodfrog, build: Callable[..., Path]
) -> None:
    changing = Changing(woodfrog, build(SOURCE))
    changing.save(0, "--track-changes")
    [keeper] = changing.keepers()
    files = Path(f"/proc/{child_of(keeper)}/fd")
    eventually(lambda: len(os.listdir(files)) > 100, "it has opened them")
    set_in(changing.container.init, LIFETIME, "77")
    changing.save(1, f"--parent={changing.image(0)}")
    assert settings_in(changing.image(1)) == {LIFETIME: b"77"}
    set_in(changing.container.init, LIFETIME, "78")
    changing.save(2, f"--parent={changing.image(1)}")
    assert settings_in(changing.image(2))[LIFETIME] == b"78"
    changing.end()


@pytest.mark.parametrize("number_is_used_again", [False, True])
def test_those_of_a_namespace_that_was_left_are_not_asked(
    number_is_used_again: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    script = "echo first; read word; exec unshare --net sh -c 'echo second; read word'"
    with started("unshare", "--net", "sh", "-c", script) as program:
        assert line(program) == "first"
        usual = Usual()
        _ = usual.settings
        opened = Opened(program.pid, usual)
        paths = usual.paths("network")
        with namespaces.inside(program.pid, "net"):
            assert dict(opened.read(program.pid, paths)) == {p: usual.settings[p] for p in paths}
        assert program.stdin
        program.stdin.write(b"\n")
        program.stdin.flush()
        assert line(program) == "second"
        set_in(program.pid, LIFETIME, "66")
        with namespaces.inside(program.pid, "net"):
            if number_is_used_again:
                monkeypatch.setattr(opened, "_link", os.readlink("/proc/thread-self/ns/net"))
                eventually(lambda: have_gone(opened), "what was there has gone")
            found = dict(opened.read(program.pid, paths))
            assert found[LIFETIME] == b"66"
            assert found.keys() == set(paths)
        opened.close()


def have_gone(opened: Opened) -> bool:
    """Tell whether open files are those of a namespace that has ended."""
    try:
        os.pread(next(iter(opened._files.values())), 1, 0)
    except FileNotFoundError:
        return True
    return False
