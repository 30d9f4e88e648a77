"""tun and tap devices (linux/if_tun.h): made by ioctl(2), and kept until a holder comes."""

import os
import struct

from woodfrog.kernel import syscalls
from woodfrog.kernel.abi.x86_64 import SYS
from woodfrog.kernel.netlink.messages import attributes_of
from woodfrog.remote.stub import Stub
from woodfrog.resources.network.records import Link

_TUNSETIFF, _TUNSETPERSIST, _TUNSETOWNER = 0x400454CA, 0x400454CB, 0x400454CC
_TUNSETGROUP, _TUNSETIFINDEX = 0x400454CE, 0x400454DA
_IFF_TUN, _IFF_TAP, _IFF_NO_PI, _IFF_VNET_HDR, _IFF_MULTI_QUEUE = 1, 2, 0x1000, 0x4000, 0x100
_TYPE, _PACKET_INFORMATION, _VNET_HDR, _MULTI_QUEUE = 3, 4, 5, 7
_TAP = 2


def make(stub: Stub, link: Link, *, held: bool) -> list[int]:
    """Make a tun device that stays without a holder, by a stub with the container's rights.

    Returns the stub's descriptor that holds it until it is set up, if it is to be `held`.
    """
    told = {number: value[0] for number, value in attributes_of(memoryview(link.data)).items()}
    flags = _IFF_TAP if told.get(_TYPE) == _TAP else _IFF_TUN
    flags |= 0 if told.get(_PACKET_INFORMATION) else _IFF_NO_PI
    flags |= _IFF_VNET_HDR if told.get(_VNET_HDR) else 0
    flags |= _IFF_MULTI_QUEUE if told.get(_MULTI_QUEUE) else 0
    program = stub.program()
    file = syscalls.openat2(program, b"/dev/net/tun", os.O_RDWR | os.O_CLOEXEC)
    program.call(SYS.IOCTL, file, _TUNSETIFINDEX, struct.pack("<I", link.index))
    program.call(SYS.IOCTL, file, _TUNSETIFF, struct.pack("<16sH22x", link.name, flags))
    for user in link.uids:
        program.call(SYS.IOCTL, file, _TUNSETOWNER, user)
    for group in link.gids:
        program.call(SYS.IOCTL, file, _TUNSETGROUP, group)
    program.call(SYS.IOCTL, file, _TUNSETPERSIST, 1)
    if not held:
        syscalls.close(program, file)
    stub.run(program)
    return [program[file]] if held else []
