"""do: a sandbox over this host's files, without a bundle."""

import json
import os
import shutil
import subprocess
from pathlib import Path

from containers import CGROUPS, Woodfrog, eventually
from needs import needs


def test_what_it_writes_is_thrown_away(woodfrog: Woodfrog, tmp_path: Path) -> None:
    kept = tmp_path / "kept"
    kept.write_text("before")
    script = f"cat {kept}; echo after > {kept}; cat {kept}; touch {tmp_path}/new; pwd; exit 6"
    done = woodfrog("do", "--quiet", "--cwd", str(tmp_path), "--", "sh", "-c", script, status=6)
    assert done.stdout == f"beforeafter\n{tmp_path}\n"
    assert done.stderr == ""
    assert kept.read_text() == "before"
    assert not (tmp_path / "new").exists()
    assert woodfrog.leftovers() == []


def test_a_volume_is_written_to_the_host(woodfrog: Woodfrog, tmp_path: Path) -> None:
    volume = tmp_path / "volume"
    volume.mkdir()
    command = ["sh", "-c", "echo here > /mnt/file"]
    woodfrog("do", "--quiet", f"--volume={volume}:/mnt", *command)
    assert (volume / "file").read_text() == "here\n"


def test_disks_cannot_be_reached(woodfrog: Woodfrog) -> None:
    script = "mknod /tmp/disk b 259 0; head -c1 /tmp/disk"
    done = woodfrog("do", "--quiet", "--", "sh", "-c", script, status=1)
    assert "Operation not permitted" in done.stderr


@needs("command busybox")
def test_a_root_of_its_own(woodfrog: Woodfrog, tmp_path: Path) -> None:
    busybox = Path(shutil.which("busybox") or "")
    (tmp_path / "tree" / "bin").mkdir(parents=True)
    (tmp_path / "tree/bin/busybox").write_bytes(busybox.read_bytes())
    (tmp_path / "tree/bin/busybox").chmod(0o755)
    done = woodfrog(
        "do", "--quiet", f"--root={tmp_path}/tree", "/bin/busybox", "ls", "/", status=None
    )
    assert set(done.stdout.split()) == {"bin", "dev", "proc", "sys"}, done.stderr


@needs("command busybox")
def test_a_root_of_its_own_is_that_of_a_restore_too(woodfrog: Woodfrog, tmp_path: Path) -> None:
    busybox = Path(shutil.which("busybox") or "")
    tree = tmp_path / "tree"
    (tree / "only-here").mkdir(parents=True)
    (tree / "only-here/busybox").write_bytes(busybox.read_bytes())
    (tree / "only-here/busybox").chmod(0o755)
    name = f"do-{os.getpid()}"
    woodfrog.names += [name, f"{name}-again"]
    script = "$0 touch /up; while ! [ -e /go ]; do $0 sleep 0.1; done; exit 9"
    command = ["/only-here/busybox", "sh", "-c", script, "/only-here/busybox"]
    started = woodfrog.command("do", "--quiet", f"--root={tree}", f"--id={name}", "--", *command)
    with subprocess.Popen(started, stdin=subprocess.DEVNULL) as process:
        woodfrog.begun.add(process.pid)
        up = woodfrog.root / name / "scratch/upper/up"
        eventually(up.exists, "the program waits")
        woodfrog("checkpoint", f"--image-path={tmp_path}/image", name)
        process.wait(60)

    restore = ("restore", f"--image-path={tmp_path}/image", f"--root={tree}", f"{name}-again")
    refused = woodfrog(*restore, status=1)
    assert "--root after the command is for images of `do`" in refused.stderr
    with subprocess.Popen(woodfrog.command(*restore, "--do"), stdin=subprocess.DEVNULL) as process:
        woodfrog.begun.add(process.pid)
        told = woodfrog.root / f"{name}-again" / "state.json"
        eventually(lambda: told.exists() and "restoredFrom" in told.read_text(), "it is restored")
        woodfrog("exec", f"{name}-again", "/only-here/busybox", "touch", "/go")
        assert process.wait(60) == 9


def test_a_template_makes_several_of_it(woodfrog: Woodfrog, tmp_path: Path) -> None:
    name = f"do-{os.getpid()}"
    names = [f"{name}-again-{number}" for number in (1, 2)]
    woodfrog.names += [name, *names]
    script = "touch /up; sleep 0.1; while ! [ -e /go ]; do sleep 0.1; done; exit 9"
    command = woodfrog.command("do", "--quiet", f"--id={name}", "--", "sh", "-c", script)
    with subprocess.Popen(command, stdin=subprocess.DEVNULL) as process:
        woodfrog.begun.add(process.pid)
        eventually((woodfrog.root / name / "scratch/upper/up").exists, "the program waits")
        woodfrog("checkpoint", f"--image-path={tmp_path}/image", name)
        process.wait(60)
    woodfrog("warm", f"--image-path={tmp_path}/image", "t")
    try:
        woodfrog("restore", "--do", "--template=t", "--count=2", f"{name}-again")
    finally:
        woodfrog("warm", "--drop", "t")
    for one in names:
        woodfrog("exec", one, "touch", "/go")
        assert json.loads(woodfrog("wait", one).stdout)["exitStatus"] == 9


def test_the_scratch_layer_is_part_of_the_image(woodfrog: Woodfrog, tmp_path: Path) -> None:
    place = tmp_path / "place"
    place.mkdir()
    (place / "old").write_text("old\n")
    (place / "gone").write_text("gone\n")
    out = tmp_path / "out"
    volume = tmp_path / "volume"
    volume.mkdir()
    script = (
        f"cd {place}; rm gone; echo changed > old; echo new > new; exec 5> open; echo one >&5;"
        "mkfifo wait; touch $0; [ -e wait ] && read x < wait;"
        "echo two >&5; ls; cat old new open; exit 9"
    )
    name = f"do-{os.getpid()}"
    woodfrog.names.append(name)
    # It waits until, in the restored sandbox, `exec` writes into its FIFO.
    command = woodfrog.command("do", "--quiet", f"--id={name}", "--", "sh", "-c", script, "/up")
    with (
        out.open("w") as output,
        subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=output, stderr=output
        ) as process,
    ):
        woodfrog.begun.add(process.pid)
        up = woodfrog.root / name / "scratch/upper/up"
        eventually(up.exists, "the program waits")
        woodfrog("checkpoint", f"--image-path={tmp_path}/image", name)
        assert process.wait(60) == 137
    assert "was frozen into" in out.read_text()
    assert not list(CGROUPS.glob(f"*/{name}"))

    again = f"{name}-again"
    woodfrog.names.append(again)
    out.write_text("")
    command = woodfrog.command("restore", "--do", f"--image-path={tmp_path}/image", again)
    with (
        out.open("w") as output,
        subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=output, stderr=output
        ) as process,
    ):
        woodfrog.begun.add(process.pid)
        told = woodfrog.root / again / "state.json"
        eventually(lambda: told.exists() and "restoredFrom" in told.read_text(), "it is restored")
        woodfrog("exec", again, "sh", "-c", f"echo go > {place}/wait")
        assert process.wait(60) == 9
    assert out.read_text().split() == ["new", "old", "open", "wait", "changed", "new", "one", "two"]
    assert (place / "old").read_text() == "old\n"
    assert (place / "gone").exists()


def test_a_root_that_its_first_process_has_left_is_refused(
    woodfrog: Woodfrog, tmp_path: Path
) -> None:
    name = f"do-{os.getpid()}"
    woodfrog.names.append(name)
    volume = tmp_path / "volume"
    volume.mkdir()
    leaving = ["unshare", "--user", "--map-root-user", "--mount"]
    command = [*leaving, "sh", "-c", "touch /mnt/up; exec sleep 1000"]
    where = [f"--volume={volume}:/mnt", f"--id={name}"]
    started = woodfrog.command("do", "--quiet", *where, "--", *command)
    with subprocess.Popen(started, stdin=subprocess.DEVNULL) as process:
        woodfrog.begun.add(process.pid)
        eventually((volume / "up").exists, "the program waits")
        said = woodfrog("checkpoint", f"--image-path={tmp_path}/image", name, status=1).stderr
        assert "gone to a user namespace that it made" in said
        woodfrog("delete", "--force", name)
        process.wait(60)
