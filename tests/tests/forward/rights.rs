//! Rights that a user lacks: they are said, and what does not wait for them ends.

use std::fs::{self, File};
use std::process::{Command, Stdio};

use nix::sys::signal::Signal;
use relayfs_tests::forwarded::{Origin, from};
use relayfs_tests::{Process, complaint, eventually, exit_code, run, text};

use crate::server::Server;

const NAME: &str = "app/log";
/// Messages of the stream.
const N: u64 = 20;
/// The user that lacks rights.
const ME: [(&str, &str); 2] = [("NATS_USER", "me"), ("NATS_PASSWORD", "hunter2")];

/// Starts a server on which a user has these permissions, and other clients have all.
#[track_caller]
fn server(permissions: &str) -> Server {
    Server::start(&format!(
        "no_auth_user: all\nauthorization {{ users: [\n{{ user: all, password: x }}\n\
         {{ user: me, password: hunter2, permissions: {{ {permissions} }} }}\n] }}"
    ))
}

/// Fills a stream that any replica may answer for.
#[track_caller]
fn fill(server: &Server) {
    server.client().create(|config| config.allow_direct = true);
    let mut client = server.raw_client();
    let mut origin = Origin::made_up("a", NAME);
    origin.send_own_texts("", &mut client);
    (0..N).for_each(|number| origin.send_text(0, number, 0, 1000 + number, &mut client));
}

/// The command that reads the stream as that user.
fn read(server: &Server) -> Command {
    let mut command = from(&server.url(), &["-c", NAME, "-o", "cat"]);
    command.envs(ME);
    command
}

/// The leader has the messages too, and is asked at once.
#[test]
fn stream_is_read_without_the_right_to_direct_answers() {
    let server = server("publish: { deny: \"$JS.API.DIRECT.GET.>\" }");
    fill(&server);
    let output = run(&mut read(&server));
    let said = text(&output.stderr);
    assert_eq!((exit_code(output.status), text(&output.stdout).lines().count() as u64), (0, N), "{said}");
    assert!(said.contains("Permissions Violation for Publish to \"$JS.API.DIRECT.GET."), "{said}");
    assert!(said.lines().count() == 1 && said.contains("; asking without it"), "{said}");
}

/// No other way leads to messages.
#[test]
fn right_to_messages_that_is_missing_ends_a_reader() {
    let server = server("publish: { deny: \"$JS.API.STREAM.MSG.GET.>\" }");
    fill(&server);
    let violation = "Permissions Violation for Publish to \"$JS.API.STREAM.MSG.GET.relay\"";
    let said = complaint("relay-forward", &run(&mut read(&server)));
    assert!(
        said.contains(violation)
            && said.ends_with("; give this user that right in the server's configuration")
    );
    // With -f it is waited for.
    let dir = tempfile::tempdir().expect("a temporary directory");
    let log = dir.path().join("log");
    let (mut follow, error) = (read(&server), File::create(&log).expect("a log"));
    let mut follower = Process::start(follow.arg("-f").stdout(Stdio::null()).stderr(error));
    eventually("the right that is missing", || fs::read_to_string(&log).expect("a log").contains(violation));
    follower.signal(Signal::SIGTERM);
    assert_eq!(exit_code(follower.wait()), 0);
}
