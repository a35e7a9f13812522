//! Tests of frames of every type.

use std::fmt::Debug;

use super::*;

fn round_trip<'a, B: Body<'a> + PartialEq + Debug>(body: &B, frame: &'a [u8]) {
    let decoded = Frame::decode(frame).unwrap();
    assert_eq!((decoded.kind, decoded.reply), (B::KIND, B::REPLY));
    assert_eq!((decoded.flags, decoded.id), (5, 77));
    assert_eq!(&B::decode(decoded.body).unwrap(), body);
    for end in 0..decoded.body.len().min(24) {
        // A cut body may decode, but not to this body, and nothing panics.
        assert_ne!(B::decode(&decoded.body[..end]).ok().as_ref(), Some(body));
    }
}

#[test]
fn every_encoded_body_is_decoded() {
    macro_rules! check {
        ($($body:expr),* $(,)?) => { $( let body = $body; round_trip(&body, &body.frame(5, 77)); )* };
    }
    check!(
        Hello { min_version: 1, max_version: 3, features: 1 << 40 },
        HelloReply { version: 1, frame_max: 65536, message_max: 1 << 20, n_cpus: 8, features: 0 },
        Open { subbuf_size: 8192, n_subbufs: 2, header: HEADER_DEFAULT, mode: 2, scope: 1, name: b"app/log" },
        OpenReply {
            channel: 4,
            subbuf_size: 1,
            n_subbufs: 2,
            header: 3,
            mode: 1,
            scope: 2,
            created: 1,
            n_bufs: 9
        },
        Write { channel: 1, cpu: 2, wait_ms: 3, lost: 4, messages: b"\x01\0\0\0x" },
        WriteReply { written: 1, dropped: 2, too_big: 3 },
        Flush { channel: 1, cpu: ALL_CPUS },
        Close { channel: 9 },
        Share { channel: 9 },
        ShareReply { layout_version: 1, first: 30, count: 2 },
        Watch { channel: 9, cpu: 1 },
        Consume { channel: 9, cpu: 1, from: u64::MAX, count: 3 },
        Attach { channel: 9, executable: b"" },
        Attach { channel: 9, executable: b"/usr/bin/app" },
        AttachReply { process: 5, clock: 2, pid: 4711, reserved: 0 },
        Define {
            channel: 9,
            level: 3,
            line: 42,
            name: b"connected",
            target: b"app::db",
            file: b"src/db.rs",
            fields: vec![DefineField { kind: 1, name: b"rows" }],
        },
        DefineReply { id: 256 },
        Levels { channel: 9 },
        LevelsReply { layout_version: 1 },
        Refusal { errno: 2, text: "no channel 'ä'".into() },
    );
}

/// The bytes on the wire, as `relay/docs/PROTOCOL.md` draws them.
#[test]
fn frame_has_the_documented_bytes() {
    let frame =
        Write { channel: 1, cpu: 2, wait_ms: 0, lost: 3, messages: b"\x02\0\0\0hi" }.frame(WRITE_REPLY, 7);
    let expected: &[u8] =
        b"\x22\0\0\0\x03\0\x01\0\x07\0\0\0\x01\0\0\0\x02\0\0\0\0\0\0\0\x03\0\0\0\x02\0\0\0hi";
    assert_eq!(frame, expected);
}

#[test]
fn broken_packet_is_refused_with_its_cause() {
    assert_eq!(Frame::decode(b"abc"), Err((0, FrameError::Short(3))));
    let mut frame = Close { channel: 1 }.frame(0, 9);
    frame.push(0);
    assert_eq!(Frame::decode(&frame), Err((9, FrameError::Length { said: 16, got: 17 })));
    frame.pop();
    frame[4] = 0x44;
    assert_eq!(Frame::decode(&frame), Err((9, FrameError::UnknownType(0x44))));
    assert_eq!(Close::decode(b"12345"), Err(FrameError::Malformed("close")));
}
