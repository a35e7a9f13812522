"""Reads timed channels: the records of all CPUs in one order."""

import bisect
import errno
import heapq
import os
import time
from dataclasses import dataclass, field
from datetime import datetime, timedelta, timezone
from typing import Any, Dict, Iterator, List, NamedTuple, Optional, Tuple

from . import meaning, place
from .clock import U64_MAX, Anchor, Timeline, parse_clock
from .names import Names, parse_events
from .packets import Damaged, Failed, Packet, RawRecord, pieces

# Nanoseconds by which the stamps of two CPUs may be inverted.
INVERSION = 1000
# Numbers in ``stats`` that change with each message.
COUNTERS = ("bytes", "dropped", "too_big", "contended")
_BEGIN = datetime(1970, 1, 1, tzinfo=timezone.utc)
# Errors of a tree whose daemon has gone, or whose channel has.
GONE = (errno.ENOENT, errno.ENOTCONN, errno.ECONNABORTED, errno.ENODEV, errno.ENOTDIR, errno.ESTALE, errno.EIO)


@dataclass(frozen=True)
class Record:
    """A record, or a notice that something is missing.

    ``event`` is the event's name. A notice is ``lost``, ``overwritten``, ``damaged`` or ``failed``. ``message`` is text for
    people. ``data`` has the bytes of records that are not text: ``raw``, an id that no program has defined (``event 300``),
    and payloads that are not as the event says (``damaged``).
    """

    ns: int
    cpu: int
    event: str
    message: str
    tid: Optional[int] = None
    pid: Optional[int] = None
    command: Optional[str] = None
    level: Optional[str] = None
    target: Optional[str] = None
    fields: Dict[str, Any] = field(default_factory=dict)
    data: Optional[bytes] = None
    notice: bool = False
    damaged: bool = False

    @property
    def time(self) -> datetime:
        """The time in UTC, cut to microseconds; ``ns`` has all of it, in nanoseconds since 1970."""
        try:
            return _BEGIN + timedelta(microseconds=self.ns // 1000)
        except OverflowError:
            return datetime.max.replace(tzinfo=timezone.utc)


class _Item(NamedTuple):
    """What a buffer has next: a record, or a notice before the record with its stamp."""

    stamp: int
    cpu: int
    # The place in the buffer, so that equal stamps stay in their order.
    order: int
    what: Any


class _Notice(NamedTuple):
    event: str
    meaning: meaning.Meaning


class _Buffer:
    """What was read of a CPU's buffer."""

    def __init__(self, cpu: int) -> None:
        self.cpu = cpu
        self._order = 0
        self._stamp = 0
        self._number: Optional[int] = None
        self._discarded: Optional[int] = None
        # Records of the newest sub-buffer that a snapshot has shown.
        self._shown = 0

    def items(self, stream: bytes, is_snapshot: bool) -> Iterator[_Item]:
        """Iterates over what is new in a copy. A later snapshot shows the unread records once more."""
        skip, told = 0, 0
        wanted, counts = True, False
        for piece in pieces(stream):
            if isinstance(piece, Packet):
                wanted = not is_snapshot or self._number is None or piece.number >= self._number
                if not wanted:
                    continue
                is_same = piece.number == self._number
                skip = self._shown if is_same and is_snapshot else 0
                if not is_same:
                    self._shown = 0
                if self._number is not None and piece.number > self._number + 1:
                    first, last = self._number + 1, piece.number - 1
                    text = f"{last - first + 1} sub-buffers overwritten"
                    yield self._notice("overwritten", meaning.Meaning(text, fields=dict(first=first, last=last)))
                self._number = piece.number
                self._stamp = max(self._stamp, piece.begin)
                # What was lost before the first packet is not news. Records behind tell of most of the others.
                counts = self._discarded is not None
                told += max(0, piece.discarded - (self._discarded or 0)) if counts else 0
                self._discarded = max(piece.discarded, self._discarded or 0)
            elif not wanted:
                continue
            elif isinstance(piece, Failed):
                yield self._notice("failed", meaning.Meaning(piece.why))
            elif isinstance(piece, Damaged):
                if skip == 0:
                    fields = dict(bytes=piece.n_bytes)
                    yield self._notice("damaged", meaning.Meaning(f"{piece.n_bytes} damaged bytes skipped", fields=fields))
            else:
                self._shown += skip == 0
                if skip > 0:
                    skip -= 1
                    continue
                # A reader merges by stamps, which do not go back within a buffer.
                self._stamp = max(self._stamp, piece.stamp)
                yield self._item(piece)
                if piece.ident == 5 and counts:
                    # Damage, and what another program has cut, have no cause: the buffer counts neither.
                    found = meaning.builtin(5, piece.payload)
                    told -= found.fields["messages"] if found and "cause" in found.fields else 0
        if told > 0:
            yield self._notice("lost", meaning.lost(told))

    def _item(self, what: Any) -> _Item:
        self._order += 1
        return _Item(self._stamp, self.cpu, self._order, what)

    def _notice(self, event: str, said: meaning.Meaning) -> _Item:
        return self._item(_Notice(event, said))


class _Source:
    """The files of a channel."""

    def __init__(self, mount: str, channel: str) -> None:
        self.mount, self.channel = mount, channel
        self.dir = place.control_dir(mount, channel)
        self.names = Names()
        self.timeline: Timeline = Timeline(0, [])
        self.buffers: Dict[int, _Buffer] = {}

    def file(self, name: str) -> bytes:
        """Returns the content of a control file."""
        with open(os.path.join(self.dir, name), "rb") as found:
            return found.read()

    def text(self, name: str) -> str:
        """Returns the text of a control file."""
        return self.file(name).decode("utf-8", "backslashreplace")

    def check(self) -> None:
        """Raises if the channel is not there, or not timed."""
        try:
            mode = self.text("mode").split()
        except OSError as error:
            if error.errno in (errno.ENOENT, errno.ENOTDIR) and os.path.isdir(os.path.join(self.mount, ".relay")):
                raise OSError(errno.ENOENT, f"{self.mount} has no channel {self.channel}") from None
            raise place.explain(error, self.mount) from None
        if "timed" not in mode:
            raise OSError(errno.ENOTSUP, f"channel {self.channel} of {self.mount} is not timed; read its files as bytes")

    def note(self) -> int:
        """Returns the present moment by the channel's clock: what is written later is younger."""
        found = parse_clock(self.text("clock"))
        if found is None:
            raise OSError(errno.EPROTO, f"{self.dir}/clock is not the text of a clock")
        self.timeline = found
        return found.anchors[-1].ticks

    def learn(self) -> None:
        """Reads the names that the channel has by now. Behind the copies, so that all their records have names."""
        self.names.events = parse_events(self.text("metadata"))
        self.names.add_processes(self.text("processes"))

    def cpus(self, folder: str) -> List[int]:
        """Returns the CPUs that have a buffer."""
        names = os.listdir(os.path.join(self.dir, folder))
        return sorted(int(name[3:]) for name in names if name[:3] == "cpu" and name[3:].isascii() and name[3:].isdigit())

    def copies(self, folder: str) -> Iterator[Tuple[int, bytes]]:
        """Iterates over a copy of each buffer."""
        for cpu in self.cpus(folder):
            yield cpu, self.file(f"{folder}/cpu{cpu}")

    def items(self, cpu: int, stream: bytes, is_snapshot: bool) -> Iterator[_Item]:
        """Iterates over what is new in a copy."""
        return self.buffers.setdefault(cpu, _Buffer(cpu)).items(stream, is_snapshot)

    def record(self, item: _Item) -> Record:
        """Returns an item as the caller sees it."""
        ns, what = self.timeline.realtime(item.stamp), item.what
        if isinstance(what, _Notice):
            return Record(ns, item.cpu, what.event, what.meaning.message, fields=what.meaning.fields, notice=True)
        return self._record(ns, item.cpu, what)

    def _record(self, ns: int, cpu: int, raw: RawRecord) -> Record:
        data, damaged, level, target = None, False, None, None
        fields: Dict[str, Any] = {}
        if raw.ident < len(meaning.BUILTINS):
            event = meaning.BUILTINS[raw.ident]
            found = meaning.builtin(raw.ident, raw.payload)
            if found is None:
                message, data, damaged = f"damaged {event}: {meaning.plain(raw.payload)}", raw.payload, True
            else:
                message, level, target, fields = found
                data = raw.payload if raw.ident == 1 else None
            if event == "lost":
                return Record(ns, cpu, event, message, fields=fields, data=data, notice=True, damaged=damaged)
        else:
            defined = self.names.events.get(raw.ident)
            values = defined.values(raw.payload) if defined else None
            event = defined.name if defined else f"event {raw.ident}"
            if defined:
                level, target = defined.level, defined.target or None
            if values is None:
                damaged, data = defined is not None, raw.payload
                message = f"{'damaged ' if damaged else ''}{event}: {meaning.plain(raw.payload)}"
            else:
                fields = values
                message = meaning.of_event(event, values)
        process = self.names.process(raw.tid, self.timeline.boottime(raw.stamp))
        pid, command = process if process else (None, None)
        return Record(ns, cpu, event, message, raw.tid, pid, command, level, target, fields, data, False, damaged)


def read(
    channel: str, mount: Optional[place.Path] = None, follow: bool = False, snapshot: bool = True, interval: float = 0.1
) -> Iterator[Record]:
    """Iterates over the records of a timed channel, merged by time.

    snapshot: looks, and consumes nothing. False: consumes what it hands out, so that writers get the room.
    follow: waits for further records, looks each ``interval`` seconds, and waits for a daemon or a channel that is away.
    mount: the mount point; None is $RELAYFS, else /mnt/relay.

    Without ``follow`` nothing is consumed before the last record was handed out. With it, a copy is consumed as soon as it
    is here. Raises OSError if the channel is not there or not timed. Damage raises nothing: the iteration tells of it.
    """
    source = _Source(place.mount_point(mount), channel)
    if follow:
        return _follow(source, snapshot, interval)
    source.check()
    return _look(source) if snapshot else _take(source)


def _look(source: _Source) -> Iterator[Record]:
    """Iterates over a snapshot, up to the moment before it: of younger records the elders may be missing."""
    note = source.note()
    copies = list(source.copies("snapshot"))
    source.learn()
    for item in heapq.merge(*(source.items(cpu, stream, True) for cpu, stream in copies)):
        if item.stamp > note and not isinstance(item.what, _Notice):
            return
        yield source.record(item)


class _Take:
    """A copy that is consumed only when its reader says so: the daemon waits for the last byte of one open file."""

    def __init__(self, path: str) -> None:
        while True:
            self._file, self._last = open(path, "rb", buffering=0), open(path, "rb", buffering=0)
            found, again = os.fstat(self._file.fileno()), os.fstat(self._last.fileno())
            self._length = found.st_size
            if (found.st_ino, found.st_size) == (again.st_ino, again.st_size):
                break
            self.close()  # another reader has consumed the first file's copy in between

    def content(self) -> bytes:
        """Returns the copy's bytes."""
        if self._length == 0:
            return b""
        return _read(self._file, 0, self._length - 1) + _read(self._last, self._length - 1, 1)

    def consume(self) -> None:
        """Consumes the copy. Its bytes must have been read."""
        if self._length > 0:
            _read(self._file, self._length - 1, 1)
        self.close()

    def close(self) -> None:
        """Closes the copy."""
        self._file.close()
        self._last.close()


def _read(file: Any, at: int, length: int) -> bytes:
    parts = []
    while length > 0:
        part = os.pread(file.fileno(), length, at)
        if not part:
            raise OSError(errno.EIO, f"{file.name} has ended too early")
        parts.append(part)
        at, length = at + len(part), length - len(part)
    return b"".join(parts)


def _take(source: _Source) -> Iterator[Record]:
    """Iterates over all that is unread, and consumes it at the end."""
    source.note()
    takes: List[Tuple[int, _Take]] = []
    try:
        for cpu in source.cpus("take"):
            takes.append((cpu, _Take(os.path.join(source.dir, f"take/cpu{cpu}"))))
        copies = [(cpu, take.content()) for cpu, take in takes]
        source.learn()
        for item in heapq.merge(*(source.items(cpu, stream, False) for cpu, stream in copies)):
            yield source.record(item)
        for _, take in takes:
            take.consume()
    finally:
        for _, take in takes:
            take.close()


def _written(stats: str) -> Dict[int, List[str]]:
    """Returns for each CPU what changes with each message, written or lost, by the text of ``stats``."""
    found: Dict[int, List[str]] = {}
    for line in stats.split("\n"):
        cpu, _, what = line.partition(".")
        number = cpu[3:]
        if cpu[:3] == "cpu" and number.isascii() and number.isdigit() and what.split(" ")[0] in COUNTERS:
            found.setdefault(int(number[:9]), []).append(what)
    return found


class _Follower:
    """Reads in rounds: notes the clock, copies each buffer, and hands out what is older than the note."""

    def __init__(self, source: _Source, snapshot: bool) -> None:
        self._source, self._snapshot = source, snapshot
        self._held: List[_Item] = []
        self._written: Dict[int, List[str]] = {}
        self._first: Optional[Anchor] = None
        self.is_there = False

    def _round(self) -> int:
        """Copies what is new. Returns the stamp up to which all is here."""
        source = self._source
        if not self.is_there:
            source.check()
            self.is_there = True
        note = source.note()
        # The first anchor stays for a channel's life. Another channel of the name counts its sub-buffers from 0.
        first = source.timeline.anchors[0]
        if first != self._first:
            self._first = first
            source.buffers.clear()
            self._written.clear()
        folder = "snapshot" if self._snapshot else "take"
        # Copies of what has not changed would keep the daemon busy. What the counters do not show is younger than the note.
        written = _written(source.text("stats"))
        n_held = len(self._held)
        for cpu in source.cpus(folder):
            now = written.get(cpu)
            if now is None or now != self._written.get(cpu):
                self._held += source.items(cpu, source.file(f"{folder}/cpu{cpu}"), self._snapshot)
                self._written[cpu] = now or []
        if len(self._held) > n_held:
            source.learn()
        return note - INVERSION * source.timeline.ticks_per_second // 1_000_000_000

    def records(self) -> List[Record]:
        """Returns the records that a round has made sure of."""
        try:
            horizon = self._round()
        except OSError as error:
            if error.errno not in GONE:
                raise
            # What is here is all there is, for now.
            horizon, self.is_there = U64_MAX, False
            self._written.clear()
        self._held.sort()
        end = bisect.bisect_right([item.stamp for item in self._held], horizon)
        sure, self._held = self._held[:end], self._held[end:]
        return [self._source.record(item) for item in sure]


def _follow(source: _Source, snapshot: bool, interval: float) -> Iterator[Record]:
    follower = _Follower(source, snapshot)
    while True:
        yield from follower.records()
        time.sleep(interval if follower.is_there else max(interval, 0.1))
