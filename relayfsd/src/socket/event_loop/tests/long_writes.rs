//! Messages longer than a frame, which come in several frames.

use super::*;

/// Returns the frames of one message, with `room` bytes in each.
pub(super) fn long_frames(channel: u32, message: &[u8], room: usize, flags: u16, id: u32) -> Vec<Vec<u8>> {
    let bytes = messages(&[message]);
    let pieces: Vec<_> = bytes.chunks(room).collect();
    let last = pieces.len() - 1;
    let flags_of = |index| flags | if index < last { WRITE_MORE } else { 0 };
    pieces.iter().enumerate().map(|(i, piece)| write(channel, piece).frame(flags_of(i), id)).collect()
}

#[test]
fn long_messages_are_written_whole_or_not_at_all() {
    let daemon = Daemon::new();
    let (producer, channel) = daemon.producer_with("log", "subbuf-size=1M:n-subbufs=4:global");
    let whole = vec![b'x'; 1 << 20];
    for frame in long_frames(channel, &whole, frame::WRITE_ROOM, WRITE_REPLY, 3) {
        producer.send(&frame);
    }
    assert_eq!(producer.reply(3), counts(1, 0, 0));

    // A message is given up for another message, and for another request.
    producer.send(&long_frames(channel, &whole, 1000, 0, 4)[0]);
    for frame in long_frames(channel, &whole[..5000], 1000, WRITE_REPLY, 5) {
        producer.send(&frame);
    }
    assert_eq!(producer.reply(5), counts(1, 0, 0));
    producer.send(&long_frames(channel, &whole, 1000, 0, 6)[0]);
    producer.send(&Flush { channel, cpu: 0 }.frame(0, 7));
    producer.done(FrameType::Flush, 7);

    // The message is refused once, and its other frames are discarded.
    for frame in long_frames(channel, &vec![0; MESSAGE_MAX + 1], frame::WRITE_ROOM, WRITE_REPLY, 8) {
        producer.send(&frame);
    }
    producer.refused(8, Errno::EMSGSIZE, "1048577");
    producer.alive();
    daemon.await_counts("log", 2, 0);

    // The message has more bytes than it announced.
    producer.send(&write(channel, b"\x02\0\0\0a").frame(WRITE_MORE, 9));
    producer.send(&write(channel, b"bc").frame(0, 9));
    producer.dropped(9, Errno::EPROTO, "long write");
}

#[test]
fn incomplete_messages_share_limited_memory() {
    const ENOUGH: usize = (64 << 20) / MESSAGE_MAX;
    let daemon = Daemon::new();
    let begin = |(producer, channel): &(Producer, u32)| {
        let whole = (MESSAGE_MAX as u32).to_le_bytes();
        producer.send(&write(*channel, &whole).frame(WRITE_MORE | WRITE_REPLY, 3));
    };
    let producers: Vec<_> = (0..ENOUGH).map(|_| daemon.producer_with("log", "global")).collect();
    for _ in 0..2 {
        producers.iter().for_each(begin);
        producers.iter().for_each(|(producer, _)| producer.alive()); // which gives up the message
    }
    producers.iter().for_each(begin);
    let one_more = daemon.producer_with("log", "");
    begin(&one_more);
    one_more.0.refused(3, Errno::ENOBUFS, "64M for all connections");
    daemon.await_counts("log", 0, 1);
    one_more.0.alive();
}
