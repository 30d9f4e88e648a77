#!/bin/sh
# Makes the sample of this format version: a static program that sleeps. Needs root and gcc.
set -eu
here=$(cd "$(dirname "$0")" && pwd)
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
woodfrog() {
    "$here/../../woodfrog" --root "$work/state" "$@"
}
mkdir -p "$work/rootfs/proc"
cat > "$work/sleeper.c" << 'END'
#include <time.h>
int main(void) { for (;;) nanosleep(&(struct timespec){.tv_sec = 3600}, 0); }
END
gcc -static -Os -s -o "$work/rootfs/sleeper" "$work/sleeper.c"
cat > "$work/config.json" << 'END'
{
  "ociVersion": "1.0.2",
  "hostname": "sample",
  "process": {
    "args": ["sleeper", "one", "two"], "env": ["PATH=/"], "cwd": "/",
    "user": {"uid": 0, "gid": 0}
  },
  "root": {"path": "rootfs"},
  "mounts": [{"destination": "/proc", "type": "proc", "source": "proc"}],
  "linux": {
    "namespaces": [
      {"type": "pid"}, {"type": "mount"}, {"type": "network"}, {"type": "ipc"}, {"type": "uts"}
    ]
  }
}
END
woodfrog run --detach --bundle "$work" sample < /dev/null > /dev/null 2>&1
rm -rf "$here/image-new"
# In a uts namespace, so that the sample doesn't tell the name of the machine that made it.
unshare --uts sh -c 'hostname sample 2> /dev/null; exec "$@"' sh \
    "$here/../../woodfrog" --root "$work/state" \
    checkpoint --image-path="$here/image-new" --compression=zstd sample
woodfrog delete sample
version=$(woodfrog inspect "$here/image-new" | sed -n 's/.*; format //p')
rm -rf "$here/image-$version"
mv "$here/image-new" "$here/image-$version"
chmod 644 "$here/image-$version/checkpoint.img"
ls -l "$here/image-$version"
