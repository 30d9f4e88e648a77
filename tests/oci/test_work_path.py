"""--work-path: what engines look for there after a checkpoint or a restore."""

from collections.abc import Callable
from pathlib import Path

from bundles import Bundle
from containers import Woodfrog

Make = Callable[[str], Bundle]
Name = Callable[[Bundle], str]

FOREVER = "touch /work/up; exec sleep 1000"


def test_a_log_says_what_became_of_it(
    woodfrog: Woodfrog, make_bundle: Make, new_name: Name, tmp_path: Path
) -> None:
    bundle = make_bundle(FOREVER)
    container = woodfrog.run(bundle)
    container.wait_for("up")
    work, image = tmp_path / "work", tmp_path / "image"
    flag = f"--work-path={work}"
    container.checkpoint(image, flag)
    assert (work / "dump.log").read_text() == "woodfrog: the checkpoint is complete\n"
    restored = woodfrog.restore(bundle, image, flag)
    assert (work / "restore.log").read_text() == "woodfrog: the restore is complete\n"
    restored.delete()
    (image / "checkpoint.img").write_bytes(b"no image")
    failed = woodfrog(
        "restore", "-d", flag, f"--image-path={image}", "-b", str(bundle.directory),
        new_name(bundle), status=1,
    )  # fmt: skip
    assert (work / "restore.log").read_text() == failed.stderr


def test_a_failed_checkpoint_is_in_the_log_that_criu_was_configured_for(
    woodfrog: Woodfrog, make_bundle: Make, tmp_path: Path
) -> None:
    (tmp_path / "criu.conf").write_text("leave-running\nlog-file=../else.log\n")
    bundle = make_bundle(FOREVER)
    bundle.config["annotations"] = {"org.criu.config": str(tmp_path / "criu.conf")}
    container = woodfrog.run(bundle)
    container.wait_for("up")
    (tmp_path / "image").write_text("in the way")
    flag = f"--work-path={tmp_path / 'work'}"
    failed = container.checkpoint(tmp_path / "image", flag, status=1)
    assert (tmp_path / "work/else.log").read_text() == failed.stderr
    assert container.state()["status"] == "running"


def test_an_image_points_to_the_parent_that_was_named(
    woodfrog: Woodfrog, make_bundle: Make, tmp_path: Path
) -> None:
    container = woodfrog.run(make_bundle(FOREVER))
    container.wait_for("up")
    container.checkpoint(tmp_path / "first", "--pre-dump")
    container.checkpoint(tmp_path / "second", "--parent-path=../first")
    assert (tmp_path / "second/parent").samefile(tmp_path / "first")
