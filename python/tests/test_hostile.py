"""Bytes of any kind, where other processes can write."""

import random
import struct
from typing import Any, List

import pytest
from streams import packet, record

from relayfs import meaning, wire
from relayfs.clock import Anchor, Timeline, parse_clock
from relayfs.names import Names, parse_events
from relayfs.reader import Record, _Buffer, _Source

EVENT = """/* relay event 256: level 3; target "app::db"; file "src/db.rs"; line 42 */
event {
	name = "connected";
	id = 256;
	stream_id = 0;
	loglevel = 6;
	fields := struct {
		u16 _len;
		u64 rows; /* "rows" */
		u16 _host_len;
		utf8 host[_host_len]; /* "h\\"o\\\\s\\012t" */
	};
};
"""


def shown(*streams: bytes, is_snapshot: bool = True, events: str = "") -> List[Record]:
    """Returns what a reader shows of copies of one buffer, one after the other."""
    source = _Source("/mnt", "app/log")
    source.names.events = parse_events(events)
    source.timeline = Timeline(1_000_000_000, [Anchor(0, 1, 1, 1, 1)])
    buffer = _Buffer(0)
    return [source.record(item) for stream in streams for item in buffer.items(stream, is_snapshot)]


def test_a_cut_stream_shows_what_is_whole() -> None:
    stream = packet(0, record(5, b"one"), record(6, b"two")) + packet(1, record(7, b"three"))
    for cut in range(len(stream)):
        found = shown(stream[:cut])
        records = [item.message for item in found if not item.notice]
        assert records == ["one", "two", "three"][: len(records)]
        whole = cut in (0, len(packet(0, record(5, b"one"), record(6, b"two"))))
        assert [item.event for item in found if item.notice] == ([] if whole else ["failed"])


def test_any_changed_byte_is_read() -> None:
    stream = packet(0, record(5, b"one"), record(6, b"\x03\x01t\x02\x00hi", ident=2), record(7, bytes(20), ident=256))
    for at in range(len(stream)):
        for value in (0, 1, 0x7F, 0x80, 0xFF):
            shown(stream[:at] + bytes([value]) + stream[at + 1 :], events=EVENT)


def test_random_bytes_are_read() -> None:
    source = random.Random(1)
    for _ in range(2000):
        garbage = source.randbytes(source.randrange(100))
        shown(garbage)
        shown(packet(0, garbage) + garbage)
        for ident in range(12):
            shown(packet(0, record(5, garbage, ident=ident)))
        shown(packet(0, record(5, garbage, ident=256)), events=EVENT)


def test_a_record_that_leads_out_is_told() -> None:
    bad = struct.pack("<QHIH", 9, 0, 7, 500) + b"short"
    found = shown(packet(0, record(5, b"one"), bad) + packet(1, record(8, b"two")))
    assert [(item.event, item.message) for item in found] == [
        ("text", "one"),
        ("damaged", "21 damaged bytes skipped"),
        ("text", "two"),
    ]


def test_stamps_do_not_go_back_in_a_buffer() -> None:
    found = shown(packet(0, record(50, b"a"), record(3, b"b"), record((1 << 64) - 1, b"c")))
    assert [item.ns for item in found] == [50, 50, (1 << 64) - 1]
    assert found[-1].time.year == 2554


def test_gaps_and_losses_are_told_once() -> None:
    lost = record(20, struct.pack("<QB", 3, 1), ident=5)
    stream = packet(0, record(5, b"a"), discarded=10) + packet(4, lost, record(21, b"b"), discarded=15)
    found = shown(stream)
    assert [(item.event, item.fields) for item in found if item.notice] == [
        ("overwritten", {"first": 1, "last": 3}),
        ("lost", {"messages": 3, "cause": "buffer full"}),
        ("lost", {"messages": 2}),
    ]
    first = packet(0, lost, record(21, b"a"), discarded=3)
    found = shown(first + packet(1, record(22, b"b"), discarded=4) + packet(2, record(23, b"c"), discarded=9))
    assert [item.fields for item in found if item.notice] == [{"messages": 3, "cause": "buffer full"}, {"messages": 6}]
    found = shown(stream)
    assert [item.event for item in shown(stream, stream, stream)] == [item.event for item in found]


def test_later_snapshots_show_what_is_new() -> None:
    a, b, c = (record(i, bytes([96 + i])) for i in (1, 2, 3))
    found = shown(packet(7, a), packet(7, a, b), packet(7, a, b), packet(7, a, b) + packet(8, c))
    assert [item.message for item in found] == ["a", "b", "c"]
    found = shown(packet(7, a), packet(7, b), packet(8, c), is_snapshot=False)
    assert [item.message for item in found] == ["a", "b", "c"]


def test_payloads_that_are_not_as_their_event_says_are_damaged() -> None:
    for ident, payload in [(2, b"\x03"), (2, b"\x03\x00\x01\x00ab"), (3, bytes(17)), (5, b""), (6, b"x"), (7, b"x"), (8, b"\x01\x05\x00a")]:
        (found,) = shown(packet(0, record(1, payload, ident=ident)))
        assert found.damaged and found.data == payload and found.message.startswith(f"damaged {meaning.BUILTINS[ident]}")
    (found,) = shown(packet(0, record(1, b"x", ident=300)))
    assert (found.event, found.data, found.damaged) == ("event 300", b"x", False)
    (found,) = shown(packet(0, record(1, b"x", ident=256)), events=EVENT)
    assert (found.event, found.damaged) == ("connected", True)
    (found,) = shown(packet(0, record(1, b"\x63\x00\x00\x00\x00", ident=2)))
    assert found.damaged is True
    (found,) = shown(packet(0, record(1, b"\x63\x00\x00\x00", ident=2)))
    assert (found.level, found.target, found.message) == (None, None, "")


def test_events_are_taken_as_relayfs_writes_them() -> None:
    found = parse_events(EVENT)[256]
    assert (found.name, found.level, found.target) == ("connected", "INFO", "app::db")
    assert found.fields == (("rows", "u64"), ('h"o\\s\nt', "utf8"))
    assert found.values(struct.pack("<QH", 3, 2) + b"hi") == {"rows": 3, 'h"o\\s\nt': "hi"}
    for old, new in [("id = 256", "id = 257"), ("u64 rows", "u32 rows"), ("256: l", "255: l"), ("};\n", "}\n"), ("\t\tu16 _host_len;\n", "")]:
        assert parse_events(EVENT.replace(old, new)) == {}, new
    again = EVENT.replace("connected", "other")
    assert parse_events("x\n" + EVENT + again)[256].name == "connected"
    for cut in range(len(EVENT) - 1):
        text = EVENT[:cut] + "\n" + EVENT.replace("256", "257")
        assert set(parse_events(text)) <= {256, 257}
    assert parse_events("/* relay event 256: level 3; target \"" + "\\" * 100_000) == {}


def test_an_event_with_a_text_as_message_shows_it_in_the_place_of_its_name() -> None:
    payload = struct.pack("<QH", 3, 5) + b"hello"
    for name, expected in [("message", "hello rows=3"), ("msg", "connected rows=3 msg=hello")]:
        events = EVENT.replace("host", name).replace('h\\"o\\\\s\\012t', name)
        (found,) = shown(packet(0, record(1, payload, ident=256)), events=events)
        assert (found.event, found.message, found.fields) == ("connected", expected, {"rows": 3, name: "hello"})
    numbers = EVENT.replace("u64 rows; /* \"rows\" */", "u64 message; /* \"message\" */")
    (found,) = shown(packet(0, record(1, payload, ident=256)), events=numbers)
    assert found.message.startswith("connected message=3 ")


def test_clocks_of_any_text() -> None:
    good = parse_clock("clock tsc 2000000000\nanchor 0 2000 1000 5000 1000\nanchor 0 4000 2000 6000 2000\n")
    assert good is not None and good.realtime(3000) == 5500 and good.realtime(8000) == 8000
    for wrong in ["", "clock", "clock tsc", "clock sundial 1", "clock tsc x", "clock tsc -1", "anchor 0 1 2 3 4"]:
        assert parse_clock(wrong) is None, wrong
    huge = str((1 << 64) - 1)
    for line in ["anchor", "anchor 1 2 3 4", f"anchor {huge} {huge} {huge} {huge} {huge}", "anchor 1 2 3 4 ²", "anchor 0 5 0 0 0"]:
        for frequency in ("0", huge, "1"):
            found = parse_clock(f"clock tsc {frequency}\nanchor 0 5 5 5 5\n{line}\n")
            assert found is not None
            for stamp in (0, 5, 1 << 63, (1 << 64) - 1):
                assert 0 <= found.realtime(stamp) < 1 << 64
    # One wild anchor does not displace the others.
    anchors = [Anchor(0, 1 << 63, 1, 1, 1), Anchor(0, 10, 10, 1010, 10), Anchor(0, 20, 20, 1020, 20)]
    assert Timeline(1_000_000_000, anchors).realtime(15) == 1015


def test_names_of_any_text() -> None:
    names = Names()
    names.add_processes("1 100 5 0 my app\t/bin/app\nthread 101 1\nthread x 1\nthread 1\n2\n\t\n-1 2 3 4 x\tz\n" + "9" * 5000 + " 1 2 3 a\tb")
    assert names.process(101) == names.process(100) == (100, "my app")
    assert names.process(1) in (None, (1, "a"))


def test_a_process_is_not_believed_for_records_from_before_its_start() -> None:
    """The cases of relay/src/trace/names.rs."""
    text = "1 100 5000 0 app one\t/usr/bin/app\n2 200 6000 1000 other\t/x\n3 100 7000 0 app again\t/x\nthread 101 1\n"
    names = Names()
    names.add_processes(text + "thread 100 3\n")

    def commands(tid: int, *ticks: int) -> List[Any]:
        found = (names.process(tid, tick * 10_000_000) for tick in ticks)
        return [process and process[1] for process in found]

    assert commands(100, 4998, 5000, 6998, 7000) == [None, "app one", "app one", "app again"]
    assert commands(101, 4998, 5000) == [None, "app one"]
    # A reader that follows has seen the thread of the process before.
    names.add_processes("4 500 8000 0 third\t/x\nthread 101 4\n")
    assert commands(101, 7997, 8000) == ["app one", "third"]
    # Two processes at the same time: a wrong name is worse than none.
    names.add_processes("thread 7 1\nthread 7 2\n")
    assert commands(7, 5500, 9000) == ["app one", None]
    names.add_processes("thread 100 3\nthread 100 1\n")
    assert commands(100, 9000) == ["app again"]
    for number in range(1000):
        names.add_processes(f"thread 7 {number}\nthread 7 {number + 1}\n")
    assert len(names._threads[7].former) <= 8


@pytest.mark.parametrize("body", [b"", b"x", bytes(16), bytes(64), b"\xff" * 32])
def test_answers_of_any_kind_are_refused(body: bytes) -> None:
    parsers: List[Any] = [wire.parse_hello, wire.parse_opened, wire.parse]
    for parse in parsers:
        with pytest.raises(OSError, match="is not a relayfs daemon"):
            parse(body)
    assert isinstance(wire.parse_error(body), OSError)
    assert wire.parse_error(b"\x02\0\0\0no\x1b[2J\n\xff").strerror == "no\\x1b[2J\\n\\xff"
