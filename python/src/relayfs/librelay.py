"""Writes by librelay, which reaches the buffers without the daemon."""

import ctypes
import errno
import os
from typing import Any, NamedTuple, Optional, Tuple

from . import record, wire
from .socket_transport import too_big

SONAME = "librelay.so.0"
# The library cuts a text of this length, as it cuts longer ones. An int has room for it.
LENGTH_MAX = 1 << 20


class Library(NamedTuple):
    """The functions of the library."""

    # These keep the interpreter's lock, which costs less than to release it: they never wait for a reader, and for a
    # daemon that stands still 0.1 s at most, with long messages.
    write: Any
    log: Any
    text: Any
    # These wait for the daemon, and release the lock.
    open_at: Any
    open_timed: Any
    flush: Any
    close: Any


_library: Optional[Library] = None


def library() -> Optional[Library]:
    """Returns the library, or None if it is not installed."""
    global _library
    if _library is None:
        try:
            quick = ctypes.PyDLL(SONAME, use_errno=True)
            slow = ctypes.CDLL(SONAME, use_errno=True)
            found = Library(
                write=quick.relay_write,
                log=quick.relay_log,
                text=quick.relay_text,
                open_at=slow.relay_open_at,
                open_timed=slow.relay_open_timed,
                flush=slow.relay_flush,
                close=slow.relay_close,
            )
        except (OSError, AttributeError):
            return None
        text, pointer, size = ctypes.c_char_p, ctypes.c_void_p, ctypes.c_size_t
        for function in (found.open_at, found.open_timed):
            function.argtypes = [text, text, pointer, size, size, pointer, pointer]
            function.restype = pointer
        found.flush.argtypes = found.close.argtypes = [pointer]
        found.write.argtypes = found.text.argtypes = [pointer, text, size]
        # `log` has no argtypes, since their checks cost as much as the call. So a number is an int, and libffi extends it to
        # the register that has a size_t. LENGTH_MAX keeps lengths in the range.
        _library = found
    return _library


class LibrelayTransport:
    """A channel of the library. Every thread may call every function, also in forked children."""

    name = "librelay"

    def __init__(self, found: Library, mount: str, channel: str, opened: wire.Opened) -> None:
        """Opens an existing channel, which another connection holds open meanwhile."""
        self._library = found
        self.opened = opened
        self.payload_max = record.payload_max(opened.subbuf_size)
        opens = found.open_timed if opened.timed else found.open_at
        name = os.fsencode(channel)
        handle = opens(os.fsencode(mount), name, None, opened.subbuf_size, opened.n_subbufs, None, None)
        if not handle:
            raise error(f"channel {channel} of {mount} cannot be opened")
        self.handle = ctypes.c_void_p(handle)

    def write(self, data: bytes) -> None:
        """Writes a message, or a record of bytes."""
        if self.opened.timed and len(data) > self.payload_max:
            raise too_big(len(data), self.payload_max)
        if self._library.write(self.handle, data, len(data)):
            raise error("the message is lost")

    def log(self, level: int, target: bytes, text: bytes) -> None:
        """Writes a record with level and target."""
        if self._library.log(self.handle, level, target, text, min(len(text), LENGTH_MAX)):
            raise error("the message is lost")

    def text(self, text: bytes) -> None:
        """Writes a record of text."""
        if self._library.text(self.handle, text, len(text)):
            raise error("the message is lost")

    def log_function(self) -> Tuple[Any, Any]:
        """Returns the handle, and the function that takes it with level, target, text and length."""
        return self.handle, self._library.log

    def flush(self) -> None:
        """Finishes the current sub-buffer of every CPU."""
        if self._library.flush(self.handle):
            raise error("the flush failed")

    def close(self) -> None:
        """Closes the channel. If buffers are not shared, waits until the daemon has all messages."""
        if self._library.close(self.handle):
            raise error("the channel is closed, but the daemon may not have the last messages")


CAUSES = {
    errno.ENODEV: "no relayfs is mounted there, or its daemon has ended",
    errno.ENOSPC: "every sub-buffer is full, or the socket to the daemon is",
    errno.EMSGSIZE: "it is longer than any message of this channel",
}


def error(what: str) -> OSError:
    """Returns the library's last error, with its cause in words."""
    code = ctypes.get_errno() or errno.EIO
    return OSError(code, f"{what}: {CAUSES.get(code, os.strerror(code))}")
