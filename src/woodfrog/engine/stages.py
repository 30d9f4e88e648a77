"""The stages of a restore; each is finished by all processes before the next begins."""

from enum import Enum


class Stage(Enum):
    """Who does what, and what is true afterwards."""

    ADMIT = "image verified; bundle, CPU, kernel and rights fit; nothing made yet"
    ROOT = "files are in its root; init is a stub in its time namespace; names, tmpfs, mounts stand"
    FILES = "the root stub has opened every file once; pairs are tied, queues filled"
    TREE = "all processes exist, with their sessions and groups; zombies have died"
    BODY = "descriptors, mappings, memory, threads and signals are as they were; timers wait"
    CONNECT = "files that point at others do: epoll, locks, foreground groups"
    LIMITS = "cgroups, limits, credentials, seccomp: then only the process's own rights"
    GO = "timers run, interrupted calls wait for the time that was left, everyone is let go"
