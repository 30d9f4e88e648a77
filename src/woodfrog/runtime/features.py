"""What this runtime does, in the form of the OCI specification's features document."""

from __future__ import annotations

from woodfrog import __version__
from woodfrog.kernel import capability, scheduling
from woodfrog.runtime import mount_options
from woodfrog.runtime.spec import NAMESPACES
from woodfrog.runtime.spec_schema import CONFIG

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any


def features() -> dict[str, Any]:
    """Return the features document."""
    from woodfrog.kernel import bpf

    options = [*mount_options.FLAGS, *mount_options.PROPAGATION, *mount_options.RECURSIVE]
    return {
        "ociVersionMin": "1.0.0",
        "ociVersionMax": "1.2.0",
        "hooks": list(CONFIG["hooks"]),
        "mountOptions": sorted([*options, *mount_options.OURS]),
        "linux": {
            "namespaces": sorted(NAMESPACES),
            "capabilities": capability.NAMES,
            "cgroup": {
                "v1": True,
                "v2": True,
                "systemd": True,
                "systemdUser": False,
                "rdma": True,
            },
            "mountExtensions": {"idmap": {"enabled": True}},
            "netDevices": {"enabled": True},
            "seccomp": {
                "enabled": True,
                "actions": sorted(bpf.ACTIONS),
                "operators": sorted(bpf.OPERATORS),
                "archs": sorted(bpf.ARCHITECTURES),
                "knownFlags": sorted(bpf.FLAGS),
                # Those that any profile can have; this one needs a listener.
                "supportedFlags": sorted(
                    set(bpf.FLAGS) - {"SECCOMP_FILTER_FLAG_WAIT_KILLABLE_RECV"}
                ),
            },
            "apparmor": {"enabled": True},
            "selinux": {"enabled": True},
            "intelRdt": {"enabled": False},
            "memoryPolicy": {
                "modes": list(scheduling.MEMORY_POLICIES),
                "flags": list(scheduling.MEMORY_FLAGS),
            },
        },
        # What of a config changes what we do beyond the container itself.
        "potentiallyUnsafeConfigAnnotations": [
            "org.woodfrog.",
            "org.systemd.property.",
            "org.criu.config",
        ],
        "annotations": {
            "org.woodfrog.version": __version__,
            "org.opencontainers.runc.checkpoint.enabled": "true",
        },
    }
