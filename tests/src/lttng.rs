//! LTTng-UST, to measure beside relayfs, if it is installed.
//!
//! Each session runs in private namespaces: everything it starts ends with it, and other sessions are not touched.

use std::cell::RefCell;
use std::io::{BufRead, BufReader, Write};
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};

use tempfile::TempDir;

use crate::{Process, private_shell, run, text, workspace};

/// The text in place of numbers if LTTng is not installed.
pub const NOT_INSTALLED: &str = "not installed: apt-get install liblttng-ust-dev lttng-tools";

/// Answers each line "LEN N" with nanoseconds, lost events and bytes on disk. Overwrites what it records, as a flight recorder.
const OVERWRITING: &str = r#"
lttng --quiet create bench --snapshot --output=/dev/shm/lttng
lttng --quiet enable-channel --userspace --overwrite --subbuf-size=1M --num-subbuf=4 messages
lttng --quiet enable-event --userspace --channel=messages 'relayfs_bench:*'
lttng --quiet start
while read -r len n; do
    echo "$(taskset -c 0 "$1" "$len" "$n") 0 0" >&3
done
"#;

/// The same, recording to files on tmpfs. Events that find the buffers full are lost. A session for each line.
const RECORDING: &str = r#"
while read -r len n; do
    lttng --quiet create bench --output=/dev/shm/lttng
    lttng --quiet enable-channel --userspace --discard --subbuf-size=1M --num-subbuf=8 messages
    lttng --quiet enable-event --userspace --channel=messages 'relayfs_bench:*'
    lttng --quiet start
    nanos=$(taskset -c 0 "$1" "$len" "$n")
    lttng --quiet stop 2>&4
    lost=$(lttng list bench | sed -n 's/.*Discarded events: *//p')
    lttng --quiet destroy
    bytes=$(find /dev/shm/lttng -type f -printf '%s\n' | awk '{ sum += $1 } END { print sum }')
    rm -r /dev/shm/lttng
    echo "$nanos ${lost:-unknown} ${bytes:-unknown}" >&3
done
"#;

/// The result of some events.
#[derive(Clone, Copy, Debug)]
pub struct Emitted {
    /// Nanoseconds that one event took.
    pub nanos: f64,
    /// Events that are not in the trace.
    pub lost: u64,
    /// Bytes of the trace's files; 0 if it stays in the buffers.
    pub bytes: u64,
}

/// A shell with a session daemon.
#[derive(Debug)]
pub struct Lttng {
    talk: RefCell<(ChildStdin, BufReader<ChildStdout>)>,
    _shell: Process,
    _dir: TempDir,
}

impl Lttng {
    /// Starts with four sub-buffers of 1 MiB a CPU, overwritten. `None` if LTTng is not installed.
    pub fn overwriting() -> Option<Lttng> {
        Lttng::start(OVERWRITING)
    }

    /// Starts with eight sub-buffers of 1 MiB a CPU, recorded. `None` if LTTng is not installed.
    pub fn recording() -> Option<Lttng> {
        Lttng::start(RECORDING)
    }

    fn start(script: &str) -> Option<Lttng> {
        let dir = tempfile::tempdir().expect("a temporary directory");
        let emit = dir.path().join("emit");
        let paths = std::env::var_os("PATH").unwrap_or_default();
        if !std::env::split_paths(&paths).any(|dir| dir.join("lttng").is_file()) {
            return None;
        }
        let source = workspace().join("tests/lttng");
        let mut cc = Command::new("cc");
        cc.args(["-O2", "-I"]).arg(&source).arg(source.join("emit.c"));
        let built = run(cc.arg("-o").arg(&emit).args(["-llttng-ust", "-ldl"]));
        let said = text(&built.stderr);
        if said.contains("lttng/tracepoint.h: No such file") {
            return None;
        }
        assert!(built.status.success(), "building tests/lttng/emit.c: {said}");
        // Answers go to descriptor 3, complaints to 4, and the rest of LTTng's output to a file that is not read.
        let script =
            format!("exec 3>&1 4>&2 >/run/said\nexport HOME=/run\nlttng-sessiond --daemonize\n{script}");
        let mut shell = private_shell(&script);
        shell.arg(&emit).stdin(Stdio::piped()).stdout(Stdio::piped());
        let mut shell = Process::start(&mut shell);
        let Child { stdin, stdout, .. } = shell.child();
        let commands = stdin.take().expect("a pipe");
        let answers = BufReader::new(stdout.take().expect("a pipe"));
        Some(Lttng { talk: RefCell::new((commands, answers)), _shell: shell, _dir: dir })
    }

    /// Emits `n` events with a payload of `len` bytes each on CPU 0, from a separate process.
    pub fn emit(&self, len: usize, n: usize) -> Emitted {
        let (commands, answers) = &mut *self.talk.borrow_mut();
        writeln!(commands, "{len} {n}").expect("a shell that listens");
        let mut line = String::new();
        answers.read_line(&mut line).expect("an answer");
        let mut words = line.split_whitespace();
        let emitted = (|| {
            let nanos = words.next()?.parse().ok()?;
            let (lost, bytes) = (words.next()?.parse().ok()?, words.next()?.parse().ok()?);
            Some(Emitted { nanos, lost, bytes })
        })();
        emitted.unwrap_or_else(|| panic!("what LTTng came to: {line:?}"))
    }
}
