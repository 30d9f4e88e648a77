"""The signal module's C half: the same functions and numbers without the import of enum (3 ms)."""

TYPE_CHECKING = False
if TYPE_CHECKING:
    import signal as signals
else:
    import _signal as signals

__all__ = ["signals"]
