"""The handler where Python calls it unexpectedly: signals, destructors, forks, other ways to run, the end."""

import asyncio
import itertools
import logging
import logging.config
import logging.handlers
import multiprocessing
import os
import queue
import signal
import subprocess
import sys
import threading
from typing import Any, Iterator

import pytest
from conftest import ROOT, Mount, eventually

import relayfs


@pytest.fixture
def logger() -> Iterator[logging.Logger]:
    """A logger without other handlers."""
    found = logging.Logger("app")
    yield found
    for handler in list(found.handlers):
        found.removeHandler(handler)
        handler.close()


def script(mount: Mount, transport: str, text: str, **options: Any) -> "subprocess.CompletedProcess[str]":
    """Runs a program with a handler for the root logger."""
    begin = (
        "import logging, os, sys\nfrom ctypes import CDLL\nfrom conftest import LIBRARY\nCDLL(str(LIBRARY))\nimport relayfs\n"
        f"logging.basicConfig(handlers=[relayfs.Handler('app/log', {mount.point!r}, transport={transport!r})], level='INFO')\n"
    )
    path = os.pathsep.join([str(ROOT / "python/src"), str(ROOT / "python/tests")])
    environment = dict(os.environ, PYTHONPATH=path, PYTHONDONTWRITEBYTECODE="1")
    command = [sys.executable, "-c", begin + text]
    return subprocess.run(command, env=environment, check=True, text=True, capture_output=True, timeout=120, **options)


def test_signal_handlers_may_log_in_the_middle_of_a_record(mount: Mount, transport: str, logger: logging.Logger) -> None:
    logger.addHandler(relayfs.Handler("app/log", mount.point, transport=transport, subbuf_size=1 << 20, n_subbufs=8))
    numbers = itertools.count()

    def handle(*_: Any) -> None:
        logger.warning("handled %d", next(numbers))

    before = signal.signal(signal.SIGALRM, handle)
    signal.setitimer(signal.ITIMER_REAL, 0.0002, 0.0002)
    try:
        for number in range(5000):
            logger.info("main %d", number)
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
    found, handled = mount.messages(), next(numbers)
    for name, count in (("main", 5000), ("handled", handled)):
        assert sorted(m for m in found if m.startswith(name)) == sorted(f"{name} {i}" for i in range(count))
    assert handled > 0


def test_a_record_that_interrupts_a_call_is_sent_behind_it(mount: Mount, logger: logging.Logger) -> None:
    """As a signal handler or a destructor does, at any step of the call."""
    handler = relayfs.Handler("app/log", mount.point, transport="socket")
    logger.addHandler(handler)
    assert handler.channel is not None
    inside, told = False, 0

    def trace(frame: Any, event: str, _: Any) -> Any:
        nonlocal inside, told
        if not inside and "relayfs" in frame.f_code.co_filename:
            inside = True
            logger.warning("inner %s:%d", frame.f_code.co_name, frame.f_lineno)
            inside, told = False, told + 1
        return trace

    sys.settrace(trace)
    try:
        logger.info("outer")
        handler.channel.sync()
        handler.channel.flush()
    finally:
        sys.settrace(None)
    found = mount.messages()
    assert found.count("outer") == 1 and any(message.startswith("inner _message:") for message in found)
    # Those above a limit are counted.
    assert len(found) == told + 1 - handler.lost and 0 < handler.lost < told


def test_values_whose_text_logs_are_there(mount: Mount, transport: str, logger: logging.Logger) -> None:
    logger.addHandler(relayfs.Handler("app/log", mount.point, transport=transport))

    class Telling:
        def __str__(self) -> str:
            logger.warning("inner")
            return "value"

    logger.info("outer %s", Telling(), extra={"a b": Telling(), "c\n=": 1})
    assert mount.messages() == ["inner", "inner", 'outer value "a b"=value "c\\n="=1']


@pytest.mark.parametrize("way", ["fork", "spawn", "forkserver"])
def test_processes_of_multiprocessing_log(mount: Mount, transport: str, way: str) -> None:
    path = os.path.join(mount.point, "..", "work.py")
    with open(path, "w") as file:
        file.write(
            "import ctypes, logging, multiprocessing, sys\n"
            "from conftest import LIBRARY\n"
            "ctypes.CDLL(str(LIBRARY))\n"
            "import relayfs\n"
            "logging.basicConfig(handlers=[relayfs.Handler('app/log', sys.argv[1], transport=sys.argv[2])], level='INFO')\n"
            "def work(number):\n"
            "    logging.info('work %d', number)\n"
            "    return number\n"
            "if __name__ == '__main__':\n"
            "    logging.info('main')\n"
            "    with multiprocessing.get_context(sys.argv[3]).Pool(3) as pool:\n"
            "        assert pool.map(work, range(12)) == list(range(12))\n"
        )
    python_path = os.pathsep.join([str(ROOT / "python/src"), str(ROOT / "python/tests")])
    environment = dict(os.environ, PYTHONPATH=python_path, PYTHONDONTWRITEBYTECODE="1")
    subprocess.run([sys.executable, path, mount.point, transport, way], env=environment, check=True, timeout=120)
    assert sorted(mount.messages()) == sorted(["main"] + [f"work {i}" for i in range(12)])


def test_a_fork_while_the_handler_looks_for_the_daemon(mount: Mount, transport: str, logger: logging.Logger) -> None:
    handler = relayfs.Handler("app/log", mount.point, transport=transport)
    logger.addHandler(handler)
    assert handler._finding.acquire(blocking=False)  # as a thread that opens the channel
    handler._sink = None
    pid = os.fork()
    if pid == 0:
        try:
            eventually("the child finds the daemon", lambda: logger.info("of the child") or handler._sink is not None)
            logger.info("of the child")
            os._exit(0)
        finally:
            os._exit(1)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
    handler._finding.release()
    assert mount.messages()[-1] == "of the child"


def test_tasks_of_asyncio_log(mount: Mount, transport: str, logger: logging.Logger) -> None:
    logger.addHandler(relayfs.Handler("app/log", mount.point, transport=transport))

    async def task(number: int) -> None:
        logger.info("begin %d", number)
        await asyncio.sleep(0)
        logger.info("end %d", number)

    async def main() -> None:
        await asyncio.gather(*(task(number) for number in range(10)))

    asyncio.run(main())
    found = mount.messages()
    assert found[:10] == [f"begin {i}" for i in range(10)] and sorted(found[10:]) == [f"end {i}" for i in range(10)]


def test_listeners_of_queues_and_configurations_make_handlers(mount: Mount, transport: str) -> None:
    records: "queue.Queue[Any]" = queue.Queue()
    listener = logging.handlers.QueueListener(records, relayfs.Handler("app/log", mount.point, transport=transport))
    listener.start()
    queued = logging.Logger("queued")
    queued.addHandler(logging.handlers.QueueHandler(records))
    queued.warning("by a queue", extra={"rows": 3})
    listener.stop()
    configured = {"class": "relayfs.Handler", "channel": "app/log", "mount": mount.point, "level": "ERROR", "transport": transport}
    logging.config.dictConfig(
        {"version": 1, "disable_existing_loggers": False, "handlers": {"relay": configured}, "loggers": {"configured": {"handlers": ["relay"]}}}
    )
    found = logging.getLogger("configured")
    found.warning("below its level")
    found.error("by a configuration")
    for handler in list(found.handlers):
        found.removeHandler(handler)
        handler.close()
    listener.handlers[0].close()
    assert mount.messages() == ["by a queue rows=3", "by a configuration"]


def test_the_end_of_the_interpreter(mount: Mount, transport: str) -> None:
    text = (
        "import atexit, threading\n"
        "class Last:\n"
        "    def __del__(self, log=logging.warning): log('in a destructor')\n"
        "last = Last(); last.me = last\n"
        "atexit.register(logging.warning, 'at exit')\n"
        "threading.Thread(target=lambda: logging.warning('in a thread'), daemon=True).start()\n"
        "logging.warning('main')\n"
    )
    done = script(mount, transport, text)
    assert (done.stdout, done.stderr) == ("", "")
    assert sorted(mount.messages())[:3] == ["at exit", "in a thread", "main"]


def test_without_standard_error_nothing_is_said(stopped: Mount, transport: str) -> None:
    done = script(stopped, transport, "logging.warning('lost')\nprint('only this')", preexec_fn=lambda: os.close(2))
    assert (done.stdout, done.stderr) == ("only this\n", "")


def test_threads_log_while_the_process_forks(mount: Mount, transport: str, logger: logging.Logger) -> None:
    logger.addHandler(relayfs.Handler("app/log", mount.point, transport=transport, overwrite=True))
    over = threading.Event()

    def log() -> None:
        while not over.is_set():
            logger.info("busy")

    threads = [threading.Thread(target=log) for _ in range(3)]
    for thread in threads:
        thread.start()
    try:
        for number in range(10):
            child = multiprocessing.get_context("fork").Process(target=logger.info, args=("of child %d", number))
            child.start()
            child.join(60)
            assert child.exitcode == 0
    finally:
        over.set()
        for thread in threads:
            thread.join()
