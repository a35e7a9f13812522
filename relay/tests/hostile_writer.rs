//! A writer whose shared words are arbitrary and change during its calls.
//!
//! It ends every call, and stores only to the ring and its own words. Behind both lies memory that it has no reason to
//! touch.
//!
//! It uses restartable sequences, like every producer. A thread that writes without them is the daemon's, and alone.
#![cfg(all(any(target_arch = "x86_64", target_arch = "aarch64"), target_os = "linux"))]

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread;

use nix::sched::{CpuSet, sched_setaffinity};
use nix::unistd::Pid;
use relay::clock::Clock;
use relay::layout::abi::control_header;
use relay::memory::mapping::Mapping;
use relay::ring::buffer::Buffer;
use relay::ring::writer::{AnyExecutor, Writer};
use relay::{Geometry, GeometrySpec};

/// Guard bytes behind the ring, and behind the control file's part.
const CANARY: usize = 1 << 20;
/// Messages written while the words change.
const MESSAGES: usize = 100_000;

/// Pseudo-random numbers (xorshift).
fn next(seed: &mut u64) -> u64 {
    *seed ^= *seed << 13;
    *seed ^= *seed >> 7;
    *seed ^= *seed << 17;
    *seed
}

/// Changes one of the words that a writer uses.
fn scribble(buffer: &Buffer, seed: &mut u64) {
    let block = buffer.block();
    let widths = buffer.widths();
    let (lap, slot) = (next(seed), next(seed) % buffer.geometry().n_subbufs() as u64);
    let record = buffer.record(widths.pack(lap, slot, 0));
    let near = widths.pack(next(seed) % 3, slot, next(seed) % (buffer.geometry().subbuf_size() as u64 + 2)).0;
    let value = match next(seed) % 4 {
        0 => next(seed),
        1 => u64::MAX,
        2 => 1 << (next(seed) % 64),
        _ => near,
    };
    let words: [&AtomicU64; 8] = [
        &block.state,
        &block.state,
        &block.consumed,
        &block.begun,
        &block.closed,
        &record.number,
        &record.begin,
        &record.padding,
    ];
    // A closed buffer takes no messages, so mostly it is open.
    let word = words[(next(seed) % 8) as usize];
    let value = if std::ptr::eq(word, &raw const block.closed) { u64::from(value % 16 == 0) } else { value };
    word.store(value, Ordering::Relaxed);
}

fn untouched(mapping: &Mapping, from: usize) -> bool {
    let bytes = mapping.bytes(from, CANARY).expect("the canary");
    bytes.iter().all(|byte| byte.load(Ordering::Relaxed) == 0)
}

fn storm(spec: &str, clock: Clock) {
    let geometry: Geometry = spec.parse::<GeometrySpec>().unwrap().build().unwrap();
    let header = control_header(&geometry, 1).with_clock(clock, 1);
    let (control_len, ring) = (header.control_len() as usize, geometry.buffer_size() as usize);
    let control = Arc::new(Mapping::anonymous((control_len + CANARY) as u64).unwrap());
    let data = Arc::new(Mapping::anonymous((ring + CANARY) as u64).unwrap());
    let buffer = Buffer::new(control.clone(), data.clone(), geometry, &header, 0).unwrap();
    buffer.init(0);
    let mut set = CpuSet::new();
    set.set(0).unwrap();
    sched_setaffinity(Pid::from_raw(0), &set).unwrap();
    let here = AnyExecutor::on(Some(0));
    let off = std::env::var("RELAYFS_TESTS_RSEQ").is_ok_and(|areas| areas == "refused");
    assert_eq!(matches!(here, AnyExecutor::SoleWriter), off, "restartable sequences: the kernel has them");
    if off {
        return; // then only the daemon writes, in mappings as long as the ring
    }
    let over = AtomicBool::new(false);
    let (mut written, mut refused) = (0u32, 0u32);
    thread::scope(|scope| {
        scope.spawn(|| {
            let mut seed = 42;
            while !over.load(Ordering::Relaxed) {
                scribble(&buffer, &mut seed);
            }
        });
        let mut seed = 7;
        for number in 0..MESSAGES {
            let message = vec![b'm'; (next(&mut seed) % (geometry.subbuf_size() as u64 + 50)) as usize];
            let writer = Writer::new(&buffer, here);
            match writer.write(&message) {
                Ok(_) => written += 1,
                Err(_) => refused += 1,
            }
            let _ = writer.drop_if_blocked(message.len());
            let _ = writer.drop_record_if_blocked(message.len());
            // Into the wrong kind of buffer as well.
            let _ = (writer.append(&message), writer.append_record(u64::MAX, &message));
            if number % 64 == 0 {
                let _ = writer.flush();
                scribble(&buffer, &mut seed); // also on a machine with a single CPU
            }
        }
        over.store(true, Ordering::Relaxed);
    });
    assert!(untouched(&data, ring), "{spec}: behind the ring");
    assert!(untouched(&control, control_len), "{spec}: behind the control file");
    assert!(written > 0, "{spec}: {written} written, {refused} not");
}

#[test]
fn hostile_words_cause_no_store_outside_the_ring() {
    for spec in [
        "subbuf-size=100:n-subbufs=5",
        "subbuf-size=4096:n-subbufs=3:overwrite",
        "subbuf-size=64:n-subbufs=1",
        "subbuf-size=1000:n-subbufs=7:header=16",
    ] {
        storm(spec, Clock::Monotonic);
    }
    for clock in [Clock::Monotonic, Clock::Tsc].into_iter().filter(|clock| clock.is_readable()) {
        storm("subbuf-size=100:n-subbufs=5:timed", clock);
        storm("subbuf-size=4096:n-subbufs=3:overwrite:timed", clock);
        storm("subbuf-size=64:n-subbufs=1:timed", clock);
    }
}
