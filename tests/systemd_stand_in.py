"""A stand-in for systemd on a bus of its own: it keeps units, and makes no cgroups."""

import subprocess
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

from jeepney import (
    DBusAddress,
    HeaderFields,
    Message,
    MessageType,
    new_error,
    new_method_call,
    new_method_return,
    new_signal,
)
from jeepney.io.blocking import open_dbus_connection

NAME = "org.freedesktop.systemd1"
MANAGER = DBusAddress("/org/freedesktop/systemd1", NAME, f"{NAME}.Manager")
BUS = DBusAddress("/org/freedesktop/DBus", "org.freedesktop.DBus", "org.freedesktop.DBus")
CONFIG = """\
<busconfig>
  <type>session</type>
  <listen>unix:path={socket}</listen>
  <policy context="default">
    <allow send_destination="*" eavesdrop="true"/><allow eavesdrop="true"/><allow own="*"/>
  </policy>
</busconfig>
"""

Properties = dict[str, Any]


class SystemdStandIn:
    """Answers what woodfrog asks of systemd; held by a `with` block."""

    def __init__(self, directory: Path) -> None:
        self.socket = directory / "bus"
        config = directory / "bus.conf"
        config.write_text(CONFIG.format(socket=self.socket))
        self._command = ["dbus-daemon", f"--config-file={config}", "--nofork", "--print-address=1"]
        self.units: dict[str, Properties] = {}
        self.calls: list[tuple[str, str]] = []  # methods, and the units they were about
        self.failed: set[str] = set()
        self.result = "done"
        self._jobs = 0

    def __enter__(self) -> "SystemdStandIn":
        self._daemon = subprocess.Popen(
            self._command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
        )
        try:
            assert self._daemon.stdout
            address = self._daemon.stdout.readline()  # it listens
            self._connection = open_dbus_connection(address.strip())
            request = new_method_call(BUS, "RequestName", "su", (NAME, 0))
            self._connection.send_and_get_reply(request, timeout=60)
        except BaseException:
            self._end_daemon()
            raise
        self._thread = threading.Thread(target=self._serve)
        self._thread.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._end_daemon()
        self._thread.join()
        self._connection.close()

    def _end_daemon(self) -> None:
        with self._daemon:
            self._daemon.terminate()

    def _serve(self) -> None:
        while True:
            try:
                message = self._connection.receive()
            except (ConnectionResetError, OSError):
                return  # the bus has gone
            if message.header.message_type is MessageType.method_call:
                self._answer(message)

    def _answer(self, message: Message) -> None:
        member = message.header.fields[HeaderFields.member]
        unit = message.body[0]
        self.calls.append((member, unit))
        methods: dict[str, Callable[..., Message | None]] = {
            "StartTransientUnit": self._start,
            "SetUnitProperties": self._set,
            "StopUnit": self._stop,
            "ResetFailedUnit": self._reset,
        }
        answer = methods[member](message, *message.body)
        if answer is None:
            answer = new_method_return(message)
        self._connection.send(answer)

    def _error(self, message: Message, name: str) -> Message:
        return new_error(message, f"{NAME}.{name}", "s", (f"Unit {message.body[0]}: {name}",))

    def _job(self, message: Message, result: str) -> Message:
        """Say first that the job is done, and then which it was."""
        self._jobs += 1
        path = f"{MANAGER.object_path}/job/{self._jobs}"
        body = (self._jobs, path, message.body[0], result)
        self._connection.send(new_signal(MANAGER, "JobRemoved", "uoss", body))
        return new_method_return(message, "o", (path,))

    def _start(
        self, message: Message, unit: str, mode: str, properties: list[Any], auxiliary: list[Any]
    ) -> Message:
        assert (mode, auxiliary) == ("replace", [])
        if unit in self.units or unit in self.failed:
            return self._error(message, "UnitExists")
        if self.result == "done":
            self.units[unit] = {name: value for name, (_, value) in properties}
        else:
            self.failed.add(unit)
        return self._job(message, self.result)

    def _set(
        self, message: Message, unit: str, runtime: bool, properties: list[Any]
    ) -> Message | None:
        assert runtime
        if unit not in self.units:
            return self._error(message, "NoSuchUnit")
        self.units[unit] |= {name: value for name, (_, value) in properties}
        return None

    def _stop(self, message: Message, unit: str, mode: str) -> Message:
        if self.units.pop(unit, None) is None:
            return self._error(message, "NoSuchUnit")
        return self._job(message, "done")

    def _reset(self, message: Message, unit: str) -> Message | None:
        if unit not in self.failed:
            return self._error(message, "NoSuchUnit")
        self.failed.remove(unit)
        return None
