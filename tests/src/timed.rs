//! Timed channels in tests: records by frames, and what packets have in them.

use std::fs;

use relay::trace::packet::Packets;
use relay::trace::record::{Head, Records};
use relay::wire::frame::{
    Attach, AttachReply, Body, Define, DefineField, DefineReply, OPEN_CREATE, Open, OpenReply, Refusal,
    WRITE_MORE, WRITE_REPLY, WRITE_ROOM, Write, WriteReply,
};
use relay::{ChannelName, GeometrySpec};

use crate::Mount;
use crate::peer::{Peer, messages};

/// A record in a packet: its stamp, id, thread and payload.
pub type Found = (u64, u16, u32, Vec<u8>);

/// A record as a message: its head, then its payload.
pub fn record(id: u16, tid: u32, payload: &[u8]) -> Vec<u8> {
    let head = Head { id, tid, len: payload.len().try_into().expect("a payload that a head can say") };
    [&head.to_word().to_le_bytes(), payload].concat()
}

/// Opens a channel with these options, as in `timed:subbuf-size=4K`, and creates it if it is not there.
#[track_caller]
pub fn open(peer: &Peer, name: &str, options: &str) -> OpenReply {
    let (name, spec): (ChannelName, GeometrySpec) = (name.parse().unwrap(), options.parse().unwrap());
    peer.ask(&Open::new(&name, &spec).frame(OPEN_CREATE, 21)).unwrap()
}

/// Attaches the peer to a timed channel, and returns its number there.
#[track_caller]
pub fn attach(peer: &Peer, channel: u32) -> AttachReply {
    peer.ask(&Attach { channel, executable: b"" }.frame(0, 22)).unwrap()
}

/// Defines an event with fields of these types and names.
pub fn define(peer: &Peer, channel: u32, name: &str, fields: &[(u8, &str)]) -> Result<u32, Refusal> {
    let fields =
        fields.iter().map(|(kind, name)| DefineField { kind: *kind, name: name.as_bytes() }).collect();
    let (target, file) = (&b"app::db"[..], &b"src/db.rs"[..]);
    let define = Define { channel, level: 3, line: 42, name: name.as_bytes(), target, file, fields };
    peer.ask::<DefineReply>(&define.frame(0, 23)).map(|reply| reply.id)
}

/// Writes records to a buffer, in one frame.
pub fn write(peer: &Peer, channel: u32, cpu: u32, records: &[Vec<u8>]) -> Result<WriteReply, Refusal> {
    let records: Vec<&[u8]> = records.iter().map(Vec::as_slice).collect();
    let messages = messages(&records);
    peer.ask(&Write { channel, cpu, wait_ms: 0, lost: 0, messages: &messages }.frame(WRITE_REPLY, 24))
}

/// Writes a record that is longer than a frame.
pub fn write_long(peer: &Peer, channel: u32, record: &[u8]) -> Result<WriteReply, Refusal> {
    let message = messages(&[record]);
    let mut pieces = message.chunks(WRITE_ROOM).peekable();
    while let Some(messages) = pieces.next() {
        let frame = Write { channel, cpu: 0, wait_ms: 0, lost: 0, messages };
        if pieces.peek().is_none() {
            return peer.ask(&frame.frame(WRITE_REPLY, 25));
        }
        peer.send(&frame.frame(WRITE_REPLY | WRITE_MORE, 25));
    }
    unreachable!("a record has bytes")
}

/// Returns the records in a packet stream, each of which must be whole and in the order of stamps.
#[track_caller]
pub fn records(packets: &[u8]) -> Vec<Found> {
    let (mut found, mut end) = (Vec::new(), 0);
    for packet in Packets::new(packets) {
        let packet = packet.unwrap();
        assert!(
            packet.header.begin >= end && packet.header.end >= packet.header.begin,
            "{:?}",
            packet.header
        );
        for record in Records::new(packet.records) {
            let record = record.unwrap();
            assert!((packet.header.begin..=packet.header.end).contains(&record.stamp), "{record:?}");
            found.push((record.stamp, record.id, record.tid, record.payload.to_vec()));
        }
        end = packet.header.end;
    }
    assert!(found.is_sorted_by_key(|(stamp, ..)| *stamp));
    found
}

/// Returns the records in a buffer's snapshot.
#[track_caller]
pub fn snapshot(mount: &Mount, channel: &str, cpu: usize) -> Vec<Found> {
    records(&fs::read(mount.control(channel, &format!("snapshot/cpu{cpu}"))).unwrap())
}

/// Returns ids and payloads of records, as text.
pub fn texts(records: &[Found]) -> Vec<String> {
    records.iter().map(|(_, id, _, payload)| format!("{id} {}", payload.escape_ascii())).collect()
}

/// Returns the anchors in the text of `clock`: epoch, ticks, monotonic, realtime, boottime.
#[track_caller]
pub fn anchors(text: &str) -> Vec<[u64; 5]> {
    let lines = text.lines().filter_map(|line| line.strip_prefix("anchor "));
    let numbers = |line: &str| -> Vec<u64> { line.split(' ').map(|word| word.parse().unwrap()).collect() };
    lines.map(|line| numbers(line).try_into().unwrap()).collect()
}
