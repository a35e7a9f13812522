//! How messages are appended: switching, full, overwritten, too big, flush, reset, headers. The labels are those of
//! the kernel's recorded behaviour: Wn its rules, Hn, Dn and the steps its tables. S is the size of a sub-buffer, N
//! their number, m a message of which two fit a sub-buffer and leave padding.

use std::fs::File;
use std::io::{Seek, SeekFrom};

use nix::poll::PollFlags;
use relayfs_tests::Mount;
use relayfs_tests::buffer::{Buffer, MIB, READABLE, Shape, each, poll_now, read_once, runs};

const IDLE: PollFlags = PollFlags::empty();
/// A sub-buffer's header of 16 bytes, as runs.
const HEADER: &str = r"\x00*16";

/// Returns `n` letters from `first` on.
fn letters(first: char, n: usize) -> String {
    (first..).take(n).collect()
}

fn no_overwrite() -> impl Iterator<Item = Shape> {
    Shape::of_tables().into_iter()
}

fn overwrite() -> impl Iterator<Item = Shape> {
    Shape::of_tables().into_iter().map(Shape::over)
}

/// A sub-buffer is finished by the message that does not fit any more, not by the one that fills it.
#[test]
fn message_that_does_not_fit_finishes_the_sub_buffer() {
    for shape in Shape::of_tables_in_both_modes() {
        let s = shape.s;
        let b = Buffer::new(shape);
        b.write("a", s * 3 / 4);
        b.write("b", s - s * 3 / 4 + 1);
        assert_eq!(b.paddings(), [s - s * 3 / 4], "D11, W2.b");
        assert_eq!((b.slot(), b.offset()), (1, s - s * 3 / 4 + 1), "D11, W2.d");
        assert_eq!(runs(&b.ring()[s..s + b.offset()]), each("b", b.offset()), "D11, W4: not split");
        b.audit();

        let b = Buffer::new(shape);
        b.write("a", s * 3 / 4);
        b.write("b", s - s * 3 / 4);
        assert_eq!((b.offset(), b.stat("produced"), b.poll(), b.size()), (s, 0, IDLE, s), "D12, W3");
        assert_eq!(b.write("\0", 0), "\0", "W9");
        assert_eq!((b.offset(), b.stat("produced")), (s, 0), "W9");
        b.write("c", 1);
        assert_eq!((b.paddings(), b.stat("produced"), b.poll()), (vec![0], 1, READABLE), "D12");
        b.audit();

        let b = Buffer::new(shape);
        b.write(&letters('a', 8), s / 8);
        assert_eq!((b.offset(), b.stat("produced")), (s, 0), "D17");
        b.write("i", s / 8);
        assert_eq!((b.offset(), b.stat("produced")), (s / 8, 1), "D17");
        assert_eq!(b.read(MIB), each("abcdefghi", s / 8), "D17, W1");
        b.audit();
    }
}

/// A message that is too long for a sub-buffer changes nothing, wherever the writer is.
#[test]
fn message_too_big_for_sub_buffer_changes_nothing() {
    for shape in Shape::of_tables_in_both_modes() {
        let s = shape.s;
        let b = Buffer::new(shape);
        assert_eq!(b.write("x", s + 1), "", "D15, W2.a");
        assert_eq!((b.offset(), b.size(), b.stat("produced"), b.poll()), (0, 0, 0, IDLE), "D15");
        b.write("b", 100);
        assert_eq!(b.write("x", s + 1), "", "D15");
        b.write("d", 100);
        assert_eq!((b.offset(), b.stat("produced")), (200, 0), "D15");
        assert_eq!(b.read(MIB), "b*100 d*100", "D15");
        assert_eq!((b.stat("too_big"), b.stat("dropped")), (2, 0));

        b.write(&letters('e', shape.n + 1), s);
        let before = (b.slot(), b.offset(), b.stat("produced"));
        assert_eq!(b.write("x", s + 1), "", "W2.a: also when full");
        assert_eq!((b.slot(), b.offset(), b.stat("produced")), before, "W2.a");
        assert_eq!(b.stat("too_big"), 3);
        b.audit();
    }
}

/// The longest message is the sub-buffer, but at most 1 MiB.
#[test]
fn no_message_is_longer_than_1_mib() {
    let b = Buffer::new(Shape::new(2 * MIB, 2));
    assert_eq!(b.write("ab", MIB), "ab");
    assert_eq!(b.write("x", MIB + 1), "", "0");
    assert_eq!(b.write("cd", MIB), "cd");
    assert_eq!((b.offset(), b.stat("produced")), (2 * MIB, 1));
    for letter in ["a", "b", "c", "d", ""] {
        assert_eq!(b.read(MIB), each(letter, MIB));
    }
}

/// No-overwrite mode is the default. A full buffer drops new messages.
#[test]
fn default_mode_drops_when_full() {
    let mount = Mount::new(&["--subbuf-size", "8192", "--n-subbufs", "2"]);
    let counts = mount.send(0, &[&[b'a'; 8192], &[b'b'; 8192], &[b'c'; 8192], &[b'd'; 8192]]);
    assert_eq!((counts.written, counts.dropped), (2, 2), "W10");
    assert_eq!(runs(&mount.read("cpu0")), "a*8192 b*8192", "W10");
}

/// The table of a full buffer, step by step.
#[test]
fn full_buffer_drops_until_a_sub_buffer_is_read() {
    for shape in no_overwrite() {
        let (b, Shape { s, n, .. }) = (Buffer::new(shape), shape);
        let m = s * 7 / 16;
        let first = letters('a', 2 * n);
        assert_eq!(b.write(&first, m), first, "4.3.1");
        assert_eq!((b.stat("produced"), b.offset(), b.size()), (n - 1, 2 * m, 2 * n * m), "4.3.1");
        assert_eq!(b.poll(), READABLE, "4.3.1");

        assert_eq!(b.write("KLM", m), "", "4.3.2, W2.c");
        assert_eq!((b.stat("produced"), b.offset(), b.size()), (n, s + 1, 2 * n * m), "4.3.2, W2.c");
        assert_eq!(b.paddings(), vec![s - 2 * m; n], "4.3.2, W2.b");
        assert_eq!(b.write("X", 1), "", "4.3.3, W5");
        assert_eq!(b.write("X", 0), "", "W5: however small");
        assert_eq!((b.read(10), b.write("X", 1).as_str()), ("a*10".into(), ""), "4.3.4");
        assert_eq!(b.read(2 * m - 11), format!("a*{} b*{}", m - 10, m - 1), "4.3.5");
        assert_eq!(b.write("X", 1), "", "4.3.5");
        assert_eq!(b.read(1), "b*1", "4.3.6");
        assert_eq!(b.produced_consumed(), (n, 1), "4.3.6, R3");

        assert_eq!(b.write("TUV", m), "TU", "4.3.7, W5");
        assert_eq!((b.stat("produced"), b.stat("dropped")), (n + 1, 8), "4.3.7");
        assert_eq!(runs(&b.ring()[..2 * m]), each("TU", m), "4.3.7: in the slot that was freed");
        assert_eq!(b.read(MIB), each(&format!("{}TU", &first[2..]), m), "4.3.8");
        assert_eq!((b.poll(), b.read(MIB)), (IDLE, String::new()), "4.3.8");
        assert_eq!((b.write("W", m).as_str(), b.slot()), ("W", 1), "4.3.9");
        assert_eq!(b.read(MIB), each("W", m), "4.3.9");
        assert_eq!(b.stat("high_water"), n);
        b.audit();
    }
}

/// A buffer that is full to the last byte is not blocked yet. Its last sub-buffer, read before it was finished, is
/// given back late.
#[test]
fn exactly_filled_ring_is_drained_and_used_again() {
    for shape in no_overwrite() {
        let (b, Shape { s, n, .. }) = (Buffer::new(shape), shape);
        let all = letters('a', n);
        assert_eq!(b.write(&letters('a', n + 1), s), all, "fulldrain.02");
        assert_eq!((b.offset(), b.stat("produced")), (s + 1, n), "fulldrain.02");
        assert_eq!(b.read(MIB), each(&all, s), "fulldrain.04");
        assert_eq!((b.write("z", s).as_str(), b.slot()), ("z", 0), "fulldrain.10");
        assert_eq!(runs(&b.ring()[..s]), each("z", s), "fulldrain.10");
        b.audit();

        let b = Buffer::new(shape);
        assert_eq!(b.write(&all, s), all, "fulldrain.13");
        assert_eq!((b.offset(), b.stat("produced")), (s, n - 1), "fulldrain.13");
        assert_eq!(b.read(n * s), each(&all, s), "fulldrain.15");
        assert_eq!(b.write(&letters('k', n), s), letters('k', n - 1), "fulldrain.21: the credit is late");
        b.audit();
    }
}

/// A read sub-buffer is room for the next message as soon as read(2) returns.
#[test]
fn read_sub_buffer_is_room_at_once() {
    let by_message = || {
        let b = Buffer::new(Shape::new(64, 2));
        assert_eq!(b.write("abc", 64), "ab");
        for i in 0..1000 {
            assert_eq!(b.read_bytes(b.file(), 64).len(), 64, "R3");
            assert_eq!(b.write("kl", 64), "k", "W5, the time number {i}");
        }
        b.audit();
    };
    let by_flush = || {
        let b = Buffer::new(Shape::new(64, 2));
        assert_eq!(b.write("abc", 64), "ab");
        for i in 0..300 {
            b.read_bytes(b.file(), 64);
            b.flush();
            assert_eq!(b.offset(), 0, "W7, the time number {i}");
            assert_eq!(b.write("kl", 64), "k");
        }
        b.audit();
    };
    let by_file = || {
        let mount = Mount::new(&["--channel", "one:global:subbuf-size=64:n-subbufs=2"]);
        let file = File::open(mount.path("one0")).unwrap();
        mount.send_to("one", 0, &[&[b'a'; 64], &[b'b'; 64], b"c"]);
        for i in 0..300 {
            assert_eq!(read_once(&file, 64).len(), 64);
            std::fs::write(mount.control("one", "msg"), [b'k'; 64])
                .unwrap_or_else(|error| panic!("{error}, {i}"));
            let full = std::fs::write(mount.control("one", "msg"), "l").unwrap_err();
            assert_eq!(full.raw_os_error(), Some(libc::ENOSPC));
        }
    };
    // Many threads, so that each is interrupted at every point.
    std::thread::scope(|scope| {
        for _ in 0..4 {
            scope.spawn(by_message);
            scope.spawn(by_flush);
            scope.spawn(by_file);
        }
    });
}

/// Flushing a full buffer changes nothing. Flushing a blocked buffer with room opens the next sub-buffer.
#[test]
fn flush_changes_full_buffer_only_if_it_has_room() {
    for shape in no_overwrite().flat_map(|shape| [shape, shape.header(16)]) {
        let (b, Shape { s, n, header, .. }) = (Buffer::new(shape), shape);
        b.write(&letters('a', n), s - header);
        assert_eq!((b.stat("produced"), b.offset()), (n - 1, s), "lapreading.26");
        b.flush();
        assert_eq!((b.stat("produced"), b.offset()), (n, s + 1), "lapreading.27, W7");
        let size = b.size();
        b.flush();
        assert_eq!((b.stat("produced"), b.offset(), b.size()), (n, s + 1, size), "fulldrain.28, W7");
        assert_eq!(b.read_bytes(b.file(), MIB).len(), n * s);
        assert_eq!(b.offset(), s + 1);
        b.flush();
        assert_eq!((b.stat("produced"), b.slot(), b.offset()), (n, 0, header), "fulldrain.32, W7");
        assert_eq!(b.poll(), IDLE, "fulldrain.32");
        assert_eq!(b.size(), size + header);
        assert_eq!(b.write("z", 10), "z");
        assert_eq!(b.offset(), header + 10);
        b.audit();
    }
}

/// Overwriting leaves the newest N - 1 whole sub-buffers and the current one, and counts the overwritten ones.
#[test]
fn overwriting_keeps_the_newest_sub_buffers() {
    for shape in overwrite() {
        let Shape { s, n, .. } = shape;
        let m = s * 7 / 16;
        for n_messages in [1, 2, 5, 2 * n, 2 * n + 1, 11, 12, 23] {
            let b = Buffer::new(shape);
            let all = letters('a', n_messages);
            assert_eq!(b.write(&all, m), all, "W6");
            let subbufs = n_messages.div_ceil(2);
            let in_current = n_messages - 2 * (subbufs - 1);
            let kept = in_current + 2 * (subbufs.min(n) - 1);
            assert_eq!(b.poll(), if subbufs > 1 { READABLE } else { IDLE }, "4.5");
            assert_eq!(b.read(MIB), each(&all[n_messages - kept..], m), "4.5: {n_messages} messages");
            assert_eq!((b.poll(), b.read(MIB)), (IDLE, String::new()), "4.5");
            assert_eq!(b.stat("overwritten_bytes"), (n_messages - kept) * m);
            assert_eq!(b.stat("overwritten_subbufs"), subbufs.saturating_sub(n));
            assert_eq!((b.write("Z", 1), b.read(MIB)), ("Z".into(), "Z*1".into()), "4.5");
            b.audit();
        }

        let b = Buffer::new(shape);
        let all = letters('a', 3 * n);
        b.write(&all, s);
        assert_eq!(b.read(MIB), each(&all[2 * n..], s), "4.5: whole sub-buffers");
        assert_eq!(b.read(MIB), "", "4.5");
        b.write("Z", 1);
        assert_eq!(b.read(MIB), "Z*1", "4.5");
        b.audit();

        let b = Buffer::new(shape);
        let all = letters('a', n + 1);
        b.write(&all, s);
        b.flush();
        assert_eq!(
            b.read(MIB),
            each(&all[2..], s),
            "4.5: the flush gives up the oldest, nothing being written there yet"
        );
        b.audit();
    }
    // As recorded.
    let recorded = [
        (Shape::new(8192, 2), 3584, 11, "ijk"),
        (Shape::new(8192, 2), 3584, 12, "ijkl"),
        (Shape::new(8192, 2), 3584, 5, "cde"),
        (Shape::new(8192, 2), 8192, 6, "ef"),
        (Shape::new(4096, 4), 1792, 23, "qrstuvw"),
        (Shape::new(4096, 4), 4096, 5, "bcde"),
    ];
    let both_ways = recorded.into_iter().flat_map(|row| [row, (row.0.direct(), row.1, row.2, row.3)]);
    for (shape, len, n_messages, kept) in both_ways {
        let b = Buffer::new(shape.over());
        b.write(&letters('a', n_messages), len);
        assert_eq!(b.read(MIB), each(kept, len), "4.5, {n_messages} x {len}");
        b.audit();
    }
}

/// A reader that stopped in a sub-buffer continues there, even if a writer has overwritten it: messages are always
/// whole. (The kernel would continue with the oldest one that is left.)
#[test]
fn lapped_reader_gets_whole_messages() {
    for shape in overwrite() {
        let Shape { s, n, .. } = shape;
        let m = s * 7 / 16;
        let all = letters('a', 2 * n);

        let b = Buffer::new(shape);
        b.write(&all[..1], m);
        assert_eq!(b.read(100), "a*100", "4.5");
        b.write(&all[1..], m);
        assert_eq!(b.read(100), "a*100", "4.5: without lapping");
        assert_eq!(b.read(MIB), format!("a*{} {}", m - 200, each(&all[1..], m)), "4.5");
        b.audit();

        let b = Buffer::new(shape);
        b.write(&all, m);
        assert_eq!(b.read(100), "a*100", "4.5");
        b.write("X", m);
        assert_eq!(b.poll(), READABLE, "4.5: while lapped");
        assert_eq!(b.read(100), "a*100", "0: one message laps");
        let rest = format!("a*{} {}", m - 200, each(&format!("{}X", &all[1..]), m));
        assert_eq!(b.read(MIB), rest, "0: nothing is lost of the sub-buffer that was being read");
        b.audit();

        // The reader stops in an unfinished sub-buffer, which then gets another message and is lapped twice.
        let b = Buffer::new(shape);
        b.write("F", m);
        assert_eq!(b.read(100), "F*100", "4.5");
        let lapping = letters('G', 1 + 4 * n);
        b.write(&lapping, m);
        let kept = &lapping[1 + 2 * n..];
        assert_eq!(b.read(MIB), format!("F*{} {}", m - 100, each(kept, m)), "0: lapped twice");
        assert_eq!(b.stat("overwritten_bytes"), (1 + 2 * n) * m);
        b.audit();
    }
}

/// Flush finishes the current sub-buffer, even an empty one, on every CPU.
#[test]
fn flush_finishes_current_sub_buffers() {
    for shape in Shape::of_tables_in_both_modes() {
        let Shape { s, n, over, .. } = shape;
        let b = Buffer::new(shape);
        b.flush();
        assert_eq!((b.stat("produced"), b.paddings(), b.size()), (1, vec![s], 0), "H1, W7");
        for cpu in 0..b.mount().channel("cpu").n_bufs() {
            let file = File::open(b.mount().path(&format!("cpu{cpu}"))).unwrap();
            assert_eq!(poll_now(&file), READABLE, "H1: cpu{cpu}");
            assert_eq!((read_once(&file, MIB), poll_now(&file)), (vec![], IDLE), "H1: cpu{cpu}");
        }
        assert_eq!((b.write("d", 10), b.read(MIB)), ("d".into(), "d*10".into()), "H4");
        b.audit();

        let b = Buffer::new(shape);
        b.write("a", 100);
        b.flush();
        assert_eq!((b.paddings(), b.size(), b.poll()), (vec![s - 100], 100, READABLE), "H2");
        assert_eq!((b.read(MIB), b.poll()), ("a*100".into(), IDLE), "H2");
        b.write("b", 100);
        assert_eq!(b.read(60), "b*60", "H3");
        b.flush();
        assert_eq!(b.read(MIB), "b*40", "H3");
        b.audit();

        let b = Buffer::new(shape);
        for letter in letters('g', n).chars() {
            assert_eq!(b.write(&letter.to_string(), 10), letter.to_string(), "H5");
            b.flush();
        }
        let left = if over { &letters('g', n)[1..] } else { &letters('g', n) };
        assert_eq!(b.offset() == s + 1, !over, "H5: blocked");
        assert_eq!(b.read(MIB), each(left, 10), "H5");
        b.audit();
    }
}

/// A reset discards unread data of all CPUs, and nothing else: size, position and counters continue.
#[test]
fn reset_discards_unread_data() {
    for shape in Shape::of_tables_in_both_modes() {
        let Shape { s, n, over, .. } = shape;
        let b = Buffer::new(shape);
        let n_cpus = b.mount().channel("cpu").n_bufs();
        b.write("a", s - 100);
        b.write("b", 200);
        for cpu in 1..n_cpus {
            b.mount().send(cpu, &[b"other"]);
        }
        assert_eq!(b.read(500), "a*500");
        b.reset();
        assert_eq!((b.read(MIB), b.poll(), b.size()), (String::new(), IDLE, s + 100), "H6, W8");
        assert_eq!(b.file().stream_position().unwrap(), 500, "H6");
        for cpu in 1..n_cpus {
            let path = b.mount().path(&format!("cpu{cpu}"));
            assert_eq!(File::open(&path).unwrap().seek(SeekFrom::End(0)).unwrap(), 5, "H6: cpu{cpu}");
            assert_eq!(b.mount().read(&format!("cpu{cpu}")), b"", "H6: cpu{cpu}");
        }
        assert_eq!(b.stat("discarded_bytes"), s + 100 - 500);
        assert_eq!(b.stat("discarded_subbufs"), 1);
        assert_eq!(runs(&b.ring()[..s - 100]), each("a", s - 100), "W8: memory is not cleared");
        assert_eq!((b.slot(), b.offset()), (0, 0), "W8");
        assert_eq!((b.write("c", 10), b.read(MIB)), ("c".into(), "c*10".into()), "H6");
        b.audit();

        let b = Buffer::new(shape);
        b.write(&letters('a', n + 1), s);
        assert_eq!(b.offset() == s + 1, !over, "H7: blocked");
        b.reset();
        assert_eq!(b.write("z", s), "z", "H7");
        assert_eq!((b.slot(), b.offset()), (0, s), "H7");
        assert_eq!(b.read(MIB), each("z", s), "H7");
        let lost =
            if over { ("overwritten_bytes", "discarded_bytes") } else { ("dropped", "discarded_bytes") };
        let expected = if over { (s, n * s) } else { (1, n * s) };
        assert_eq!((b.stat(lost.0), b.stat(lost.1)), expected, "each loss by its cause");
        b.audit();
    }
}

/// In overwrite mode a reset discards a half-read sub-buffer too, even if a writer has overwritten it.
#[test]
fn reset_discards_what_lapped_reader_had_kept() {
    for shape in overwrite() {
        let Shape { s, n, .. } = shape;
        for n_messages in [n, 2 * n + 3] {
            let b = Buffer::new(shape);
            b.write("F", s);
            b.read(100);
            b.write(&letters('a', n_messages), s);
            b.reset();
            assert_eq!((b.read(MIB), b.poll()), (String::new(), IDLE), "W8");
            let discarded = (s - 100) + n * s;
            assert_eq!(b.stat("discarded_bytes"), discarded);
            assert_eq!(b.stat("overwritten_bytes"), b.size() - 100 - discarded);
            b.write("z", 10);
            assert_eq!(b.read(MIB), "z*10", "W8");
            b.audit();
        }
    }
}

/// A header is reserved at the start of each sub-buffer, and is part of the stream that is read.
#[test]
fn headers_are_part_of_the_stream() {
    for shape in Shape::of_tables_in_both_modes().map(|shape| shape.header(16)) {
        let s = shape.s;
        let b = Buffer::new(shape);
        assert_eq!((b.offset(), b.size(), b.poll()), (16, 16, IDLE), "H8, 1.14");
        assert_eq!((b.read(MIB), b.poll()), (HEADER.into(), IDLE), "H8, 1.14");
        b.write("a", 100);
        assert_eq!(b.read(MIB), "a*100", "H9");
        b.write("b", s - 16);
        assert_eq!((b.paddings(), b.poll()), (vec![s - 116], READABLE), "H9");
        assert_eq!(b.read(MIB), format!("{HEADER} b*{}", s - 16), "H9");
        assert_eq!(b.size(), 16 + 100 + s, "H9");
        b.audit();

        let b = Buffer::new(shape);
        b.flush();
        assert_eq!((b.paddings(), b.offset(), b.poll()), (vec![s - 16], 16, READABLE), "H11");
        assert_eq!(b.read(16), HEADER, "H11");
        assert_eq!((b.poll(), b.read(MIB)), (IDLE, HEADER.into()), "H11");
        b.audit();

        let b = Buffer::new(shape);
        b.write("a", 100);
        b.reset();
        assert_eq!((b.slot(), b.offset(), b.poll()), (0, 16, IDLE), "W8");
        b.write("b", 10);
        assert_eq!(b.read(MIB), format!("{HEADER} b*10"), "W8");
        b.audit();
    }
    for shape in no_overwrite().map(|shape| shape.header(16)) {
        let Shape { s, n, .. } = shape;
        let b = Buffer::new(shape);
        let accepted = letters('f', n);
        assert_eq!(b.write(&letters('f', 3 * n), s - 16), accepted, "H12");
        let all: Vec<String> = accepted.chars().map(|c| format!("{HEADER} {c}*{}", s - 16)).collect();
        assert_eq!(b.read(MIB), all.join(" "), "H12");
        b.audit();
    }
}

/// A message that fits a sub-buffer without its header is dropped. Each one finishes the current sub-buffer.
#[test]
fn message_too_big_beside_header_finishes_sub_buffer() {
    for shape in Shape::of_tables_in_both_modes().map(|shape| shape.header(16)) {
        let Shape { s, n, over, .. } = shape;
        let b = Buffer::new(shape);
        assert_eq!(b.read(MIB), HEADER);
        for i in 1..=3 {
            assert_eq!(b.write("x", s - 15), "", "H10, W2.e");
            assert_eq!((b.stat("produced"), b.stat("too_big")), (i, i), "H10, W2.e");
            assert_eq!((b.offset(), b.paddings().pop()), (16, Some(s - 16)), "H10, W2.e");
            assert_eq!((b.poll(), b.read(MIB)), (READABLE, HEADER.into()), "H10");
        }
        b.audit();

        // Unread sub-buffers fill the ring: it is full before the message is too big.
        let b = Buffer::new(shape);
        b.write(&"x".repeat(n + 1), s - 15);
        let too_big = if over { n + 1 } else { n - 1 };
        assert_eq!((b.stat("too_big"), b.stat("dropped")), (too_big, n + 1 - too_big), "W2, in its order");
        b.audit();
    }
}

/// One sub-buffer, with and without a header, in both modes.
#[test]
fn ring_of_one_sub_buffer_switches_like_many() {
    let shapes = [Shape::new(8192, 1), Shape::new(1000, 1).header(16)].into_iter();
    for shape in shapes.flat_map(|shape| [shape, shape.direct()]) {
        let Shape { s, header, .. } = shape;
        let room = s - header;
        let b = Buffer::new(shape);
        assert_eq!(b.write("ab", room), "a", "W2.c");
        assert_eq!((b.offset(), b.stat("produced"), b.paddings()), (s + 1, 1, vec![0]), "W2.c");
        b.flush();
        assert_eq!((b.offset(), b.stat("produced")), (s + 1, 1), "W7");
        b.reset();
        assert_eq!((b.slot(), b.offset()), (0, header), "W8");
        assert_eq!(b.write("cd", room), "c", "H7");
        b.audit();

        let b = Buffer::new(shape.over());
        assert_eq!(b.write("abc", room), "abc", "W6");
        assert_eq!((b.offset(), b.stat("produced"), b.slot()), (s, 2, 0), "W6");
        b.flush();
        assert_eq!((b.offset(), b.stat("produced")), (header, 3), "W7");
        assert_eq!(b.read_bytes(b.file(), MIB).len(), header, "4.5: only the current one");
        assert_eq!(b.stat("overwritten_bytes"), 3 * s);
        b.audit();
    }
}

/// A writer, a reader of `dropped`, and a reader of `stats` see the losses. A reset keeps the counts.
#[test]
fn losses_are_counted_by_cause() {
    let mount = Mount::new(&["--subbuf-size", "100", "--n-subbufs", "2", "--header", "10"]);
    let counts = mount.send(0, &[&[1; 90], &[2; 90], &[3; 90], &[4; 1], &[5; 101], &[6; 5000]]);
    assert_eq!((counts.written, counts.dropped, counts.too_big), (2, 2, 2));
    mount.poke("cpu", "reset");
    let stats = mount.stats("cpu");
    let values = |names: &[&str]| names.iter().map(|name| stats[*name]).collect::<Vec<u64>>();
    assert_eq!(values(&["cpu0.written", "cpu0.dropped", "cpu0.too_big"]), [2, 2, 2]);
    assert_eq!(values(&["total.written", "total.dropped", "total.too_big"]), [2, 2, 2]);
    assert_eq!(values(&["cpu0.bytes", "cpu0.discarded_bytes", "cpu0.read_bytes"]), [210, 200, 0]);
    assert_eq!(values(&["cpu0.discarded_subbufs", "cpu0.produced", "cpu0.consumed"]), [2, 2, 2]);
    assert_eq!(std::fs::read_to_string(mount.control("cpu", "dropped")).unwrap(), "2\n");
}
