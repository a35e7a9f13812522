//! read(2) of a buffer's file: one cursor for all readers, across sub-buffers, without padding, never waiting. The
//! labels are those of the kernel's recorded behaviour: Dn its table of reads, Rn its rules, Qn its bugs, which the
//! daemon does not have. S is the size of a sub-buffer, N their number.

use std::fs;
use std::io::{IoSliceMut, Read};
use std::os::unix::fs::OpenOptionsExt;
use std::process::Stdio;

use nix::poll::PollFlags;
use relayfs_tests::buffer::{Buffer, MIB, READABLE, Shape, each, poll_now, read_once, runs};
use relayfs_tests::{Mount, Process, run, text, tool};

const IDLE: PollFlags = PollFlags::empty();

/// Without data a read returns the end of the file, at once, with and without O_NONBLOCK. Later reads return later
/// data.
#[test]
fn empty_buffer_is_at_its_end_until_next_message() {
    for shape in Shape::of_tables_in_both_modes().chain([Shape::new(64, 1), Shape::new(64, 1).over()]) {
        let b = Buffer::new(shape);
        let path = b.mount().path("cpu0");
        let nonblocking =
            fs::OpenOptions::new().read(true).custom_flags(libc::O_NONBLOCK).open(path).unwrap();
        for file in [b.file(), &nonblocking] {
            for count in [0, 1, shape.s, MIB] {
                assert_eq!(b.read_from(file, count), "", "D1, R4");
            }
        }
        for letter in ["a", "b"] {
            assert_eq!(b.write(letter, 7), letter);
            assert_eq!(b.read_from(&nonblocking, MIB), format!("{letter}*7"), "1.6");
            assert_eq!(b.read(MIB), "");
        }
        b.audit();
    }
}

/// Each byte goes to one reader: the cursor belongs to the buffer, not to an open file.
#[test]
fn all_readers_share_one_cursor() {
    for shape in Shape::of_tables_in_both_modes() {
        let b = Buffer::new(shape);
        b.write("a", 300);
        assert_eq!(b.read(65536), "a*300", "D2");
        assert_eq!(b.read(65536), "", "D2");
        let second = b.open();
        assert_eq!(b.read_from(&second, 65536), "", "D2");

        b.write("b", 100);
        assert_eq!(b.read_from(&second, 60), "b*60", "D3");
        assert_eq!(b.read(65536), "b*40", "D3");
        assert_eq!(b.read_from(&second, 65536), "", "D3");

        b.write("c", 50);
        for what in ["c*20", "c*20", "c*10", ""] {
            assert_eq!(b.read_from(&b.open(), 20), what, "D4");
        }

        b.write("d", 90);
        let copy = second.try_clone().unwrap();
        assert_eq!(b.read_from(&second, 30), "d*30", "D21");
        assert_eq!(b.read_from(&copy, 30), "d*30", "D21");
        assert_eq!(b.read_from(&second, 100), "d*30", "D21");
        b.audit();
    }
}

/// Two files read in turns, from the first byte to the last across all sub-buffers: no byte twice, none missing.
#[test]
fn readers_in_turns_get_every_byte_once() {
    for shape in Shape::of_tables_in_both_modes() {
        let b = Buffer::new(shape);
        let other = b.open();
        let message: Vec<u8> = (0..97 * shape.n * shape.s / 100).map(|i| (i / 100) as u8).collect();
        for part in message.chunks(shape.s / 3) {
            assert!(b.write_bytes(part));
        }
        let mut got = Vec::new();
        loop {
            let parts = [b.file(), &other].map(|file| b.read_bytes(file, 100));
            parts.iter().for_each(|part| got.extend_from_slice(part));
            if parts.iter().any(Vec::is_empty) {
                break;
            }
        }
        assert_eq!(runs(&got), runs(&message), "D20");
        b.audit();
    }
}

/// Two processes read at the same time until the end: together they have exactly the written bytes.
#[test]
fn processes_share_the_bytes_between_them() {
    for shape in Shape::of_tables_in_both_modes() {
        let b = Buffer::new(shape);
        let letters: String = ('a'..='z').take(2 * shape.n).collect();
        assert_eq!(b.write(&letters, shape.s / 2), letters);
        let mut readers = [0, 1].map(|_| {
            let input = format!("if={}", b.mount().path("cpu0").display());
            Process::start(
                tool("dd", "coreutils").args(["bs=97", "status=none", &input]).stdout(Stdio::piped()),
            )
        });
        let parts = readers.each_mut().map(|reader| {
            let bytes = reader.stdout();
            assert!(reader.wait().success());
            bytes
        });
        let mut all = parts.concat();
        b.note_delivered(all.len());
        all.sort_unstable();
        assert_eq!(runs(&all), each(&letters, shape.s / 2), "D20");
        b.audit();
    }
}

/// A message is in the file of its CPU, and in no other.
#[test]
fn each_cpu_has_its_own_buffer() {
    let mount = Mount::new(&[]);
    let n_cpus = mount.channel("cpu").n_bufs();
    for cpu in 0..n_cpus {
        mount.send(cpu, &[format!("to {cpu}").as_bytes()]);
    }
    for cpu in (0..n_cpus).rev() {
        assert_eq!(text(&mount.read(&format!("cpu{cpu}"))), format!("to {cpu}"), "D5");
    }
}

/// No read returns padding, whatever its size. A short read means that there is no more.
#[test]
fn reads_return_no_padding() {
    for shape in Shape::of_tables_in_both_modes() {
        let (b, s) = (Buffer::new(shape), shape.s);
        b.write("a", s - 5);
        b.write("b", 10);
        assert_eq!(b.paddings(), [5], "D6");
        assert_eq!(b.read(s - 8), format!("a*{}", s - 8), "D6");
        let ones: Vec<String> = (0..3).map(|_| b.read(1)).collect();
        assert_eq!(ones, ["a*1"; 3], "D6");
        assert_eq!(b.produced_consumed(), (1, 1), "D6");
        let ones: Vec<String> = (0..11).map(|_| b.read(1)).collect();
        assert_eq!(ones, [["b*1"; 10].as_slice(), &[""]].concat(), "D6");

        b.write("c", s - 19);
        b.write("d", 20);
        assert_eq!(b.paddings().last(), Some(&9), "D7");
        assert_eq!(b.read(s - 29), format!("c*{}", s - 29), "D7");
        let sevens: Vec<String> = (0..6).map(|_| b.read(7)).collect();
        assert_eq!(sevens, ["c*7", "c*3 d*4", "d*7", "d*7", "d*2", ""], "D7");
        b.audit();
    }
}

/// One read returns all data, up to its count, across sub-buffers and into the unfinished one.
#[test]
fn read_crosses_sub_buffers() {
    for shape in Shape::of_tables_in_both_modes() {
        let s = shape.s;
        let write = |b: &Buffer| {
            b.write("a", s * 7 / 8);
            b.write("z", s / 2);
        };

        let b = Buffer::new(shape);
        write(&b);
        assert_eq!(b.read(MIB), format!("a*{} z*{}", s * 7 / 8, s / 2), "D8, R3");
        b.audit();

        let b = Buffer::new(shape);
        write(&b);
        assert_eq!(b.read(s), format!("a*{} z*{}", s * 7 / 8, s - s * 7 / 8), "D9, R3");
        assert_eq!(b.read(s), format!("z*{}", s / 2 - (s - s * 7 / 8)), "D9");
        assert_eq!(b.read(s), "", "D9");
        b.audit();

        let b = Buffer::new(shape);
        b.write("a", s - 5);
        b.write("b", 105);
        let mut parts = [vec![0; 50], vec![0; s], vec![0; s]];
        let mut slices = parts.each_mut().map(|part| IoSliceMut::new(part));
        let len = b.file().read_vectored(&mut slices).unwrap();
        b.note_delivered(len);
        assert_eq!(len, s + 100, "D10");
        assert_eq!(runs(&parts.concat()[..len]), format!("a*{} b*105", s - 5), "D10: filled in sequence");
        b.audit();
    }
}

/// The unfinished sub-buffer can be read. poll(2) reports finished ones only, read or not.
#[test]
fn unfinished_sub_buffer_is_read_but_not_polled() {
    for shape in Shape::of_tables_in_both_modes() {
        let (b, s) = (Buffer::new(shape), shape.s);
        b.write("a", s);
        assert_eq!(b.poll(), IDLE, "D13, W3");
        assert_eq!((b.read(MIB), b.read(MIB)), (format!("a*{s}"), String::new()), "D13");
        b.write("b", 1);
        assert_eq!((b.stat("produced"), b.poll()), (1, READABLE), "D13");
        assert_eq!(b.read(MIB), "b*1", "D13");

        let b = Buffer::new(shape);
        b.write("a", s);
        b.flush();
        assert_eq!(b.poll(), READABLE, "D14");
        assert_eq!(b.read(s), format!("a*{s}"), "D14");
        assert_eq!(b.poll(), IDLE, "D14");
        assert_eq!(b.read(s), "", "D14");

        let b = Buffer::new(shape);
        b.write("a", 200);
        assert_eq!(b.read(MIB), "a*200", "D16");
        b.write("f", s);
        assert_eq!(b.paddings(), [s - 200], "D16");
        assert_eq!(b.read(MIB), format!("f*{s}"), "D16");
        b.audit();
    }
}

/// A reader that follows gets each message once, and nothing between messages, many times round the ring.
#[test]
fn follower_gets_every_message_once() {
    for shape in Shape::of_tables_in_both_modes() {
        let b = Buffer::new(shape);
        for letter in (b'a'..).take(3 * shape.n + 2).map(|b| char::from(b).to_string()) {
            assert_eq!(b.write(&letter, shape.s / 3), letter);
            assert_eq!(b.read(MIB), each(&letter, shape.s / 3), "D22");
            assert_eq!(b.read(MIB), "", "D22");
        }
        b.audit();
    }
}

/// A sub-buffer that was read before it was finished is given back by a later read. Until then it counts as full, and
/// messages are dropped although all was read.
#[test]
fn sub_buffer_read_before_it_was_finished_is_given_back_late() {
    let shapes = || Shape::of_tables().into_iter();
    let check = |between: &str, n_accepted: &dyn Fn(usize) -> usize, act: &dyn Fn(&Buffer)| {
        for shape in shapes() {
            let (b, len) = (Buffer::new(shape), shape.s / 2 + 1);
            b.write("a", len);
            assert_eq!(b.read(MIB), each("a", len));
            act(&b);
            let letters: String = ('k'..).take(shape.n).collect();
            assert_eq!(b.write(&letters, len), letters[..n_accepted(shape.n)], "{between}: {shape}");
            b.audit();
        }
    };
    check("nothing", &|n| n - 1, &|_| {});
    check("a read at the end", &|n| n - 1, &|b| assert_eq!(b.read(MIB), ""));
    check("another message, a byte of it read", &|n| n - 1, &|b| {
        b.write("b", b.shape.s / 2 + 1);
        assert_eq!(b.read(1), "b*1");
        assert_eq!(b.produced_consumed(), (1, 1));
    });
    check("another message, poll", &|n| n - 2, &|b| {
        b.write("b", b.shape.s / 2 + 1);
        assert_eq!(b.poll(), READABLE);
        assert_eq!(b.produced_consumed(), (1, 0));
    });
    check("flush, a read at the end", &|n| n, &|b| {
        b.flush();
        assert_eq!(b.read(MIB), "");
        assert_eq!(b.produced_consumed(), (1, 1));
    });
    check("flush", &|n| n - 1, &Buffer::flush);
    check("flush, a read of nothing", &|n| n - 1, &|b| {
        b.flush();
        assert_eq!(b.read(0), "", "R1");
        assert_eq!(b.produced_consumed(), (1, 0), "R1");
    });
}

/// Reading the last byte of a finished sub-buffer gives it back at once.
#[test]
fn last_byte_of_finished_sub_buffer_gives_it_back() {
    for shape in Shape::of_tables_in_both_modes() {
        let b = Buffer::new(shape);
        b.write("a", 100);
        b.flush();
        assert_eq!(b.read(99), "a*99");
        assert_eq!((b.produced_consumed(), b.poll()), ((1, 0), READABLE), "R3");
        assert_eq!(b.read(1), "a*1");
        assert_eq!((b.produced_consumed(), b.poll()), ((1, 1), IDLE), "R3");
        b.audit();
    }
}

/// Sub-buffers of padding alone, which flushing empty ones leaves, are skipped. The kernel delivers data after them
/// many times, or only after several reads.
#[test]
fn flushed_empty_sub_buffers_are_skipped() {
    for shape in Shape::of_tables_in_both_modes() {
        for n_flushes in 1..=shape.n + 1 {
            let b = Buffer::new(shape);
            (0..n_flushes).for_each(|_| b.flush());
            // Flushing the last of them blocks a buffer in no-overwrite mode.
            let blocked = !shape.over && n_flushes >= shape.n;
            assert_eq!(b.produced_consumed().0, if blocked { shape.n } else { n_flushes }, "W7");
            assert_eq!(b.write("d", 10), if blocked { "" } else { "d" }, "Q1");
            assert_eq!(b.poll(), READABLE, "Q1");
            assert_eq!(b.read(25), if blocked { "" } else { "d*10" }, "Q1: once");
            assert_eq!(b.read(25), "", "Q1: once");
            assert_eq!(b.poll(), IDLE, "Q1");
            assert_eq!(b.write("e", 10), "e", "Q1: one read gave all of them back");
            assert_eq!(b.read(MIB), "e*10", "Q1");
            b.audit();
        }
    }
    let b = Buffer::new(Shape::new(4096, 4));
    b.write("a", 10);
    (0..3).for_each(|_| b.flush());
    b.write("b", 10);
    assert_eq!(b.read(4096), "a*10 b*10", "Q1");
    assert_eq!(b.read(4096), "", "Q1");
    b.audit();
}

/// With one sub-buffer, a writer in no-overwrite mode waits for the reader after each.
#[test]
fn ring_of_one_sub_buffer_is_read_and_used_again() {
    for shape in
        [8192, 1000, 1].map(|s| Shape::new(s, 1)).into_iter().flat_map(|shape| [shape, shape.direct()])
    {
        let (b, s) = (Buffer::new(shape), shape.s);
        assert_eq!(b.write("ab", s), "a", "W5");
        assert_eq!(b.produced_consumed(), (1, 0));
        assert_eq!(b.read(s), each("a", s));
        assert_eq!(b.produced_consumed(), (1, 1), "R3");
        assert_eq!(b.write("cd", s), "c");
        assert_eq!(b.read(MIB), each("c", s));
        // c is finished already: d finished it, and was dropped.
        assert_eq!(b.write("e", s), "e");
        assert_eq!(b.read(MIB), each("e", s));
        assert_eq!(b.write("f", s), "", "1.7: e was read unfinished");
        assert_eq!(b.read(MIB), "");
        assert_eq!(b.write("g", s), "g", "1.7: now it is given back");
        b.audit();
    }
}

/// With one sub-buffer, a writer in overwrite mode leaves only the current data.
#[test]
fn one_overwritten_sub_buffer_holds_the_newest() {
    let shape = Shape::new(8192, 1).over();
    for shape in [shape, shape.direct()] {
        let b = Buffer::new(shape);
        b.write("abc", 3584);
        assert_eq!(b.poll(), READABLE);
        assert_eq!(b.read(MIB), each("c", 3584), "4.5");
        assert_eq!((b.read(MIB), b.poll()), (String::new(), IDLE));
        b.write("de", 8192);
        assert_eq!(b.read(MIB), each("e", 8192), "4.5");
        b.write("f", 10);
        b.flush();
        assert_eq!(b.read(MIB), "", "4.5: given up at the flush");
        b.audit();
    }
}

/// Sub-buffers of one byte: each message fills one.
#[test]
fn smallest_sub_buffers_work() {
    let shapes = [1, 2, 3, 5].map(|n| Shape::new(1, n)).into_iter();
    for shape in shapes.flat_map(|shape| [shape, shape.direct()]) {
        let (b, n) = (Buffer::new(shape), shape.n);
        for letters in ["abcdefgh", "ijklmnop"] {
            assert_eq!(b.write(letters, 1), letters[..n]);
            assert_eq!(b.read(MIB), each(&letters[..n], 1));
        }
        b.audit();

        let b = Buffer::new(shape.over());
        b.write("abcdefgh", 1);
        assert_eq!(b.read(MIB), each(&"abcdefgh"[8 - n..], 1));
        b.audit();
    }
}

/// A reader's bad pointer loses nothing: data that was not delivered is still there.
#[test]
fn bad_pointer_consumes_nothing() {
    for shape in [Shape::new(8192, 2), Shape::new(4096, 4), Shape::new(8192, 2).over()] {
        let b = Buffer::new(shape);
        b.write("a", 3000);
        b.write("b", 3000);
        let script = "
import ctypes, mmap, os, sys
libc = ctypes.CDLL(None, use_errno=True)
libc.mmap.restype = ctypes.c_void_p
libc.read.argtypes = [ctypes.c_int, ctypes.c_void_p, ctypes.c_size_t]
libc.mprotect.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int]
pages = mmap.mmap(-1, 2 * mmap.PAGESIZE)
middle = ctypes.addressof(ctypes.c_char.from_buffer(pages)) + mmap.PAGESIZE
assert libc.mprotect(middle, mmap.PAGESIZE, 0) == 0
fd = os.open(sys.argv[1], os.O_RDONLY)
for address in [None, middle, 0xffff_8000_0000_0000]:
    result = libc.read(fd, address, 100)
    print(result, os.strerror(ctypes.get_errno()))
print(libc.read(fd, middle - 50, 100), pages[mmap.PAGESIZE - 50:mmap.PAGESIZE].decode())
";
        let path = b.mount().path("cpu0");
        let output = run(tool("python3", "python3").args(["-c", script]).arg(path));
        let expected = format!("{}50 {}\n", "-1 Bad address\n".repeat(3), "a".repeat(50));
        assert_eq!(text(&output.stdout), expected, "D18: {}", text(&output.stderr));
        b.note_delivered(50);
        assert_eq!(b.read(MIB), "a*2950 b*3000", "D18, D19");
        b.audit();
    }
}

/// Whatever size the reads have, the bytes are the same, and only the last read is short.
#[test]
fn any_size_of_reads_gives_the_same_bytes() {
    for shape in Shape::of_tables_in_both_modes() {
        let message: Vec<u8> = (0..shape.s * 2 / 3).map(|i| (i % 251) as u8).collect();
        for count in [7, 97, shape.s - 1, shape.s, shape.s + 1, MIB, 4 * MIB] {
            let b = Buffer::new(shape);
            (0..shape.n).for_each(|_| assert!(b.write_bytes(&message)));
            let mut got = Vec::new();
            loop {
                let part = b.read_bytes(b.file(), count);
                let asked = count.min(message.len() * shape.n - got.len());
                assert_eq!(part.len(), asked, "R3: short only at the end");
                if part.is_empty() {
                    break;
                }
                got.extend(part);
            }
            assert_eq!(got, message.repeat(shape.n), "reads of {count}");
            b.audit();
        }
    }
}

/// All open files see the same state.
#[test]
fn poll_and_read_agree_for_every_open_file() {
    let b = Buffer::new(Shape::new(8192, 2));
    let files: Vec<_> = (0..50).map(|_| b.open()).collect();
    b.write("a", 100);
    b.flush();
    assert!(files.iter().all(|file| poll_now(file) == READABLE));
    assert_eq!(b.read_from(&files[17], MIB), "a*100");
    assert!(files.iter().all(|file| poll_now(file) == IDLE && read_once(file, 10).is_empty()));
    b.audit();
}
