"""Open files that no kind recognises: what they are, and what to do about them."""

import os
import socket

import msgspec

from woodfrog.resources.files.open_file import OpenFile


class Refused(msgspec.Struct, frozen=True):
    """What such a file is called, and a hint."""

    called: str
    hint: str


# By how the link in /proc begins.
BY_LINK = {
    b"anon_inode:[userfaultfd]": Refused(
        "userfaultfd", "whoever serves page faults by it must close it first"
    ),
    b"anon_inode:[perf_event]": Refused("a perf event", "stop the profiler first"),
    b"anon_inode:bpf-prog": Refused(
        "a BPF program", "detach it and close it first; maps alone are kept"
    ),
    b"anon_inode:bpf": Refused(
        "a BPF link", "detach programs and close links first; maps are kept"
    ),
    b"anon_inode:btf": Refused("BPF types", "close them; maps keep their own"),
    b"anon_inode:[landlock-ruleset]": Refused(
        "a Landlock ruleset", "close it once the process has restricted itself by it"
    ),
    b"/dev/nvidia": Refused(
        "a GPU of NVIDIA",
        "--cuda-checkpoint-path names NVIDIA's program that frees GPUs for a checkpoint",
    ),
    b"/dev/dri/": Refused("a GPU", "close the GPU first"),
    b"/dev/kvm": Refused("/dev/kvm", "end the virtual machine first, or save it by its own means"),
    b"anon_inode:kvm-": Refused(
        "a virtual machine", "end the virtual machine first, or save it by its own means"
    ),
    b"/dev/fuse": Refused("/dev/fuse", "unmount what it serves first"),
    b"/dev/rtc": Refused("a hardware clock", "close it first; timers of CLOCK_REALTIME are kept"),
}
# Of sockets, by family.
BY_FAMILY = {
    "AF_VSOCK": Refused(
        "vsock", "its other end is on another machine: close it, and connect again afterwards"
    ),
    "AF_XDP": Refused("XDP sockets", "close it first"),
}
# Families that Python has no name for.
_UNNAMED = {44: "AF_XDP"}
# By protocol, of internet sockets.
BY_PROTOCOL = {
    33: Refused("DCCP", "close it first"),
    132: Refused("SCTP", "close it first"),
}


def names() -> list[str]:
    """Return what they are called, for the README."""
    tables = (BY_LINK, BY_FAMILY, BY_PROTOCOL)
    return list(dict.fromkeys(one.called for table in tables for one in table.values()))


def explain(file: OpenFile) -> tuple[str, str]:
    """Say what an open file is, for people, and what to do: of a socket, family and protocol."""
    target = os.fsdecode(file.target)
    for beginning, one in BY_LINK.items():
        if file.target.startswith(beginning):
            details = [target] if target != one.called else []
            details += [
                f"{name.replace('_', ' ')} {file.fdinfo[name]}"
                for name in ("prog_type", "prog_id", "link_type", "link_id")
                if name in file.fdinfo
            ]
            return f"{one.called} ({', '.join(details)})" if details else one.called, one.hint
    if not file.target.startswith(b"socket:"):
        return target, ""
    with socket.socket(file.socket_family, fileno=os.dup(file.descriptor)) as found:
        family = getattr(found.family, "name", _UNNAMED.get(found.family, f"AF {found.family}"))
        refused = BY_FAMILY.get(family) or BY_PROTOCOL.get(found.proto)
        name = f" ({refused.called})" if refused else ""
        hint = refused.hint if refused else ""
        return f"a socket of {family}, protocol {found.proto}{name}", hint
