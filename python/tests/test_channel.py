"""Channels, by both transports."""

import errno
import os
import signal
import subprocess
import sys
import threading

import pytest
from conftest import LIBRARY, ROOT, Mount, eventually

import relayfs


def open_channel(mount: Mount, transport: str, name: str = "app/log", timed: bool = True, **options: object) -> relayfs.Channel:
    """Creates a channel, and checks its transport."""
    channel = relayfs.Channel(mount.point, name, create=True, timed=timed, transport=transport, **options)  # type: ignore[arg-type]
    assert channel.transport == transport
    return channel


def test_records_have_what_was_written(mount: Mount, transport: str) -> None:
    with open_channel(mount, transport) as channel:
        assert channel.timed
        channel.log(relayfs.WARN, "app::db", "slow ä")
        channel.text("a text")
        channel.write(b"\xff bytes")
        channel.flush()
        records = [record for record in mount.records() if record.event != "process"]
    by_event = {record.event: record for record in records}
    assert len(records) == 3 and set(by_event) == {"log", "text", "raw"}
    log = by_event["log"]
    assert (log.level, log.target, log.message) == ("WARN", "app::db", "slow ä")
    assert (log.pid, log.tid) == (os.getpid(), threading.get_native_id())
    assert log.command and log.ns > 0
    assert by_event["text"].message == "a text" and by_event["text"].level is None
    assert by_event["raw"].data == b"\xff bytes" and by_event["raw"].message == "\\xff bytes"


def test_raw_channels_have_the_bytes(mount: Mount, transport: str) -> None:
    with open_channel(mount, transport, "app/raw", timed=False) as channel:
        assert not channel.timed
        channel.write(b"one\n")
        channel.write(bytearray(b"two\n"))
        with pytest.raises(OSError, match="it is not timed") as failure:
            channel.log(relayfs.INFO, "", "x")
        assert failure.value.errno == errno.ENOTSUP
    assert sorted(mount.raw("app/raw").split()) == [b"one", b"two"]


def test_long_messages_are_whole(mount: Mount, transport: str) -> None:
    data = os.urandom(200_000)
    with open_channel(mount, transport, "app/long", timed=False, subbuf_size=1 << 20) as channel:
        channel.write(data)
        with pytest.raises(OSError) as failure:
            channel.write(bytes((1 << 20) + 1))
        assert failure.value.errno == errno.EMSGSIZE
    assert mount.raw("app/long") == data


def test_long_texts_are_cut_with_a_mark(mount: Mount, transport: str) -> None:
    with open_channel(mount, transport, subbuf_size=4096) as channel:
        channel.log(relayfs.INFO, "t" * 300, "€" * 5000)
        channel.text("€" * 5000)
        with pytest.raises(OSError) as failure:
            channel.write(bytes(5000))
        assert failure.value.errno == errno.EMSGSIZE
    found = [record.message for record in mount.records() if record.event in ("log", "text")]
    assert len(found) == 2
    assert all(set(message) == {"€", "…"} and message.endswith("…") for message in found)


def test_without_create_a_channel_must_exist(mount: Mount, transport: str) -> None:
    with pytest.raises(OSError, match="app/none") as failure:
        relayfs.Channel(mount.point, "app/none", transport=transport)
    assert failure.value.errno == errno.ENOENT
    with open_channel(mount, transport) as channel:
        with relayfs.Channel(mount.point, "app/log", transport=transport) as other:
            assert other.timed
            other.log(relayfs.INFO, "", "second")
        channel.log(relayfs.INFO, "", "first")
    assert sorted(mount.messages()) == ["first", "second"]


def test_errors_say_what_to_do(tmp_path: object, mount: Mount, transport: str) -> None:
    for name, text in [("../x", "no channel can have this name"), ("", "no channel"), ("a\0b", "no channel")]:
        with pytest.raises(OSError, match=text):
            relayfs.Channel(mount.point, name, create=True, transport=transport)
    for place in ("/no/such/place", str(tmp_path)):
        with pytest.raises(OSError, match="no relayfs is mounted on .*; mount one with: relayfsd") as failure:
            relayfs.Channel(place, "cpu", transport=transport)
        assert failure.value.errno == errno.ENODEV
    with pytest.raises(ValueError, match="'auto'"):
        relayfs.Channel(mount.point, "cpu", transport="pigeon")
    with open_channel(mount, transport) as channel:
        with pytest.raises(OSError, match="there is no level 9"):
            channel.log(9, "", "")
    channel.close()
    with pytest.raises(OSError, match="it is closed") as failure:
        channel.write(b"x")
    assert failure.value.errno == errno.EBADF


def test_threads_share_a_channel(mount: Mount, transport: str) -> None:
    with open_channel(mount, transport, subbuf_size=1 << 20) as channel:

        def write(thread: int) -> None:
            for i in range(300):
                channel.log(relayfs.INFO, f"thread{thread}", str(i))

        threads = [threading.Thread(target=write, args=(i,)) for i in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        channel.flush()
        records = [record for record in mount.records() if record.event == "log"]
    for i in range(4):
        own = [record for record in records if record.target == f"thread{i}"]
        assert sorted(int(record.message) for record in own) == list(range(300))
        assert len({record.tid for record in own}) == 1
    assert [record.ns for record in records] == sorted(record.ns for record in records)


def test_forked_children_write(mount: Mount, transport: str) -> None:
    with open_channel(mount, transport) as channel:
        channel.log(relayfs.INFO, "", "parent before")
        children = []
        for i in range(3):
            pid = os.fork()
            if pid == 0:
                try:
                    channel.log(relayfs.INFO, "", f"child {i}")
                    channel.flush()
                    os._exit(0)
                finally:
                    os._exit(1)
            children.append(pid)
        for pid in children:
            assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
        channel.log(relayfs.INFO, "", "parent behind")
        channel.flush()
        records = {record.message: record for record in mount.records() if record.event == "log"}
    assert set(records) == {"parent before", "parent behind", "child 0", "child 1", "child 2"}
    for i, pid in enumerate(children):
        assert records[f"child {i}"].pid == pid
    assert records["parent behind"].pid == os.getpid()


def test_a_fork_while_threads_write_does_not_hang(mount: Mount, transport: str) -> None:
    with open_channel(mount, transport, overwrite=True) as channel:
        over = threading.Event()

        def write() -> None:
            while not over.is_set():
                try:
                    channel.log(relayfs.INFO, "", "busy")
                except OSError as error:
                    assert error.errno == errno.ENOSPC

        threads = [threading.Thread(target=write) for _ in range(2)]
        for thread in threads:
            thread.start()
        try:
            for _ in range(10):
                pid = os.fork()
                if pid == 0:
                    channel.log(relayfs.INFO, "child", "written")
                    os._exit(0)
                assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
        finally:
            over.set()
            for thread in threads:
                thread.join()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
def test_a_new_daemon_is_found(stopped: Mount, transport: str, number: int) -> None:
    stopped.start("--keep")
    channel = open_channel(stopped, transport)
    channel.log(relayfs.INFO, "", "before")
    channel.flush()
    stopped.end(number)
    stopped.start("--keep")
    sent = []

    def written() -> bool:
        try:
            channel.log(relayfs.INFO, "", f"behind {len(sent)}")
            channel.flush()
        except OSError as error:
            assert error.errno in (errno.ENODEV, errno.ENOSPC), error
            return False
        sent.append(len(sent))
        return any(message.startswith("behind") for message in stopped.messages())

    eventually("a message by the new daemon", written)
    assert "before" in stopped.messages()
    channel.close()
    stopped.end()
    stopped.start("--discard")


def test_without_a_daemon_an_open_channel_raises(mount: Mount) -> None:
    channel = open_channel(mount, "socket")
    mount.end()
    for _ in range(3):
        with pytest.raises(OSError, match="channel app/log of .*: ") as failure:
            channel.write(b"x")
        assert failure.value.errno == errno.ENODEV


def test_a_program_may_close_all_descriptors(mount: Mount) -> None:
    channel = open_channel(mount, "socket")
    number = channel._socket._socket._socket.fileno()  # type: ignore[union-attr]
    with open(os.path.join(mount.point, "..", "other"), "w+b", buffering=0) as other:
        # Closes the socket, and gives its number to another file.
        os.dup2(other.fileno(), number)
        channel.log(relayfs.INFO, "", "behind")
        channel.close()
        assert os.fstat(number).st_size == 0
        os.close(number)
    assert mount.messages() == ["behind"]


def test_standard_streams_stay_closed(mount: Mount) -> None:
    script = (
        "import os, sys; [os.close(i) for i in range(3)]; import relayfs\n"
        "c = relayfs.Channel(sys.argv[1], 'app/log', create=True, timed=True, transport='socket')\n"
        "c.log(3, '', 'x')\n"
        "for i in range(3):\n"
        "    try: os.fstat(i)\n"
        "    except OSError: continue\n"
        "    c.log(1, '', f'{i} is open')\n"
        "c.close()"
    )
    environment = dict(os.environ, PYTHONPATH=str(ROOT / "python/src"))
    subprocess.run([sys.executable, "-c", script, mount.point], env=environment, check=True)
    assert mount.messages() == ["x"]


def test_the_library_is_used_where_it_is_found(mount: Mount) -> None:
    script = "import relayfs, sys; print(relayfs.Channel(sys.argv[1], 'cpu').transport)"
    for directory, expected in [(str(LIBRARY.parent), "librelay"), ("/no/such/place", "socket")]:
        environment = dict(os.environ, PYTHONPATH=str(ROOT / "python/src"), LD_LIBRARY_PATH=directory)
        # Where the library is installed for the whole system, it is found in any case.
        command = [sys.executable, "-c", script, mount.point]
        said = subprocess.run(command, env=environment, check=True, stdout=subprocess.PIPE, text=True).stdout
        assert said.strip() in (expected, "librelay")
    with relayfs.Channel(mount.point, "cpu") as channel:
        assert channel.transport == "librelay"
