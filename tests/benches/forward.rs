//! `relay-forward --to` into a nats-server on this machine, beside a plain async-nats publisher of the same messages.
//!
//! The buffers are filled before the forwarder starts, so no writer takes its processor.

use std::cell::RefCell;
use std::fs;
use std::future::IntoFuture;
use std::net::{TcpListener, TcpStream};
use std::process::{Command, ExitCode, Stdio};
use std::time::{Duration, Instant};

use async_nats::jetstream::{self, Context, stream};
use nix::sys::signal::Signal;
use relayfs_tests::measure::{Measurement, Values, alternately, head, row, title};
use relayfs_tests::{Mount, Process, eventually, program, tool};
use tokio::runtime::Runtime;

/// Length of a message, and of a sub-buffer.
const LEN: usize = 256 << 10;
/// Messages of each CPU.
const MESSAGES: usize = 1000;
const CPUS: usize = 2;
/// Messages on the way, of both.
const WINDOW: usize = 64;
const STREAM: &str = "relay";
/// Ticks of a second in /proc/PID/stat, on x86-64.
const TICKS: f64 = 100.0;

fn main() -> ExitCode {
    head("forwarding");
    let mib = (MESSAGES * CPUS * LEN) >> 20;
    title(&format!("{mib} MiB in messages of 256 KiB into a stream in files"), "MB/s");
    let dir = tempfile::tempdir().expect("a directory for the stream");
    let port =
        TcpListener::bind("127.0.0.1:0").and_then(|listener| listener.local_addr()).expect("a port").port();
    let mut command = tool("nats-server", "nats-server");
    command.args(["-js", "-a", "127.0.0.1", "-p", &port.to_string(), "-sd"]).arg(dir.path());
    let _server = Process::start(command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null()));
    eventually("nats-server", || TcpStream::connect(("127.0.0.1", port)).is_ok());
    let url = format!("nats://127.0.0.1:{port}");
    let mount = Mount::new(&[&format!("--subbuf-size={LEN}"), &format!("--n-subbufs={}", MESSAGES + 2)]);
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
    let context =
        runtime.block_on(async { jetstream::new(async_nats::connect(&url).await.expect("a client")) });
    let (cpu, memory) = (RefCell::default(), RefCell::default());
    let mut measurements: Vec<Measurement<'_>> = vec![
        Box::new(|| {
            begin(&runtime, &context);
            let (rate, seconds, bytes) = forward(&mount, &url);
            RefCell::<Vec<f64>>::borrow_mut(&cpu).push(seconds * 1024.0 / mib as f64);
            RefCell::<Vec<f64>>::borrow_mut(&memory).push(bytes / f64::from(1 << 20));
            rate
        }),
        Box::new(|| {
            begin(&runtime, &context);
            runtime.block_on(publish(&context))
        }),
    ];
    let all = alternately(&mut measurements);
    drop(measurements);
    if let [ours, plain] = all.as_slice() {
        row("relay-forward --to", ours);
        row("  of a plain publisher", ours.over(plain));
        row("  CPU seconds of a GiB", Values::from(cpu.take()));
        row("  memory behind it, without the buffers, MiB", Values::from(memory.take()));
        row("async-nats, a plain publisher", plain);
    }
    ExitCode::SUCCESS
}

/// Begins with an empty stream.
fn begin(runtime: &Runtime, context: &Context) {
    runtime.block_on(async {
        let _ = context.delete_stream(STREAM).await;
        let subjects = vec![format!("{STREAM}.>")];
        let config = stream::Config { name: STREAM.to_owned(), subjects, ..stream::Config::default() };
        context.create_stream(config).await.expect("a stream");
    });
}

/// Returns the rate of the bytes of all messages.
fn rate(since: Instant) -> f64 {
    (MESSAGES * CPUS * LEN) as f64 / 1e6 / since.elapsed().as_secs_f64()
}

/// Fills the buffers and forwards them. Returns the rate, the forwarder's CPU seconds and its memory in bytes.
fn forward(mount: &Mount, url: &str) -> (f64, f64, f64) {
    let message = vec![b'm'; LEN - 1];
    for cpu in 0..CPUS {
        for _ in 0..MESSAGES {
            assert_eq!(mount.send(cpu, &[&message]).written, 1);
        }
    }
    mount.poke("cpu", "flush");
    let unread = || {
        let stats = mount.stats("cpu");
        stats["total.bytes"] - stats["total.read_bytes"]
    };
    assert!(unread() > 0, "full buffers");
    let since = Instant::now();
    let mut command = Command::new(program("relay-forward"));
    command.args(["--to", url, "--window", &WINDOW.to_string(), "--host", "bench", "-c", "cpu", "-m"]);
    let mut forwarder = Process::start(command.arg(mount.point()).stdin(Stdio::null()));
    eventually("all of it to be given back", || unread() == 0);
    let rate = rate(since);
    let (seconds, bytes) = (cpu_seconds(&forwarder), memory(&forwarder));
    forwarder.signal(Signal::SIGTERM);
    assert!(forwarder.wait().success(), "relay-forward fails");
    (rate, seconds, bytes)
}

/// Publishes as many messages, with as many on the way. Returns the rate.
async fn publish(context: &Context) -> f64 {
    let body = bytes::Bytes::from(vec![b'm'; LEN - 1]);
    let since = Instant::now();
    let mut waiting = std::collections::VecDeque::new();
    for n in 0..MESSAGES * CPUS {
        if waiting.len() == WINDOW
            && let Some(oldest) = waiting.pop_front()
        {
            acknowledged(oldest).await;
        }
        let subject = format!("{STREAM}.plain.cpu.cpu{}", n % CPUS);
        waiting.push_back(context.publish(subject, body.clone()).await.expect("publishing"));
    }
    for left in waiting {
        acknowledged(left).await;
    }
    rate(since)
}

async fn acknowledged(message: impl IntoFuture<Output = Result<impl Sized, impl std::fmt::Debug>>) {
    let answer = tokio::time::timeout(Duration::from_secs(10), message.into_future()).await;
    answer.expect("an answer in time").expect("an acknowledgement");
}

/// Returns the processor's time that a process has taken.
fn cpu_seconds(process: &Process) -> f64 {
    let stat = fs::read_to_string(format!("/proc/{}/stat", process.pid())).expect("a process");
    let (_, fields) = stat.rsplit_once(") ").expect("its name");
    let ticks = fields.split(' ').skip(11).take(2).map(|ticks| ticks.parse::<f64>().expect("a number"));
    ticks.sum::<f64>() / TICKS
}

/// Returns the memory that a process has for itself, in bytes: without the buffers, which it maps.
fn memory(process: &Process) -> f64 {
    let status = fs::read_to_string(format!("/proc/{}/status", process.pid())).expect("a process");
    let line = status.lines().find_map(|line| line.strip_prefix("RssAnon:")).expect("its memory");
    1024.0 * line.trim().trim_end_matches(" kB").parse::<f64>().expect("a number")
}
