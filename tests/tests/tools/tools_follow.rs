//! Tools that follow a buffer's file see later data.

use std::fs::{self, File};
use std::path::Path;
use std::process::Command;

use relayfs_tests::lines::{Twins, assert_same, send_lines};
use relayfs_tests::{Mount, Process, eventually, tool};

/// The shell of BusyBox polls before each byte. So it waits at the end, as at a terminal, and wakes at the next
/// sub-buffer.
#[test]
fn shell_that_polls_follows() {
    let twins = Twins::small();
    let out = twins.mount.beside("out");
    let mut sh = tool("busybox", "busybox");
    sh.args(["sh", "-c", "while IFS= read -r line; do printf '%s\n' \"$line\"; done"]);
    sh.stdin(File::open(twins.mount.path("cpu0")).unwrap()).stdout(File::create(&out).unwrap());
    let mut sh = Process::start(&mut sh);
    twins.mount.poke("cpu", "flush");
    eventually("every line", || fs::read(&out).unwrap() == twins.content);
    let more = send_lines(&twins.mount, 100..200);
    twins.mount.poke("cpu", "flush");
    eventually("every line", || fs::read(&out).unwrap() == [&twins.content[..], &more].concat());
    assert!(sh.is_running(), "it waits for more");
}

/// `tail -f` and `tail -c +1 -f` see later data, through a much smaller ring.
#[test]
fn tail_follows() {
    tool("busybox", "busybox");
    let tails = [
        "tail -s 0.01 -f",
        "tail -s 0.01 -c +1 -f",
        "tail -s 0.01 -n 1000 -f",
        "tail -s 0.01 -n +1 -F",
        "busybox tail -c +1 -f",
        "busybox tail -n 1000 -f",
    ];
    for used in [false, true] {
        for command in tails {
            let mount = Mount::new(&["--subbuf-size", "10000", "--n-subbufs", "4"]);
            if used {
                send_lines(&mount, 0..500);
                mount.read("cpu0");
            }
            let mut content = send_lines(&mount, 0..5);
            let out = mount.beside("out");
            let mut tail = follow(command, &mount, &out);
            let printed = |content: &[u8]| {
                let what = format!("{command}, used {used}, has printed {} bytes", content.len());
                eventually(&what, || fs::read(&out).unwrap().len() >= content.len());
                assert_same(&what, &fs::read(&out).unwrap(), content);
            };
            printed(&content);
            content.extend(send_lines(&mount, 5..6)); // far from filling a sub-buffer
            printed(&content);
            content.extend(send_lines(&mount, 6..1200));
            printed(&content);
            assert!(tail.is_running(), "{command} has ended");
        }
    }
}

/// A tool that wants only new data skips the data that is there.
#[test]
fn tail_follows_from_the_end() {
    for command in ["tail -s 0.01 -n 0 -f", "tail -s 0.01 -c 0 -f"] {
        let mount = Mount::new(&["--subbuf-size", "10000", "--n-subbufs", "4"]);
        let before = send_lines(&mount, 0..500);
        let out = mount.beside("out");
        let tail = follow(command, &mount, &out);
        eventually("tail to be at the end", || {
            position(&tail, &mount.path("cpu0")) == Some(before.len() as u64)
        });
        let content = send_lines(&mount, 500..5000);
        eventually("what was written later", || fs::read(&out).unwrap().len() >= content.len());
        assert_same(command, &fs::read(&out).unwrap(), &content);
    }
}

/// Starts a command that follows `cpu0` and prints into a file.
fn follow(command: &str, mount: &Mount, out: &Path) -> Process {
    let mut shell = Command::new("sh");
    shell.args(["-c", &format!("exec {command} \"$0\"")]).arg(mount.path("cpu0"));
    Process::start(shell.stdout(File::create(out).unwrap()))
}

/// Returns the offset of a process's open file; `None` if it has not opened the file.
fn position(process: &Process, path: &Path) -> Option<u64> {
    let proc = format!("/proc/{}", process.pid());
    let mut fds = fs::read_dir(format!("{proc}/fd")).ok()?.flatten();
    let fd = fds.find(|fd| fs::read_link(fd.path()).is_ok_and(|target| target == path))?;
    let info = fs::read_to_string(format!("{proc}/fdinfo/{}", fd.file_name().display())).ok()?;
    info.lines().find_map(|line| line.strip_prefix("pos:")?.trim().parse().ok())
}
