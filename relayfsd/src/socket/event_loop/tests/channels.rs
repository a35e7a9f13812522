//! Channels are opened, flushed and closed.

use super::*;

#[test]
fn channels_are_opened_attached_to_and_closed() {
    let daemon = Daemon::new();
    let producer = daemon.producer();
    let unknown = producer.open("app/log", "", 0).unwrap_err();
    assert_eq!(unknown.errno, libc::ENOENT);
    let bad = producer.open("no good", "", OPEN_CREATE).unwrap_err();
    assert_eq!(bad.errno, libc::EINVAL);
    let geometry = "subbuf-size=64K:n-subbufs=8:overwrite:header=16";
    let made = producer.open("app/log", geometry, OPEN_CREATE).unwrap();
    assert_eq!((made.subbuf_size, made.n_subbufs, made.header), (65536, 8, 16));
    assert_eq!((made.mode, made.scope, made.created, made.n_bufs as usize), (2, 1, 1, N_CPUS));
    let global = producer.open("all", "subbuf-size=4K:global", OPEN_CREATE).unwrap();
    assert_eq!((global.mode, global.scope, global.created, global.n_bufs), (1, 2, 1, 1));

    let other = daemon.producer();
    let attached = other.open("app/log", "subbuf-size=4K", OPEN_CREATE).unwrap();
    assert_eq!((attached.subbuf_size, attached.mode, attached.created), (65536, 2, 0));

    producer.send(&Close { channel: made.channel }.frame(0, 4));
    producer.done(FrameType::Close, 4);
    producer.send(&write(made.channel, b"").frame(WRITE_REPLY, 5));
    producer.refused(5, Errno::EBADF, "no channel");
    producer.send(&Close { channel: made.channel }.frame(0, 6));
    producer.refused(6, Errno::EBADF, "no channel");
    let again = producer.open("app/log", "", 0).unwrap();
    assert_ne!(again.channel, made.channel, "numbers are not used again");
}

#[test]
fn connection_holds_a_limited_number_of_channels() {
    let daemon = Daemon::new();
    let (producer, _) = daemon.producer_with("log", "subbuf-size=4K:n-subbufs=1:global");
    let opens = (1..).find_map(|opens| producer.open("log", "", 0).err().map(|error| (opens, error)));
    let (opens, error) = opens.unwrap();
    assert_eq!((opens, error.errno), (1024, libc::EMFILE), "{}", error.text);
    producer.alive();
}

#[test]
fn flush_answers_when_all_buffers_are_done() {
    let daemon = Daemon::new();
    let (producer, channel) = daemon.producer_with("log", "subbuf-size=64:n-subbufs=4:global");
    for cpu in [0, 5, ALL_CPUS] {
        producer.send(&write(channel, &messages(&[b"x"])).frame(0, 3));
        producer.send(&Flush { channel, cpu }.frame(0, 4));
        producer.done(FrameType::Flush, 4);
    }
    assert_eq!(daemon.registry.hold("log").unwrap().total().produced, 3);
}

/// A channel without holders and unread data goes with the CLOSE, not some time after its answer.
#[test]
fn channel_is_gone_when_its_close_is_answered() {
    let daemon = Daemon::new();
    let producer = daemon.producer();
    for _ in 0..500 {
        let channel = producer.open("log", "subbuf-size=64:n-subbufs=1:global", OPEN_CREATE).unwrap().channel;
        // Its writer is done with the channel before it answers. A message that is too big leaves nothing unread.
        producer.send(&write(channel, &messages(&[&[b'x'; 65]])).frame(WRITE_REPLY, 3));
        assert_eq!(producer.reply(3), counts(0, 0, 1));
        producer.send(&Close { channel }.frame(0, 4));
        producer.done(FrameType::Close, 4);
        assert!(daemon.registry.hold("log").is_none());
    }
}
