"""/proc/PID/status and /proc/PID/stat."""

import msgspec

from woodfrog.kernel.procfs.reading import read_file


class Status:
    """The fields of a status by name: a long text, of which only a few are ever asked for."""

    def __init__(self, text: bytes) -> None:
        self._text = "\n" + text.decode(errors="surrogateescape")

    def __contains__(self, name: str) -> bool:
        return f"\n{name}:" in self._text

    def __getitem__(self, name: str) -> str:
        _, found, rest = self._text.partition(f"\n{name}:")
        if not found:
            raise KeyError(name)
        return rest.partition("\n")[0].strip()

    def get(self, name: str, default: str) -> str:
        """Return a field; `default` if there is none of that name."""
        try:
            return self[name]
        except KeyError:
            return default

    def between(self, first: str, last: str) -> str:
        """Return the lines of two fields and of those between them, as text of a status."""
        start = self._text.index(f"\n{first}:")
        end = self._text.index(f"\n{last}:", start)
        return self._text[start + 1 : self._text.index("\n", end + 1) + 1]

    @property
    def comm(self) -> bytes:
        """The name of the thread: unlike that in stat, it is shown with escapes."""
        parts = self["Name"].encode(errors="surrogateescape").split(b"\\\\")
        return b"\\".join(part.replace(b"\\n", b"\n") for part in parts)


def read_status(path: str) -> Status:
    """Read `path`/status, path being /proc/PID or /proc/PID/task/TID."""
    return Status(read_file(f"{path}/status", in_pieces=False))


class Stat(msgspec.Struct, frozen=True):
    """What we need of proc_pid_stat(5)."""

    comm: bytes
    state: str
    parent: int
    group: int
    session: int
    terminal: int
    flags: int
    start_time: int
    start_code: int
    end_code: int
    start_stack: int
    start_data: int
    end_data: int
    start_brk: int
    arg_start: int
    arg_end: int
    env_start: int
    env_end: int
    exit_code: int
    exit_signal: int
    nice: int


def read_stat(path: str) -> Stat:
    """Read `path`/stat, path being /proc/PID or /proc/PID/task/TID."""
    text = read_file(f"{path}/stat", in_pieces=False)
    # comm may hold blanks and parentheses: the last ")" ends it.
    end = text.rindex(b")")
    comm = text[text.index(b"(") + 1 : end]
    fields = text[end + 2 :].split()

    def field(number: int) -> int:
        return int(fields[number - 3])

    return Stat(
        comm=comm,
        state=fields[0].decode(),
        parent=field(4),
        group=field(5),
        session=field(6),
        terminal=field(7),
        flags=field(9),
        nice=field(19),
        start_time=field(22),
        start_code=field(26),
        end_code=field(27),
        start_stack=field(28),
        start_data=field(45),
        end_data=field(46),
        start_brk=field(47),
        arg_start=field(48),
        arg_end=field(49),
        env_start=field(50),
        env_end=field(51),
        exit_code=field(52),
        exit_signal=field(38),
    )
