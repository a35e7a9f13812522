//! What looks at 100 channels with 1,000 producers cost: CPU time of the daemon, and of the program that looks.

use std::fs;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use nix::sys::resource::{Resource, getrlimit, setrlimit};
use relay::wire::frame::OPEN_CREATE;
use relayfs_tests::peer::Peer;
use relayfs_tests::{Mount, Process, program, stdout_of, text, tool};

const CHANNELS: usize = 100;
const PRODUCERS: usize = 1000;
/// Looks of each kind.
const LOOKS: u32 = 20;
/// How long a live view is measured.
const LIVE: Duration = Duration::from_secs(20);
/// Clock ticks of a second, as `/proc` counts them.
const TICKS: f64 = 100.0;

fn main() {
    let (_, hard) = getrlimit(Resource::RLIMIT_NOFILE).expect("the limit of open files");
    setrlimit(Resource::RLIMIT_NOFILE, hard, hard).expect("more open files");
    let mut args: Vec<String> = (0..CHANNELS).map(|i| format!("--channel=app/c{i}x:timed")).collect();
    args.extend(["--subbuf-size=16K", "--n-subbufs=4"].map(str::to_owned));
    let args: Vec<&str> = args.iter().map(String::as_str).collect();
    let mut mount = Mount::new(&args);
    let peers: Vec<Peer> = (0..PRODUCERS).map(|_| Peer::hello(&mount)).collect();
    for (i, peer) in peers.iter().enumerate() {
        peer.open(&format!("app/c{}x", i % CHANNELS), OPEN_CREATE);
    }
    for channel in 0..CHANNELS {
        fs::write(mount.control(&format!("app/c{channel}x"), "msg"), "one message").expect("a message");
    }
    println!("\n== CPU time of looks at {CHANNELS} channels and {PRODUCERS} producers, in ms a look\n");
    println!("{:34} {:>9} {:>9}", "", "relayfsd", "program");
    for file in [".relay/status", ".relay/metrics"] {
        let path = mount.path(file);
        let len = fs::read(&path).expect("the text").len();
        look(&mut mount, &format!("read {file}, {} KiB", len >> 10), || {
            drop(fs::read(&path).expect("the text"));
            0.0
        });
    }
    let point = mount.point().to_owned();
    for args in [&["status", "--interval", "10ms"][..], &["status", "--json", "--interval", "10ms"]] {
        look(&mut mount, &format!("audience {}, two looks", args[..args.len() - 2].join(" ")), || {
            let mut command = Command::new(program("audience"));
            let mut child = Process::start(command.args(args).arg("-m").arg(&point).stdout(Stdio::null()));
            let pid = child.pid().as_raw();
            // The process stays, as a zombie, until it is waited for.
            while !is_zombie(pid) {
                std::thread::sleep(Duration::from_millis(1));
            }
            let time = cpu_time(pid);
            child.wait();
            time
        });
    }
    live(&mut mount);
    drop(peers);
}

/// Measures looks; `act` makes one, and returns the CPU seconds of the program that it ran.
fn look(mount: &mut Mount, what: &str, mut act: impl FnMut() -> f64) {
    let daemon = mount.daemon().pid().as_raw();
    let before = cpu_time(daemon);
    let own: f64 = (0..LOOKS).map(|_| act()).sum();
    let by_daemon = cpu_time(daemon) - before;
    let each = |seconds: f64| seconds * 1e3 / f64::from(LOOKS);
    println!("{what:34} {:>9.2} {:>9.2}", each(by_daemon), each(own));
}

/// Measures the live view in a terminal, at one look a second.
fn live(mount: &mut Mount) {
    let socket = mount.beside("tmux");
    let tmux = |args: &[&str]| {
        let mut command = tool("tmux", "tmux");
        command.arg("-S").arg(&socket).args(args);
        command
    };
    let mut start = tmux(&["-f", "/dev/null", "new-session", "-d", "-x", "120", "-y", "50"]);
    start.arg(format!("exec {} top -m {}", program("audience").display(), mount.point().display()));
    stdout_of(start.env_remove("TMUX"));
    let pid = stdout_of(&mut tmux(&["display", "-p", "#{pane_pid}"]));
    let top: i32 = text(&pid).trim().parse().expect("a number");
    let daemon = mount.daemon().pid().as_raw();
    std::thread::sleep(Duration::from_secs(2));
    let (begun, before) = (Instant::now(), (cpu_time(daemon), cpu_time(top)));
    std::thread::sleep(LIVE);
    let seconds = begun.elapsed().as_secs_f64();
    let percent = |after: f64, before: f64| (after - before) / seconds * 100.0;
    println!(
        "\naudience top, a look a second: relayfsd {:.2} % of a CPU, audience {:.2} %",
        percent(cpu_time(daemon), before.0),
        percent(cpu_time(top), before.1)
    );
    let _ = tmux(&["kill-server"]).output();
}

/// The words of `/proc/PID/stat` behind the command's name.
fn stat(pid: i32) -> Vec<String> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).expect("a process");
    let rest = stat.rsplit_once(") ").expect("a name in parentheses").1;
    rest.split(' ').map(str::to_owned).collect()
}

fn is_zombie(pid: i32) -> bool {
    stat(pid)[0] == "Z"
}

/// The CPU seconds of a process, by itself and in the kernel.
fn cpu_time(pid: i32) -> f64 {
    let stat = stat(pid);
    let ticks: u64 = stat[11..13].iter().map(|word| word.parse::<u64>().expect("a number")).sum();
    ticks as f64 / TICKS
}
