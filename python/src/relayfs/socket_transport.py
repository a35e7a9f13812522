"""Writes by the daemon's socket, in pure Python."""

import ctypes
import errno
import fcntl
import os
import select
import socket
import threading
import time
from typing import Callable, List, Optional, Set, Tuple

from . import place, record, wire
from .levels import Levels

# Seconds for the daemon to open a channel, and to answer FLUSH and CLOSE.
OPEN_LIMIT = 5.0
ANSWER_LIMIT = 10.0
# Seconds for the rest of a message of which the daemon has the first frames.
REST_LIMIT = 1.0
SEND_QUEUE = 1 << 20
FULL = (errno.EAGAIN, errno.ENOBUFS, errno.ENOMEM)


def _find_getcpu() -> Callable[[], int]:
    try:
        found = ctypes.PyDLL(None).sched_getcpu
    except (OSError, AttributeError):
        return lambda: 0
    found.argtypes, found.restype = (), ctypes.c_int
    return found


_getcpu = _find_getcpu()


class OwnSocket:
    """A connected socket whose number the program may have closed, or given to another file."""

    def __init__(self, path: str, limit: float) -> None:
        """Connects, and waits at most ``limit`` seconds."""
        found = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        if found.fileno() < 3:
            # The standard streams of a program that closed them stay closed.
            moved = fcntl.fcntl(found, fcntl.F_DUPFD_CLOEXEC, 3)
            found.close()
            found = socket.socket(fileno=moved)
        self._socket = found
        try:
            found.settimeout(limit)
            found.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, SEND_QUEUE)
            self._connect(path)
            found.setblocking(False)
            self._identity = self._look()
        except OSError:
            found.close()
            raise

    def _connect(self, path: str) -> None:
        try:
            self._socket.connect(path)
        except OSError as error:
            if error.errno is not None or "too long" not in str(error):
                raise
            # An address holds 107 bytes of path; an open directory shortens any path.
            directory = os.open(os.path.dirname(path), os.O_PATH | os.O_DIRECTORY)
            try:
                self._socket.connect(f"/proc/self/fd/{directory}/{os.path.basename(path)}")
            finally:
                os.close(directory)

    def _look(self) -> Tuple[int, int]:
        found = os.fstat(self._socket.fileno())
        return found.st_dev, found.st_ino

    def is_own(self) -> bool:
        """Returns whether the number is still this socket's."""
        try:
            return self._look() == self._identity
        except (OSError, ValueError):
            return False

    def close(self) -> None:
        """Closes the socket. Another file with its number stays open."""
        if self.is_own():
            self._socket.close()
        else:
            self._socket.detach()

    def send(self, packet: bytes) -> None:
        """Sends one packet at once, or raises."""
        self._socket.send(packet, socket.MSG_DONTWAIT | socket.MSG_NOSIGNAL)

    def receive(self, files: Optional[List[int]] = None) -> Optional[bytes]:
        """Returns the next packet, b"" at the end, or None if none has arrived. ``files`` gets its descriptors."""
        room = 0 if files is None else socket.CMSG_SPACE(4)
        for _ in range(2):
            try:
                packet, came, _, _ = self._socket.recvmsg(wire.ANSWER_MAX, room, socket.MSG_DONTWAIT | socket.MSG_CMSG_CLOEXEC)
                for level, kind, data in came:
                    if files is not None and (level, kind) == (socket.SOL_SOCKET, socket.SCM_RIGHTS):
                        files.extend(memoryview(data)[: len(data) // 4 * 4].cast("i"))
                return packet
            except BlockingIOError:
                return None
            except ConnectionResetError:
                continue  # it comes before the last packets
            except OSError:
                return b""
        return b""

    def wait(self, events: int, deadline: float) -> bool:
        """Waits for events until the deadline, and returns whether they came."""
        poll = select.poll()
        poll.register(self._socket.fileno(), events)
        return bool(poll.poll(max(0.0, deadline - time.monotonic()) * 1000))


class SocketTransport:
    """A connection on which one channel is open. The caller holds a lock."""

    name = "socket"

    def __init__(
        self,
        mount: str,
        channel: str,
        *,
        create: bool,
        timed: Optional[bool],
        subbuf_size: int = 0,
        n_subbufs: int = 0,
        overwrite: Optional[bool] = None,
        levels: Levels,
        attach: bool = True,
        limit: float = OPEN_LIMIT,
    ) -> None:
        self.path = place.socket_path(mount)
        self._levels = levels
        self._ident = 0
        self._lost = 0
        # CPUs to whose buffers something is on its way.
        self.unsynced: Set[int] = set()
        deadline = time.monotonic() + limit
        try:
            self._socket = OwnSocket(self.path, limit)
        except OSError as error:
            raise self._unconnected(error) from None
        mode = 0 if overwrite is None else wire.OVERWRITE if overwrite else wire.NO_OVERWRITE
        if timed is not None:
            mode |= wire.MODE_TIMED if timed else wire.MODE_RAW
        try:
            self._hello = wire.parse_hello(self._ask(wire.hello(self._next()), deadline))
            request = wire.open_channel(self._next(), os.fsencode(channel), subbuf_size, n_subbufs, mode, create)
            self.opened = wire.parse_opened(self._ask(request, deadline))
            if attach:
                self.attach()
        except OSError:
            self._socket.close()
            raise
        self.payload_max = record.payload_max(self.opened.subbuf_size)
        # What no daemon takes, apart from the channel's own limit, which the daemon counts.
        self._message_max = self._hello.message_max

    def attach(self) -> None:
        """Tells a timed channel's daemon which process this is, so that readers find its name, and asks for the levels."""
        if self.opened.timed:
            self._ask(wire.frame(wire.ATTACH, self._next(), self._number()), time.monotonic() + OPEN_LIMIT)
            self._ask_for_levels()

    def _ask_for_levels(self) -> None:
        files: List[int] = []
        try:
            self._ask(wire.frame(wire.LEVELS, self._next(), self._number()), time.monotonic() + OPEN_LIMIT, files)
        except OSError as error:
            # A daemon of an older release has none.
            if error.errno != errno.EOPNOTSUPP:
                raise
        finally:
            self._levels.attach(files[0] if files else None)
            for file in files:
                os.close(file)

    def _unconnected(self, error: OSError) -> OSError:
        if isinstance(error, (socket.timeout, BlockingIOError)):
            return OSError(errno.ETIMEDOUT, f"no answer on {self.path}: its daemon stands still")
        if error.errno in (errno.ENOENT, errno.ECONNREFUSED):
            return OSError(errno.ENODEV, f"no daemon answers on {self.path}: it has ended; start it again")
        if error.errno == errno.EACCES:
            advice = "relayfsd's --group or --socket-mode decide which users may send"
            return OSError(errno.EACCES, f"not permitted to use {self.path}: {advice}")
        return OSError(error.errno or errno.EIO, f"cannot connect to {self.path}: {error.strerror or error}")

    def _next(self) -> int:
        self._ident = self._ident % 0xFFFFFFFF + 1
        return self._ident

    def _number(self) -> bytes:
        return self.opened.channel.to_bytes(4, "little")

    def _gone(self) -> OSError:
        """Returns why the connection has ended: the daemon's last words if there are any."""
        while True:
            packet = self._socket.receive() if self._socket.is_own() else b""
            if not packet:
                return OSError(errno.ENODEV, f"{self.path} hung up: its daemon has ended")
            kind, _, body = wire.parse(packet)
            if kind == wire.ERROR:
                return wire.parse_error(body)

    def _ask(self, request: bytes, deadline: float, files: Optional[List[int]] = None) -> bytes:
        """Sends a request, and returns the body of its answer. ``files`` gets the answer's descriptors."""
        self._send(request, deadline)
        kind, ident, _ = wire.parse(request)
        while True:
            packet = self._socket.receive(files)
            if packet is None:
                if not self._socket.wait(select.POLLIN, deadline):
                    raise OSError(errno.ETIMEDOUT, f"no answer on {self.path}: its daemon stands still")
                continue
            if not packet:
                raise self._gone()
            got, of, body = wire.parse(packet)
            if got == wire.ERROR and of in (0, ident):
                raise wire.parse_error(body)
            if of == ident:
                if got != kind + wire.REPLY:
                    raise wire.foreign("an answer belongs to another request")
                return body

    def _send(self, packet: bytes, deadline: float) -> None:
        """Sends a packet, and waits for room until the deadline."""
        while True:
            if not self._socket.is_own():
                raise self._gone()
            try:
                return self._socket.send(packet)
            except OSError as error:
                if error.errno not in FULL:
                    raise self._gone() from None
            if time.monotonic() >= deadline or not self._socket.wait(select.POLLOUT, deadline):
                raise OSError(errno.ENOSPC, "the message is lost: the socket to the daemon is full")

    def _cpu(self) -> int:
        if self.opened.is_global:
            return 0
        cpu = _getcpu()
        return cpu if 0 <= cpu < self._hello.cpus else 0

    def _message(self, message: bytes) -> None:
        if len(message) > self._message_max:
            raise OSError(errno.EMSGSIZE, f"the message has {len(message)} bytes; at most {self._message_max} are possible")
        channel, cpu = self.opened.channel, self._cpu()
        frames = wire.write_frames(self._next(), channel, cpu, self._lost, message, self._hello.frame_max)
        try:
            self._send(frames[0], 0)
            for more in frames[1:]:
                # The daemon discards the first frames if another frame comes.
                self._send(more, time.monotonic() + REST_LIMIT)
        except OSError as error:
            if error.errno == errno.ENOSPC:
                self._lost += 1
            raise
        self._lost = 0
        self.unsynced.add(cpu)

    def _record(self, event: int, payload: bytes) -> None:
        self._message(record.head(event, threading.get_native_id(), len(payload)) + payload)

    def write(self, data: bytes) -> None:
        """Writes a message, or a record of bytes."""
        if not self.opened.timed:
            return self._message(data)
        if len(data) > self.payload_max:
            raise too_big(len(data), self.payload_max)
        return self._record(record.ID_RAW, data)

    def log(self, level: int, target: bytes, text: bytes) -> None:
        """Writes a record with level and target."""
        self._record(record.ID_LOG, record.log_payload(level, target, text, self.payload_max))

    def text(self, text: bytes) -> None:
        """Writes a record of text."""
        self._record(record.ID_TEXT, record.cut(text, self.payload_max))

    def flush(self) -> None:
        """Finishes the current sub-buffer of every CPU."""
        request = wire.frame(wire.FLUSH, self._next(), self._number() + wire.ALL.to_bytes(4, "little"))
        self._ask(request, time.monotonic() + ANSWER_LIMIT)

    def sync(self) -> None:
        """Waits until all messages are in the buffers, or counted as lost."""
        # Frames for one buffer take effect in their order, so the answer to an empty one answers for those before it.
        while self.unsynced:
            cpu = self.unsynced.pop()
            body = wire.WRITE_FIXED.pack(self.opened.channel, cpu, 0, 0)
            self._ask(wire.frame(wire.WRITE, self._next(), body, wire.WRITE_REPLY), time.monotonic() + ANSWER_LIMIT)

    def close(self) -> None:
        """Waits until readers find all messages, and closes the connection."""
        try:
            self.sync()
            request = wire.frame(wire.CLOSE, self._next(), self._number())
            self._ask(request, time.monotonic() + ANSWER_LIMIT)
        finally:
            self._socket.close()

    def abandon(self) -> None:
        """Closes the connection without a word."""
        self._socket.close()


def too_big(length: int, most: int) -> OSError:
    """Returns the error of a message that no sub-buffer can hold."""
    return OSError(errno.EMSGSIZE, f"the message has {length} bytes; at most {most} fit into a record of this channel")
