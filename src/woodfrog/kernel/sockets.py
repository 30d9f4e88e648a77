"""The socket module's C half: the same sockets without the import of enum and selectors (6 ms)."""

TYPE_CHECKING = False
if TYPE_CHECKING:
    import socket as sockets
else:
    import _socket as sockets

__all__ = ["sockets"]
