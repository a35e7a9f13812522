//! Rights that a user lacks: they are said, and what does not wait for them ends.

use std::fs::{self, File};
use std::path::Path;
use std::process::{Command, Stdio};

use nix::sys::signal::Signal;
use relayfs_tests::forwarded::{Origin, from};
use relayfs_tests::{Mount, Process, eventually, exit_code, run, text};

use crate::errors::{ARGS, write};
use crate::order::all_is_given_back;
use crate::server::{Forwarder, Server};
use crate::stored::{raw, sub_buffers};

const NAME: &str = "app/log";
/// Messages of the stream.
const N: u64 = 20;
/// The user that lacks rights.
const ME: [(&str, &str); 2] = [("NATS_USER", "me"), ("NATS_PASSWORD", "hunter2")];

/// The rights that the documentation lists for forwarders and for readers.
const TO: &str =
    "\"$JS.API.STREAM.INFO.relay\", \"$JS.API.STREAM.MSG.GET.relay\", \"$JS.API.STREAM.CREATE.relay\"";
const FROM: &str =
    "\"$JS.API.STREAM.INFO.relay\", \"$JS.API.STREAM.MSG.GET.relay\", \"$JS.API.DIRECT.GET.relay\"";

/// Starts a server on which a user has these permissions, and other clients have all.
#[track_caller]
fn server(permissions: &str) -> Server {
    Server::start(&config(permissions))
}

fn config(permissions: &str) -> String {
    format!(
        "no_auth_user: all\nauthorization {{ users: [\n{{ user: all, password: x }}\n\
         {{ user: me, password: hunter2, permissions: {{ {permissions} }} }}\n] }}"
    )
}

/// Permissions to publish to these subjects alone.
fn allowed(subjects: &str) -> String {
    format!("publish: {{ allow: [{subjects}] }}, subscribe: {{ allow: \"_INBOX.>\" }}")
}

/// Starts a forwarder as that user.
#[track_caller]
fn forward(mount: &Mount, server: &Server) -> Forwarder {
    let variables = ME.map(|(name, value)| (name, value.to_owned())).to_vec();
    Forwarder::with_variables(mount, &server.url(), "h", &["--create"], variables)
}

/// Fills a stream that any replica may answer for.
#[track_caller]
fn fill(server: &Server) -> Origin {
    server.client().create(|config| config.allow_direct = true);
    let mut client = server.raw_client();
    let mut origin = Origin::made_up("a", NAME);
    origin.send_own_texts("", &mut client);
    (0..N).for_each(|number| origin.send_text(0, number, 0, 1000 + number, &mut client));
    origin
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

/// The next connection may have the right.
#[test]
fn right_to_direct_answers_that_is_given_is_used() {
    let mut server = server("publish: { deny: \"$JS.API.DIRECT.GET.>\" }");
    let origin = fill(&server);
    let dir = tempfile::tempdir().expect("a temporary directory");
    let (out, log) = (dir.path().join("out"), dir.path().join("log"));
    let has = |path: &Path, what: &str| fs::read_to_string(path).expect("a file").contains(what);
    let mut command = read(&server);
    command.arg("-f").stdout(File::create(&out).expect("a file")).stderr(File::create(&log).expect("a log"));
    let mut follower = Process::start(&mut command);
    eventually("the right that is missing", || has(&log, "; asking without it"));
    eventually("the first records", || has(&out, &format!("a.0.{}", N - 1)));
    server.kill();
    server.restart_with(&config(""));
    origin.send_text(0, N, 0, 1000 + N, &mut server.raw_client());
    eventually("direct answers", || has(&log, "direct answers of stream 'relay' come again"));
    eventually("the next record", || has(&out, &format!("a.0.{N}")));
    follower.signal(Signal::SIGTERM);
    assert_eq!(exit_code(follower.wait()), 0);
}

/// No other way leads to messages.
#[test]
fn right_to_messages_that_is_missing_ends_a_reader() {
    let server = server("publish: { deny: \"$JS.API.STREAM.MSG.GET.>\" }");
    fill(&server);
    let violation = "Permissions Violation for Publish to \"$JS.API.STREAM.MSG.GET.relay\"";
    let output = run(&mut read(&server));
    let said = text(&output.stderr);
    assert_eq!(exit_code(output.status), 1, "{said}");
    let advice = "; give this user that right in the server's configuration\n";
    assert!(said.contains(violation) && said.ends_with(advice) && said.lines().count() == 1, "{said}");
    // With -f it is waited for.
    let dir = tempfile::tempdir().expect("a temporary directory");
    let log = dir.path().join("log");
    let (mut follow, error) = (read(&server), File::create(&log).expect("a log"));
    let mut follower = Process::start(follow.arg("-f").stdout(Stdio::null()).stderr(error));
    eventually("the right that is missing", || fs::read_to_string(&log).expect("a log").contains(violation));
    follower.signal(Signal::SIGTERM);
    assert_eq!(exit_code(follower.wait()), 0);
}

#[test]
fn rights_of_the_documentation_are_enough() {
    let (server, mount) = (server(&allowed(&format!("\"relay.>\", {TO}"))), Mount::new(ARGS));
    let mut forwarder = forward(&mount, &server);
    let written = write(&mount, "allowed");
    all_is_given_back(&mount, "cpu");
    forwarder.end();
    assert_eq!(forwarder.said(), "relay-forward: stream 'relay' created\n");
    assert_eq!(raw(&sub_buffers(&server.client().read()), "h", "cpu")[0], written);
    let server = self::server(&allowed(FROM));
    fill(&server);
    let output = run(&mut read(&server));
    assert_eq!((exit_code(output.status), text(&output.stderr)), (0, String::new()));
}

/// It is used first when there is something to look for.
#[test]
fn right_to_messages_that_is_missing_ends_the_start() {
    let server = server("publish: { deny: \"$JS.API.STREAM.MSG.GET.>\" }");
    server.client().create(|_| {});
    let mount = Mount::new(ARGS);
    let mut forwarder = forward(&mount, &server);
    forwarder
        .fails(&["Permissions Violation for Publish to \"$JS.API.STREAM.MSG.GET.relay\"; give this user"]);
}

/// The servers are up then, and each refusal is said again if the operator has allowed it meanwhile.
#[test]
fn refused_subject_is_said_once_a_change() {
    let denied = "publish: { deny: \"relay.h.cpu.>\" }";
    let (server, mount) = (server(denied), Mount::new(ARGS));
    let mut forwarder = forward(&mount, &server);
    let mut written = write(&mount, "before");
    let violation = "Permissions Violation for Publish to \"relay.h.cpu.cpu0\"; trying again";
    forwarder.says(violation);
    // The server allows and denies it on the connection that there is.
    for n in 1..3 {
        server.reload_with(&config(""));
        all_is_given_back(&mount, "cpu");
        server.reload_with(&config(denied));
        written.extend(write(&mount, "behind"));
        eventually("another refusal", || forwarder.said().matches(violation).count() > n);
    }
    server.reload_with(&config(""));
    all_is_given_back(&mount, "cpu");
    forwarder.end();
    assert!(!forwarder.said().contains("are the servers up"), "{}", forwarder.said());
    assert_eq!(raw(&sub_buffers(&server.client().read()), "h", "cpu")[0], written);
}
