//! Takes measurements in turn and prints them, for all benches.
//!
//! Compared measurements alternate, so that a busy machine affects all of them. The output has medians, with the lowest
//! and the highest value in brackets. A ratio compares the two values of each round, not two medians.

use std::fmt::{self, Display};
use std::fs;
use std::hint::black_box;
use std::time::Instant;

use nix::sched::{CpuSet, sched_getaffinity, sched_setaffinity};
use nix::unistd::Pid;

/// Rounds of measurements that are compared, unless the environment says otherwise.
const ROUNDS: usize = 7;
/// The environment variable with the number of rounds.
const ROUNDS_ENV: &str = "ROUNDS";
/// Length of the message in most measurements, in bytes.
pub const MESSAGE_LEN: usize = 64;

/// A function that takes one measurement.
pub type Measurement<'a> = Box<dyn FnMut() -> f64 + 'a>;

/// Measurements of one quantity, by round.
#[derive(Clone, Debug)]
pub struct Values(Vec<f64>);

impl Values {
    /// The quotients of these values and the others, by round.
    pub fn over(&self, others: &Values) -> Values {
        Values(self.0.iter().zip(&others.0).map(|(value, other)| value / other).collect())
    }

    /// The differences of these values and the others, by round.
    pub fn more_than(&self, others: &Values) -> Values {
        Values(self.0.iter().zip(&others.0).map(|(value, other)| value - other).collect())
    }
}

impl From<Vec<f64>> for Values {
    fn from(values: Vec<f64>) -> Values {
        Values(values)
    }
}

impl Display for Values {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut sorted = self.0.clone();
        sorted.sort_by(f64::total_cmp);
        let (Some(first), Some(last)) = (sorted.first(), sorted.last()) else { return f.pad("-") };
        f.pad(&format!("{:.2} [{first:.2} to {last:.2}]", sorted[sorted.len() / 2]))
    }
}

/// Takes each measurement once a round, in turn.
pub fn alternately(measurements: &mut [Measurement<'_>]) -> Vec<Values> {
    let mut values = vec![Vec::new(); measurements.len()];
    for _ in 0..rounds() {
        for (measure, values) in measurements.iter_mut().zip(&mut values) {
            values.push(measure());
        }
    }
    values.into_iter().map(Values).collect()
}

/// Number of rounds.
pub fn rounds() -> usize {
    std::env::var(ROUNDS_ENV).ok().and_then(|rounds| rounds.parse().ok()).unwrap_or(ROUNDS)
}

/// Nanoseconds that one of `n` calls takes on a CPU.
///
/// Each call gets a message of `len` bytes whose content the compiler does not know.
pub fn nanos(cpu: usize, n: usize, len: usize, mut call: impl FnMut(&[u8])) -> f64 {
    let message = vec![b'm'; len];
    let message = message.as_slice();
    on_cpu(cpu, || {
        let begun = Instant::now();
        for _ in 0..n {
            call(black_box(message));
        }
        begun.elapsed().as_secs_f64() * 1e9 / n as f64
    })
}

/// The CPU of the threads that write.
pub const WRITER_CPU: usize = 0;

/// Number of CPUs.
pub fn n_cpus() -> usize {
    std::thread::available_parallelism().map_or(1, usize::from)
}

/// The CPU of the processes that read: a different CPU, if there is one.
pub fn reader_cpu() -> usize {
    n_cpus() - 1
}

/// Runs a function on one CPU, and then restores the calling thread's CPUs.
pub fn on_cpu<T>(cpu: usize, act: impl FnOnce() -> T) -> T {
    let this_thread = Pid::from_raw(0);
    let before = sched_getaffinity(this_thread).expect("the CPUs to run on");
    let mut set = CpuSet::new();
    set.set(cpu).and_then(|()| sched_setaffinity(this_thread, &set)).expect("a CPU to run on");
    let result = act();
    sched_setaffinity(this_thread, &before).expect("the CPUs to run on");
    result
}

/// Prints the subject of the measurements, and the machine.
pub fn head(subject: &str) {
    println!(
        "\n== {subject}: relayfs {}, {} CPUs ({}), Linux {}; medians [lowest to highest] of {} rounds",
        env!("CARGO_PKG_VERSION"),
        n_cpus(),
        cpu_model(),
        fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default().trim(),
        rounds(),
    );
}

/// Prints the head of a table.
pub fn title(what: &str, unit: &str) {
    println!("\n{what:<64}{unit}");
}

/// Prints a line of a table.
pub fn row(name: &str, value: impl Display) {
    println!("  {name:<62}{value}");
}

fn cpu_model() -> String {
    let cpuinfo = fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let name = cpuinfo.lines().find_map(|line| line.strip_prefix("model name")?.split_once(':'));
    name.map_or("of unknown make".to_owned(), |(_, name)| name.trim().to_owned())
}
