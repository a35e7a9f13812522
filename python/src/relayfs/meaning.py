"""What the records of the built-in events mean, and how they look as text: relay/docs/LINES.md."""

import signal
import struct
from typing import Any, Callable, Dict, NamedTuple, Optional

from .record import LEVELS

BUILTINS = ("text", "raw", "log", "span_begin", "span_end", "lost", "clock", "process", "output")
CAUSES = {1: "buffer full", 2: "too big", 3: "contended", 4: "overwritten"}
REASONS = {1: "the real time was set", 2: "the machine slept", 3: "the clock source changed"}
WHATS = {1: "begins", 2: "exited", 3: "killed by signal"}
# Where the kernel does not tell how a process ended.
STATUS_UNKNOWN = 0xFFFFFFFF
STREAMS = {1: "stdout", 2: "stderr"}


class Meaning(NamedTuple):
    """What a payload says."""

    message: str
    level: Optional[str] = None
    target: Optional[str] = None
    fields: Dict[str, Any] = {}


class Cut(Exception):
    """A payload ends too early."""


class _Payload:
    """Takes values off the front of a payload."""

    def __init__(self, data: bytes) -> None:
        self._data, self._at = data, 0

    def take(self, count: int) -> bytes:
        end = self._at + count
        if end > len(self._data):
            raise Cut
        found = self._data[self._at : end]
        self._at = end
        return found

    def number(self, count: int) -> int:
        return int.from_bytes(self.take(count), "little")

    def text(self, size_of_length: int = 2) -> str:
        return plain(self.take(self.number(size_of_length)))

    def is_over(self) -> bool:
        return self._at == len(self._data)


def plain(data: bytes) -> str:
    """Returns a text. A byte that is no UTF-8 becomes ``\\xff``."""
    return data.decode("utf-8", "backslashreplace")


def word(value: Any) -> str:
    """Returns a field's value, in quotes if it would not be seen as one word."""
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, bytes):
        return value.hex()
    text = value if isinstance(value, str) else str(value)
    if text and text.isascii() and text.isprintable() and not any(c in text for c in ' "=\\'):
        return text
    text = text.replace("\\", "\\\\").replace('"', '\\"')
    return '"' + "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text) + '"'


def of_event(name: str, values: Dict[str, Any]) -> str:
    """Returns the message of an event that a program has defined: its field ``message`` if that is a text, else its name."""
    said = values.get("message")
    if isinstance(said, str):
        name, values = said, {key: value for key, value in values.items() if key != "message"}
    return name + "".join(f" {word(key)}={word(value)}" for key, value in values.items())


def _log(rest: _Payload) -> Meaning:
    level = LEVELS.get(rest.number(1))
    target = rest.text(1)
    return Meaning(rest.text(), level, target or None)


def _span_begin(rest: _Payload) -> Meaning:
    span, parent, name, args = rest.number(8), rest.number(8), rest.text(), rest.text()
    inside = f" in {parent}" if parent else ""
    message = f"span {span}{inside} begins: {name}" + (f" {args}" if args else "")
    return Meaning(message, fields=dict(span=span, parent=parent, name=name, args=args))


def _span_end(rest: _Payload) -> Meaning:
    span = rest.number(8)
    return Meaning(f"span {span} ends", fields=dict(span=span))


def _lost(rest: _Payload) -> Meaning:
    return lost(*struct.unpack("<QB", rest.take(9)))


def _clock(rest: _Payload) -> Meaning:
    epoch, monotonic, realtime = rest.number(8), rest.number(8), rest.number(8)
    reason = REASONS.get(rest.number(1), "unknown")
    fields = dict(epoch=epoch, monotonic=monotonic, realtime=realtime, reason=reason)
    return Meaning(f"clock epoch {epoch} begins: {reason}", fields=fields)


def _process(rest: _Payload) -> Meaning:
    pid, what, status, command = rest.number(4), rest.number(1), rest.number(4), rest.text()
    text = WHATS.get(what, "unknown")
    end = text
    if what == 2 and status == STATUS_UNKNOWN:
        end = "ended; the kernel does not tell how"
    elif what == 2:
        end = f"exited with status {status}"
    elif what == 3:
        try:
            end = f"killed by signal {status} ({signal.Signals(status).name})"
        except ValueError:
            end = f"killed by signal {status}"
    return Meaning(f"{command}[{pid}] {end}", fields=dict(pid=pid, what=text, status=status, command=command))


def _output(rest: _Payload) -> Meaning:
    stream = STREAMS.get(rest.number(1), "unknown")
    return Meaning(rest.text(), fields=dict(stream=stream))


_PARTS: Dict[int, Callable[[_Payload], Meaning]] = {
    2: _log,
    3: _span_begin,
    4: _span_end,
    5: _lost,
    6: _clock,
    7: _process,
    8: _output,
}


def lost(messages: int, cause: int = 0) -> Meaning:
    """Returns the meaning of a loss. A loss without a cause is damage, or comes from another program's recording."""
    text = CAUSES.get(cause)
    fields: Dict[str, Any] = dict(messages=messages)
    if text:
        fields["cause"] = text
    return Meaning(f"{messages} messages lost" + (f" ({text})" if text else ""), fields=fields)


def builtin(ident: int, payload: bytes) -> Optional[Meaning]:
    """Returns what a record of a built-in event says, or None if its payload is not as the event says."""
    if ident < 2:
        return Meaning(plain(payload))
    rest = _Payload(payload)
    try:
        found = _PARTS[ident](rest)
    except (Cut, KeyError):
        return None
    return found if rest.is_over() else None
