"""What is kept of rtnetlink's messages: linux/rtnetlink.h, if_link.h, if_addr.h and others.

What a layout has as None is only told by the kernel: statistics, states, what follows from others.
"""

import socket

from woodfrog.kernel.netlink.attributes import (
    ANY,
    FLAG,
    INDEX,
    U8,
    U16,
    U32,
    Field,
    Layout,
    data,
    nest,
)

IFLA_ADDRESS, IFLA_IFNAME, IFLA_MTU, IFLA_LINK, IFLA_MASTER = 1, 3, 4, 5, 10
IFLA_TXQLEN, IFLA_LINKINFO, IFLA_IFALIAS, IFLA_AF_SPEC, IFLA_GROUP = 13, 18, 20, 26, 27
IFLA_NET_NS_FD = 28
IFLA_LINK_NETNSID, IFLA_XDP, IFLA_PROP_LIST, IFLA_ALT_IFNAME = 37, 43, 52, 53
IFLA_INFO_KIND, IFLA_INFO_DATA, IFLA_INFO_SLAVE_KIND, IFLA_INFO_SLAVE_DATA = 1, 2, 4, 5
IFLA_INET6_TOKEN, IFLA_INET6_ADDR_GEN_MODE = 7, 8
VETH_INFO_PEER = 1
IFLA_BR_VLAN_FILTERING, IFLA_BR_GROUP_ADDR = 7, 20
IFLA_BR_MULTI_BOOLOPT = 46
IFLA_MACVLAN_MACADDR_MODE, IFLA_MACVLAN_MACADDR_DATA = 3, 5
IFLA_VXLAN_REMCSUM, IFLA_VXLAN_TTL_INHERIT = (21, 22), 28
IFA_ADDRESS, IFA_LOCAL, IFA_CACHEINFO, IFA_FLAGS = 1, 2, 6, 8
RTA_OIF, RTA_GATEWAY, RTA_MULTIPATH, RTA_CACHEINFO = 4, 5, 9, 12
RTA_VIA, RTA_ENCAP, RTA_EXPIRES, RTA_NH_ID = 18, 22, 23, 30
NDA_DST, NDA_LLADDR, NDA_MASTER = 1, 2, 9
FRA_UID_RANGE, FRA_PROTOCOL = 20, 21
NHA_ENCAP = 8

IP = data(16)
_HARDWARE = data(32)
_NAME = data(16, 1)
_ALIAS = data(256)

# Set when a device is made. Its name, lower device and kind are fields of the record.
LINK: Layout = {
    IFLA_ADDRESS: _HARDWARE,
    IFLA_MTU: U32,
    IFLA_TXQLEN: U32,
    17: U8,  # link mode
    IFLA_IFALIAS: _ALIAS,
    IFLA_GROUP: U32,
    31: U32,  # transmit queues
    32: U32,  # receive queues
    40: U32,  # GSO segments
    41: U32,  # GSO size
    58: U32,  # GRO size
    63: U32,  # GSO size of IPv4
    64: U32,  # GRO size of IPv4
    ANY: None,
}
# Of that, what is set when it is there.
LATE: Layout = {IFLA_IFALIAS: _ALIAS, ANY: None}
# What may be set of a device that is there already.
CHANGEABLE: Layout = {
    IFLA_ADDRESS: _HARDWARE,
    IFLA_IFNAME: _NAME,
    IFLA_MTU: U32,
    IFLA_TXQLEN: U32,
    IFLA_IFALIAS: _ALIAS,
    IFLA_GROUP: U32,
    ANY: None,
}
# Of each family: how IPv6 makes addresses.
SPECIFIC: Layout = {
    socket.AF_INET6: nest({IFLA_INET6_TOKEN: IP, IFLA_INET6_ADDR_GEN_MODE: U8, ANY: None}),
    ANY: None,
}
ALT_NAMES: Layout = {IFLA_ALT_IFNAME: data(128, 1)}

_BRIDGE: Layout = {
    **dict.fromkeys((1, 2, 3, 4, 5), U32),  # delays, ages, spanning tree
    6: U16,  # priority
    IFLA_BR_VLAN_FILTERING: None,  # only bridges that don't are kept
    8: U16,  # protocol of VLANs
    9: U16,  # forwarded group addresses
    **dict.fromkeys((10, 11, 12, 13, 14, 15, 16, 17, 18, 19, 40, 47, 48)),
    IFLA_BR_GROUP_ADDR: data(6, 6),
    **dict.fromkeys((22, 23, 24, 25), U8),  # multicast router, snooping, queries
    **dict.fromkeys((26, 27, 28, 29), U32),
    **dict.fromkeys((30, 31, 32, 33, 34, 35), data(8, 8)),
    **dict.fromkeys((36, 37, 38), U8),  # packets are shown to iptables
    39: U16,  # VLAN that ports are in
    **dict.fromkeys((41, 42, 43, 44, 45), U8),
    IFLA_BR_MULTI_BOOLOPT: data(8, 8),
    49: U32,  # learned addresses at most
}
_BRIDGE_PORT: Layout = {
    **dict.fromkeys((1, 11, 13, 14, 15, 16, 17, 18, 19, 20, 21, 22, 23, 26, 35, 36, 38, 41)),
    2: U16,  # priority
    3: U32,  # cost
    **dict.fromkeys((4, 5, 6, 7, 8, 9, 10, 12), U8),
    **dict.fromkeys((25, 27, 28, 29, 30), U8),
    31: U16,  # forwarded group addresses
    **dict.fromkeys((32, 33, 39, 40, 43), U8),
    34: INDEX,  # backup port
    37: U32,
    42: U32,
    44: U32,  # backup next hop
}
_VXLAN: Layout = {
    1: U32,  # network
    2: data(4, 4),
    3: INDEX,
    4: data(4, 4),
    **dict.fromkeys((5, 6, 7), U8),
    **dict.fromkeys((8, 9), U32),  # ageing, addresses at most
    10: data(4, 4),  # source ports
    **dict.fromkeys((11, 12, 13, 14), U8),
    15: U16,  # port
    16: data(16, 16),
    17: data(16, 16),
    **dict.fromkeys((18, 19, 20, 21, 22), U8),
    23: FLAG,
    24: FLAG,
    25: U8,
    26: U32,  # flow label
    27: FLAG,
    IFLA_VXLAN_TTL_INHERIT: FLAG,
    **dict.fromkeys((29, 30, 31, 34), U8),
    32: U32,
    33: data(8, 8),
}
_MACVLAN: Layout = {
    1: U32,  # mode
    2: U16,  # flags
    IFLA_MACVLAN_MACADDR_MODE: U32,
    IFLA_MACVLAN_MACADDR_DATA: nest({ANY: data(6, 6)}),  # source addresses
    **dict.fromkeys((6, 8)),
    7: U32,
    9: data(4, 4),
}
# By the kinds of devices that are kept: what is set when one is made.
KINDS: dict[str, Layout] = {
    "bridge": _BRIDGE,
    "dummy": {},
    "ifb": {},
    "ipvlan": {1: U16, 2: U16},
    "macvlan": _MACVLAN,
    "macvtap": _MACVLAN,
    # Made by ioctl(2): type, header of packets, header for virtual machines, several queues.
    "tun": {3: U8, 4: U8, 5: U8, 6: U8, 7: U8, ANY: None},
    "veth": {},
    "vlan": {
        1: U16,
        2: data(8, 8),
        3: nest({ANY: data(8, 8)}),
        4: nest({ANY: data(8, 8)}),
        5: U16,
    },
    "vrf": {1: U32},
    "vxlan": _VXLAN,
}
# By the kinds of their masters: what is set of what belongs to one.
PORTS: dict[str, Layout] = {"bridge": _BRIDGE_PORT, "vrf": {1: None}}

ADDRESS: Layout = {
    IFA_ADDRESS: IP,
    IFA_LOCAL: IP,
    3: _NAME,  # label
    4: IP,  # broadcast
    IFA_CACHEINFO: Field(16, 16, is_fleeting=True),
    IFA_FLAGS: U32,
    9: U32,  # metric of its route
    11: U8,  # who made it
    ANY: None,
}
_METRICS: Layout = {16: data(16), ANY: U32}
_HOP: Layout = {
    RTA_GATEWAY: IP,
    RTA_VIA: data(18, 2),
    11: U32,  # realm
}
ROUTE: Layout = {
    1: IP,  # destination
    2: IP,  # source
    RTA_OIF: INDEX,
    RTA_GATEWAY: IP,
    6: U32,  # priority
    7: IP,  # preferred source
    8: nest(_METRICS),
    RTA_MULTIPATH: Field(inner=_HOP, is_hops=True),
    11: U32,  # realm
    RTA_CACHEINFO: None,
    15: U32,  # table
    RTA_VIA: data(18, 2),
    20: U8,  # preference
    RTA_EXPIRES: Field(4, 4, is_fleeting=True),
    RTA_NH_ID: U32,
}
NEXT_HOP: Layout = {
    1: U32,  # id
    2: data(1 << 15),  # group
    3: U16,  # its type
    4: FLAG,  # blackhole
    5: INDEX,
    6: IP,  # gateway
    11: FLAG,  # of a forwarding table
    12: nest({1: U16, 2: U32, 3: U32, ANY: None}),
    ANY: None,
}
RULE: Layout = {
    1: IP,
    2: IP,
    3: _NAME,
    4: U32,  # goto
    6: U32,  # priority
    10: U32,  # mark
    11: U32,  # realm
    12: data(8, 8),  # tunnel
    13: U32,
    14: U32,
    15: U32,  # table
    16: U32,  # mask of the mark
    17: _NAME,
    19: U8,
    FRA_UID_RANGE: data(8, 8),
    FRA_PROTOCOL: U8,
    22: U8,
    23: data(4, 4),
    24: data(4, 4),
    25: U8,  # traffic class
    26: U32,  # flow label
    27: U32,
    18: None,
    28: U16,
    29: U16,
    30: U8,
}
NEIGHBOUR: Layout = {
    1: IP,
    NDA_LLADDR: _HARDWARE,
    3: None,
    4: None,
    5: U16,  # VLAN
    6: U16,  # port
    7: U32,  # VXLAN network
    8: INDEX,
    NDA_MASTER: None,
    11: U32,
    12: U8,  # who made it
    13: U32,  # next hop
    15: U32,  # more flags
    ANY: None,
}
