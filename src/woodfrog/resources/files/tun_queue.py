"""/dev/net/tun: the holder of a tun or tap device, or one of its queues."""

import stat
import struct
from typing import ClassVar, Self

from woodfrog.errors import ImageError, UnsupportedResource
from woodfrog.kernel import syscalls, tun
from woodfrog.kernel.abi.x86_64 import SYS
from woodfrog.kernel.capability import CAP_NET_ADMIN
from woodfrog.resources.files.base import FileRecord, Row, set_flags
from woodfrog.resources.files.making import Making
from woodfrog.resources.files.open_file import ACCESS_MODE, OpenFile
from woodfrog.resources.files.world import World

_FLAGS = (
    tun.KEPT_FLAGS
    | tun.IFF_TUN
    | tun.IFF_TAP
    | tun.IFF_NO_PI
    | tun.IFF_DETACH_QUEUE
    | tun.IFF_PERSIST
)
_LONGEST_NAME = 15
_NO_LIMIT = (1 << 31) - 1


class TunQueue(FileRecord, frozen=True, tag="tun-queue"):
    """A file of /dev/net/tun. `device` is empty if it has none yet.

    The device itself, with its addresses, is a matter of the network (resources/network); one that
    nobody has made there is made by its first holder.
    """

    row: ClassVar[Row] = Row(
        called="/dev/net/tun",
        kept=("its device (tun or tap), queue, offloads, headers, buffer; persistence",),
        refused=("with a filter (TUNATTACHFILTER)",),
    )
    path: bytes
    device: bytes
    device_flags: int
    send_buffer: int
    header_bytes: int
    little_endian: bool
    offload: int

    @classmethod
    def recognises(cls, file: OpenFile, world: World) -> bool:
        is_device = stat.S_ISCHR(file.stat.st_mode) and file.stat.st_rdev == tun.DEVICE
        return is_device and file.mnt_id in world.mounts

    @classmethod
    def collect(cls, number: int, file: OpenFile, world: World) -> Self:
        found = tun.attached(file.descriptor)
        if found and found.has_filter:
            raise UnsupportedResource(
                "is a tap device with a filter (TUNATTACHFILTER), which cannot be saved yet",
                hint="TUNDETACHFILTER takes it away",
            )
        return cls(
            id=number,
            flags=file.flags,
            path=file.target,
            device=found.name if found else b"",
            device_flags=found.flags if found else 0,
            send_buffer=found.send_buffer if found else 0,
            header_bytes=found.header_bytes if found else 0,
            little_endian=bool(found and found.little_endian),
            offload=found.offload if found else 0,
        )

    def turn(self) -> int:
        # Who listens to the device finds it made.
        return -1

    def refuse_wider(self, bounding: int) -> None:
        if len(self.device) > _LONGEST_NAME or b"%" in self.device or self.device_flags & ~_FLAGS:
            raise ImageError("the image has an impossible tun device")
        words = self.send_buffer, self.header_bytes, self.offload
        if any(not 0 <= word <= _NO_LIMIT for word in words):
            raise ImageError("the image has an impossible tun device")
        if self.device and not bounding >> CAP_NET_ADMIN & 1:
            raise UnsupportedResource(
                "the image has a tun device, which needs CAP_NET_ADMIN in the new container",
                hint="add it to process.capabilities.bounding in the bundle's config.json",
            )

    def restore(self, making: Making) -> int:
        program = making.program
        access = self.flags & ACCESS_MODE
        fd = syscalls.openat2(program, self.path, access)
        if self.device:
            flags = self.device_flags & ~(tun.IFF_DETACH_QUEUE | tun.IFF_PERSIST)
            program.call(SYS.IOCTL, fd, tun.TUNSETIFF, struct.pack("<16sH22x", self.device, flags))
            # It was made to stay for its holder to come.
            persists = bool(self.device_flags & tun.IFF_PERSIST)
            program.call(SYS.IOCTL, fd, tun.TUNSETPERSIST, int(persists))
            for request, value in (
                (tun.TUNSETSNDBUF, self.send_buffer),
                (tun.TUNSETVNETHDRSZ, self.header_bytes),
                (tun.TUNSETVNETLE, int(self.little_endian)),
            ):
                program.call(SYS.IOCTL, fd, request, value.to_bytes(4, "little"))
            program.call(SYS.IOCTL, fd, tun.TUNSETOFFLOAD, self.offload)
            if self.device_flags & tun.IFF_DETACH_QUEUE:
                off = struct.pack("<16xH22x", tun.IFF_DETACH_QUEUE)
                program.call(SYS.IOCTL, fd, tun.TUNSETQUEUE, off)
        set_flags(program, fd, self.flags)
        return fd
