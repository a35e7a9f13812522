//! `relay-forward --to` into a nats-server on this machine, beside async-nats publishers of as many messages.
//!
//! The stream is in files in memory (`/dev/shm`), since the pauses of a disk are longer than all that is measured. The last
//! rows are on the disk. The buffers are filled before the forwarder starts, so no writer takes its processor; a publisher
//! has its messages in memory, each in its own place. The forwarder's start, connection and end count, the publishers'
//! connection does not. Two forwarders write to one stream, as those of two hosts do.
//!
//! A publisher with the headers of a forwarder shows what these headers cost in the server: with them each message is stored
//! once and in order.

use std::cell::RefCell;
use std::collections::VecDeque;
use std::fs;
use std::future::IntoFuture;
use std::net::{TcpListener, TcpStream};
use std::path::Path;
use std::process::{Command, ExitCode, Stdio};
use std::time::{Duration, Instant};

use async_nats::HeaderMap;
use async_nats::jetstream::{self, Context, stream};
use audience::Reader;
use bytes::Bytes;
use nix::sys::signal::Signal;
use relayfs_tests::measure::{Measurement, Values, alternately, head, row, title};
use relayfs_tests::{Mount, Process, eventually, program, tool};
use tempfile::TempDir;
use tokio::runtime::Runtime;

/// Length of a message, and of a sub-buffer.
const LEN: usize = 256 << 10;
/// Messages of each CPU.
const MESSAGES: usize = 1000;
const CPUS: usize = 2;
/// Messages on the way, of all.
const WINDOW: usize = 64;
const STREAM: &str = "relay";
/// Longest time for an acknowledgement: a disk may pause.
const PATIENCE: Duration = Duration::from_secs(60);
/// Ticks of a second in /proc/PID/stat, on x86-64.
const TICKS: f64 = 100.0;

/// A server, and a client.
struct Server {
    process: Process,
    runtime: Runtime,
    context: Context,
    url: String,
    _dir: TempDir,
}

/// What it costs, by round.
#[derive(Default)]
struct Costs {
    /// CPU seconds of a GiB, of the forwarder.
    forwarder: RefCell<Vec<f64>>,
    /// CPU seconds of a GiB, of the server.
    server: RefCell<Vec<f64>>,
    /// Memory of the forwarder, in MiB.
    memory: RefCell<Vec<f64>>,
}

fn main() -> ExitCode {
    head("forwarding");
    let mib = (MESSAGES * CPUS * LEN) >> 20;
    title(&format!("{mib} MiB in messages of 256 KiB into a stream in files"), "MB/s");
    let (memory, disk) = (Server::start(Path::new("/dev/shm")), Server::start(&std::env::temp_dir()));
    let mounts = [1, 2].map(|share| {
        let n = MESSAGES / share + 2;
        Mount::new(&[&format!("--subbuf-size={LEN}"), &format!("--n-subbufs={n}")])
    });
    let bodies: Vec<Bytes> = (0..MESSAGES * CPUS).map(|n| Bytes::from(vec![n as u8; LEN - 1])).collect();
    let (costs, of_plain, of_headers, others) =
        (Costs::default(), Costs::default(), Costs::default(), Costs::default());
    let mut measurements: Vec<Measurement<'_>> = vec![
        Box::new(|| memory.forward(&mounts[..1], &costs)),
        Box::new(|| memory.publish(&bodies, &of_plain, Server::publish_plainly)),
        Box::new(|| memory.publish(&bodies, &of_headers, Server::publish_linked)),
        Box::new(|| memory.forward(&mounts, &others)),
        Box::new(|| disk.forward(&mounts[..1], &others)),
        Box::new(|| disk.publish(&bodies, &others, Server::publish_plainly)),
    ];
    let all = alternately(&mut measurements);
    drop(measurements);
    let [forwarded, plain, headers, both, on_disk, plain_on_disk] = all.as_slice() else {
        return ExitCode::FAILURE;
    };
    let (of_plain_rate, of_server) = ("  of a plain publisher", "  CPU seconds of a GiB, in the server");
    row("relay-forward --to", forwarded);
    row(of_plain_rate, forwarded.over(plain));
    row("  of a publisher with its headers", forwarded.over(headers));
    row("  CPU seconds of a GiB", Values::from(costs.forwarder.take()));
    row(of_server, Values::from(costs.server.take()));
    row("  memory behind it, without the buffers, MiB", Values::from(costs.memory.take()));
    row("two of them into one stream", both);
    row(of_plain_rate, both.over(plain));
    row("async-nats, a plain publisher", plain);
    row(of_server, Values::from(of_plain.server.take()));
    row("async-nats, a publisher with the headers of a forwarder", headers);
    row(of_plain_rate, headers.over(plain));
    row(of_server, Values::from(of_headers.server.take()));
    row("relay-forward --to, the stream on the disk", on_disk);
    row(of_plain_rate, on_disk.over(plain_on_disk));
    ExitCode::SUCCESS
}

impl Server {
    /// Starts a server with its store below this directory.
    fn start(below: &Path) -> Server {
        let dir = tempfile::tempdir_in(below).expect("a directory for the stream");
        let port = TcpListener::bind("127.0.0.1:0").and_then(|listener| listener.local_addr());
        let port = port.expect("a port").port();
        let mut command = tool("nats-server", "nats-server");
        command.args(["-js", "-a", "127.0.0.1", "-p", &port.to_string(), "-sd"]).arg(dir.path());
        let process =
            Process::start(command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null()));
        eventually("nats-server", || TcpStream::connect(("127.0.0.1", port)).is_ok());
        let url = format!("nats://127.0.0.1:{port}");
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
        let mut context =
            runtime.block_on(async { jetstream::new(async_nats::connect(&url).await.expect("a client")) });
        context.set_timeout(PATIENCE);
        Server { process, runtime, context, url, _dir: dir }
    }

    /// Begins with an empty stream.
    fn begin(&self) {
        self.runtime.block_on(async {
            let _ = self.context.delete_stream(STREAM).await;
            let subjects = vec![format!("{STREAM}.>")];
            let config = stream::Config { name: STREAM.to_owned(), subjects, ..stream::Config::default() };
            self.context.create_stream(config).await.expect("a stream");
        });
    }

    /// Fills the buffers of these mounts, each with a part, and forwards them. Returns the rate. The first forwarder's costs
    /// are noted.
    fn forward(&self, mounts: &[Mount], costs: &Costs) -> f64 {
        self.begin();
        let message = vec![b'm'; LEN - 1];
        let mut unread = Vec::new();
        for mount in mounts {
            for cpu in 0..CPUS {
                for _ in 0..MESSAGES / mounts.len() {
                    assert_eq!(mount.send(cpu, &[&message]).written, 1);
                }
            }
            mount.poke("cpu", "flush");
            let stats = mount.stats("cpu");
            let end = |cpu: usize| stats[&format!("cpu{cpu}.bytes")];
            let reader = Reader::open(mount.point(), "cpu").expect("a reader");
            unread.push((reader, (0..CPUS).map(end).collect::<Vec<u64>>()));
        }
        // A look at the mapped buffers: a look at `stats` would take the daemon's time, which gives back.
        let is_given_back = || {
            let of = |(reader, ends): &(Reader, Vec<u64>)| {
                (0..CPUS).all(|cpu| reader.consumed_bytes(cpu) == Some(ends[cpu]))
            };
            unread.iter().all(of)
        };
        assert!(!is_given_back(), "full buffers");
        let (since, server) = (Instant::now(), cpu_seconds(&self.process));
        let start = |(n, mount): (usize, &Mount)| {
            let mut command = Command::new(program("relay-forward"));
            let host = format!("bench{n}");
            command.args([
                "--to",
                &self.url,
                "--window",
                &WINDOW.to_string(),
                "--host",
                &host,
                "-c",
                "cpu",
                "-m",
            ]);
            Process::start(command.arg(mount.point()).stdin(Stdio::null()))
        };
        let mut forwarders: Vec<Process> = mounts.iter().enumerate().map(start).collect();
        eventually("all of it to be given back", is_given_back);
        let rate = rate(since);
        costs.server.borrow_mut().push(of_gib(cpu_seconds(&self.process) - server));
        costs.forwarder.borrow_mut().push(of_gib(cpu_seconds(&forwarders[0])));
        costs.memory.borrow_mut().push(memory(&forwarders[0]) / f64::from(1 << 20));
        for forwarder in &mut forwarders {
            forwarder.signal(Signal::SIGTERM);
            assert!(forwarder.wait().success(), "relay-forward fails");
        }
        rate
    }

    /// Publishes these bodies. Returns the rate.
    fn publish(&self, bodies: &[Bytes], costs: &Costs, how: impl AsyncFn(&Server, &[Bytes])) -> f64 {
        self.begin();
        let (since, server) = (Instant::now(), cpu_seconds(&self.process));
        self.runtime.block_on(how(self, bodies));
        let rate = rate(since);
        costs.server.borrow_mut().push(of_gib(cpu_seconds(&self.process) - server));
        rate
    }

    async fn publish_plainly(&self, bodies: &[Bytes]) {
        let mut waiting = VecDeque::new();
        for (n, body) in bodies.iter().enumerate() {
            if waiting.len() == WINDOW
                && let Some(oldest) = waiting.pop_front()
            {
                acknowledged(oldest).await;
            }
            let subject = format!("{STREAM}.plain.cpu.cpu{}", n % CPUS);
            waiting.push_back(self.context.publish(subject, body.clone()).await.expect("publishing"));
        }
        for left in waiting {
            acknowledged(left).await;
        }
    }

    /// Each message is linked to the one before it. The first one of a subject expects that the subject is empty.
    async fn publish_linked(&self, bodies: &[Bytes]) {
        let id = |n: usize| format!("bench/cpu/cpu{}/00c0000000001000/{n}/1@0.{n}.{n:016x}", n % CPUS);
        let mut waiting = VecDeque::new();
        for (n, body) in bodies.iter().enumerate() {
            if waiting.len() == WINDOW
                && let Some(oldest) = waiting.pop_front()
            {
                acknowledged(oldest).await;
            }
            let mut headers = HeaderMap::new();
            headers.insert("Relay-Format", "1");
            headers.insert("Relay-Instance", "00c0000000001000");
            headers.insert("Relay-Number", n.to_string());
            headers.insert("Relay-Geometry", "subbuf-size=256K:n-subbufs=1002:no-overwrite");
            headers.insert("Relay-Position", (n * LEN).to_string());
            headers.insert("Relay-Lost", "0");
            headers.insert("Relay-Lost-Too-Big", "0");
            headers.insert("Nats-Msg-Id", id(n));
            headers.insert("Nats-Expected-Stream", STREAM);
            if let Some(before) = n.checked_sub(1) {
                headers.insert("Nats-Expected-Last-Msg-Id", id(before));
            }
            if n < CPUS {
                headers.insert("Nats-Expected-Last-Subject-Sequence", "0");
            }
            let subject = format!("{STREAM}.headers.cpu.cpu{}", n % CPUS);
            let sent = self.context.publish_with_headers(subject, headers, body.clone()).await;
            waiting.push_back(sent.expect("publishing"));
        }
        for left in waiting {
            acknowledged(left).await;
        }
    }
}

/// Returns the rate of the bytes of all messages.
fn rate(since: Instant) -> f64 {
    (MESSAGES * CPUS * LEN) as f64 / 1e6 / since.elapsed().as_secs_f64()
}

/// Returns how much of a sum belongs to a GiB.
fn of_gib(sum: f64) -> f64 {
    sum * f64::from(1 << 30) / (MESSAGES * CPUS * LEN) as f64
}

async fn acknowledged(message: impl IntoFuture<Output = Result<impl Sized, impl std::fmt::Debug>>) {
    let answer = tokio::time::timeout(PATIENCE, message.into_future()).await;
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
