"""Packets and the records in them: relay/docs/PACKETS.md. Any bytes are read without an error."""

import struct
from typing import Iterator, NamedTuple, Union

MAGIC = 0xC1FC1FC1
HEADER = struct.Struct("<IIIIQQQQQQ")
RECORD = struct.Struct("<QHIH")


class RawRecord(NamedTuple):
    """A record as it lies in a buffer."""

    stamp: int
    ident: int
    tid: int
    payload: bytes


class Packet(NamedTuple):
    """The begin of a packet, whose records follow."""

    begin: int
    number: int
    discarded: int


class Damaged(NamedTuple):
    """Bytes at the end of a packet that can be no record."""

    n_bytes: int


class Failed(NamedTuple):
    """The end of a stream that cannot be read on."""

    why: str


Piece = Union[Packet, RawRecord, Damaged, Failed]


def pieces(stream: bytes) -> Iterator[Piece]:
    """Iterates over a stream of packets. What no packet can be ends it with ``Failed``."""
    at = 0
    while at < len(stream):
        left = len(stream) - at
        if left >= 4 and int.from_bytes(stream[at : at + 4], "little") != MAGIC:
            yield Failed(f"no packet begins at byte {at}: the magic number is missing")
            return
        if left < HEADER.size:
            yield Failed(f"the packet at byte {at} is cut: {left} bytes of it are there")
            return
        _, ident, _, _, begin, _, content, size, number, discarded = HEADER.unpack_from(stream, at)
        wrong = ""
        if ident != 0:
            wrong = "stream id"
        elif content % 8 or content < 8 * HEADER.size:
            wrong = "content size"
        elif size % 8 or size < content:
            wrong = "packet size"
        if wrong:
            yield Failed(f"the packet at byte {at} has an impossible {wrong}")
            return
        if size // 8 > left:
            yield Failed(f"the packet at byte {at} is cut: {left} bytes of it are there")
            return
        yield Packet(begin, number, discarded)
        yield from _records(stream, at + HEADER.size, at + content // 8)
        at += size // 8


def _records(stream: bytes, at: int, end: int) -> Iterator[Union[RawRecord, Damaged]]:
    while at < end:
        if at + RECORD.size > end:
            yield Damaged(end - at)
            return
        stamp, ident, tid, length = RECORD.unpack_from(stream, at)
        if at + RECORD.size + length > end:
            yield Damaged(end - at)
            return
        at += RECORD.size
        yield RawRecord(stamp, ident, tid, stream[at : at + length])
        at += length
