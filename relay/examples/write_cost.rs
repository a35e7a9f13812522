//! What one message costs, beside memcpy into the same ring.
use std::hint::black_box;
use std::time::Instant;

use relay::buffer::Buffer;
use relay::rseq::Thread;
use relay::writer::{Placed, Writer};

fn main() {
    let spec: relay::GeometrySpec = "subbuf-size=1M:n-subbufs=4:overwrite".parse().unwrap();
    let buffer = Buffer::anonymous(spec.build().unwrap(), 0).unwrap();
    let ring = &mut vec![1u8; 4 << 20];
    let source = vec![7u8; 1 << 16];
    for len in [8usize, 16, 64, 256, 1024, 4096] {
        let count = (3_000_000_000 / (len + 200)).min(30_000_000);
        let mut best = [f64::MAX; 2];
        for _ in 0..5 {
            let start = Instant::now();
            for _ in 0..count {
                let message = black_box(&source[..len]);
                loop {
                    let thread = Thread::current().unwrap();
                    let cpu = thread.cpu();
                    if let Some(outcome) = Writer::new(&buffer, thread.on(cpu)).try_write(message) {
                        assert!(outcome.placed == Placed::Written);
                        break;
                    }
                }
            }
            best[0] = best[0].min(start.elapsed().as_nanos() as f64 / count as f64);
            let start = Instant::now();
            let mut at = 0;
            for _ in 0..count {
                let message = black_box(&source[..len]);
                if at + len > ring.len() {
                    at = 0;
                }
                ring[at..at + len].copy_from_slice(message);
                at += len;
            }
            best[1] = best[1].min(start.elapsed().as_nanos() as f64 / count as f64);
        }
        println!(
            "{len:5} B: {:7.2} ns   memcpy {:7.2} ns   ratio {:.2}",
            best[0],
            best[1],
            best[0] / best[1]
        );
    }
}
