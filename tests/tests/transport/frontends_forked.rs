//! The front ends in children that a process forks while its threads are inside the library.

use std::process::{Command, Stdio};

use relayfs_tests::audience::audience;
use relayfs_tests::{Mount, Process, eventually, program, stdout_of, text};

const CHANNEL: &str = "--channel=app/log:timed:overwrite:subbuf-size=1M:n-subbufs=8";

fn forks(mount: &Mount, args: &[&str]) -> Command {
    let mut command = Command::new(program("test-forks"));
    command.args(args).env("RELAYFS", mount.point());
    command
}

/// How many records begin in this way.
fn count(mount: &Mount, start: &str) -> usize {
    let args = ["-c", "app/log", "--snapshot", "-o", "cat"];
    let lines = text(&stdout_of(&mut audience(mount.point(), &args)));
    lines.lines().filter(|line| line.starts_with(start)).count()
}

/// The library's locks are those of one process, so that of another thread's call is none in the child.
#[test]
fn children_of_a_busy_process_log_and_reach_the_daemon() {
    for how in ["busy", "busy-by-socket"] {
        let mount = Mount::new(&[CHANNEL]);
        // The newest records, of which the threads write many.
        stdout_of(&mut forks(&mount, &[how]));
        assert!(count(&mount, "busy") > 0);
        let newest = "child number=39";
        let all = [newest, "log of child number=39", "new place of child"];
        eventually("the last child's records", || all.iter().all(|start| count(&mount, start) > 0));
    }
}

/// A definition waits for the daemon, one second at most. A child that is forked meanwhile does not.
#[test]
fn child_of_a_process_that_defines_an_event_defines_its_own() {
    let mut mount = Mount::new(&[CHANNEL]);
    let daemon = mount.daemon().pid().to_string();
    let mut process = Process::start(forks(&mount, &["waiting", &daemon]).stdin(Stdio::piped()));
    eventually("an event that the child has defined", || {
        assert!(process.is_running(), "it ended, or its child");
        count(&mount, "later place of child") > 0
    });
    drop(process.child().stdin.take());
    assert_eq!(process.wait().code(), Some(0));
}
