"""Installing into the configurations of podman and containerd, and out of them again."""

import stat
import tomllib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from woodfrog.cli.main import main

Run = Callable[..., int]

CRI = "io.containerd.grpc.v1.cri"
NEWER_CRI = "io.containerd.cri.v1.runtime"
OURS = {"runtime_type": "io.containerd.runc.v2", "options": {"BinaryName": "/opt/woodfrog"}}
RUNC = {"runtime_type": "io.containerd.runc.v2"}
SPARSE = """\
version = 2
# Where the plugins of this distribution are.
[plugins."io.containerd.grpc.v1.cri".cni]
  bin_dir = "/usr/lib/cni"
"""
FULL = """\
version = 2
[plugins."io.containerd.grpc.v1.cri"]
  sandbox_image = "pause"
  [plugins."io.containerd.grpc.v1.cri".containerd]
    snapshotter = "overlayfs"
    default_runtime_name = "runc" # as ever

    [plugins."io.containerd.grpc.v1.cri".containerd.runtimes.runc]
      runtime_type = "io.containerd.runc.v2"
      [plugins."io.containerd.grpc.v1.cri".containerd.runtimes.runc.options]
        SystemdCgroup = true
[debug]
  level = "info"
"""
WITHOUT_DEFAULT = """\
version = 3
[plugins.'io.containerd.cri.v1.runtime'.containerd]
[plugins.'io.containerd.cri.v1.runtime'.containerd.runtimes.runc]
  runtime_type = 'io.containerd.runc.v2'"""


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Run:
    """Return what runs `install` or `uninstall` for an engine whose file is `config`."""
    monkeypatch.setattr("woodfrog.install.podman.CRIU", str(tmp_path / "bin/criu"))
    monkeypatch.setenv("PATH", str(tmp_path / "bin"))

    def run_it(command: str, engine: str, *flags: str) -> int:
        return main([command, engine, f"--config={tmp_path}/config", "--yes", *flags])

    return run_it


def everything(directory: Path) -> dict[str, bytes]:
    """Return every file below a directory."""
    return {str(path): path.read_bytes() for path in directory.rglob("*") if path.is_file()}


def cri(config: Path, plugin: str = CRI) -> dict[str, Any]:
    """Return what a configuration says of the runtimes of pods."""
    found: dict[str, Any] = tomllib.loads(config.read_text())["plugins"][plugin]["containerd"]
    return found


@pytest.mark.parametrize("text", [None, "# nothing yet", SPARSE, FULL, WITHOUT_DEFAULT])
@pytest.mark.parametrize("flags", [(), ("--default",)])
def test_what_containerd_forgets_is_as_before(
    run: Run, text: str | None, flags: tuple[str, ...], tmp_path: Path
) -> None:
    config = tmp_path / "config"
    if text is not None:
        config.write_text(text)
    before = everything(tmp_path)
    plugin = NEWER_CRI if text == WITHOUT_DEFAULT else CRI

    assert run("install", "containerd", "--runtime=/opt/woodfrog", *flags) == 0
    found = cri(config, plugin)
    options = {"SystemdCgroup": True} if text == FULL else {}
    ours = OURS | {"options": {"BinaryName": "/opt/woodfrog", **options}}
    assert found["runtimes"]["woodfrog"] == ours
    # Whatever is the default is in the list.
    default = found.get("default_runtime_name", "runc")
    assert default == ("woodfrog" if flags else "runc")
    assert found["runtimes"][default]["runtime_type"] == "io.containerd.runc.v2"
    for line in (text or "").splitlines():
        assert "default_runtime_name" in line or line in config.read_text().splitlines()

    installed = everything(tmp_path)
    assert run("install", "containerd", "--runtime=/opt/woodfrog", *flags) == 0
    assert everything(tmp_path) == installed
    assert run("install", "containerd", "--runtime=/elsewhere") == 0
    assert "/elsewhere" in config.read_text()
    assert "/opt/woodfrog" not in config.read_text()
    assert "default" not in flags or cri(config, plugin)["default_runtime_name"] != "woodfrog"

    assert run("uninstall", "containerd") == 0
    assert everything(tmp_path) == before


def test_what_others_have_changed_in_containerd_s_file_stays(run: Run, tmp_path: Path) -> None:
    config = tmp_path / "config"
    config.write_text(FULL)
    run("install", "containerd", "--default")
    config.write_text(config.read_text().replace('level = "info"', 'level = "debug"'))
    assert run("uninstall", "containerd") == 0
    assert config.read_text() == FULL.replace('level = "info"', 'level = "debug"')


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("version = 1\n", "is of version 1"),
        ("[plugins]\n", "is of version 1"),
        ("version = ", "is not TOML"),
        (f"version = 2\nplugins = {{'{CRI}' = {{}}}}\n", "can't be added to"),
        (FULL + f"[plugins.'{CRI}'.containerd.runtimes.woodfrog]\n", "runtime woodfrog already"),
    ],
)
def test_a_file_of_containerd_s_that_is_left_alone(
    run: Run, text: str, said: str, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "config").write_text(text)
    assert run("install", "containerd") == 1
    assert said in capfd.readouterr().err
    assert everything(tmp_path) == {str(tmp_path / "config"): text.encode()}


def test_podman_gets_a_file_and_a_criu(run: Run, tmp_path: Path) -> None:
    config, criu = tmp_path / "config", tmp_path / "bin/criu"
    assert run("install", "podman", "--runtime=/opt/a frog", "--default") == 0
    engine = tomllib.loads(config.read_text())["engine"]
    assert engine["runtime"] == "woodfrog"
    assert engine["runtimes"] == {"woodfrog": ["/opt/a frog"]}
    assert {"runc", "woodfrog"} < set(engine["runtime_supports_json"])
    assert criu.read_text() == "#!/bin/sh\nexec '/opt/a frog' criu \"$@\"\n"
    assert stat.S_IMODE(criu.stat().st_mode) == 0o755
    installed = everything(tmp_path)
    assert run("install", "podman", "--runtime=/opt/a frog", "--default") == 0
    assert everything(tmp_path) == installed
    assert run("install", "podman", "--runtime=/opt/frog") == 0
    engine = tomllib.loads(config.read_text())["engine"]
    assert engine["runtimes"] == {"woodfrog": ["/opt/frog"]}
    assert "runtime" not in engine
    assert "/opt/frog" in criu.read_text()
    assert run("uninstall", "podman") == 0
    assert everything(tmp_path) == {}


def test_a_criu_that_is_there_stays(run: Run, tmp_path: Path) -> None:
    criu = tmp_path / "bin/criu"
    criu.parent.mkdir()
    criu.write_text("#!/bin/sh\necho Version: 4.0\n")
    criu.chmod(0o755)
    before = everything(tmp_path)
    assert run("install", "podman") == 0
    assert set(everything(tmp_path)) - set(before) > {str(tmp_path / "config")}
    assert criu.read_text().startswith("#!/bin/sh\necho")
    assert run("uninstall", "podman") == 0
    assert everything(tmp_path) == before


@pytest.mark.parametrize("engine", ["podman", "containerd"])
def test_flags_before_each_command_are_docker_s(
    run: Run, engine: str, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    assert run("install", engine, "--runtime-arg=--tcp-close") == 1
    assert "/etc/woodfrog/config.toml" in capfd.readouterr().err
    assert everything(tmp_path) == {}
