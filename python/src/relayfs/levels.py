"""Which messages a channel's file ``level`` lets pass, for programs that write by the socket: relay/docs/LEVELS.md."""

import ctypes
import mmap
import os
import stat
import weakref
from typing import Any, List, Optional, Tuple

from .record import LEVELS

LENGTH = 4096
HEAD = b"relaylev" + (1).to_bytes(4, "little")
CHANGE = 64
# Where the two texts are, each behind its length; the text of ``n`` changes is in slot ``n % 2``.
SLOTS = (128, 1216)
TEXT, TEXT_MAX = 64, 1024
TRIES = 64
LIMITS = {b"off": 0, **{name.lower().encode(): number for number, name in LEVELS.items()}}

Directives = List[Tuple[bytes, int]]


def _find_functions() -> Tuple[Any, Any]:
    # The module mmap keeps a descriptor, which the program may close, or have closed.
    found = ctypes.CDLL(None)
    size, number, pointer = ctypes.c_size_t, ctypes.c_int, ctypes.c_void_p
    found.mmap.argtypes, found.mmap.restype = (pointer, size, number, number, number, ctypes.c_long), pointer
    found.munmap.argtypes, found.munmap.restype = (pointer, size), number
    return found.mmap, found.munmap


class Page:
    """A mapped levels file. The daemon is its only writer."""

    def __init__(self, descriptor: int) -> None:
        """Maps a file, which the caller closes. Raises OSError if it is none that this release can read."""
        found = os.fstat(descriptor)
        if not stat.S_ISREG(found.st_mode) or found.st_size < LENGTH or os.pread(descriptor, len(HEAD), 0) != HEAD:
            raise OSError("it is not a levels file")
        map_file, unmap = _find_functions()
        address = map_file(None, LENGTH, mmap.PROT_READ, mmap.MAP_SHARED, descriptor, 0)
        if address is None or address == ctypes.c_void_p(-1).value:
            raise OSError("there is no memory for it")
        self._address = address
        self._change = ctypes.c_uint32.from_address(address + CHANGE)
        # As long as a thread looks there, it has a reference.
        weakref.finalize(self, unmap, address, LENGTH).atexit = False

    def change(self) -> int:
        """Returns the number of changes so far."""
        return int(self._change.value)

    def text(self) -> Tuple[int, bytes]:
        """Returns the number of changes, and the text. Without a text if it changes without end."""
        change = self.change()
        for _ in range(TRIES):
            slot = self._address + SLOTS[change % 2]
            length = ctypes.c_uint32.from_address(slot).value
            text = ctypes.string_at(slot + TEXT, min(length, TEXT_MAX))
            before, change = change, self.change()
            if before == change:
                return change, text
        return change, b""


def parse(text: bytes) -> Directives:
    """Returns the starts of targets and their limits, the longest first. What is no directive is left out."""
    found = []
    for directive in text.split(b","):
        target, _, level = directive.rpartition(b"=")
        if level in LIMITS:
            found.append((target, LIMITS[level]))
    # Of two with one target, the later one counts.
    return sorted(dict(found).items(), key=lambda one: -len(one[0]))


class Levels:
    """The levels of a channel. Every thread may ask at any time."""

    def __init__(self) -> None:
        self._page: Optional[Page] = None
        # The page that was looked at, its number of changes then, and what followed.
        self._seen: Tuple[Optional[Page], int, Directives] = (None, 0, [])

    def attach(self, descriptor: Optional[int]) -> None:
        """Takes the file of a new connection; None if the daemon has none."""
        try:
            self._page = None if descriptor is None else Page(descriptor)
        except OSError:
            self._page = None

    def enabled(self, level: int, target: bytes) -> bool:
        """Returns whether messages with this level and target are written."""
        page = self._page
        if page is None:
            return True
        seen = self._seen
        if seen[0] is not page or seen[1] != page.change():
            change, text = page.text()
            seen = self._seen = (page, change, parse(text))
        for start, limit in seen[2]:
            if target.startswith(start):
                return level <= limit
        return True
