"""The README's commands, tried where there is nothing: a minimal system with this clone in it."""

import os
import re
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from needs import REQUIRE_ALL, needs

REPOSITORY = Path(__file__).resolve().parent.parent.parent
CLONE = "/root/woodfrog"

# Runs in a mount and pid namespace of its own: whatever goes wrong, nothing outlives it.
INSIDE = f"""
set -eu
cd "$1"
mount --rbind . .
cd "$1"
mount --rbind /dev dev
mount --rbind /sys sys
mount -t proc proc proc
mkdir -p old
pivot_root . old
cd /
umount -l old
rmdir old
cd {CLONE}
processes() {{
    set -- /proc/[0-9]*
    echo $#
}}
before=$(processes)
eval "$2" && status=0 || status=$?
echo "left in /tmp: $(ls -A /tmp)"
echo "left in /run: $(ls -d /run/woodfrog* 2> /dev/null)"
echo "left running: $(($(processes) - before))"
exit $status
"""


def apt_source(release: str) -> tuple[str, str]:
    """Return where this machine's own system comes from, and with which components."""
    form = "$(SITE) $(RELEASE) $(COMPONENT)"
    asked = subprocess.run(
        ["apt-get", "indextargets", "--no-release-info", "--format", form],
        capture_output=True,
        text=True,
        check=True,
    )
    lines = [line.split() for line in asked.stdout.splitlines()]
    sites = [site for site, name, component in lines if (name, component) == (release, "main")]
    known = {component for _, name, component in lines if name == release}
    if not sites:
        raise LookupError(f"apt has no source of {release}")
    return sites[0], ",".join(sorted(known & {"main", "universe"}))


def bring_settings(tree: Path) -> dict[str, str]:
    """Let the tree reach the network as this machine does; return the environment for that."""
    asked = subprocess.run(
        ["apt-config", "dump", "Acquire"], capture_output=True, text=True, check=True
    )
    wanted = re.compile(r"Acquire::(https?::.*|Check-(Valid-Until|Date) .*)")
    lines = [line for line in asked.stdout.splitlines() if wanted.match(line)]
    (tree / "etc/apt/apt.conf.d/99host").write_text("\n".join(lines) + "\n")
    environment = {"PATH": "/usr/sbin:/usr/bin:/sbin:/bin", "HOME": "/root", "LC_ALL": "C.UTF-8"}
    for name in os.environ:
        if name.lower().endswith("_proxy") or name == "PIP_INDEX_URL":
            environment[name] = os.environ[name]
    for name in ("PIP_CERT", "REQUESTS_CA_BUNDLE", "SSL_CERT_FILE"):
        if os.path.isfile(os.environ.get(name, "")):
            shutil.copy(os.environ[name], tree / "etc/host-certificates.crt")
            environment["PIP_CERT"] = "/etc/host-certificates.crt"
            break
    return environment


@pytest.fixture
def tree(tmp_path: Path) -> Iterator[Path]:
    """Make a minimal system that has this clone in root's home."""
    where = tmp_path / "tree"
    try:
        facts = dict(
            line.split("=", 1) for line in Path("/etc/os-release").read_text().split("\n") if line
        )
        release = facts["VERSION_CODENAME"].strip('"')
        site, components = apt_source(release)
        command = ["debootstrap", "--variant=minbase"]
        subprocess.run(
            [*command, f"--components={components}", release, str(where), site],
            check=True,
            capture_output=True,
            text=True,
        )
    except (OSError, LookupError, subprocess.CalledProcessError) as error:
        reason = f"debootstrap doesn't work here: {error} {getattr(error, 'stdout', '') or ''}"
        if REQUIRE_ALL:
            pytest.fail(reason, pytrace=False)
        pytest.skip(reason[-500:])
    shutil.copytree(
        REPOSITORY,
        where / CLONE.lstrip("/"),
        symlinks=True,
        ignore=shutil.ignore_patterns(".git", ".venv", ".*_cache", "__pycache__", "*.egg-info"),
    )
    shutil.copy("/etc/resolv.conf", where / "etc/resolv.conf")
    yield where
    shutil.rmtree(where)


def run_in(tree: Path, command: str, within: float) -> str:
    """Run a command in the tree's clone; it must succeed and leave nothing. Return its output."""
    namespaces = ["--mount", "--propagation", "private", "--pid", "--fork", "--kill-child"]
    done = subprocess.run(
        ["unshare", *namespaces, "sh", "-c", INSIDE, "sh", str(tree), command],
        env=bring_settings(tree),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        errors="replace",
        timeout=within,
        check=False,
    )
    assert done.returncode == 0, done.stdout
    for place in ("in /tmp", "in /run"):
        assert f"left {place}: \n" in done.stdout, done.stdout
    assert "left running: 0" in done.stdout, done.stdout
    return done.stdout


def commands_of_readme() -> list[str]:
    """Return the commands that the README tells a new user to type."""
    return re.findall(r"^ {4}\$? ?(\./\w+)$", (REPOSITORY / "README.md").read_text(), re.MULTILINE)


def test_the_readme_names_the_two_commands() -> None:
    assert commands_of_readme()[:2] == ["./demo", "./test"]


@needs("root", "command debootstrap")
def test_the_demo_works_in_a_minimal_system(tree: Path) -> None:
    said = run_in(tree, commands_of_readme()[0], within=600)
    before, after = map(int, re.findall(r"visits: (\d+)", said)[:2])
    assert after == before + 1, said
    assert "woodfrog inspect" in said
    seconds = sum(int(found) for found in re.findall(r"(?:frozen|thawed) in (\d+) ms", said)) / 1000
    assert seconds < 60


@needs("root", "command debootstrap")
@pytest.mark.skipif("WOODFROG_SOAK" not in os.environ, reason="takes long: ./soak does it")
def test_the_tests_pass_in_a_minimal_system(tree: Path) -> None:
    run_in(tree, "./test --ignore=tests/front -q", within=3600)
