"""The socket options that an image may have (socket(7), ip(7), ipv6(7), tcp(7), udp(7), raw(7)).

Those without a name here are named by asm-generic/socket.h, linux/in.h, in6.h, tcp.h and udp.h.
Missing are those that can be set but not be read; README.md lists them.
"""

import socket

import msgspec

from woodfrog.kernel import capability

# As bits of a set.
CAP_NET_ADMIN, CAP_NET_RAW = 1 << capability.CAP_NET_ADMIN, 1 << capability.CAP_NET_RAW

IPPROTO_UDPLITE = 136
IPPROTO_MPTCP = 262
SOL_NETLINK = 270
SOL_PACKET = 263
SOL_RAW = 255
SO_RXQ_OVFL, SO_TXTIME = 40, 61
TCP_REPAIR, TCP_ULP, TCP_AO_INFO = 19, 31, 40
UDP_ENCAP, UDP_ENCAP_ESPINUDP = 100, 2
IP_OPTIONS, IP_MULTICAST_IF = 4, 32
BOUND_TO_DEVICE = socket.SOL_SOCKET, 25  # SO_BINDTODEVICE
IPV6_ROUTER_ALERT = 22
_EITHER = CAP_NET_ADMIN | CAP_NET_RAW


class Known(msgspec.Struct, frozen=True):
    """An option: level, name, the most bytes of its value; `early` if it matters to bind(2).

    `rights` are the capabilities one of which setting it needs. With `unconnected`, it is only of a
    socket that isn't connected: that of a connection is something else, or can't be set. `device`
    is how a number in it names an interface, if it does: "native", or "network" byte order. With
    `uncertain`, a sound value may be refused in another place; the socket does without it then.
    """

    level: int
    name: int
    size: int = 4
    early: bool = False
    rights: int = 0
    unconnected: bool = False
    device: str = ""
    uncertain: bool = False


def _table(level: int, *names: int) -> tuple[Known, ...]:
    return tuple(Known(level, name) for name in names)


_GENERAL = (
    Known(socket.SOL_SOCKET, socket.SO_REUSEADDR, early=True),
    Known(socket.SOL_SOCKET, socket.SO_DEBUG, rights=CAP_NET_ADMIN),
    *_table(socket.SOL_SOCKET, socket.SO_KEEPALIVE, socket.SO_BROADCAST, socket.SO_OOBINLINE),
    *_table(socket.SOL_SOCKET, socket.SO_DONTROUTE, socket.SO_PRIORITY, socket.SO_RCVLOWAT),
    Known(socket.SOL_SOCKET, socket.SO_LINGER, 8),
    Known(socket.SOL_SOCKET, socket.SO_RCVTIMEO, 16),
    Known(socket.SOL_SOCKET, socket.SO_SNDTIMEO, 16),
    # SO_TIMESTAMP, SO_TIMESTAMPNS. One flag makes these and SO_TIMESTAMPING those of 64 bits, which
    # are set after them: SO_TIMESTAMPING shows its flags in either form.
    *_table(socket.SOL_SOCKET, 29, 35),
    Known(socket.SOL_SOCKET, 37, 8),  # SO_TIMESTAMPING
    *_table(socket.SOL_SOCKET, 63, 64),  # SO_TIMESTAMP_NEW, SO_TIMESTAMPNS_NEW
    Known(socket.SOL_SOCKET, 65, 8),  # SO_TIMESTAMPING_NEW
    # SO_WIFI_STATUS, SO_PEEK_OFF, SO_NOFCS, SO_SELECT_ERR_QUEUE
    *_table(socket.SOL_SOCKET, SO_RXQ_OVFL, 41, 42, 43, 45),
    *_table(socket.SOL_SOCKET, socket.SO_RCVBUF, socket.SO_SNDBUF),
)
# SO_PASSCRED, SO_PASSSEC, SO_PASSPIDFD, SO_PASSRIGHTS, SO_INQ
_UNIX = _table(socket.SOL_SOCKET, socket.SO_PASSCRED, 34, 76, 83, 84)
_NETWORK = (
    Known(socket.SOL_SOCKET, 36, rights=_EITHER),  # SO_MARK
    Known(socket.SOL_SOCKET, 46, rights=CAP_NET_ADMIN),  # SO_BUSY_POLL
    Known(socket.SOL_SOCKET, 69, rights=CAP_NET_ADMIN),  # SO_PREFER_BUSY_POLL
    Known(socket.SOL_SOCKET, 47, 8),  # SO_MAX_PACING_RATE
    Known(socket.SOL_SOCKET, SO_TXTIME, 8),
    Known(socket.SOL_SOCKET, 75, rights=_EITHER),  # SO_RCVMARK
    Known(socket.SOL_SOCKET, 82, rights=_EITHER),  # SO_RCVPRIORITY
)
_INET = (
    Known(socket.SOL_SOCKET, 15, early=True),  # SO_REUSEPORT
    Known(*BOUND_TO_DEVICE, 16, early=True, uncertain=True),
    *_NETWORK,
    # SO_NO_CHECK, SO_ZEROCOPY
    *_table(socket.SOL_SOCKET, 11, 60),
    Known(socket.SOL_SOCKET, 49, unconnected=True),  # SO_INCOMING_CPU
    # What it reserves is the cgroup's, which must have room for it.
    Known(socket.SOL_SOCKET, 73, uncertain=True),  # SO_RESERVE_MEM
)
_IP = (
    Known(socket.IPPROTO_IP, 15, early=True),  # IP_FREEBIND
    Known(socket.IPPROTO_IP, 19, early=True, rights=_EITHER),  # IP_TRANSPARENT
    Known(socket.IPPROTO_IP, 24, early=True),  # IP_BIND_ADDRESS_NO_PORT
    Known(socket.IPPROTO_IP, 51, early=True),  # IP_LOCAL_PORT_RANGE
    Known(socket.IPPROTO_IP, IP_OPTIONS, 40),
    # IP_TOS, IP_TTL, IP_RECVOPTS, IP_RETOPTS, IP_PKTINFO, IP_MTU_DISCOVER, IP_RECVERR, IP_RECVTTL,
    # IP_RECVTOS, IP_PASSSEC, IP_RECVORIGDSTADDR, IP_MINTTL, IP_CHECKSUM, IP_RECVFRAGSIZE,
    # IP_RECVERR_RFC4884
    *_table(socket.IPPROTO_IP, 1, 2, 6, 7, 8, 10, 11, 12, 13, 18, 20, 21, 23, 25, 26),
    Known(socket.IPPROTO_IP, 50, device="network", uncertain=True),  # IP_UNICAST_IF
)
_IP_MULTICAST = (
    # It shows the address alone that names the interface.
    Known(socket.IPPROTO_IP, IP_MULTICAST_IF, uncertain=True),
    # IP_MULTICAST_TTL, IP_MULTICAST_LOOP, IP_MULTICAST_ALL
    *_table(socket.IPPROTO_IP, 33, 34, 49),
)
_IPV6 = (
    Known(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, early=True),
    Known(socket.IPPROTO_IPV6, 78, early=True),  # IPV6_FREEBIND
    Known(socket.IPPROTO_IPV6, 75, early=True, rights=_EITHER),  # IPV6_TRANSPARENT
    Known(socket.IPPROTO_IPV6, 72, early=True),  # IPV6_ADDR_PREFERENCES
    # IPV6_2292PKTINFO, …_2292HOPOPTS, …_2292DSTOPTS, …_2292RTHDR, …_2292HOPLIMIT, IPV6_FLOWINFO,
    # …_UNICAST_HOPS, …_MTU_DISCOVER, …_RECVERR, …_ROUTER_ALERT_ISOLATE, …_RECVERR_RFC4884,
    # …_FLOWINFO_SEND
    *_table(socket.IPPROTO_IPV6, 2, 3, 4, 5, 8, 11, 16, 23, 25, 30, 31, 33),
    # IPV6_RECVPKTINFO, …_RECVHOPLIMIT, …_RECVHOPOPTS, …_RECVRTHDR, …_RECVDSTOPTS, …_RECVPATHMTU,
    # …_DONTFRAG, …_RECVTCLASS, …_TCLASS, …_AUTOFLOWLABEL, …_MINHOPCOUNT, …_RECVORIGDSTADDR,
    # …_RECVFRAGSIZE
    *_table(socket.IPPROTO_IPV6, 49, 51, 53, 56, 58, 60, 62, 66, 67, 70, 73, 74, 77),
    Known(socket.IPPROTO_IPV6, 57, 2048),  # IPV6_RTHDR
    Known(socket.IPPROTO_IPV6, 54, 2048, rights=CAP_NET_RAW),  # IPV6_HOPOPTS
    Known(socket.IPPROTO_IPV6, 55, 2048, rights=CAP_NET_RAW),  # IPV6_RTHDRDSTOPTS
    Known(socket.IPPROTO_IPV6, 59, 2048, rights=CAP_NET_RAW),  # IPV6_DSTOPTS
    Known(socket.IPPROTO_IPV6, 76, device="network", uncertain=True),  # IPV6_UNICAST_IF
)
_IPV6_MULTICAST = (
    Known(socket.IPPROTO_IPV6, 17, device="native", uncertain=True),  # IPV6_MULTICAST_IF
    # IPV6_MULTICAST_HOPS, IPV6_MULTICAST_LOOP, IPV6_MULTICAST_ALL
    *_table(socket.IPPROTO_IPV6, 18, 19, 29),
)
_TCP = (
    *_table(socket.IPPROTO_TCP, socket.TCP_NODELAY, socket.TCP_CORK, socket.TCP_KEEPIDLE),
    *_table(socket.IPPROTO_TCP, socket.TCP_KEEPINTVL, socket.TCP_KEEPCNT, socket.TCP_SYNCNT),
    *_table(socket.IPPROTO_TCP, socket.TCP_LINGER2, socket.TCP_DEFER_ACCEPT),
    *_table(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, socket.TCP_NOTSENT_LOWAT),
    Known(socket.IPPROTO_TCP, socket.TCP_CONGESTION, 16),
    # TCP_THIN_LINEAR_TIMEOUTS, TCP_SAVE_SYN, TCP_INQ, TCP_TX_DELAY, TCP_RTO_MAX_MS,
    # TCP_RTO_MIN_US, TCP_DELACK_MAX_US
    *_table(socket.IPPROTO_TCP, 16, 27, 36, 37, 44, 45, 46),
    Known(socket.SOL_SOCKET, 74),  # SO_TXREHASH
    Known(socket.IPPROTO_TCP, socket.TCP_MAXSEG, unconnected=True),
    Known(socket.IPPROTO_TCP, socket.TCP_WINDOW_CLAMP, unconnected=True),
    Known(socket.IPPROTO_TCP, socket.TCP_FASTOPEN, unconnected=True),
    Known(socket.IPPROTO_TCP, 30, unconnected=True),  # TCP_FASTOPEN_CONNECT
    Known(socket.IPPROTO_TCP, 33, 32, unconnected=True),  # TCP_FASTOPEN_KEY
    Known(socket.IPPROTO_TCP, 34, unconnected=True),  # TCP_FASTOPEN_NO_COOKIE
)
# UDP_CORK, UDP_ENCAP, UDP_NO_CHECK6_TX, UDP_NO_CHECK6_RX, UDP_SEGMENT, UDP_GRO
_UDP = _table(socket.IPPROTO_UDP, 1, UDP_ENCAP, 101, 102, 103, 104)
# UDPLITE_SEND_CSCOV, UDPLITE_RECV_CSCOV
_UDPLITE = _table(IPPROTO_UDPLITE, 10, 11)
_RAW = (
    # IP_HDRINCL, IP_ROUTER_ALERT, IP_NODEFRAG
    *_table(socket.IPPROTO_IP, 3, 5, 22),
    Known(SOL_RAW, 1),  # ICMP_FILTER
    Known(socket.IPPROTO_IPV6, 36),  # IPV6_HDRINCL
    Known(SOL_RAW, 7),  # IPV6_CHECKSUM, which a socket of ICMPv6 takes only so
    Known(socket.IPPROTO_ICMPV6, 1, 32),  # ICMPV6_FILTER
)
_PACKET = (
    *_NETWORK,
    # Rings are made by these: PACKET_VERSION, PACKET_RESERVE, PACKET_LOSS, PACKET_VNET_HDR,
    # PACKET_TX_HAS_OFF, PACKET_VNET_HDR_SZ
    *(Known(SOL_PACKET, name, early=True) for name in (10, 12, 14, 15, 19, 24)),
    # PACKET_AUXDATA, PACKET_ORIGDEV, PACKET_TIMESTAMP, PACKET_QDISC_BYPASS, PACKET_IGNORE_OUTGOING
    *_table(SOL_PACKET, 8, 9, 17, 20, 23),
)
# NETLINK_PKTINFO, …_BROADCAST_ERROR, …_NO_ENOBUFS, …_LISTEN_ALL_NSID, …_CAP_ACK, …_EXT_ACK,
# …_GET_STRICT_CHK
_NETLINK = (
    *_table(socket.SOL_SOCKET, socket.SO_PASSCRED, 34),  # and SO_PASSSEC
    *_table(SOL_NETLINK, 3, 4, 5),
    Known(SOL_NETLINK, 8, rights=1 << 11),  # CAP_NET_BROADCAST
    *_table(SOL_NETLINK, 10, 11, 12),
)


def known(family: int, kind: int, protocol: int) -> list[Known]:
    """Return the options that sockets of such a kind may have, in the order of setting them."""
    found = list(_GENERAL)
    if family == socket.AF_UNIX:
        return [*found, *_UNIX]
    if family == socket.AF_NETLINK:
        return [*found, *_NETLINK]
    if family == socket.AF_PACKET:
        return [*found, *_PACKET]
    datagrams = kind != socket.SOCK_STREAM
    found += _INET + _IP + (_IP_MULTICAST if datagrams else ())
    if family == socket.AF_INET6:
        found += _IPV6 + (_IPV6_MULTICAST if datagrams else ())
    if kind == socket.SOCK_RAW:
        found += _RAW
    elif protocol in (0, socket.IPPROTO_TCP, IPPROTO_MPTCP) and kind == socket.SOCK_STREAM:
        found += _TCP
    elif protocol in (0, socket.IPPROTO_UDP):
        found += _UDP
    elif protocol == IPPROTO_UDPLITE:
        found += _UDP + _UDPLITE
    return found
