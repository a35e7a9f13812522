"""What time a stamp means: relay/docs/TIMED.md, "Anchors".

Anchors come from files that hostile processes can write. Numbers that no clock can have do not count.
"""

import bisect
from typing import Iterable, List, NamedTuple, Optional

NANOS = 1_000_000_000
U64_MAX = (1 << 64) - 1
SHIFT = 50
FACTOR_MAX = 4
ANCHORS_MAX = 1024


class Anchor(NamedTuple):
    """One moment by all clocks."""

    epoch: int
    ticks: int
    monotonic: int
    realtime: int
    boottime: int


def parse_anchor(text: str) -> Optional[Anchor]:
    """Returns the anchor that a text has, or None."""
    words = text.split(" ")
    if len(words) != 5 or not all(word.isascii() and word.isdigit() and len(word) <= 20 for word in words):
        return None
    numbers = [int(word) for word in words]
    return Anchor(*numbers) if max(numbers) <= U64_MAX else None


def in_order(anchors: List[Anchor]) -> List[Anchor]:
    """Returns the longest sequence in which no clock goes back, apart from the real time, which can be set."""
    lengths: List[int] = []
    before: List[int] = []
    for i, anchor in enumerate(anchors):
        length, best = 1, -1
        for j in range(i):
            other = anchors[j]
            follows = other.ticks < anchor.ticks and other.epoch <= anchor.epoch
            follows = follows and other.monotonic <= anchor.monotonic and other.boottime <= anchor.boottime
            if follows and lengths[j] >= length:
                length, best = lengths[j] + 1, j
        lengths.append(length)
        before.append(best)
    found: List[Anchor] = []
    at = max(range(len(anchors)), key=lambda i: (lengths[i], i)) if anchors else -1
    while at >= 0:
        found.append(anchors[at])
        at = before[at]
    return found[::-1]


class Timeline:
    """Converts stamps into times."""

    def __init__(self, ticks_per_second: int, anchors: Iterable[Anchor]) -> None:
        """Makes the timeline of these anchors. Anchors that contradict the others do not count."""
        if not 1_000_000 <= ticks_per_second <= 1_000_000_000_000:
            ticks_per_second = NANOS
        self.ticks_per_second = ticks_per_second
        given = list(anchors)[-ANCHORS_MAX:]
        self.anchors = in_order(given) or [Anchor(0, 0, 0, 0, 0)]
        self._begins = [anchor.ticks for anchor in self.anchors]
        self._rates = [self._rate(i, "realtime") for i in range(len(self.anchors))]
        self._boot_rates = [self._rate(i, "boottime") for i in range(len(self.anchors))]

    def _rate(self, i: int, clock: str) -> int:
        """The nanoseconds of a tick behind an anchor: up to the next of its epoch, or as between the two before."""
        nominal = (NANOS << SHIFT) // self.ticks_per_second
        for first, second in ((i, i + 1), (i - 1, i)):
            if 0 <= first and second < len(self.anchors) and self.anchors[first].epoch == self.anchors[second].epoch:
                a, b = self.anchors[first], self.anchors[second]
                rate = (max(0, getattr(b, clock) - getattr(a, clock)) << SHIFT) // (b.ticks - a.ticks)
                return rate if nominal // FACTOR_MAX <= rate <= nominal * FACTOR_MAX else nominal
        return nominal

    def realtime(self, stamp: int) -> int:
        """Returns CLOCK_REALTIME at a stamp, in nanoseconds since 1970."""
        i = max(0, bisect.bisect_right(self._begins, stamp) - 1)
        return self._at(stamp, i, self.anchors[i].realtime, self._rates[i])

    def boottime(self, stamp: int) -> int:
        """Returns CLOCK_BOOTTIME at a stamp, in nanoseconds."""
        i = max(0, bisect.bisect_right(self._begins, stamp) - 1)
        return self._at(stamp, i, self.anchors[i].boottime, self._boot_rates[i])

    def _at(self, stamp: int, i: int, time: int, rate: int) -> int:
        off = stamp - self.anchors[i].ticks
        passed = abs(off) * rate >> SHIFT
        return min(U64_MAX, max(0, time + (passed if off >= 0 else -passed)))


def parse_clock(text: str) -> Optional[Timeline]:
    """Returns the timeline of the file ``clock``, or None if the text is none. Lines that are no anchors do not count."""
    lines = text.split("\n")
    words = lines[0].split(" ")
    if len(words) != 3 or words[0] != "clock" or words[1] not in ("tsc", "monotonic"):
        return None
    if not (words[2].isascii() and words[2].isdigit() and len(words[2]) <= 20):
        return None
    found = (parse_anchor(line[len("anchor ") :]) for line in lines[1:] if line.startswith("anchor "))
    frequency = NANOS if words[1] == "monotonic" else int(words[2])
    return Timeline(frequency, [anchor for anchor in found if anchor])
