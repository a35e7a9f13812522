//! Lines of known text for tools, in a buffer and in an ordinary file beside it.

use std::fs;
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use relay_producer::{BatchOptions, Wait};

use crate::{Mount, run, tool};

/// Makes numbered lines of different lengths, so that they leave different padding in sub-buffers.
pub fn lines(numbers: Range<usize>) -> Vec<String> {
    let letters = "abcdefghijklmnopqrstuvwxyz".repeat(4);
    numbers.map(|i| format!("{i:06} {}\n", &letters[i % 26..i % 26 + i * 7 % 78])).collect()
}

/// Writes lines to buffer 0 of channel `cpu`, a message each, and waits for room. Returns their bytes.
#[track_caller]
pub fn send_lines(mount: &Mount, numbers: Range<usize>) -> Vec<u8> {
    let lines = lines(numbers);
    let options = BatchOptions { cpu: Some(0), wait: Wait::Forever };
    let counts = mount.channel("cpu").write_batch(&lines, options).expect("writing lines");
    assert_eq!(counts.written, lines.len() as u64, "{counts:?}");
    lines.concat().into_bytes()
}

/// Checks that bytes are equal, and shows the first difference.
#[track_caller]
pub fn assert_same(what: &str, got: &[u8], want: &[u8]) {
    if got == want {
        return;
    }
    let at = got.iter().zip(want).position(|(a, b)| a != b).unwrap_or(got.len().min(want.len()));
    let around =
        |bytes: &[u8]| bytes[at.saturating_sub(40)..(at + 40).min(bytes.len())].escape_ascii().to_string();
    panic!(
        "{what}: {} bytes for {}, different from byte {at} on:\n got {:?}\nwant {:?}",
        got.len(),
        want.len(),
        around(got),
        around(want)
    );
}

/// A mount whose `cpu0` holds lines, and an ordinary file with the same content.
///
/// The lines fill many sub-buffers, most with padding. The mount has another channel, `app/log`.
#[derive(Debug)]
pub struct Twins {
    /// The mount.
    pub mount: Mount,
    /// The content of both files.
    pub content: Vec<u8>,
    ordinary: PathBuf,
}

impl Twins {
    /// A few KiB: less than tools read at a time.
    #[track_caller]
    pub fn small() -> Twins {
        Twins::new(100, "700", &[])
    }

    /// Less than 1 MiB, in many blocks of every tool.
    #[track_caller]
    pub fn medium() -> Twins {
        Twins::new(20_000, "50000", &[])
    }

    /// A few MiB: more than any tool reads at a time.
    #[track_caller]
    pub fn large() -> Twins {
        Twins::new(50_000, "100000", &[])
    }

    /// Less than 1 MiB in a buffer in overwrite mode with room for all of it.
    #[track_caller]
    pub fn overwriting() -> Twins {
        Twins::new(20_000, "50000", &["--overwrite"])
    }

    #[track_caller]
    fn new(n_lines: usize, subbuf_size: &str, more: &[&str]) -> Twins {
        let args = ["--subbuf-size", subbuf_size, "--n-subbufs", "32", "--channel", "app/log"];
        let mount = Mount::new(&[&args, more].concat());
        let content = send_lines(&mount, 0..n_lines);
        let ordinary = mount.beside("ordinary");
        fs::write(&ordinary, &content).expect("writing an ordinary file");
        Twins { mount, content, ordinary }
    }

    /// The ordinary file.
    pub fn copy(&self) -> &Path {
        &self.ordinary
    }

    /// Runs a script on the ordinary file and on the buffer; fails unless the results are equal.
    ///
    /// `$F` is the file, `$COPY` a file with the same content, `$OUT` a path for output of the script.
    #[track_caller]
    pub fn compare(&self, script: &str) {
        let buffer = self.mount.path("cpu0");
        let [on_ordinary, on_buffer] = [&self.ordinary, &buffer].map(|file| {
            let out = tempfile::tempdir().expect("a temporary directory");
            run(shell(script).env("F", file).env("COPY", &self.ordinary).env("OUT", out.path().join("out")))
        });
        let what = |output: &Output| format!("{script}: {}, {}", output.status, output.stderr.escape_ascii());
        assert!(on_ordinary.status.success(), "on an ordinary file: {}", what(&on_ordinary));
        assert!(on_buffer.status.success(), "{}", what(&on_buffer));
        assert_same(script, &on_buffer.stdout, &on_ordinary.stdout);
    }

    /// Fills the buffer again, with other lines.
    #[track_caller]
    pub fn refill(&mut self, numbers: Range<usize>) {
        self.content = send_lines(&self.mount, numbers);
        fs::write(&self.ordinary, &self.content).expect("writing an ordinary file");
    }
}

/// A command that runs a shell script, with a time limit.
#[track_caller]
pub fn shell(script: &str) -> Command {
    let mut command = tool("timeout", "coreutils");
    command.args(["60", "sh", "-euc", script]);
    command
}
