//! What one message costs by [`Channel::write`] and by a batch, beside memcpy into a ring of the same size.
//!
//! `cargo run --release -p relay-producer --example write_cost -- MOUNT`: creates a channel in overwrite mode there.

use std::env;
use std::error::Error;
use std::hint::black_box;
use std::time::Instant;

use relay_producer::{BatchOptions, Channel};

/// Bytes of a ring, the channel's and memcpy's.
const RING: usize = 4 << 20;
const ROUNDS: usize = 5;

fn main() -> Result<(), Box<dyn Error>> {
    let mount = env::args_os().nth(1).ok_or("usage: write_cost MOUNT")?;
    let spec = "subbuf-size=1M:n-subbufs=4:overwrite".parse()?;
    let channel = Channel::builder(mount, "write-cost").create(true).geometry(spec).open()?;
    let why = channel.why_socket().map_or(String::new(), |why| format!(" ({why})"));
    println!("transport: {}{why}", channel.transport());
    let mut batch = channel.batch(BatchOptions::default())?;
    let mut ring = vec![1u8; RING];
    let source = vec![7u8; 1 << 16];
    for len in [8, 16, 64, 256, 1024, 4096] {
        let message = &source[..len];
        let count = (3_000_000_000 / (len + 200)).min(10_000_000);
        // The best of several rounds, taken in turn, so that what else the machine does hits all of them.
        let [mut write, mut push, mut memcpy] = [f64::MAX; 3];
        for _ in 0..ROUNDS {
            write = write.min(nanos(count, || channel.write(black_box(message)))?);
            push = push.min(nanos(count, || batch.push(black_box(message)))?);
            let mut at = 0;
            let copy = || {
                let message = black_box(message);
                if at + message.len() > RING {
                    at = 0;
                }
                black_box(&mut ring)[at..at + message.len()].copy_from_slice(message);
                at += message.len();
                Ok::<_, std::fmt::Error>(())
            };
            memcpy = memcpy.min(nanos(count, copy)?);
        }
        println!(
            "{len:5} B: write {write:7.2} ns   push {push:7.2} ns   memcpy {memcpy:7.2} ns   write/memcpy {:.2}",
            write / memcpy
        );
    }
    batch.finish()?;
    Ok(())
}

/// Time of one call, of `count` made one after the other.
fn nanos<E: Error + 'static>(count: usize, mut call: impl FnMut() -> Result<(), E>) -> Result<f64, E> {
    let start = Instant::now();
    for _ in 0..count {
        call()?;
    }
    Ok(start.elapsed().as_nanos() as f64 / count as f64)
}
