"""Makes packets and records, as relay/docs/TIMED.md and PACKETS.md say."""

import struct


def record(stamp: int, payload: bytes, ident: int = 0, tid: int = 7) -> bytes:
    """Returns a record."""
    return struct.pack("<QHIH", stamp, ident, tid, len(payload)) + payload


def packet(number: int, *records: bytes, begin: int = 0, discarded: int = 0, cpu: int = 0) -> bytes:
    """Returns a packet with these records."""
    content = b"".join(records)
    bits = 8 * (64 + len(content))
    return struct.pack("<IIIIQQQQQQ", 0xC1FC1FC1, 0, cpu, cpu, begin, 0, bits, bits, number, discarded) + content
