//! Bytes and order: two hosts with a raw and a timed channel each, sub-buffers that are split, buffers that overwrite.

use relay_producer::Channel;
use relayfs_tests::direct::on_cpu;
use relayfs_tests::{Mount, eventually};

use crate::server::{Forwarder, Server};
use crate::stored::{header, raw, sub_buffers, texts};

/// Waits until all that was written is given back.
#[track_caller]
pub(crate) fn all_is_given_back(mount: &Mount, channel: &str) {
    eventually("all sub-buffers to be given back", || is_given_back(mount, channel));
}

/// Whether nothing is unread.
pub(crate) fn is_given_back(mount: &Mount, channel: &str) -> bool {
    let stats = mount.stats(channel);
    let gone = ["read_bytes", "overwritten_bytes", "discarded_bytes"];
    stats["total.bytes"] == gone.iter().map(|name| stats[&format!("total.{name}")]).sum::<u64>()
}

#[test]
fn two_hosts_with_two_channels_are_in_the_stream_as_they_were_written() {
    let server = Server::start("");
    let hosts = ["web1", "web%2E2"].map(|name| {
        let mount = Mount::new(&["--subbuf-size=16K", "--channel=box:timed:subbuf-size=8K"]);
        let forwarder = Forwarder::start(&mount, &server.url(), &name.replace("%2E", "."), &["--create"]);
        (name, mount, forwarder)
    });
    let line = |name: &str, cpu: usize, n: usize| format!("{name} {cpu} {n} {}\n", "x".repeat(n % 97));
    for (name, mount, _) in &hosts {
        let (raw, timed) = (mount.channel("cpu"), mount.channel("box"));
        for n in 0..500 {
            for (cpu, channel) in [(0, &raw), (1, &raw), (0, &timed), (1, &timed)] {
                let options = relay_producer::BatchOptions { cpu: Some(cpu), ..Default::default() };
                let line = line(name, cpu, n);
                eventually("room", || {
                    let counts = channel.write_batch(&[line.as_bytes()], options).expect("writing");
                    counts.written == 1
                });
            }
        }
    }
    for (_, mount, _) in &hosts {
        ["cpu", "box"].iter().for_each(|channel| all_is_given_back(mount, channel));
    }
    let messages = server.client().read();
    let stored = sub_buffers(&messages);
    for (name, _, _) in &hosts {
        let expected = |cpu| (0..500).map(|n| line(name, cpu, n)).collect::<Vec<String>>();
        let found = raw(&stored, name, "cpu");
        let found: Vec<_> = found.iter().map(|bytes| String::from_utf8_lossy(bytes).into_owned()).collect();
        assert_eq!(found[..2], [expected(0).concat(), expected(1).concat()], "{name}");
        let found = texts(&stored, name, "box");
        assert_eq!(found[..2], [expected(0), expected(1)], "{name}");
    }
    // What a packet needs is in the stream before it.
    for message in messages.iter().filter(|message| message.subject.contains(".box.cpu")) {
        for (name, kind) in [("Relay-Dictionary", "metadata"), ("Relay-Processes", "processes")] {
            let Some(sequence) = message.headers.get(name) else { continue };
            let sequence: u64 = sequence.as_str().parse().expect("a sequence");
            let named = messages.iter().find(|other| other.sequence == sequence).expect("a message");
            assert!(sequence < message.sequence && named.subject.ends_with(kind), "{}", named.subject);
            assert_eq!(header(named, "Relay-Instance"), header(message, "Relay-Instance"));
        }
        assert!(
            header(message, "Relay-Clock").contains(' ') && !header(message, "Relay-Dictionary").is_empty()
        );
    }
    for (_, _, mut forwarder) in hosts {
        forwarder.end();
        assert!(forwarder.said().lines().all(|line| line.ends_with("created")), "{}", forwarder.said());
    }
}

/// The server takes less than a sub-buffer, and less than the dictionary.
#[test]
fn sub_buffer_larger_than_a_message_is_split() {
    let server = Server::start("max_payload: 2048");
    let mount = Mount::new(&["--subbuf-size=64K", "--channel=box:timed:subbuf-size=64K"]);
    let mut forwarder = Forwarder::start(&mount, &server.url(), "h", &["--create"]);
    let text = |n: u32| format!("{n} {}", "y".repeat(1000));
    for channel in ["cpu", "box"] {
        let written: Vec<String> = (0..100).map(text).collect();
        let written: Vec<&[u8]> = written.iter().map(|text| text.as_bytes()).collect();
        assert_eq!(mount.send_to(channel, 0, &written).written, 100);
        all_is_given_back(&mount, channel);
    }
    forwarder.end();
    let messages = server.client().read();
    let stored = sub_buffers(&messages);
    assert!(stored.values().flatten().any(|body| body.parts > 10), "split");
    assert_eq!(raw(&stored, "h", "cpu")[0], (0..100).map(text).collect::<String>().into_bytes());
    assert_eq!(texts(&stored, "h", "box")[0], (0..100).map(text).collect::<Vec<_>>());
    let parts = messages.iter().filter(|message| message.subject.ends_with("metadata"));
    let (n_parts, dictionary) = parts.fold((0, String::new()), |(n, text), message| {
        (n + 1, text + &String::from_utf8_lossy(&message.payload))
    });
    assert!(
        n_parts > 1 && dictionary.starts_with("/* CTF"),
        "the dictionary, in {n_parts} parts: {dictionary}"
    );
}

/// What a writer overwrites before it is forwarded is missing, and nothing else is.
#[test]
fn overwritten_sub_buffers_are_a_gap_of_numbers() {
    let server = Server::start("");
    let mount = Mount::new(&["--subbuf-size=4K", "--n-subbufs=4", "--overwrite"]);
    let channel = Channel::open(mount.point(), "cpu").expect("a channel");
    let write = |from: u32| {
        on_cpu(0, || {
            (from..from + 100).for_each(|n| channel.write(format!("{n:0999}\n").as_bytes()).expect("writing"))
        });
    };
    write(0);
    let mut forwarder = Forwarder::start(&mount, &server.url(), "h", &["--create"]);
    all_is_given_back(&mount, "cpu");
    forwarder.end();
    write(100);
    forwarder.restart();
    all_is_given_back(&mount, "cpu");
    forwarder.end();
    let messages = server.client().read();
    let numbers: Vec<u64> =
        messages.iter().map(|message| header(message, "Relay-Number").parse().expect("a number")).collect();
    assert!(numbers.is_sorted_by(|a, b| a < b), "{numbers:?}");
    assert!(numbers.windows(2).any(|pair| pair[1] > pair[0] + 1), "a gap: {numbers:?}");
    let lines: Vec<u32> = messages
        .iter()
        .flat_map(|message| {
            String::from_utf8_lossy(&message.payload).lines().map(str::to_owned).collect::<Vec<_>>()
        })
        .map(|line| line.parse().expect("a whole line"))
        .collect();
    assert!(lines.is_sorted_by(|a, b| a < b) && lines.last() == Some(&199), "{lines:?}");
}
