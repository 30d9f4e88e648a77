"""Installing into an engine's configuration, and out of it again."""

import json
import stat
from collections.abc import Callable
from pathlib import Path

import pytest

from woodfrog.cli.main import main

Text = str | None

OURS = {"path": "/opt/woodfrog", "runtimeArgs": ["--tcp-close"]}
FLAGS = ("--runtime=/opt/woodfrog", "--runtime-arg=--tcp-close")


@pytest.fixture
def daemon(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return the place of a daemon.json; the client's plugins are beside it."""
    monkeypatch.setattr("woodfrog.install.docker.PLUGINS", str(tmp_path / "plugins"))
    return tmp_path / "docker" / "daemon.json"


@pytest.fixture
def command(daemon: Path) -> Callable[..., int]:
    """Return what runs `install` or `uninstall`."""

    def run(name: str, *flags: str) -> int:
        flags = ("--yes", *flags) if "--dry-run" not in flags else flags
        return main([name, "docker", f"--config={daemon}", *flags])

    return run


def there(daemon: Path) -> dict[str, object]:
    """Return the configuration as the daemon reads it."""
    found: dict[str, object] = json.loads(daemon.read_text())
    return found


def everything(directory: Path) -> dict[str, bytes]:
    """Return every file below a directory."""
    return {str(path): path.read_bytes() for path in directory.rglob("*") if path.is_file()}


@pytest.mark.parametrize(
    "text",
    [
        None,
        '{"debug":true}',
        '{\n  "experimental": false,\n  "debug": true\n}',
        '{\n\t"default-runtime": "runc",\n\t"runtimes": {"crun": {"path": "/x"}}\n}\n',
        '{"runtimes": {"woodfrog": {"path": "/an/older"}}, "experimental": true}',
    ],
)
@pytest.mark.parametrize("flags", [(), ("--default",)])
def test_what_is_uninstalled_is_as_before(
    daemon: Path, command: Callable[..., int], text: Text, flags: tuple[str, ...], tmp_path: Path
) -> None:
    if text is not None:
        daemon.parent.mkdir()
        daemon.write_text(text)
        daemon.chmod(0o640)
    before = everything(tmp_path)

    assert command("install", *FLAGS, *flags) == 0
    config = there(daemon)
    assert config["runtimes"]["woodfrog"] == OURS  # type: ignore[index]
    assert config["experimental"] is True
    assert (config.get("default-runtime") == "woodfrog") is bool(flags)
    if text is not None:
        assert stat.S_IMODE(daemon.stat().st_mode) == 0o640
        kept = json.loads(text)
        assert kept.get("debug") == config.get("debug")
        assert "crun" not in kept.get("runtimes", {}) or "crun" in str(config)

    installed = everything(tmp_path)
    assert command("install", *FLAGS, *flags) == 0
    assert everything(tmp_path) == installed
    assert command("install", "--runtime=/elsewhere") == 0
    assert "/elsewhere" in daemon.read_text()

    assert command("uninstall") == 0
    assert everything(tmp_path) == before


def test_what_others_have_changed_since_stays(
    daemon: Path, command: Callable[..., int], tmp_path: Path
) -> None:
    daemon.parent.mkdir()
    daemon.write_text('{"debug": true}')
    command("install", "--default")
    config = there(daemon)
    config["debug"] = False
    config["default-runtime"] = "crun"
    daemon.write_text(json.dumps(config))
    assert command("uninstall") == 0
    assert there(daemon) == {"debug": False, "default-runtime": "crun"}
    assert command("uninstall") == 0
    assert list(everything(tmp_path)) == [str(daemon)]


def test_without_a_record_only_the_runtime_goes(daemon: Path, command: Callable[..., int]) -> None:
    daemon.parent.mkdir()
    daemon.write_text('{"runtimes": {"woodfrog": {"path": "/x"}}, "experimental": true}')
    assert command("uninstall") == 0
    assert there(daemon) == {"experimental": True}


def test_the_changes_are_shown_and_asked_for(
    daemon: Path,
    command: Callable[..., int],
    capfd: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    assert command("install", "--dry-run") == 0
    shown = capfd.readouterr().out
    assert f"+++ {daemon}" in shown
    assert '+        "woodfrog": {' in shown
    assert not daemon.exists()
    with open("/dev/null") as nobody:
        monkeypatch.setattr("sys.stdin", nobody)
        assert main(["install", "docker", f"--config={daemon}"]) == 1
    assert "give --yes" in capfd.readouterr().err
    assert not daemon.exists()


def test_a_broken_configuration_is_left_alone(
    daemon: Path, command: Callable[..., int], capfd: pytest.CaptureFixture[str]
) -> None:
    daemon.parent.mkdir()
    daemon.write_text('{"debug": true,}')
    assert command("install") == 1
    assert "is not JSON" in capfd.readouterr().err
    assert daemon.read_text() == '{"debug": true,}'


def test_the_client_gets_a_command(
    daemon: Path, command: Callable[..., int], tmp_path: Path
) -> None:
    assert command("install", "--runtime=/opt/a frog") == 0
    plugin = tmp_path / "plugins" / "docker-woodfrog"
    assert plugin.read_text() == "#!/bin/sh\nexec '/opt/a frog' docker -- \"$@\"\n"
    assert stat.S_IMODE(plugin.stat().st_mode) == 0o755
