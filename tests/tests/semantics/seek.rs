//! Positions in a buffer's file. The kernel's relay files have none. These have, because head, tail and wc need them.
//! A position is a place in the stream since creation. A read is served from there or from the cursor, whichever is
//! later. So seeking forward skips, and thereby consumes. Seeking back returns only data that the same open file has
//! just got.

use std::fs::File;
use std::io::{IoSliceMut, Read, Seek, SeekFrom};
use std::os::fd::AsFd;
use std::os::unix::fs::{FileExt, MetadataExt};

use nix::errno::Errno;
use nix::sys::uio::preadv;
use nix::unistd::{Whence, lseek};
use relayfs_tests::buffer::{Buffer, MIB, Shape, each, runs};
use relayfs_tests::c::Program;
use relayfs_tests::lines::{Twins, assert_same, shell};
use relayfs_tests::stdout_of;

/// Reads once at a position, without moving the file's position.
#[track_caller]
fn read_at(b: &Buffer, file: &File, count: usize, at: usize) -> String {
    let mut bytes = vec![0; count];
    let len = file.read_at(&mut bytes, at as u64).expect("pread");
    b.note_delivered(len);
    runs(&bytes[..len])
}

/// The position counts the bytes that this open file got. The end is the file's size.
#[test]
fn position_counts_read_bytes() {
    for shape in Shape::of_tables_in_both_modes() {
        let (b, s) = (Buffer::new(shape), shape.s);
        let mut file = b.file();
        assert_eq!(file.stream_position().unwrap(), 0, "F19");
        b.write("a", s - 5);
        b.write("b", 105);
        assert_eq!(file.seek(SeekFrom::End(0)).unwrap(), (s + 100) as u64, "F19: as the stat says");
        assert_eq!(file.seek(SeekFrom::Start(0)).unwrap(), 0, "F19: seeking alone consumes nothing");
        b.read(s - 5 + 10);
        assert_eq!(file.stream_position().unwrap(), (s + 5) as u64, "R6, padding does not count");
        assert_eq!(file.seek(SeekFrom::Current(-5)).unwrap(), s as u64, "F19");
        file.seek(SeekFrom::Current(5)).unwrap();
        assert_eq!(b.read(MIB), "b*95", "F19");
        assert_eq!(b.read(MIB), "", "R6");
        assert_eq!(file.stream_position().unwrap(), (s + 100) as u64, "R6: a read of nothing leaves it");
        assert!(file.seek(SeekFrom::Current(-2 * MIB as i64)).is_err(), "F19");
        b.audit();
    }
}

/// A read before the cursor returns the data at the cursor, whichever file has moved it.
#[test]
fn position_before_cursor_reads_at_cursor() {
    for shape in Shape::of_tables_in_both_modes() {
        let b = Buffer::new(shape);
        let other = b.open();
        b.write("abcdef", 100);
        assert_eq!(b.read(150), "a*100 b*50");
        assert_eq!(read_at(&b, &other, 50, 0), "b*50", "F20");
        assert_eq!(read_at(&b, &other, 50, 149), "c*50", "F20: at the cursor, not at 149");
        assert_eq!(read_at(&b, &other, 0, 0), "", "F20: of nothing");
        let mut parts = [[0; 30], [0; 30]];
        let mut slices = parts.each_mut().map(|part| IoSliceMut::new(part));
        let len = preadv(other.as_fd(), &mut slices, 250).unwrap();
        b.note_delivered(len);
        assert_eq!(runs(&parts.concat()[..len]), "c*50 d*10", "F20");
        assert_eq!((&other).stream_position().unwrap(), 0, "F20: pread does not move it");
        assert_eq!(b.read(90), "d*90");
        assert_eq!(b.read(MIB), "e*100 f*100");
        b.audit();
    }
}

/// Seeking forward skips, across sub-buffers too. The skipped data is consumed for all readers, and counted.
#[test]
fn seeking_forward_consumes() {
    for shape in Shape::of_tables_in_both_modes() {
        let Shape { s, n, .. } = shape;
        let b = Buffer::new(shape);
        b.write("ab", 100);
        assert_eq!(read_at(&b, &b.open(), 20, 150), "b*20");
        assert_eq!(b.read(MIB), "b*30", "gone for all readers");
        assert_eq!(b.stat("discarded_bytes"), 150);
        b.audit();

        let (b, len) = (Buffer::new(shape), s * 2 / 3);
        let letters: String = ('a'..).take(n).collect();
        b.write(&letters, len);
        let mut file = b.file();
        file.seek(SeekFrom::End(-10)).unwrap();
        assert_eq!(b.read(MIB), format!("{}*10", &letters[n - 1..]), "the end, as tail sees it");
        assert_eq!(b.stat("discarded_bytes"), n * len - 10);
        assert_eq!((b.stat("discarded_subbufs"), b.stat("read_subbufs")), (n - 1, 0), "each by its cause");
        assert_eq!(b.produced_consumed(), (n - 1, n - 1));
        assert_eq!(b.write("Z", len), "Z", "what was skipped has made room");
        assert_eq!(b.read(MIB), each("Z", len));
        b.audit();
    }
}

/// A read beyond the end consumes nothing and forgets nothing. At the end, all data before it is skipped. Later data
/// comes from the cursor on.
#[test]
fn reading_beyond_the_end_consumes_nothing() {
    for shape in Shape::of_tables_in_both_modes() {
        let b = Buffer::new(shape);
        b.write("ab", 100);
        let file = b.open();
        for at in [201, 1 << 20, i64::MAX as usize - 100] {
            assert_eq!(read_at(&b, &b.open(), 100, at), "");
            assert_eq!(read_at(&b, &file, 100, at), "");
        }
        assert_eq!((b.stat("discarded_bytes"), b.stat("bytes")), (0, 200));
        assert_eq!(read_at(&b, &file, 100, 0), "a*100");
        assert_eq!(read_at(&b, &file, 100, 201), "");
        let mut again = [0; 100];
        assert_eq!(file.read_at(&mut again, 0).unwrap(), 100, "what the file keeps is not forgotten");
        assert_eq!(runs(&again), "a*100");
        assert_eq!(read_at(&b, &b.open(), 100, 200), "", "the end itself");
        assert_eq!((b.stat("discarded_bytes"), b.stat("bytes")), (100, 200));
        b.write("c", 100);
        assert_eq!(read_at(&b, &file, 100, 301), "");
        assert_eq!(b.read(MIB), "c*100");
        b.audit();
    }
}

/// Programs that read ahead and seek back to where they stopped get the same bytes again, but only from the open file
/// that got them.
#[test]
fn seeking_back_gives_the_same_bytes_again() {
    for shape in Shape::of_tables_in_both_modes() {
        let b = Buffer::new(shape);
        let mut file = b.file();
        b.write("abc", 100);
        assert_eq!(b.read(150), "a*100 b*50");
        file.seek(SeekFrom::Start(90)).unwrap();
        let again = |count: usize| {
            let mut bytes = vec![0; count];
            let len = std::io::Read::read(&mut b.file(), &mut bytes).unwrap();
            runs(&bytes[..len])
        };
        let rest = ("a*10 b*10".into(), "b*40".into());
        assert_eq!((again(20), again(1000)), rest, "up to where it has been");
        assert_eq!(b.read(20), "b*20", "and then on");
        file.seek(SeekFrom::Start(0)).unwrap();
        assert_eq!((again(1000), b.read(40)), ("a*100 b*70".into(), "b*30 c*10".into()));

        let other = b.open();
        assert_eq!(read_at(&b, &other, 20, 0), "c*20", "another file gave nothing yet");
        assert_eq!(b.read(MIB), "c*70");
        b.audit();
    }
}

/// Programs that ask stdio for the length, and then rewind, read the unread data, even if other readers have read
/// before.
#[test]
fn rewound_file_reads_what_seek_to_end_skipped() {
    let slurp = Program::compile("slurp");
    for shape in Shape::of_tables_in_both_modes() {
        let b = Buffer::new(shape);
        for unread in [100, shape.s / 2, shape.s / 2 + 500] {
            for _ in 0..8 {
                b.write("x", 1000);
                assert_eq!(b.read(MIB), "x*1000");
            }
            b.write("yy", unread / 2);
            let discarded = b.stat("discarded_bytes");
            let slurped = stdout_of(slurp.command().arg(b.mount().path("cpu0")));
            b.note_delivered(slurped.len() - (b.stat("discarded_bytes") - discarded));
            assert_eq!(runs(&slurped), format!("y*{unread}"));
            b.write("z", 100);
            assert_eq!(b.read(MIB), "z*100", "nothing comes twice");
        }
        b.audit();
    }
}

/// In overwrite mode, a position that was overwritten means the oldest byte that is left. Other positions stay.
#[test]
fn positions_stay_right_when_overwritten() {
    for shape in Shape::of_tables().map(Shape::over) {
        let Shape { s, n, .. } = shape;
        let letters: String = ('a'..).take(3 * n).collect();
        let fill = || {
            let b = Buffer::new(shape);
            b.write(&letters, s);
            b
        };
        let b = fill();
        assert_eq!(read_at(&b, &b.open(), 100, s), format!("{}*100", &letters[2 * n..=2 * n]), "overwritten");
        b.audit();

        let b = fill();
        let last = &letters[3 * n - 1..];
        assert_eq!(read_at(&b, &b.open(), 100, 3 * n * s - 50), format!("{last}*50"), "there");
        assert_eq!((b.stat("overwritten_bytes"), b.stat("discarded_bytes")), (2 * n * s, n * s - 50));
        b.audit();

        // Half-read, lapped, and skipped over.
        let b = Buffer::new(shape);
        b.write("F", s);
        assert_eq!(b.read(100), "F*100");
        b.write(&letters, s);
        let at = (3 * n + 1) * s - 10;
        assert_eq!(read_at(&b, &b.open(), MIB, at), format!("{last}*10"));
        assert_eq!(b.stat("overwritten_bytes"), 2 * n * s);
        b.audit();
    }
}

/// No part of the file is a hole, even if it was consumed: reading there returns the next data. For a program that
/// looks for holes, it would be a file of zeroes. grep would find it binary, and cp would write zeroes.
#[test]
fn consumed_data_is_no_hole() {
    let twins = Twins::medium();
    File::open(twins.mount.path("cpu0")).unwrap().read_exact(&mut vec![0; 500_000]).unwrap();
    let file = File::open(twins.mount.path("cpu0")).unwrap();
    let size = twins.content.len() as i64;
    assert_eq!(lseek(&file, 0, Whence::SeekData), Ok(0));
    assert_eq!(lseek(&file, 0, Whence::SeekHole), Ok(size));
    assert_eq!(lseek(&file, size, Whence::SeekData), Err(Errno::ENXIO));
    let blocks = file.metadata().unwrap().blocks();
    assert_eq!(blocks, twins.content.len().div_ceil(512) as u64);
    for script in
        ["grep '' $F", "grep '' < $F", "cp $F $OUT; cat $OUT", "cp --sparse=always $F $OUT; cat $OUT"]
    {
        let twins = Twins::medium();
        File::open(twins.mount.path("cpu0")).unwrap().read_exact(&mut vec![0; 500_000]).unwrap();
        let dir = tempfile::tempdir().unwrap();
        let mut command = shell(script);
        command.env("F", twins.mount.path("cpu0")).env("OUT", dir.path().join("out"));
        assert_same(script, &stdout_of(&mut command), &twins.content[500_000..]);
    }
}
