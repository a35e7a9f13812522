"""Connects the module ``logging`` to a channel."""

import errno
import logging
import sys
import threading
from typing import Any, Dict, Optional, Tuple

from . import forked, place, record
from .channel import Channel, Tries
from .librelay import LENGTH_MAX, error

# Attributes that every record has. What a record has besides is a field of the program.
USUAL = frozenset(logging.makeLogRecord({}).__dict__) | {"message", "asctime", "taskName"}
_N_USUAL = len(logging.makeLogRecord({}).__dict__)
# Seconds for a daemon to answer, while the program waits.
LIMIT = 1.0
TARGETS_MAX = 4096
LEVELS = {
    logging.CRITICAL: record.ERROR,
    logging.ERROR: record.ERROR,
    logging.WARNING: record.WARN,
    logging.INFO: record.INFO,
    logging.DEBUG: record.DEBUG,
}
_lines = logging.Formatter("%(asctime)s %(levelname)s %(name)s: %(message)s")
_exceptions = logging.Formatter()


def _quoted(value: Any) -> str:
    """Returns a field's value, in quotes if it would not be seen as one word."""
    text = value if isinstance(value, str) else str(value)
    if text and text.isascii() and text.isprintable() and not any(c in text for c in ' "=\\'):
        return text
    return '"' + text.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n") + '"'


def text_of(log_record: logging.LogRecord) -> str:
    """Returns the text of a record: the message, the fields of ``extra``, the exception and the stack."""
    text = log_record.getMessage()
    usual = USUAL
    extra = [(key, value) for key, value in log_record.__dict__.items() if key not in usual]
    if extra:
        text += "".join(f" {_quoted(key)}={_quoted(value)}" for key, value in extra)
    if log_record.exc_info and not log_record.exc_text:
        # As logging.Formatter does, so that the other handlers need not format it again.
        log_record.exc_text = _exceptions.formatException(log_record.exc_info)
    if log_record.exc_text:
        text += "\n" + log_record.exc_text
    if log_record.stack_info:
        text += "\n" + _exceptions.formatStack(log_record.stack_info)
    return text


class Handler(logging.Handler):
    """Writes the records of ``logging`` into a channel, which it creates if there is none.

    In a timed channel each is a record with its level, the logger's name as target, and the message with exception and
    ``extra`` fields as text. In a raw channel each is a line. ``setFormatter`` changes the text in both.

    A program with this handler runs without a daemon: the first failure prints one line on the standard error, and the
    handler finds the daemon later. ``lost`` counts the records that were not written.
    """

    def __init__(
        self,
        channel: str,
        mount: Optional[place.Path] = None,
        level: "int | str" = logging.NOTSET,
        *,
        timed: Optional[bool] = True,
        transport: str = "auto",
        **options: Any,
    ) -> None:
        """Connects to a channel. The other options are those of ``Channel``."""
        super().__init__(level)
        place.check_name(channel)
        self.lost = 0
        self._name, self._mount = channel, place.mount_point(mount)
        self._options: Dict[str, Any] = {"create": True, "timeout": LIMIT, "timed": timed, "transport": transport}
        self._options.update(options)
        self._channel: Optional[Channel] = None
        # Whether the channel is raw; until it is open, what was asked for.
        self._is_raw = timed is False
        # A function, and its first argument; the others are level, target, text and length. None while there is no channel.
        self._sink: Optional[Tuple[Any, Any]] = None
        self._tries = Tries()
        self._warned = False
        self._closed = False
        self._targets: Dict[str, bytes] = {}
        self._finding = threading.Lock()
        forked.watch(self)
        self._find()

    @property
    def channel(self) -> Optional[Channel]:
        """The open channel, or None while there is no daemon."""
        return self._channel

    def handle(self, log_record: logging.LogRecord) -> Any:
        """Writes a record that passes the filters. The channel takes every thread, so no lock is held."""
        if self.filters:
            passed: Any = self.filter(log_record)
            if not passed:
                return passed
            if passed is not True:
                log_record = passed
        self.emit(log_record)
        return log_record

    def emit(self, log_record: logging.LogRecord) -> None:
        """Writes a record."""
        sink = self._sink
        if sink is None:
            self._find()
            sink = self._sink
            if sink is None:
                self.lost += 1
                return
        try:
            if (
                self.formatter is None
                and log_record.exc_info is None
                and log_record.stack_info is None
                and log_record.exc_text is None
                and len(log_record.__dict__) == _N_USUAL
                and not self._is_raw
            ):
                text = log_record.getMessage()
            else:
                text = self._text(log_record)
            try:
                data = text.encode()
            except UnicodeEncodeError:
                data = record.utf8(text)
            length = len(data)
            target = self._targets.get(log_record.name)
            if target is None:
                target = self._target(log_record.name)
            level = LEVELS.get(log_record.levelno) or record.level_of(log_record.levelno)
        except RecursionError:
            raise
        except Exception:
            self.handleError(log_record)
            return
        try:
            chan, log = sink
            if log(chan, level, target, data, length if length < LENGTH_MAX else LENGTH_MAX):
                raise error("the message is lost")
        except OSError as failure:
            self._failed(failure, log_record)

    def _text(self, log_record: logging.LogRecord) -> str:
        if self._is_raw:
            return (self.formatter or _lines).format(log_record) + "\n"
        return self.formatter.format(log_record) if self.formatter else text_of(log_record)

    def _target(self, name: str) -> bytes:
        target = record.cut(record.utf8(name).replace(b"\0", b""), record.TARGET_MAX)
        if len(self._targets) < TARGETS_MAX:
            self._targets[name] = target
        return target

    def _failed(self, failure: OSError, log_record: logging.LogRecord) -> None:
        self.lost += 1
        if failure.errno == errno.EMSGSIZE:
            self.handleError(log_record)
        elif failure.errno != errno.ENOSPC:
            # The daemon counts what a full buffer refused, and its readers see that.
            self._warn(failure)
            if failure.errno == errno.EINVAL:
                # The next daemon has a channel of another kind.
                self._channel = self._sink = None

    def _warn(self, failure: OSError) -> None:
        """Says once that there is no daemon."""
        if self._warned:
            return
        self._warned = True
        try:
            # A program without standard error has None there, for which print would take the standard output.
            if sys.stderr is not None:
                print(f"relayfs: {failure.strerror}; records are lost until it is there", file=sys.stderr)
        except (OSError, ValueError, AttributeError):
            pass  # one that is closed

    def _find(self) -> None:
        """Opens the channel, at most once a second."""
        if not self._tries.is_time() or self._closed or not self._finding.acquire(blocking=False):
            return
        try:
            self._tries.begin()
            channel = Channel(self._mount, self._name, **self._options)
            self._is_raw = not channel.timed
            self._channel, self._sink = channel, channel.log_function()
        except OSError as failure:
            self._tries.failed(failure)
            self._warn(failure)
        finally:
            self._finding.release()

    def setFormatter(self, fmt: Optional[logging.Formatter]) -> None:  # noqa: N802, the name of logging
        """Sets what makes the text; None is the usual text.

        ``logging.basicConfig`` sets its default format, which repeats the level and the name that a record has anyway. On
        a timed channel that counts as None.
        """
        is_default = getattr(fmt, "_fmt", None) == logging.BASIC_FORMAT and type(fmt) is logging.Formatter
        super().setFormatter(None if is_default and not self._is_raw else fmt)

    def after_fork(self) -> None:
        """Makes the object the child's: another thread may have been looking for the daemon."""
        self._finding = threading.Lock()

    def flush(self) -> None:
        """Does nothing: each record is in the channel, or on its way to the daemon."""

    def close(self) -> None:
        """Closes the channel, without an error if the daemon is away."""
        self._closed = True
        channel, self._channel, self._sink = self._channel, None, None
        try:
            if channel is not None:
                channel.close()
        except OSError:
            pass
        super().close()
