//! The callback before a sub-buffer begins: its arguments, refusal and header.

use nix::sched::{CpuSet, sched_getcpu, sched_setaffinity};
use nix::unistd::Pid;
use relay::GeometrySpec;
use relay::ring::buffer::Buffer;
use relay::ring::reader::Reader;
use relay::ring::rseq::Sequences;
use relay::ring::subbuf_start::{START_MAX, SubbufHeader, SubbufInfo};
use relay::ring::writer::{AnyExecutor, Executor, Outcome, SoleWriter, WriteResult, Writer};

type Check = fn(&dyn Fn(&Buffer, &[u8], Answer<'_>) -> WriteResult);

/// Runs the check with a sole writer, and with restartable sequences.
fn both(check: Check) {
    check(&|buffer, message, answer| write(buffer, SoleWriter, message, answer));
    by_sequences(check);
}

/// Runs the check with restartable sequences, unless the C library registers no threads.
fn by_sequences(check: Check) {
    if AnyExecutor::can_share() {
        let cpu = sched_getcpu().unwrap();
        let mut set = CpuSet::new();
        set.set(cpu).unwrap();
        sched_setaffinity(Pid::from_raw(0), &set).unwrap();
        let here = Sequences::find().unwrap().on(cpu);
        check(&|buffer, message, answer| write(buffer, here, message, answer));
    }
}

type Answer<'a> = &'a mut dyn FnMut(SubbufInfo) -> Option<SubbufHeader>;

fn write(buffer: &Buffer, run: impl Executor, message: &[u8], answer: Answer<'_>) -> WriteResult {
    let writer = Writer::new(buffer, run);
    let once = || -> Option<Outcome> {
        match writer.append(message) {
            relay::ring::writer::Appended::Elsewhere => {
                writer.write_elsewhere_if(message, Some(&mut *answer)).done()
            }
            relay::ring::writer::Appended::Done => {
                Some(Outcome { placed: WriteResult::Written, switched: false })
            }
            relay::ring::writer::Appended::Interrupted => None,
            relay::ring::writer::Appended::Dropped => unreachable!("it was not asked for"),
        }
    };
    std::iter::repeat_with(once).take(1000).flatten().next().expect("never interrupted so often").placed
}

fn buffer(spec: &str) -> Buffer {
    Buffer::anonymous(spec.parse::<GeometrySpec>().unwrap().build().unwrap(), 3).unwrap()
}

fn read(reader: &mut Reader) -> String {
    let mut text = String::new();
    reader.read(1000, &mut Vec::new(), |bytes| text = String::from_utf8(bytes.to_vec()).unwrap());
    text
}

fn start(bytes: &[u8]) -> Option<SubbufHeader> {
    let mut start = SubbufHeader { bytes: [0; START_MAX] };
    start.bytes[..bytes.len()].copy_from_slice(bytes);
    Some(start)
}

#[test]
fn message_that_fits_calls_no_callback() {
    both(|write| {
        let buffer = buffer("subbuf-size=8:n-subbufs=2:overwrite");
        for text in ["abc", "defgh", ""] {
            assert_eq!(write(&buffer, text.as_bytes(), &mut |_| panic!("asked")), WriteResult::Written);
        }
        assert_eq!(write(&buffer, b"too much.", &mut |_| panic!("asked")), WriteResult::TooBig);
    });
}

#[test]
fn callback_gets_the_switch_and_fills_the_header() {
    both(|write| {
        let buffer = buffer("subbuf-size=8:n-subbufs=3:overwrite:header=2");
        let mut reader = Reader::new(buffer.clone());
        let mut told = Vec::new();
        let mut send = |text: &str| {
            let mut answer = |switching: SubbufInfo| {
                told.push((switching.padding, switching.full, switching.header));
                start(b"<>beyond the header")
            };
            write(&buffer, text.as_bytes(), &mut answer)
        };
        assert_eq!(send("abcde"), WriteResult::Written);
        assert_eq!(send("fg"), WriteResult::Written);
        assert_eq!(send("hijklm"), WriteResult::Written);
        assert_eq!(send("nopqrst"), WriteResult::TooBig);
        assert_eq!(told, [(1, false, 2), (4, false, 2), (0, true, 2)]);
        // The oldest is given up; the newest has only its header.
        assert_eq!(read(&mut reader), "<>fg<>hijklm<>");
    });
}

#[test]
fn writer_without_callback_overwrites_after_a_refusal() {
    both(|write| {
        let buffer = buffer("subbuf-size=8:n-subbufs=2:overwrite");
        let mut reader = Reader::new(buffer.clone());
        for text in ["abcdefgh", "ijklmnop"] {
            assert_eq!(write(&buffer, text.as_bytes(), &mut |_| start(b"")), WriteResult::Written);
        }
        assert_eq!(write(&buffer, b"refused", &mut |_| None), WriteResult::Full);
        let writer = Writer::new(&buffer, SoleWriter);
        assert!(!writer.drop_if_blocked(4), "the oldest can be given up");
        assert_eq!(writer.write(b"next").unwrap().placed, WriteResult::Written);
        assert_eq!(read(&mut reader), "ijklmnopnext");
    });
}

#[test]
fn refused_sub_buffer_counts_as_full() {
    both(|write| {
        let buffer = buffer("subbuf-size=8:n-subbufs=3:overwrite");
        let mut reader = Reader::new(buffer.clone());
        let mut asked = 0;
        let mut refuse = |text: &str| {
            write(&buffer, text.as_bytes(), &mut |_| {
                asked += 1;
                None
            })
        };
        assert_eq!(refuse("abcde"), WriteResult::Written);
        assert_eq!(refuse("fghi"), WriteResult::Full);
        assert_eq!(refuse("j"), WriteResult::Full);
        assert_eq!(asked, 2);
        assert_eq!((reader.produced(), read(&mut reader)), (1, "abcde".to_owned()));
        // A writer without a callback continues.
        assert_eq!(Writer::new(&buffer, SoleWriter).write(b"k").unwrap().placed, WriteResult::Written);
        assert_eq!(read(&mut reader), "k");
    });
}

#[test]
fn full_no_overwrite_buffer_refuses_before_the_callback() {
    both(|write| {
        let buffer = buffer("subbuf-size=8:n-subbufs=2");
        let mut asked = 0;
        for (text, placed) in
            [("abcde", WriteResult::Written), ("fghij", WriteResult::Written), ("klmno", WriteResult::Full)]
        {
            let mut answer = |_| {
                asked += 1;
                start(b"")
            };
            assert_eq!(write(&buffer, text.as_bytes(), &mut answer), placed, "{text}");
        }
        assert_eq!(asked, 1);
        assert_eq!(read(&mut Reader::new(buffer)), "abcdefghij");
    });
}

#[test]
fn interrupted_switch_calls_the_callback_again() {
    by_sequences(|write| {
        let buffer = buffer("subbuf-size=8:n-subbufs=3:overwrite:header=1");
        let mut padding = Vec::new();
        let mut answer = |switching: SubbufInfo| {
            padding.push(switching.padding);
            // Another thread on this CPU, as long as there is room.
            if padding.len() < 3 {
                let here = AnyExecutor::on(Some(sched_getcpu().unwrap()));
                assert_eq!(Writer::new(&buffer, here).write(b"x").unwrap().placed, WriteResult::Written);
            }
            start(&[b'0' + padding.len() as u8])
        };
        let first = Writer::new(&buffer, SoleWriter).write(b"abcd").unwrap();
        assert_eq!(first.placed, WriteResult::Written);
        assert_eq!(write(&buffer, b"efgh", &mut answer), WriteResult::Written);
        assert_eq!(read(&mut Reader::new(buffer.clone())), "\0abcdxx3efgh");
        assert_eq!(padding, [3, 2, 1]);
    });
}
