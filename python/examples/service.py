"""A service with threads and errors, as a web server has them. What it wrote last is there when it is killed.

    python3 python/examples/service.py; audience -c app/log -n 20

``$RELAYFS`` names the relayfs, by default /mnt/relay. It runs until a signal ends it.
"""

import itertools
import logging
import queue
import threading
import time
from typing import NamedTuple

import relayfs

# Threads that answer requests.
WORKERS = 4
PATHS = ("/", "/users", "/users/7", "/empty", "/broken")

log = logging.getLogger("service")
cache = logging.getLogger("service.cache")


class Request(NamedTuple):
    id: int
    method: str
    path: str


def query(path: str) -> int:
    """Returns the number of rows of a table."""
    if path == "/broken":
        raise LookupError(f"no table for {path!r}")
    rows = 0 if path == "/empty" else len(path)
    log.debug("read", extra={"rows": rows})
    return rows


def answer(request: Request) -> int:
    """Returns the number of bytes that were sent."""
    rows = query(request.path)
    if request.method == "POST":
        cache.warning("stale", extra={"rows": rows})
    return 2000 // rows


def answer_all(requests: "queue.Queue[Request]") -> None:
    while True:
        request = requests.get()
        try:
            size = answer(request)
        except LookupError as error:
            log.error("%s %s failed", request.method, request.path, extra={"id": request.id, "error": error})
        except Exception:
            log.exception("%s %s crashed", request.method, request.path, extra={"id": request.id})
        else:
            log.info("%s %s", request.method, request.path, extra={"id": request.id, "bytes": size})


def main() -> None:
    logging.basicConfig(level=logging.DEBUG, handlers=[relayfs.Handler("app/log")])
    log.info("started", extra={"workers": WORKERS})
    requests: "queue.Queue[Request]" = queue.Queue(WORKERS)
    for number in range(WORKERS):
        threading.Thread(target=answer_all, args=(requests,), name=f"worker-{number}", daemon=True).start()
    for number in itertools.count(1):
        method = "POST" if number % 4 == 0 else "GET"
        requests.put(Request(number, method, PATHS[number % len(PATHS)]))
        time.sleep(0.005)


if __name__ == "__main__":
    main()
