//! Frames, in both directions: what the daemon and what its peers read.

use std::fmt::Debug;
use std::sync::Arc;

use relay::layout::geometry::MESSAGE_MAX;
use relay::wire::frame::{
    ANSWER_MAX, Attach, AttachReply, Body, Close, Consume, Define, DefineReply, FRAME_MAX, Flush, Frame,
    FrameType, HEADER_LEN, Hello, HelloReply, Levels, LevelsReply, MESSAGE_PREFIX_LEN, Messages, Open,
    OpenReply, Refusal, Share, ShareReply, WRITE_MORE, Watch, Write, WriteReply,
};
use relay::wire::socket::refusal;

use crate::input::Input;
use crate::reassembly::{Budget, Reassembly};

/// The packets of a connection, each with a byte that says whether its length field is put right, and with its length before
/// it. Every frame that can be read can be written, and is then the same; long messages are put together as the daemon does.
pub fn frames(data: &[u8]) {
    let mut input = Input(data);
    let budget = Budget::new();
    let mut assembly = None;
    while !input.is_empty() {
        let put_right = input.u8() & 1 != 0;
        let len = input.u16().into();
        let mut packet = input.bytes(len).to_vec();
        if put_right && packet.len() >= HEADER_LEN {
            let len = packet.len() as u32;
            packet[..4].copy_from_slice(&len.to_le_bytes());
        }
        match Frame::decode(&packet) {
            Ok(frame) => {
                assert!(packet.len() <= FRAME_MAX && frame.body.len() == packet.len() - HEADER_LEN);
                bodies(&frame);
                if frame.kind == FrameType::Write && !frame.reply {
                    assembly = go_on(assembly, &budget, &frame);
                } else {
                    assembly = None;
                }
            }
            Err((_, error)) => assert!(!error.to_string().is_empty()),
        }
    }
}

/// Reads the body as every type there is, whatever the frame says.
fn bodies(frame: &Frame<'_>) {
    same::<Open<'_>>(frame);
    same::<OpenReply>(frame);
    same::<Write<'_>>(frame);
    same::<WriteReply>(frame);
    same::<Flush>(frame);
    same::<Close>(frame);
    same::<Share>(frame);
    same::<ShareReply>(frame);
    same::<Watch>(frame);
    same::<Consume>(frame);
    same::<Attach<'_>>(frame);
    same::<AttachReply>(frame);
    same::<DefineReply>(frame);
    same::<Levels>(frame);
    same::<LevelsReply>(frame);
    // These have bytes that mean nothing, or bytes that are replaced.
    again::<Define<'_>>(frame);
    again::<Hello>(frame);
    again::<HelloReply>(frame);
    if let Ok(read) = Refusal::decode(frame.body) {
        let packet = read.frame(frame.flags, frame.id);
        assert!(packet.len() <= ANSWER_MAX);
        let text = Refusal::decode(&packet[HEADER_LEN..]).expect("what was written").text;
        assert!(read.text.starts_with(&text));
        let shown = refusal(frame.body).expect("as above").text;
        assert!(!shown.contains(char::is_control), "{shown:?}");
    }
}

fn again<'a, B: Body<'a> + PartialEq + Debug>(frame: &Frame<'a>) -> Option<Vec<u8>> {
    let read = B::decode(frame.body).ok()?;
    let packet = read.frame(frame.flags, frame.id);
    let written = Frame::decode(&packet).expect("what was written");
    assert_eq!(
        (written.kind, written.reply, written.flags, written.id),
        (B::KIND, B::REPLY, frame.flags, frame.id)
    );
    assert_eq!(written.body.len(), frame.body.len());
    Some(packet)
}

fn same<'a, B: Body<'a> + PartialEq + Debug>(frame: &Frame<'a>) {
    if let Some(packet) = again::<B>(frame) {
        assert_eq!(&packet[HEADER_LEN..], frame.body);
    }
}

/// What the daemon does with messages: walks them, or puts a long one together.
fn go_on(assembly: Option<Reassembly>, budget: &Arc<Budget>, frame: &Frame<'_>) -> Option<Reassembly> {
    let messages = Write::decode(frame.body).ok()?.messages;
    let mut walked = 0;
    let mut is_whole = true;
    for message in Messages(messages) {
        match message {
            Ok(message) => walked += MESSAGE_PREFIX_LEN + message.len(),
            Err(_) => is_whole = false,
        }
    }
    assert!(if is_whole { walked == messages.len() } else { walked < messages.len() });
    let more = frame.flags & WRITE_MORE != 0;
    let assembly = match assembly {
        Some(mut assembly) => assembly.add(messages).ok().map(|()| assembly),
        None if more => Reassembly::begin(budget, 0, messages).ok(),
        None => None,
    }?;
    if more {
        return Some(assembly);
    }
    if let Ok(message) = assembly.finish() {
        assert!((1..=MESSAGE_MAX).contains(&message.len()));
    }
    None
}
