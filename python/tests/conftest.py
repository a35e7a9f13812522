"""Starts a daemon for each test, on a mount of its own."""

import contextlib
import ctypes
import os
import signal
import subprocess
import tempfile
import time
from pathlib import Path
from typing import Any, Callable, Iterator, List, Optional

import pytest

import relayfs

ROOT = Path(__file__).resolve().parents[2]
TARGET = Path(os.environ.get("CARGO_TARGET_DIR") or ROOT / "target")
BUILT = Path(os.environ.get("RELAYFS_BUILT") or TARGET / "debug")
DAEMON = BUILT / "relayfsd"
LIBRARY = BUILT / "librelay-installed/usr/lib/librelay.so.0"
DEADLINE = 60.0


def eventually(what: str, condition: Callable[[], Any]) -> Any:
    """Waits for a condition, and returns its value; fails if it does not become true."""
    end = time.monotonic() + DEADLINE
    while True:
        value = condition()
        if value:
            return value
        assert time.monotonic() < end, f"not within {DEADLINE} s: {what}"
        time.sleep(0.01)


class Mount:
    """A mounted relayfs."""

    def __init__(self, directory: str) -> None:
        self.point = os.path.join(directory, "mount")
        os.mkdir(self.point)
        self._log = os.path.join(directory, "log")
        self.process: Optional["subprocess.Popen[bytes]"] = None

    def start(self, *options: str) -> None:
        """Starts the daemon, and waits until it serves."""
        with open(self._log, "ab") as log:
            command = [str(DAEMON), "--foreground", *options, self.point]
            self.process = subprocess.Popen(command, stderr=log, stdin=subprocess.DEVNULL)
        eventually("a mount", self._serves)

    def _serves(self) -> bool:
        assert self.process and self.process.poll() is None, Path(self._log).read_text()
        try:
            return bool(os.readlink(os.path.join(self.point, ".relay/socket")))
        except OSError:
            return False

    def is_left(self) -> bool:
        """Returns whether a killed daemon has left its mount."""
        try:
            os.listdir(self.point)
        except OSError:
            return True
        return False

    def end(self, number: int = signal.SIGTERM) -> None:
        """Ends the daemon by a signal."""
        if self.process is not None:
            self.process.send_signal(number)
            self.process.wait(DEADLINE)
            self.process = None

    def records(self, channel: str = "app/log") -> List[relayfs.Record]:
        """Returns the unread records, and leaves them."""
        self.settle(channel)
        return list(relayfs.read(channel, self.point))

    def settle(self, channel: str) -> None:
        """Waits until the daemon has written what producers have sent."""
        with relayfs.Channel(self.point, channel, transport="socket") as other:
            # Behind what the daemon has from others for each buffer.
            connection = other._socket
            assert connection is not None
            connection.unsynced.update(range(connection.opened.buffers))
            other.sync()

    def messages(self, channel: str = "app/log") -> List[str]:
        """Returns the messages of programs."""
        return [record.message for record in self.records(channel) if record.event in ("log", "text", "raw")]

    def raw(self, channel: str) -> bytes:
        """Reads a raw channel's buffers, one after the other, which consumes."""
        self.settle(channel)
        with contextlib.ExitStack() as opened:
            # All are opened first: a channel that no program holds goes with its last byte.
            paths = sorted(Path(self.point).glob(f"{channel}[0-9]*"))
            files = [opened.enter_context(path.open("rb")) for path in paths]
            return b"".join(file.read() for file in files)


@pytest.fixture(scope="session", autouse=True)
def built() -> None:
    """Fails if what the tests run is not built."""
    for path in (DAEMON, LIBRARY):
        if not path.exists():
            pytest.exit(f"{path} is missing; build it with: sh tests/build.sh", returncode=3)
    # Loaded by path first, it is then found by its name.
    ctypes.CDLL(str(LIBRARY))


@pytest.fixture
def stopped() -> Iterator[Mount]:
    """A mount point whose daemon does not run."""
    with tempfile.TemporaryDirectory() as directory:
        mount = Mount(directory)
        yield mount
        mount.end(signal.SIGTERM)
        # A killed daemon leaves its mount and its files; the next one takes them over.
        if mount.is_left():
            mount.start("--discard")
            mount.end()


@pytest.fixture
def mount(stopped: Mount) -> Iterator[Mount]:
    """A mounted relayfs whose unread data ends with it."""
    stopped.start("--discard")
    yield stopped


@pytest.fixture(params=["socket", "librelay"])
def transport(request: pytest.FixtureRequest) -> str:
    """Each way of writing."""
    return str(request.param)
