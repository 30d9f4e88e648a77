"""A small root file system for engines that have no registry to get one from."""

import os
import shutil
import subprocess
from pathlib import Path

PASSWD = "root:x:0:0:root:/root:/bin/sh\nfrog:x:1000:1000:frog:/:/bin/sh\n"


def make_rootfs(rootfs: Path) -> None:
    """Fill a directory with a static busybox, its applets, and the least of /etc."""
    for name in ("bin", "dev", "etc", "proc", "root", "run", "srv", "sys", "tmp"):
        (rootfs / name).mkdir(parents=True)
    (rootfs / "tmp").chmod(0o1777)
    busybox = shutil.which("busybox")
    assert busybox is not None
    shutil.copy(busybox, rootfs / "bin/busybox")
    applets = subprocess.run([busybox, "--list"], capture_output=True, text=True, check=True)
    for applet in applets.stdout.split():
        if applet != "busybox":
            os.symlink("busybox", rootfs / "bin" / applet)
    (rootfs / "etc/passwd").write_text(PASSWD)
    (rootfs / "etc/group").write_text("root:x:0:\nfrog:x:1000:\n")
