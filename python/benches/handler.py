#!/usr/bin/env python3
"""Measures the handler beside logging.NullHandler, alternating, in one run. handler.py [MOUNT]

Prints nanoseconds of one call, as the processor time of the thread: the least of some rounds, and the ratio. Without MOUNT it starts the relayfsd of the
directory RELAYFS_BUILT, else of a release build, else of a debug build.
"""

import logging
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Callable, Dict

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "python/src"))
import relayfs  # noqa: E402

CALLS, ROUNDS = 4_000, 15


def built() -> Path:
    """Returns the daemon that was built, where cargo puts it."""
    target = Path(os.environ.get("CARGO_TARGET_DIR") or ROOT / "target")
    directories = [target / "release", target / "debug"]
    if os.environ.get("RELAYFS_BUILT"):
        directories = [Path(os.environ["RELAYFS_BUILT"])]
    for directory in directories:
        if (directory / "relayfsd").exists():
            return directory / "relayfsd"
    sys.exit(f"handler.py: there is no relayfsd in {directories[-1]}; build it with: cargo build --package relayfsd")


def mounted(directory: str) -> "subprocess.Popen[bytes]":
    """Starts a daemon, and waits until it has mounted."""
    options = ["--foreground", "--discard"]
    process = subprocess.Popen([str(built()), *options, directory])
    while not os.path.exists(os.path.join(directory, ".relay/socket")):
        if process.poll() is not None:
            sys.exit("handler.py: the daemon has not started")
        time.sleep(0.01)
    return process


def logger(name: str, handler: logging.Handler) -> logging.Logger:
    """Returns a logger with this handler alone."""
    found = logging.getLogger(name)
    found.propagate = False
    found.setLevel(logging.INFO)
    found.addHandler(handler)
    return found


def nanoseconds(call: Callable[[], None]) -> float:
    """Returns the time of one call."""
    begin = time.thread_time_ns()
    for _ in range(CALLS):
        call()
    return (time.thread_time_ns() - begin) / CALLS


def measure(mount: str) -> None:
    """Measures each handler in turn."""
    loggers = {"NullHandler": logger("null", logging.NullHandler())}
    for transport in ("librelay", "socket"):
        try:
            channel = relayfs.Channel(mount, f"bench/{transport}", create=True, timed=True, overwrite=True, transport=transport)
        except OSError as error:
            print(f"{transport}: left out: {error.strerror}")
            continue
        handler = relayfs.Handler(channel.name, mount, transport=transport)
        loggers[transport] = logger(f"app.{transport}", handler)
    least: Dict[str, float] = {}
    for _ in range(ROUNDS):
        for name, found in loggers.items():
            took = nanoseconds(lambda: found.info("request %s took %d ms", "/index", 17))
            least[name] = min(took, least.get(name, took))
    for name, took in least.items():
        print(f"{name:12} {took:8.0f} ns  {took / least['NullHandler']:5.2f}x")


def main() -> None:
    """Measures on a mount of its own, or on the one that is named."""
    if len(sys.argv) > 2 or sys.argv[1:2] in (["-h"], ["--help"]):
        sys.exit("usage: handler.py [MOUNT]")
    if len(sys.argv) == 2:
        return measure(sys.argv[1])
    with tempfile.TemporaryDirectory() as directory:
        daemon = mounted(directory)
        try:
            measure(directory)
        finally:
            daemon.terminate()
            daemon.wait()


if __name__ == "__main__":
    main()
