"""Policies of real containers: each place where they may stand has its effect."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from bundles import Bundle, bind
from containers import Woodfrog

Make = Callable[[str], Bundle]


def compression(woodfrog: Woodfrog, image: Path) -> str:
    """Return how an image's memory is compressed."""
    found: dict[str, Any] = json.loads(woodfrog("inspect", "--json", str(image)).stdout)
    return str(found["image"]["compression"])


@pytest.mark.parametrize("place", ["annotation", "before", "file"])
def test_a_policy_holds_wherever_it_stands(
    woodfrog: Woodfrog, make_bundle: Make, tmp_path: Path, place: str
) -> None:
    bundle = make_bundle("exec sleep 1000")
    before: list[str] = []
    if place == "annotation":
        bundle.config["annotations"] = {"org.woodfrog.compression": "zstd"}
    elif place == "before":
        before = ["--compression", "zstd"]
    else:
        (tmp_path / "config.toml").write_text('compression = "zstd"\n')
        before = [f"--config={tmp_path}/config.toml"]
    container = woodfrog.run(bundle)
    image = tmp_path / "image"
    woodfrog(*before, "checkpoint", "--leave-running", f"--image-path={image}/said", container.name)
    assert compression(woodfrog, image / "said") == "zstd"
    # A flag is nearer.
    flags = ["--compression=none", f"--image-path={image}/flag"]
    woodfrog(*before, "checkpoint", *flags, container.name)
    assert compression(woodfrog, image / "flag") == "none"


def test_a_restore_asks_the_new_container(
    woodfrog: Woodfrog, make_bundle: Make, tmp_path: Path
) -> None:
    script = "read -r up _ < /proc/uptime; echo ${up%.*} > /work/up; exec sleep 1000"
    bundle = make_bundle(script)
    container = woodfrog.run(bundle)
    container.wait_for("up")
    image = tmp_path / "image"
    container.checkpoint(image)
    container.delete()
    bundle.config["annotations"] = {"org.woodfrog.clock": "host"}

    def offsets(pid: int) -> str:
        return Path(f"/proc/{pid}/timens_offsets").read_text()

    def is_host(pid: int) -> bool:
        return all(line.split()[1:] == ["0", "0"] for line in offsets(pid).splitlines())

    first = woodfrog.restore(bundle, image)
    assert is_host(first.init)
    second = woodfrog.restore(bundle, image, "--clock=container")
    assert not is_host(second.init)


@pytest.mark.parametrize("command", ["create", "run", "restore"])
def test_an_annotation_that_nobody_knows_is_an_error_at_once(
    woodfrog: Woodfrog, make_bundle: Make, tmp_path: Path, command: str
) -> None:
    bundle = make_bundle("true")
    bundle.config["annotations"] = {"org.woodfrog.tcp-clos": "true"}
    bundle.save()
    (tmp_path / "checkpoint.img").touch()
    flags = [f"--image-path={tmp_path}"] if command == "restore" else []
    done = woodfrog(command, *flags, "-b", str(bundle.directory), "policy", status=1)
    assert done.stderr.splitlines() == [
        "woodfrog: unknown annotation org.woodfrog.tcp-clos",
        "  hint: did you mean org.woodfrog.tcp-close?",
    ]
    assert not woodfrog.root.exists()


def test_mistakes_before_the_command_and_in_the_file_are_named(
    woodfrog: Woodfrog, make_bundle: Make, tmp_path: Path
) -> None:
    done = woodfrog("--compresion=zstd", "list", status=1)
    assert "hint: did you mean --compression?" in done.stderr
    assert "--sync takes one of" in woodfrog("--sync=maybe", "list", status=1).stderr
    container = woodfrog.run(make_bundle("exec sleep 1000"))
    file = tmp_path / "config.toml"
    file.write_text('tcp-close = "maybe"\n')
    flags = [f"--image-path={tmp_path}/image", container.name]
    done = woodfrog(f"--config={file}", "checkpoint", *flags, status=1)
    assert f"{file}: tcp-close is a switch" in done.stderr
    assert container.state()["status"] == "running"


def test_a_config_that_does_not_fit_the_image_is_refused(
    woodfrog: Woodfrog, make_bundle: Make, tmp_path: Path
) -> None:
    first = make_bundle("exec sleep 1000")
    (tmp_path / "data").mkdir()
    first.add_mount(bind(tmp_path / "data", "/data"))
    image = tmp_path / "image"
    woodfrog.run(first).checkpoint(image)
    second = make_bundle("exec sleep 1000")
    second.process["args"][-1] = "exec sleep 2000"
    # No mount at /data: that is refused, in a container that is made now ...
    second.save()
    flags = [f"--image-path={image}", "--detach", f"--bundle={second.directory}"]
    done = woodfrog("restore", *flags, "spec", status=1)
    assert "config doesn't fit the image: mounts: /data is missing; process.args: " in done.stderr
    assert "--restore-spec-validation=warning" in done.stderr
    assert not list(woodfrog.root.glob("spec"))
    # ... and in one that waits, which goes on waiting.
    waiting = woodfrog.create(second)
    done = woodfrog("restore", f"--image-path={image}", "--detach", waiting.name, status=1)
    assert "/data is missing" in done.stderr
    assert waiting.state()["status"] == "created"
    # By the word of its annotations it is warned of only.
    second.config["annotations"] = {"org.woodfrog.restore-spec-validation": "warning"}
    restored = woodfrog.restore(second, image)
    assert "warning: the new container's config differs" in woodfrog.output(restored.name)
    assert restored.state()["status"] == "running"
