"""The channel's file ``level``, by both transports."""

import logging
import os
import signal
from pathlib import Path
from typing import List

import pytest
from conftest import Mount, eventually

import relayfs
from relayfs.levels import HEAD, LENGTH, SLOTS, TEXT, Levels, parse

TARGETS = ("app", "app::db", "other")


def level_file(mount: Mount, channel: str = "app/log") -> Path:
    return Path(mount.point, ".relay/channels", channel, "level")


def log_all(channel: relayfs.Channel) -> None:
    """Logs with each target at three levels."""
    for target in TARGETS:
        for level in (relayfs.ERROR, relayfs.INFO, relayfs.TRACE):
            channel.log(level, target, f"{target} {level}")


def expected(*limits: int) -> List[str]:
    """Returns what is written if the targets have these limits."""
    levels = (relayfs.ERROR, relayfs.INFO, relayfs.TRACE)
    return [f"{target} {level}" for target, limit in zip(TARGETS, limits) for level in levels if level <= limit]


def test_directives_count_at_once(mount: Mount, transport: str) -> None:
    with relayfs.Channel(mount.point, "app/log", create=True, timed=True, transport=transport) as channel:
        log_all(channel)
        wanted = expected(5, 5, 5)
        for text, limits in [
            ("off", (0, 0, 0)),
            ("info,app::db=trace", (3, 5, 3)),
            ("app=error", (1, 1, 5)),
            ("app=off,app::db=info,error", (0, 3, 1)),
            ("\n", (5, 5, 5)),
        ]:
            level_file(mount).write_text(text)
            log_all(channel)
            wanted += expected(*limits)
        # Without a level there is nothing to leave out.
        level_file(mount).write_text("off")
        channel.text("a text")
        channel.write(b"bytes")
        # Garbage is refused, and changes nothing.
        with pytest.raises(OSError):
            level_file(mount).write_text("app=loud")
        log_all(channel)
        assert mount.messages() == wanted + ["a text", "bytes"]
        assert level_file(mount).read_text() == "off\n"


def test_the_handler_leaves_out_what_the_channel_does(mount: Mount, transport: str) -> None:
    logger = logging.Logger("app.db")
    handler = relayfs.Handler("app/log", mount.point, transport=transport)
    logger.addHandler(handler)
    level_file(mount).write_text("app.db=warn")
    logger.info("hidden")
    logger.warning("shown")
    level_file(mount).write_text("\n")
    logger.debug("shown too")
    handler.close()
    assert mount.messages() == ["shown", "shown too"] and handler.lost == 0


def test_directives_outlive_the_daemon_and_hold_in_children(stopped: Mount, transport: str) -> None:
    stopped.start("--keep", "--channel=app/log:timed")
    channel = relayfs.Channel(stopped.point, "app/log", transport=transport)
    level_file(stopped).write_text("warn")
    channel.log(relayfs.INFO, "", "hidden")
    pid = os.fork()
    if pid == 0:
        channel.log(relayfs.INFO, "", "hidden in the child")
        channel.log(relayfs.WARN, "", "of the child")
        channel.flush()
        os._exit(0)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
    stopped.settle("app/log")
    stopped.end(signal.SIGKILL)
    # Without a daemon too: this is left out, and no error.
    channel.log(relayfs.INFO, "", "hidden meanwhile")
    stopped.start("--keep")
    level_file(stopped).write_text("error")

    def written() -> bool:
        try:
            channel.log(relayfs.WARN, "", "warning")
            channel.log(relayfs.ERROR, "", "error")
            channel.flush()
        except OSError:
            return False
        return "error" in stopped.messages()

    eventually("a message by the next daemon", written)
    assert not any(message.startswith("hidden") for message in stopped.messages())
    # By the socket, the connection brings the file before the first message.
    found = stopped.messages()
    assert found[0] == "of the child"
    if transport == "socket":
        assert "warning" not in found
    channel.close()
    stopped.end()
    stopped.start("--discard")


def file_with(path: Path, change: int, *texts: bytes, length: int = LENGTH, head: bytes = HEAD) -> int:
    content = bytearray(length)
    content[: len(head)] = head
    content[64:68] = change.to_bytes(4, "little")
    for at, text in zip(SLOTS, texts):
        content[at : at + 4] = len(text).to_bytes(4, "little")
        content[at + TEXT : at + TEXT + len(text)] = text
    path.write_bytes(content)
    return os.open(path, os.O_RDONLY)


def enabled(file: "int | None") -> List[int]:
    levels = Levels()
    levels.attach(file)
    return [level for level in range(1, 6) if levels.enabled(level, b"app")]


def test_hostile_files_mean_nothing(tmp_path: Path) -> None:
    assert enabled(file_with(tmp_path / "good", 1, b"off", b"app=info")) == [1, 2, 3]
    assert enabled(file_with(tmp_path / "even", 2, b"off", b"app=info")) == []
    everything = [1, 2, 3, 4, 5]
    assert enabled(None) == everything
    assert enabled(file_with(tmp_path / "short", 0, b"", length=LENGTH - 1)) == everything
    assert enabled(file_with(tmp_path / "other", 0, b"off", head=b"relaylew\x01\0\0\0")) == everything
    assert enabled(file_with(tmp_path / "version", 0, b"off", head=b"relaylev\x02\0\0\0")) == everything
    assert enabled(os.open("/dev/zero", os.O_RDONLY)) == everything
    assert enabled(os.pipe()[0]) == everything
    long = file_with(tmp_path / "long", 0, b"")
    with open(tmp_path / "long", "r+b") as file:
        file.seek(SLOTS[0])
        file.write(b"\xff" * 2000)
    assert enabled(long) == everything


def test_what_is_no_directive_is_left_out() -> None:
    assert parse(b"") == [] == parse(b"\xff,app=loud,,=,app") == parse(b"=" * 1000)
    assert parse(b"info,app=warn,app::db=off,app=debug") == [(b"app::db", 0), (b"app", 4), (b"", 3)]
