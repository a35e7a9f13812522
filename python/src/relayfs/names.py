"""Names for the numbers in records: events that programs have defined, threads and processes."""

import bisect
import re
import struct
from typing import Any, Dict, List, NamedTuple, Optional, Tuple

from .clock import U64_MAX
from .record import LEVELS

# The most processes and threads of a text, and the most that are kept when a newer one comes.
ENTRIES_MAX = 1 << 17
# The most processes that are kept for a thread: those that wrote last.
OWNERS_MAX = 8
# Nanoseconds of a tick in which the kernel counts the start of processes. So inexact is the time of a start, too.
START_TICK = 10_000_000
FIELDS_MAX = 32
FIRST_ID = 256

_QUOTED = r'"((?:[^"\\]|\\["\\]|\\[0-7]{3})*)"'
_HEAD = re.compile(rf"/\* relay event (\d{{1,5}}): level ([0-5]); target {_QUOTED}; file {_QUOTED}; line (\d{{1,10}}) \*/")
_NAME = re.compile(rf"\tname = {_QUOTED};")
_FIELD = re.compile(rf"\t\t(u64|i64|f64|enum : u8 \{{ false = 0, true = 1 \}}|utf8|byte) \w+(?:\[\w+\])?; /\* {_QUOTED} \*/")
_LENGTH = re.compile(r"\t\tu16 \w+;")
_ESCAPE = re.compile(r'\\(["\\]|[0-7]{3})')
_NUMBERS = {"u64": struct.Struct("<Q"), "i64": struct.Struct("<q"), "f64": struct.Struct("<d")}


class Definition(NamedTuple):
    """An event that a program has defined."""

    name: str
    level: Optional[str]
    target: str
    fields: Tuple[Tuple[str, str], ...]

    def values(self, payload: bytes) -> Optional[Dict[str, Any]]:
        """Returns the fields of a payload, or None if it is not as the event says."""
        at, found = 0, {}
        for name, kind in self.fields:
            number = _NUMBERS.get(kind)
            if number is not None:
                if at + 8 > len(payload):
                    return None
                found[name] = number.unpack_from(payload, at)[0]
                at += 8
            elif kind == "enum":
                if at + 1 > len(payload):
                    return None
                found[name] = payload[at] != 0
                at += 1
            else:
                end = at + 2 + int.from_bytes(payload[at : at + 2], "little")
                if at + 2 > len(payload) or end > len(payload):
                    return None
                value = payload[at + 2 : end]
                found[name] = value if kind == "byte" else value.decode("utf-8", "backslashreplace")
                at = end
        return found if at == len(payload) else None


def _unquoted(text: str) -> str:
    return _ESCAPE.sub(lambda found: found[1] if len(found[1]) == 1 else chr(int(found[1], 8) & 0xFF), text)


def _block(lines: List[str]) -> Optional[Tuple[int, Definition]]:
    """Reads one event, in exactly the lines that relayfs writes."""
    head, rest = _HEAD.fullmatch(lines[0]), lines[1:]
    if head is None or len(rest) < 7:
        return None
    ident, level = int(head[1]), LEVELS.get(int(head[2]))
    name = _NAME.fullmatch(rest[1])
    expected = ["event {", rest[1], f"\tid = {ident};", "\tstream_id = 0;"]
    if level is not None:
        expected.append(rest[4] if rest[4].startswith("\tloglevel = ") else "")
    expected += ["\tfields := struct {", "\t\tu16 _len;"]
    n = len(expected)
    if name is None or rest[:n] != expected or rest[-2:] != ["\t};", "};"] or not FIRST_ID <= ident <= 0xFFFF:
        return None
    fields = []
    has_length = False
    for line in rest[n:-2]:
        if _LENGTH.fullmatch(line) and not has_length:
            has_length = True
            continue
        field = _FIELD.fullmatch(line)
        kind = field[1].split(" ")[0] if field else ""
        if field is None or has_length != (kind in ("utf8", "byte")):
            return None
        fields.append((_unquoted(field[2]), kind))
        has_length = False
    if has_length or len(fields) > FIELDS_MAX or len({field for field, _ in fields}) != len(fields):
        return None
    return ident, Definition(_unquoted(name[1]), level, _unquoted(head[3]), tuple(fields))


def parse_events(text: str) -> Dict[int, Definition]:
    """Returns the events that programs have defined, by id. What is not as relayfs writes it does not count."""
    found: Dict[int, Definition] = {}
    begun: List[str] = []
    for line in text.split("\n"):
        if line.startswith("/* relay event "):
            begun = [line]
        elif begun:
            begun.append(line)
            if line == "};":
                block = _block(begun)
                if block is not None:
                    found.setdefault(*block)
                begun = []
            elif len(begun) > 2 * FIELDS_MAX + 16:
                begun = []
    return found


class _Process(NamedTuple):
    """A process that has attached to the channel."""

    pid: int
    start: int
    command: str


class _Owners:
    """The processes that had a thread's number: of the newest text, and of older ones, the oldest first."""

    def __init__(self) -> None:
        self.current: List[int] = []
        self.former: List[int] = []

    def replace(self, current: List[int]) -> None:
        """Takes what a newer text says."""
        before, self.current = self.current, current
        kept = [number for number in self.former if number not in current and number not in before]
        self.former = (kept + [number for number in before if number not in current])[-OWNERS_MAX:]


class Names:
    """The names of a channel. Threads that the daemon no longer has are kept, while they are not too many.

    The kernel gives a thread's number again when the thread has ended, and each PID namespace has its own numbers. A
    record has the number alone. So a process is not believed for records from before its start, nor one of two that may
    both be meant.
    """

    def __init__(self) -> None:
        self.events: Dict[int, Definition] = {}
        self._processes: Dict[int, _Process] = {}
        self._pids: Dict[int, List[int]] = {}
        self._threads: Dict[int, _Owners] = {}

    def add_processes(self, text: str) -> None:
        """Adds what a text of ``processes`` says. It has all of now, so a reader that follows for long forgets old ones."""
        if len(self._threads) > ENTRIES_MAX:
            self._threads.clear()
        if len(self._processes) > ENTRIES_MAX:
            self._processes.clear()
            self._pids.clear()
        most_threads, most_processes = len(self._threads) + ENTRIES_MAX, len(self._processes) + ENTRIES_MAX
        fresh: Dict[int, List[int]] = {}
        for line in text.split("\n"):
            words = line.split("\t")[0].split(" ", 4)
            if not all(word.isascii() and word.isdigit() and len(word) <= 20 for word in words[1:3]) or len(words) < 3:
                continue
            first, second = int(words[1]), int(words[2])
            if words[0] == "thread":
                if len(fresh) < ENTRIES_MAX or first in fresh:
                    owners = fresh.setdefault(first, [])
                    if len(owners) < OWNERS_MAX and second not in owners:
                        owners.append(second)
            elif len(words) == 5 and "\t" in line and words[0].isascii() and words[0].isdigit():
                number = int(words[0][:20])
                if len(self._processes) < most_processes:
                    self._processes[number] = _Process(first, second * START_TICK, words[4])
                    of_pid = self._pids.setdefault(first, [])
                    if number not in of_pid:
                        bisect.insort(of_pid, number)
        for tid, current in fresh.items():
            if tid in self._threads or len(self._threads) < most_threads:
                self._threads.setdefault(tid, _Owners()).replace(current)

    def process(self, tid: int, boottime: int = U64_MAX) -> Optional[Tuple[int, str]]:
        """Returns pid and command of the process that a thread had at a time of CLOCK_BOOTTIME, if that is certain.

        The first thread of a process has its pid.
        """
        number = self._number(tid, boottime)
        process = None if number is None else self._processes.get(number)
        return None if process is None else (process.pid, process.command)

    def _number(self, tid: int, boottime: int) -> Optional[int]:
        owners = self._threads.get(tid)
        if owners is not None:
            possible = [number for number in owners.current if self._ran(number, boottime)]
            if len(possible) > 1:
                # A pid is given again when its process has ended.
                possible = [one for one in possible if not any(self._is_followed(one, other) for other in possible)]
            if possible:
                return possible[0] if len(possible) == 1 else None
            for number in reversed(owners.former):
                if self._ran(number, boottime):
                    return number
        return next((number for number in reversed(self._pids.get(tid, [])) if self._ran(number, boottime)), None)

    def _ran(self, number: int, boottime: int) -> bool:
        """Returns whether a process may have run at this time."""
        process = self._processes.get(number)
        return process is not None and process.start <= boottime + START_TICK

    def _is_followed(self, number: int, later: int) -> bool:
        return number < later and self._processes[number].pid == self._processes[later].pid
