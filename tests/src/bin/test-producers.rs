//! Writes batches of numbered messages from several threads, and reports the answers.
//!
//! All threads write through one `Channel`.
//!
//! It prints a line "PRODUCER THREAD FIRST COUNT WRITTEN BYTES" for every batch.
//!
//! `test-producers MOUNT CHANNEL PRODUCER THREADS BATCHES wait|drop LEN_MAX direct|socket`; BATCHES 0 writes until it
//! is killed.

use relay_producer::{BatchOptions, Channel, TransportChoice, Wait};
use relayfs_tests::direct::assert_direct;
use relayfs_tests::numbered::{LEN_MIN, Random, Tag, message};

/// Most messages of a batch.
const BATCH_MAX: usize = 64;
/// Longest message of most batches, in bytes. One batch in sixteen is a single message of up to LEN_MAX bytes.
const SHORT_MAX: usize = 300;

fn main() {
    let args: Vec<String> = std::env::args().collect();
    let [_, mount, channel, producer, threads, batches, wait, len_max, way] = &args[..] else {
        panic!("wrong arguments: {args:?}");
    };
    let number = |text: &str| text.parse::<u32>().expect("a number");
    let wait = if wait == "wait" { Wait::Forever } else { Wait::No };
    let is_direct = way == "direct";
    let choice = if is_direct { TransportChoice::Auto } else { TransportChoice::Socket };
    let channel = Channel::builder(mount, channel).transport(choice).open().expect("opening the channel");
    if is_direct {
        assert_direct(&channel);
    }
    std::thread::scope(|scope| {
        for thread in 0..number(threads) {
            let tag = Tag { producer: number(producer), thread, seq: 0 };
            let (channel, batches, len_max) = (&channel, number(batches), number(len_max) as usize);
            scope.spawn(move || write(channel, tag, batches, wait, len_max));
        }
    });
}

fn write(channel: &Channel, mut tag: Tag, batches: u32, wait: Wait, len_max: usize) {
    let mut random = Random::new(u64::from(tag.producer * 1000 + tag.thread));
    let mut n_batches = 0;
    while batches == 0 || n_batches < batches {
        n_batches += 1;
        // To a chosen CPU's buffer, or to that of the CPU on which this thread runs.
        let cpu = Some(random.below(channel.n_bufs() + 1)).filter(|cpu| *cpu < channel.n_bufs());
        let first = tag.seq;
        let mut messages = Vec::new();
        let mut add = |len| {
            messages.push(message(tag, len));
            tag.seq += 1;
        };
        if random.below(16) == 0 {
            add(LEN_MIN + random.below(len_max - LEN_MIN + 1));
        } else {
            (0..1 + random.below(BATCH_MAX))
                .for_each(|_| add(LEN_MIN + random.below(SHORT_MAX - LEN_MIN + 1)));
        }
        let bytes: usize = messages.iter().map(Vec::len).sum();
        let counts = channel.write_batch(&messages, BatchOptions { cpu, wait }).expect("writing a batch");
        let (Tag { producer, thread, .. }, count) = (tag, messages.len() as u64);
        assert_eq!(counts.written + counts.dropped, count, "an answer for every message");
        println!("{producer} {thread} {first} {count} {} {bytes}", counts.written);
    }
}
