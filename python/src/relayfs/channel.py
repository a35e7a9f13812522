"""Channels: where a program writes."""

import errno
import threading
import time
from collections import deque
from typing import Any, Callable, Deque, Optional, Tuple, Union

from . import forked, place, record
from .levels import Levels
from .librelay import LibrelayTransport, library
from .socket_transport import OPEN_LIMIT, SocketTransport

# Least seconds between two tries to reach a daemon.
TRY_AGAIN = 1.0
# A daemon that stands still costs the time of a try. So each further try waits twice as long, up to this.
SILENT_AGAIN = 30.0
# Errors after which the connection is useless, and a new one may help.
GONE = (errno.ENODEV, errno.EPROTO, errno.EIO, errno.EBADF, errno.ETIMEDOUT, errno.ENOENT)

# Calls that may interrupt another one of their thread.
LATER_MAX = 64

Bytes = Union[bytes, bytearray, memoryview]


class Tries:
    """When to look for a daemon: at most once a second, and less often if it does not answer."""

    def __init__(self) -> None:
        self._next, self._pause = 0.0, TRY_AGAIN

    def is_time(self) -> bool:
        """Returns whether a try may begin."""
        return time.monotonic() >= self._next

    def begin(self) -> None:
        """Notes that a try begins."""
        self._next = time.monotonic() + TRY_AGAIN

    def failed(self, failure: OSError) -> None:
        """Notes why the try failed."""
        if failure.errno == errno.ETIMEDOUT:
            self._pause = min(2 * self._pause, SILENT_AGAIN)
            self._next = time.monotonic() + self._pause
        else:
            self._pause = TRY_AGAIN


class Channel:
    """An open channel of a relayfs. Every thread may use it, also in forked children.

    ``transport`` says which way messages take: ``"librelay"`` writes the mapped buffers where the daemon allows that,
    ``"socket"`` is pure Python. All functions raise OSError with a text that says what failed. After the daemon has
    ended, a channel looks for the next one at most once a second; messages are lost meanwhile.
    """

    def __init__(
        self,
        mount: Optional[place.Path],
        name: str,
        create: bool = False,
        timed: Optional[bool] = None,
        *,
        transport: str = "auto",
        subbuf_size: int = 0,
        n_subbufs: int = 0,
        overwrite: Optional[bool] = None,
        timeout: float = OPEN_LIMIT,
    ) -> None:
        """Opens a channel.

        mount: the mount point or the daemon's socket; None is $RELAYFS, else /mnt/relay.
        create: create the channel if there is none. An existing channel stays as it is.
        timed: make it a timed channel; None leaves it to the daemon, as 0 and None do for the geometry.
        transport: ``"auto"``, ``"librelay"`` or ``"socket"``.
        timeout: seconds for the daemon to answer.
        """
        if transport not in ("auto", "librelay", "socket"):
            raise ValueError(f"transport {transport!r} is unknown; use 'auto', 'librelay' or 'socket'")
        place.check_name(name)
        self.name = name
        self.mount = place.mount_point(mount)
        self._request = dict(subbuf_size=subbuf_size, n_subbufs=n_subbufs, overwrite=overwrite, limit=timeout)
        self._create, self._timed = create, timed
        self._levels = Levels()
        self._make_lock()
        self._closed = False
        self._tries = Tries()
        self._socket: Optional[SocketTransport] = None
        self._direct: Optional[LibrelayTransport] = None
        found = None if transport == "socket" else library()
        if transport == "librelay" and found is None:
            raise self._error(OSError(errno.ENOENT, "librelay.so.0 is not found; install librelay, or use the socket"))
        try:
            connection = self._connect(attach=found is None)
            if found is not None:
                try:
                    self._direct = LibrelayTransport(found, self.mount, name, connection.opened)
                    connection.abandon()
                except OSError:
                    if transport == "librelay":
                        connection.abandon()
                        raise
                    connection.attach()
            if self._direct is None:
                self._socket = connection
        except OSError as error:
            raise self._error(error) from None
        self._opened = connection.opened
        self.payload_max: int = connection.payload_max
        forked.watch(self)

    @property
    def transport(self) -> str:
        """Which way messages take: ``"librelay"`` or ``"socket"``."""
        return SocketTransport.name if self._direct is None else LibrelayTransport.name

    @property
    def timed(self) -> bool:
        """Whether the channel holds records, with time, thread, level and target."""
        return self._opened.timed

    @property
    def closed(self) -> bool:
        """Whether ``close`` was called."""
        return self._closed

    def write(self, data: Bytes) -> None:
        """Writes a message, whole or not at all, and does not wait for room. In a timed channel: a record of bytes."""
        data = bytes(data)
        if self._direct is not None:
            return self._directly(self._direct.write, data)
        return self._by_socket(lambda socket: socket.write(data))

    def log(self, level: int, target: str, text: str) -> None:
        """Writes a record with level (``relayfs.INFO`` and others) and target into a timed channel.

        A text that is longer than a record is cut, and ends with a mark.
        """
        if level not in record.LEVELS:
            raise self._error(OSError(errno.EINVAL, f"there is no level {level}"))
        self.log_bytes(level, record.utf8(target), record.utf8(text))

    def log_bytes(self, level: int, target: bytes, text: bytes) -> None:
        """Is ``log`` for texts that are UTF-8 already."""
        if not self._opened.timed:
            raise self._raw()
        if self._direct is not None:
            # The library looks at the levels by itself, and takes a target with a zero byte at its end.
            return self._directly(self._direct.log, level, target.replace(b"\0", b""), text)
        if self._closed or self._levels.enabled(level, target):
            self._by_socket(lambda socket: socket.log(level, target, text))

    def log_function(self) -> Tuple[Any, Callable[..., Any]]:
        """Returns what ``Handler`` calls for each record, and its first argument. The others are level, target, text, length.

        The function raises OSError, or returns a number that is not 0 with the library's errno set.
        """
        if self._direct is not None and self.timed:
            return self._direct.log_function()
        if self.timed:
            return self, lambda channel, level, target, text, _: channel.log_bytes(level, target, text)
        return self, lambda channel, level, target, text, _: channel.write(text)

    def text(self, text: str) -> None:
        """Writes a record of text, without level and target, into a timed channel. It is cut as by ``log``."""
        if not self._opened.timed:
            raise self._raw()
        data = record.utf8(text)
        if self._direct is not None:
            return self._directly(self._direct.text, data)
        return self._by_socket(lambda socket: socket.text(data))

    def flush(self) -> None:
        """Finishes the current sub-buffer of every CPU, so that its readers see it, and waits for that."""
        if self._direct is not None:
            return self._directly(self._direct.flush)
        return self._by_socket(lambda socket: socket.flush())

    def sync(self) -> None:
        """Waits until all earlier messages are in the buffers, or counted as lost. Only the socket is waited for."""
        if self._direct is None:
            self._by_socket(lambda socket: socket.sync())

    def close(self) -> None:
        """Closes the channel, and waits until readers find its messages. A second time does nothing."""
        with self._lock:
            if self._closed:
                return
            self._closed = True
            direct, socket = self._direct, self._socket
            self._socket = None
        try:
            if socket is not None:
                socket.close()
        except OSError as error:
            raise self._error(error) from None
        finally:
            if direct is not None:
                self._close_direct(direct)

    def _close_direct(self, direct: LibrelayTransport) -> None:
        try:
            direct.close()
        except OSError as error:
            raise self._error(error) from None

    def __enter__(self) -> "Channel":
        return self

    def __exit__(self, *_: Any) -> None:
        self.close()

    def __repr__(self) -> str:
        kind = "timed" if self.timed else "raw"
        return f"<relayfs.Channel {self.name} of {self.mount}, {kind}, by {self.transport}>"

    def after_fork(self) -> None:
        """Makes the object the child's: the connection is the parent's, and another thread may have held the lock."""
        self._make_lock()
        if self._socket is not None:
            self._socket.abandon()
            self._socket = None
            self._tries = Tries()

    def _make_lock(self) -> None:
        # One thread may take it twice: Python runs signal handlers and destructors in the middle of a call.
        self._lock = threading.RLock()
        self._is_busy = False
        self._later: Deque[Callable[[SocketTransport], None]] = deque()

    def _directly(self, act: Callable[..., None], *arguments: Any) -> None:
        if self._closed:
            raise self._over()
        try:
            act(*arguments)
        except OSError as error:
            raise self._error(error) from None

    def _connect(self, attach: bool = True) -> SocketTransport:
        create, timed = self._create, self._timed
        request: Any = self._request
        return SocketTransport(
            self.mount, self.name, create=create, timed=timed, levels=self._levels, attach=attach, **request
        )

    def _connected(self) -> SocketTransport:
        """Returns the connection, or makes it if it is time to try."""
        if self._socket is None:
            if not self._tries.is_time():
                raise OSError(errno.ENODEV, "the daemon is away; a later message looks for it again")
            self._tries.begin()
            try:
                connection = self._connect()
            except OSError as error:
                self._tries.failed(error)
                raise
            if connection.opened.timed != self._opened.timed:
                connection.abandon()
                kind = "timed" if connection.opened.timed else "raw"
                raise OSError(errno.EINVAL, f"the new daemon has a {kind} channel of this name; open it again")
            self._socket, self._opened = connection, connection.opened
            self.payload_max = connection.payload_max
        return self._socket

    def _by_socket(self, act: Callable[[SocketTransport], None]) -> None:
        """Calls ``act`` with the connection. What interrupts a call of the same thread is done behind it."""
        with self._lock:
            if self._is_busy:
                if len(self._later) >= LATER_MAX:
                    raise self._error(OSError(errno.ENOSPC, "too many messages interrupt one"))
                self._later.append(act)
                return
            try:
                self._alone(act)
            finally:
                self._do_later()

    def _do_later(self) -> None:
        while True:
            try:
                act = self._later.popleft()
            except IndexError:
                return
            try:
                self._alone(act)
            except OSError:
                pass  # what has interrupted is over, and does not wait for it

    def _alone(self, act: Callable[[SocketTransport], None]) -> None:
        if self._closed:
            raise self._over()
        self._is_busy = True
        try:
            for last_try in (False, True):
                connection = self._connected()
                try:
                    return act(connection)
                except OSError as error:
                    if error.errno not in GONE:
                        raise
                    connection.abandon()
                    self._socket = None
                    if last_try or not self._tries.is_time() or error.errno == errno.ETIMEDOUT:
                        raise
        except OSError as error:
            raise self._error(error) from None
        finally:
            self._is_busy = False

    def _error(self, error: OSError) -> OSError:
        return OSError(error.errno, f"channel {self.name} of {self.mount}: {error.strerror or error}")

    def _over(self) -> OSError:
        return self._error(OSError(errno.EBADF, "it is closed"))

    def _raw(self) -> OSError:
        return self._error(OSError(errno.ENOTSUP, "it is not timed, so it has no levels; use write"))
