"""Reading, from real mounts."""

import ctypes
import errno
import json
import os
import signal
import subprocess
import threading
from datetime import datetime, timedelta, timezone
from typing import Any, Iterator, List

import pytest
from conftest import BUILT, Mount, eventually

import relayfs


def opened(mount: Mount, transport: str = "socket") -> relayfs.Channel:
    """Creates the channel, with room for many flushes."""
    return relayfs.Channel(mount.point, "app/log", create=True, timed=True, transport=transport, n_subbufs=256, subbuf_size=16384)


def test_times_are_those_of_the_clock(mount: Mount, transport: str) -> None:
    with opened(mount, transport) as channel:
        before = datetime.now(timezone.utc)
        channel.log(relayfs.INFO, "", "now")
        mount.settle("app/log")
        behind = datetime.now(timezone.utc)
        record = next(record for record in mount.records() if record.message == "now")
    off = timedelta(milliseconds=20)
    assert before - off <= record.time <= behind + off
    assert abs(record.ns / 1e9 - record.time.timestamp()) < 1e-5


def test_a_look_consumes_nothing_and_a_take_all(mount: Mount) -> None:
    with opened(mount) as channel:
        for i in range(50):
            channel.log(relayfs.INFO, "", str(i))
        expected = [str(i) for i in range(50)]
        assert mount.messages() == mount.messages() == expected
        begun = relayfs.read("app/log", mount.point, snapshot=False)
        next(begun)
        begun.close()  # type: ignore[attr-defined]
        taken = [record.message for record in relayfs.read("app/log", mount.point, snapshot=False)]
        assert taken == expected, "a take that was not read to its end consumes nothing"
        assert list(relayfs.read("app/log", mount.point, snapshot=False)) == []


def test_records_are_as_audience_shows_them(mount: Mount) -> None:
    library = ctypes.CDLL("librelay.so.0")
    pointer = ctypes.c_void_p
    library.relay_open_timed.restype = library.relay_define.restype = pointer

    class Field(ctypes.Structure):
        _fields_ = [("name", ctypes.c_char_p), ("type", ctypes.c_int)]

    class Definition(ctypes.Structure):
        _fields_ = [
            ("name", ctypes.c_char_p),
            ("level", ctypes.c_int),
            ("line", ctypes.c_uint),
            ("target", ctypes.c_char_p),
            ("file", ctypes.c_char_p),
            ("fields", pointer),
            ("n_fields", ctypes.c_size_t),
        ]

    class Value(ctypes.Structure):
        _fields_ = [("type", ctypes.c_int), ("bits", ctypes.c_uint64), ("data", ctypes.c_char_p), ("length", ctypes.c_size_t)]

    chan = pointer(library.relay_open_timed(mount.point.encode(), b"app/log", None, ctypes.c_size_t(65536), ctypes.c_size_t(4), None, None))
    fields = (Field * 6)(
        *(Field(name, i + 1) for i, name in enumerate([b"rows", b"delta", b"ratio", b"good", "größe \"x\" */".encode(), b"blob"]))
    )
    definition = Definition(b"conn ected", 3, 42, b"app::db", b"db.c", ctypes.cast(fields, pointer), 6)
    event = pointer(library.relay_define(chan, ctypes.byref(definition)))
    half = int.from_bytes(bytes(6) + b"\xe0\x3f", "little")
    values = (Value * 6)(
        Value(1, 3, None, 0),
        Value(2, (1 << 64) - 2, None, 0),
        Value(3, half, None, 0),
        Value(4, 1, None, 0),
        Value(5, 0, b"a b", 3),
        Value(6, 0, b"\x01\xff", 2),
    )
    assert library.relay_event(event, values, ctypes.c_size_t(6)) == 0
    with opened(mount, "librelay") as channel:
        channel.log(relayfs.ERROR, "t", "line\nx\xff")
        channel.text("text")
        channel.write(b"\x00raw")
        ours = mount.records()
    library.relay_close(chan)
    command = [str(BUILT / "audience"), "--mount", mount.point, "--snapshot", "-c", "app/log", "-o", "json"]
    help_text = subprocess.run([str(BUILT / "audience"), "--help"], stdout=subprocess.PIPE, text=True).stdout
    if "--mount" not in help_text:
        command = [str(BUILT / "audience"), "--snapshot", "-c", "app/log", "-o", "json", mount.point]
    said = subprocess.run(command, stdout=subprocess.PIPE, check=True, text=True).stdout
    theirs = [json.loads(line) for line in said.splitlines()]
    theirs = [line for line in theirs if line.get("event") != "process"]
    ours = [record for record in ours if record.event != "process"]
    assert len(theirs) == len(ours) == 4
    for record, line in zip(ours, theirs):
        assert (record.event, record.cpu, record.tid) == (line["event"], line["cpu"], line["tid"])
        assert (record.pid, record.command) == (line["pid"], line["command"])
        assert (record.level, record.target) == (line.get("level"), line.get("target"))
        assert abs(record.ns - int(line["time"])) < 1_000_000
        if "message" in line:
            assert record.message == line["message"]
        if "data" in line:
            assert record.data is not None and record.data.hex() == line["data"]
    defined = next(record for record in ours if record.event == "conn ected")
    assert defined.fields == {"rows": 3, "delta": -2, "ratio": 0.5, "good": True, 'größe "x" */': "a b", "blob": b"\x01\xff"}
    assert defined.message.startswith("conn ected rows=3 delta=-2 ratio=0.5 good=true ")
    their_fields = next(line for line in theirs if line["event"] == "conn ected")["fields"]
    assert {**defined.fields, "blob": "01ff"} == their_fields


def test_all_cpus_are_merged(mount: Mount) -> None:
    cpus = sorted(os.sched_getaffinity(0))
    with opened(mount) as channel:
        try:
            for i in range(40):
                os.sched_setaffinity(0, {cpus[i % len(cpus)]})
                channel.log(relayfs.INFO, "", str(i))
                mount.settle("app/log")
        finally:
            os.sched_setaffinity(0, cpus)
        records = [record for record in mount.records() if record.event == "log"]
    assert [record.message for record in records] == [str(i) for i in range(40)]
    assert {record.cpu for record in records} == set(cpus)


def test_losses_are_told(mount: Mount) -> None:
    channel = relayfs.Channel(mount.point, "app/log", create=True, timed=True, transport="socket", subbuf_size=4096, n_subbufs=2)
    for _ in range(500):
        channel.log(relayfs.INFO, "", "x" * 100)
    mount.settle("app/log")
    records = list(relayfs.read("app/log", mount.point, snapshot=False))
    # The next packet tells of what came before it.
    channel.log(relayfs.INFO, "", "behind")
    records += mount.records()
    written = sum(record.message == "x" * 100 for record in records)
    assert 0 < written == 500 - sum(record.fields["messages"] for record in records if record.event == "lost")
    notice = next(record for record in records if record.event == "lost")
    assert notice.notice and notice.fields["cause"] == "buffer full" and notice.message.endswith("messages lost (buffer full)")
    channel.close()


def test_the_end_of_a_process_is_a_record(mount: Mount) -> None:
    channel = opened(mount)
    pid = os.fork()
    if pid == 0:
        channel.log(relayfs.INFO, "", "last words")
        channel.flush()
        os.kill(os.getpid(), signal.SIGKILL)
    os.waitpid(pid, 0)
    ends = eventually("a record", lambda: [record for record in mount.records() if record.fields.get("pid") == pid])
    assert ends[0].event == "process" and ends[0].fields["what"] in ("killed by signal", "exited")
    channel.close()


class Follower:
    """Reads in a thread."""

    def __init__(self, records: Iterator[relayfs.Record]) -> None:
        self.messages: List[str] = []
        self._over = False
        self._thread = threading.Thread(target=self._read, args=(records,), daemon=True)
        self._thread.start()

    def _read(self, records: Iterator[Any]) -> None:
        for record in records:
            if record.event in ("log", "lost", "overwritten"):
                self.messages.append(record.message)
            if record.message == "end":
                return

    def wait(self) -> List[str]:
        """Waits for the record that ends it."""
        self._thread.join(60)
        assert not self._thread.is_alive(), self.messages
        return self.messages


@pytest.mark.parametrize("snapshot", [True, False])
def test_following_shows_each_record_once_and_in_order(mount: Mount, snapshot: bool) -> None:
    follower = Follower(relayfs.read("app/log", mount.point, follow=True, snapshot=snapshot, interval=0.005))
    with relayfs.Channel(mount.point, "app/log", create=True, timed=True, subbuf_size=16384, n_subbufs=64) as channel:
        threads = []
        for thread in range(2):
            write = lambda thread=thread: [channel.log(relayfs.INFO, "", f"{thread} {i}") for i in range(1000)]  # noqa: E731
            threads.append(threading.Thread(target=write))
        for running in threads:
            running.start()
        for running in threads:
            running.join()
        channel.log(relayfs.INFO, "", "end")
        found = follower.wait()
        consumed = len(mount.messages()) == 0
    assert found[-1] == "end" and len(found) == 2001
    for thread in range(2):
        own = [message for message in found if message.startswith(f"{thread} ")]
        assert own == [f"{thread} {i}" for i in range(1000)]
    assert consumed != snapshot


@pytest.mark.parametrize("snapshot", [True, False])
def test_following_continues_with_the_next_daemon(stopped: Mount, snapshot: bool) -> None:
    stopped.start("--keep")
    channel = opened(stopped)
    channel.log(relayfs.INFO, "", "before")
    stopped.settle("app/log")
    follower = Follower(relayfs.read("app/log", stopped.point, follow=True, snapshot=snapshot, interval=0.01))
    eventually("the first record", lambda: follower.messages == ["before"])
    stopped.end()
    stopped.start("--keep")

    def written() -> bool:
        try:
            channel.log(relayfs.INFO, "", "end")
        except OSError as error:
            assert error.errno == errno.ENODEV
            return False
        return True

    eventually("a channel of the next daemon", written)
    assert follower.wait() == ["before", "end"]
    channel.close()
    stopped.end()
    stopped.start("--discard")


@pytest.mark.parametrize("snapshot", [True, False])
def test_following_continues_with_another_channel_of_the_name(stopped: Mount, snapshot: bool) -> None:
    stopped.start("--discard")
    channel = opened(stopped)
    for i in range(20):
        channel.log(relayfs.INFO, "", f"first {i}")
    channel.flush()
    channel.log(relayfs.INFO, "", "first last")
    stopped.settle("app/log")
    follower = Follower(relayfs.read("app/log", stopped.point, follow=True, snapshot=snapshot, interval=0.01))
    eventually("the first channel's records", lambda: "first last" in follower.messages)
    channel.close()
    stopped.end()
    stopped.start("--discard")
    with opened(stopped) as other:
        other.log(relayfs.INFO, "", "second")
        other.log(relayfs.INFO, "", "end")
        other.sync()
        found = follower.wait()
    assert found == [f"first {i}" for i in range(20)] + ["first last", "second", "end"]


def test_what_cannot_be_read_is_refused(mount: Mount) -> None:
    with pytest.raises(OSError, match="has no channel none") as failure:
        relayfs.read("none", mount.point)
    assert failure.value.errno == errno.ENOENT
    with pytest.raises(OSError, match="is not timed") as failure:
        relayfs.read("cpu", mount.point)
    assert failure.value.errno == errno.ENOTSUP
    with pytest.raises(OSError, match="no relayfs is mounted"):
        relayfs.read("cpu", "/no/such/place")
    with pytest.raises(OSError, match="no channel can have this name"):
        relayfs.read("../cpu", mount.point)
