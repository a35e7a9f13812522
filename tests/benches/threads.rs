//! Threads that write at once: on CPUs of their own, and many on one CPU.

use std::hint::black_box;
use std::process::ExitCode;
use std::sync::Barrier;
use std::thread;
use std::time::Instant;

use relay_producer::Channel;
use relayfs_tests::Mount;
use relayfs_tests::measure::{MESSAGE_LEN, alternately, head, n_cpus, on_cpu, row, title};

/// Messages of all threads on a CPU together.
const MESSAGES: usize = 40_000_000;
/// Many threads.
const MANY: usize = 8;

fn main() -> ExitCode {
    head("threads");
    let mount = Mount::new(&["--overwrite", "--subbuf-size", "1M", "--n-subbufs", "4"]);
    let channel = mount.direct_channel("cpu");
    title(&format!("{MESSAGE_LEN}-byte messages, 4 x 1 MiB overwritten, all threads together"), "million/s");
    let many = [0; MANY];
    let all = alternately(&mut [
        Box::new(|| rate(&channel, &[0])),
        Box::new(|| rate(&channel, &[0, 1][..n_cpus().min(2)])),
        Box::new(|| rate(&channel, &many)),
    ]);
    let [one, two, many] = &all[..] else { unreachable!("three measurements") };
    row("one thread", one);
    if n_cpus() > 1 {
        row("two threads on two CPUs", format_args!("{two:<36}{} of one thread", two.over(one)));
    } else {
        row("two threads on two CPUs", "not there: one CPU");
    }
    row(&format!("{MANY} threads on one CPU"), format_args!("{many:<36}{} of one thread", many.over(one)));
    ExitCode::SUCCESS
}

/// Million messages a second of as many threads as `cpus` names, from the first one's begin to the last one's end.
fn rate(channel: &Channel, cpus: &[usize]) -> f64 {
    let on_one_cpu = cpus.iter().filter(|cpu| **cpu == cpus[0]).count();
    let each = MESSAGES / on_one_cpu;
    let start = Barrier::new(cpus.len());
    let times: Vec<(Instant, Instant)> = thread::scope(|scope| {
        let write = |cpu: usize| {
            let (channel, start) = (&channel, &start);
            scope.spawn(move || on_cpu(cpu, || write(channel, each, start)))
        };
        let threads: Vec<_> = cpus.iter().map(|cpu| write(*cpu)).collect();
        threads.into_iter().map(|thread| thread.join().expect("a thread that writes")).collect()
    });
    let (begun, ended) = times.into_iter().reduce(|a, b| (a.0.min(b.0), a.1.max(b.1))).expect("a thread");
    (each * cpus.len()) as f64 / (ended - begun).as_secs_f64() / 1e6
}

/// When it began, and when it ended.
fn write(channel: &Channel, n: usize, start: &Barrier) -> (Instant, Instant) {
    let message = [b'm'; MESSAGE_LEN];
    start.wait();
    let begun = Instant::now();
    for _ in 0..n {
        channel.write(black_box(&message)).expect("a message that fits");
    }
    (begun, Instant::now())
}
