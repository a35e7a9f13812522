"""The handler of ``logging``."""

import logging
import os
import re
import signal
import subprocess
import sys
import threading
from typing import Iterator

import pytest
from conftest import ROOT, Mount, eventually

import relayfs


@pytest.fixture
def logger() -> Iterator[logging.Logger]:
    """A logger without other handlers."""
    found = logging.getLogger("app.db")
    found.propagate = False
    found.setLevel(logging.NOTSET + 1)
    yield found
    for handler in list(found.handlers):
        found.removeHandler(handler)
        handler.close()


def logged(mount: Mount, channel: str = "app/log") -> "list[relayfs.Record]":
    """Returns what programs have logged."""
    return [record for record in mount.records(channel) if record.event == "log"]


def test_records_have_level_target_and_text(mount: Mount, transport: str, logger: logging.Logger) -> None:
    handler = relayfs.Handler("app/log", mount.point, transport=transport)
    assert handler.channel is not None and handler.channel.transport == transport
    logger.addHandler(handler)
    logger.critical("very %s", "bad")
    logger.error("bad")
    logger.warning("odd %d%%", 5)
    logger.info("good ä \udc80")
    logger.debug("detail")
    logger.log(5, "trace")
    logger.log(25, "between")
    logging.getLogger("app.db.pool").info("a child's")
    handler.close()
    records = logged(mount)
    assert [(record.level, record.message) for record in records] == [
        ("ERROR", "very bad"),
        ("ERROR", "bad"),
        ("WARN", "odd 5%"),
        ("INFO", "good ä \\udc80"),
        ("DEBUG", "detail"),
        ("TRACE", "trace"),
        ("INFO", "between"),
        ("INFO", "a child's"),
    ]
    assert [record.target for record in records] == ["app.db"] * 7 + ["app.db.pool"]
    assert {record.pid for record in records} == {os.getpid()}
    assert handler.lost == 0


def test_extra_fields_and_exceptions_are_text(mount: Mount, transport: str, logger: logging.Logger) -> None:
    handler = relayfs.Handler("app/log", mount.point, transport=transport)
    logger.addHandler(handler)
    logger.info("connected", extra={"rows": 3, "host": "a b", "quote": 'x"', "none": None})
    try:
        raise KeyError("nothing")
    except KeyError:
        logger.exception("failed", extra={"code": 7})
    logger.info("where", stack_info=True)
    handler.close()
    first, second, third = [record.message for record in logged(mount)]
    assert first == 'connected rows=3 host="a b" quote="x\\"" none=None'
    assert second.startswith("failed code=7\nTraceback (most recent call last):\n") and second.endswith("KeyError: 'nothing'")
    assert third.startswith("where\nStack (most recent call last):\n")


def test_levels_filters_and_formatters_hold(mount: Mount, transport: str, logger: logging.Logger) -> None:
    handler = relayfs.Handler("app/log", mount.point, level="WARNING", transport=transport)
    logger.addHandler(handler)
    logger.info("too low")
    handler.addFilter(lambda record: "secret" not in record.getMessage())
    logger.error("a secret")
    handler.setFormatter(logging.Formatter("<%(name)s> %(message)s"))
    logger.error("kept")
    handler.close()
    assert [record.message for record in logged(mount)] == ["<app.db> kept"]


def test_raw_channels_get_lines(mount: Mount, transport: str, logger: logging.Logger) -> None:
    handler = relayfs.Handler("app/raw", mount.point, transport=transport, timed=False)
    logger.addHandler(handler)
    logger.warning("odd")
    handler.setFormatter(logging.Formatter("%(levelname)s %(message)s"))
    logger.info("plain")
    handler.close()
    lines = sorted(mount.raw("app/raw").decode().splitlines())
    assert re.fullmatch(r"\d{4}-\d\d-\d\d [\d:,]+ WARNING app.db: odd", lines[0]) and lines[1] == "INFO plain"


def test_wrong_arguments_go_to_handle_error(
    mount: Mount, transport: str, logger: logging.Logger, capsys: pytest.CaptureFixture[str]
) -> None:
    handler = relayfs.Handler("app/log", mount.point, transport=transport)
    logger.addHandler(handler)
    logger.info("%d", "no number")

    class Failing:
        def __str__(self) -> str:
            raise OSError("of the program")

    logger.info(Failing())
    said = capsys.readouterr().err
    assert said.count("--- Logging error ---") == 2 and handler.lost == 0
    logger.info("still here")
    handler.close()
    assert [record.message for record in logged(mount)] == ["still here"]


def test_a_program_starts_without_a_daemon(
    stopped: Mount, transport: str, logger: logging.Logger, capsys: pytest.CaptureFixture[str]
) -> None:
    handler = relayfs.Handler("app/log", stopped.point, transport=transport)
    logger.addHandler(handler)
    for _ in range(1000):
        logger.info("nobody hears it")
    said = capsys.readouterr().err
    assert said.startswith(f"relayfs: channel app/log of {stopped.point}: no relayfs is mounted on")
    assert said.count("\n") == 1
    assert handler.channel is None and handler.lost == 1000
    stopped.start("--discard")

    def found() -> bool:
        logger.info("found")
        return handler.channel is not None

    eventually("the handler finds the daemon", found)
    handler.close()
    assert {record.message for record in logged(stopped)} == {"found"}
    assert capsys.readouterr().err == ""


def test_a_program_outlives_the_daemon(
    stopped: Mount, transport: str, logger: logging.Logger, capsys: pytest.CaptureFixture[str]
) -> None:
    stopped.start("--keep")
    handler = relayfs.Handler("app/log", stopped.point, transport=transport)
    logger.addHandler(handler)
    logger.info("before")
    stopped.settle("app/log")
    stopped.end(signal.SIGKILL)
    for _ in range(100):
        logger.info("meanwhile")
    assert capsys.readouterr().err.count("\n") <= 1
    stopped.start("--keep")

    def heard() -> bool:
        logger.info("behind")
        return "behind" in stopped.messages()

    eventually("the new daemon has a record", heard)
    assert stopped.messages()[0] == "before"
    handler.close()
    stopped.end()
    stopped.start("--discard")


def test_a_channel_of_another_kind_is_found(stopped: Mount, logger: logging.Logger) -> None:
    handler = relayfs.Handler("app/log", stopped.point, transport="socket")
    logger.addHandler(handler)
    logger.info("no daemon, no record")
    stopped.start("--discard", "--channel=app/log:raw")

    def raw() -> bool:
        logger.info("a line")
        return handler.channel is not None and not handler.channel.timed

    eventually("a raw channel", raw)
    stopped.end()
    stopped.start("--discard", "--channel=app/log:timed")

    def timed() -> bool:
        logger.info("a record")
        return handler.channel is not None and handler.channel.timed

    eventually("a timed channel", timed)
    handler.close()
    assert {record.message for record in logged(stopped)} == {"a record"}


def test_a_full_buffer_is_no_error(
    mount: Mount, transport: str, logger: logging.Logger, capsys: pytest.CaptureFixture[str]
) -> None:
    handler = relayfs.Handler("app/log", mount.point, transport=transport, subbuf_size=4096, n_subbufs=2)
    logger.addHandler(handler)
    for i in range(1000):
        logger.info("%s %s", i, "x" * 100)
    assert handler.channel is not None
    handler.channel.flush()
    assert capsys.readouterr().err == ""
    assert 0 < len(logged(mount)) < 1000
    if transport == "librelay":
        assert handler.lost > 0


def test_a_closed_handler_is_quiet(mount: Mount, transport: str, logger: logging.Logger, capsys: pytest.CaptureFixture[str]) -> None:
    handler = relayfs.Handler("app/log", mount.point, transport=transport)
    logger.addHandler(handler)
    handler.close()
    handler.close()
    logger.info("too late")
    assert handler.lost == 1 and capsys.readouterr().err == ""


def test_threads_and_forked_children_log(mount: Mount, transport: str, logger: logging.Logger) -> None:
    handler = relayfs.Handler("app/log", mount.point, transport=transport, subbuf_size=1 << 20)
    logger.addHandler(handler)

    def log(name: str) -> None:
        for i in range(100):
            logger.info("%s %d", name, i)

    threads = [threading.Thread(target=log, args=(f"thread{i}",)) for i in range(3)]
    for thread in threads:
        thread.start()
    pid = os.fork()
    if pid == 0:
        log("child")
        logging.shutdown()
        os._exit(0)
    for thread in threads:
        thread.join()
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
    handler.close()
    records = logged(mount)
    assert sorted(record.message for record in records) == sorted(
        f"{name} {i}" for name in ("thread0", "thread1", "thread2", "child") for i in range(100)
    )
    assert {record.pid for record in records if record.message.startswith("child")} == {pid}


def test_a_program_that_ends_loses_nothing(mount: Mount, transport: str) -> None:
    script = (
        "import logging, relayfs, sys\n"
        "from ctypes import CDLL\n"
        "from conftest import LIBRARY\n"
        "CDLL(str(LIBRARY))\n"
        "logging.basicConfig(handlers=[relayfs.Handler('app/log', sys.argv[1], transport=sys.argv[2])], level='INFO')\n"
        "for i in range(100): logging.info('line %d', i)\n"
    )
    path = os.pathsep.join([str(ROOT / "python/src"), str(ROOT / "python/tests")])
    subprocess.run([sys.executable, "-c", script, mount.point, transport], env=dict(os.environ, PYTHONPATH=path), check=True)
    records = logged(mount)
    assert [record.message for record in records] == [f"line {i}" for i in range(100)]
    assert {record.target for record in records} == {"root"}
