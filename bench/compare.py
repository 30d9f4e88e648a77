#!/usr/bin/env python3
"""woodfrog against its peers on this machine: medians and ratios, in one interleaved run.

    bench/compare.py                         16, 256 and 1024 MiB, 7 rounds
    bench/compare.py --sizes 16 --rounds 3
    bench/compare.py --only commands         alone (or: memory, incremental, rollback …)

Peers are measured when they are installed: runc and crun for the short commands; runsc, and runc
with a working criu, for checkpoint and restore; redis's own BGSAVE for the pause; runc for `docker
run`. Needs root and gcc. Every round runs everything once, so that a noisy moment strikes all
alike. Peers don't sync their images: compare with `sync none`.
"""

import argparse
import os
import shutil
import signal
import sys
from pathlib import Path

from breadth import compare_breadth
from changes import compare_changes, compare_rollbacks
from clones import compare_background, compare_clones
from commands import compare_commands, measure_docker
from measuring import WOODFROG, Runtime, bundle, work_directory
from memory import compare_memory
from redis import compare_redis

WHAT = (
    "commands",
    "memory",
    "redis",
    "incremental",
    "rollback",
    "background",
    "clones",
    "breadth",
    "docker",
)
UNIFIED = Path("/sys/fs/cgroup/unified")


def compare(sizes: list[int], rounds: int, work: Path, only: str) -> None:
    print(f"{os.uname().sysname} {os.uname().release}, {os.cpu_count()} CPUs, {rounds} rounds")
    woodfrog = Runtime("woodfrog", work, WOODFROG, "--sync=none")
    runners = [woodfrog]
    true = bundle(work / "try", ["/bin/true"], Path(shutil.which("busybox") or "/bin/busybox"))
    for name in ("runc", "crun"):
        if shutil.which(name):
            peer = Runtime(name, work, name)
            if peer.works("run", "--bundle", str(true), f"bench-{os.getpid()}-try"):
                runners.append(peer)
    if only in ("", "commands"):
        compare_commands(rounds, work, runners)
    if only in ("", "memory"):
        compare_memory(sizes, rounds, work, woodfrog)
    if only in ("", "redis"):
        compare_redis(sizes, rounds, work, woodfrog)
    if only in ("", "incremental"):
        compare_changes(sizes, rounds, work, woodfrog)
    if only in ("", "rollback"):
        compare_rollbacks(sizes, rounds, work, woodfrog)
    if only in ("", "background"):
        compare_background(sizes, rounds, work, woodfrog)
    if only in ("", "clones"):
        compare_clones(sizes, rounds, work, woodfrog)
    if only in ("", "breadth"):
        compare_breadth(rounds, work, woodfrog)
    if only in ("", "docker") and shutil.which("dockerd"):
        measure_docker(rounds, work)


def without_unified_tree() -> None:
    """Go on in a mount namespace without the hybrid's v2 tree, which crun refuses."""
    if UNIFIED.is_mount() and shutil.which("crun") and "WOODFROG_BENCH" not in os.environ:
        os.environ["WOODFROG_BENCH"] = "1"
        script = f'umount {UNIFIED}; exec "$@"'
        start = ["unshare", "--mount", "--propagation", "private", "sh", "-c", script, "sh"]
        os.execvp(start[0], [*start, sys.executable, *sys.argv])


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--sizes", default="16,256,1024", help="MiB, by commas")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument(
        "--only",
        default="",
        choices=WHAT,
    )
    parser.add_argument("--work", help="directory for images (default: a new one in TMPDIR)")
    options = parser.parse_args()
    if os.geteuid() or not shutil.which("gcc"):
        sys.exit("bench/compare.py needs root and gcc")
    without_unified_tree()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    with work_directory(options.work) as work:
        sizes = [int(size) for size in options.sizes.split(",")]
        compare(sizes, options.rounds, work, options.only)


if __name__ == "__main__":
    main()
