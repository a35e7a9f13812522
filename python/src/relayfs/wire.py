"""Frames of the socket, to the byte: relay/docs/PROTOCOL.md."""

import errno
import struct
from typing import List, NamedTuple, Tuple

HELLO, OPEN, WRITE, FLUSH, CLOSE, ATTACH, LEVELS = 1, 2, 3, 4, 5, 9, 11
REPLY = 0x8000
ERROR = 0x7FFF
VERSION = 1
MAGIC = b"relayfs\n"
HEADER = struct.Struct("<IHHI")
OPEN_CREATE = 1
OPEN_WRITE = 2
WRITE_REPLY, WRITE_CONTINUES = 1, 2
MODE_TIMED, MODE_RAW = 0x10, 0x20
NO_OVERWRITE, OVERWRITE = 1, 2
ALL = 0xFFFFFFFF
# The least frame limit of a daemon, and the most bytes of a packet that a client must take.
FRAME_MAX_LEAST = 512
ANSWER_MAX = 65536
WRITE_FIXED = struct.Struct("<IIII")


class Hello(NamedTuple):
    """The daemon's answer to HELLO."""

    frame_max: int
    message_max: int
    cpus: int


class Opened(NamedTuple):
    """The daemon's answer to OPEN."""

    channel: int
    subbuf_size: int
    n_subbufs: int
    header: int
    mode: int
    scope: int
    buffers: int

    @property
    def timed(self) -> bool:
        """Whether the channel holds records."""
        return bool(self.mode & MODE_TIMED)

    @property
    def is_global(self) -> bool:
        """Whether the channel has one buffer for all CPUs."""
        return self.scope == 2


def frame(kind: int, ident: int, body: bytes = b"", flags: int = 0) -> bytes:
    """Returns a frame."""
    return HEADER.pack(HEADER.size + len(body), kind, flags, ident) + body


def hello(ident: int) -> bytes:
    """Returns the greeting."""
    return frame(HELLO, ident, struct.pack("<8sHHIQ", MAGIC, VERSION, VERSION, 0, 0))


def open_channel(ident: int, name: bytes, subbuf_size: int, n_subbufs: int, mode: int, create: bool) -> bytes:
    """Returns the request for a channel. 0 leaves a size to the daemon."""
    body = struct.pack("<IIIBBH", subbuf_size, n_subbufs, ALL, mode, 0, len(name)) + name
    return frame(OPEN, ident, body, OPEN_WRITE | (OPEN_CREATE if create else 0))


def write_frames(ident: int, channel: int, cpu: int, lost: int, message: bytes, frame_max: int) -> List[bytes]:
    """Returns the frames of one message: one, or several if the message is longer than a frame."""
    fixed = WRITE_FIXED.pack(channel, cpu, 0, lost)
    rest = len(message).to_bytes(4, "little") + message
    room = frame_max - HEADER.size - WRITE_FIXED.size
    if len(rest) <= room:
        return [frame(WRITE, ident, fixed + rest)]
    parts = [rest[at : at + room] for at in range(0, len(rest), room)]
    frames = [frame(WRITE, ident, fixed + part, WRITE_CONTINUES) for part in parts[:-1]]
    return frames + [frame(WRITE, ident, fixed + parts[-1])]


def parse(packet: bytes) -> Tuple[int, int, bytes]:
    """Returns type, id and body of a frame."""
    if len(packet) < HEADER.size:
        raise foreign("a packet is shorter than a frame")
    length, kind, _, ident = HEADER.unpack_from(packet)
    if length != len(packet):
        raise foreign("a frame has another length than its packet")
    return kind, ident, packet[HEADER.size :]


def parse_hello(body: bytes) -> Hello:
    """Returns what the answer to HELLO says."""
    try:
        magic, version, _, frame_max, message_max, cpus, _ = struct.unpack("<8sHHIIIQ", body)
    except struct.error:
        raise foreign("its greeting has another length") from None
    if magic != MAGIC or version != VERSION or frame_max < FRAME_MAX_LEAST or cpus == 0:
        raise foreign("its greeting is not that of a relayfs")
    return Hello(min(frame_max, ANSWER_MAX), message_max, cpus)


def parse_opened(body: bytes) -> Opened:
    """Returns what the answer to OPEN says."""
    try:
        channel, size, count, header, mode, scope, _, buffers = struct.unpack("<IIIIBBHI", body)
    except struct.error:
        raise foreign("its answer to OPEN has another length") from None
    return Opened(channel, size, count, header, mode, scope, buffers)


def parse_error(body: bytes) -> OSError:
    """Returns the daemon's refusal as an error, its text on one line."""
    if len(body) < 4:
        return foreign("its refusal is cut")
    code = int.from_bytes(body[:4], "little") or errno.EIO
    text = body[4:].decode("utf-8", "backslashreplace")
    text = "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)
    return OSError(code, text)


def foreign(why: str) -> OSError:
    """Returns the error of a peer that does not speak the protocol."""
    return OSError(errno.EPROTO, f"the peer is not a relayfs daemon: {why}")
