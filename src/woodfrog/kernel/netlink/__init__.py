"""Netlink: sockets that the kernel answers."""
