//! Each way to prove to the server what the forwarder is, with what the server accepts and with what it does not.

use std::fs;
use std::path::Path;

use async_nats::ConnectOptions;
use relayfs_tests::forwarded::from;
use relayfs_tests::{Mount, complaint, run, stdout_of};

use crate::errors::{ARGS, write};
use crate::jwt::Operator;
use crate::order::all_is_given_back;
use crate::server::{Client, Forwarder, Server};
use crate::stored::{raw, sub_buffers};

/// Forwards with these options and variables, and reads it again with the same.
#[track_caller]
fn works(server: &Server, options: ConnectOptions, arg: Option<&str>, variables: &[(&'static str, &str)]) {
    let mount = Mount::new(ARGS);
    let args: Vec<&str> = ["--create"].into_iter().chain(arg).collect();
    let variables = variables.iter().map(|(name, value)| (*name, (*value).to_owned())).collect::<Vec<_>>();
    let mut forwarder = Forwarder::with_variables(&mount, &server.url(), "h", &args, variables.clone());
    let written = write(&mount, "secret");
    all_is_given_back(&mount, "cpu");
    forwarder.end();
    assert_eq!(forwarder.said(), "relay-forward: stream 'relay' created\n");
    let client = Client::connect(&server.url(), options);
    assert_eq!(raw(&sub_buffers(&client.read()), "h", "cpu")[0], written);
    let args: Vec<&str> = ["-c", "cpu"].into_iter().chain(arg).collect();
    assert_eq!(stdout_of(from(&server.url(), &args).envs(variables)), written);
    client.delete();
}

/// Checks that forwarder and reader end with an error that says what to do, and show no secret.
#[track_caller]
fn is_refused(server: &Server, arg: Option<&str>, variables: &[(&'static str, &str)], secret: &str) {
    let mount = Mount::new(ARGS);
    let args: Vec<&str> = ["--create"].into_iter().chain(arg).collect();
    let variables = variables.iter().map(|(name, value)| (*name, (*value).to_owned())).collect::<Vec<_>>();
    let mut forwarder = Forwarder::with_variables(&mount, &server.url(), "h", &args, variables.clone());
    forwarder
        .fails(&["no connection to", "authorization violation; check --user-file, --token-file or --creds"]);
    assert!(!forwarder.said().contains(secret), "{}", forwarder.said());
    for more in [&[][..], &["-f"]] {
        let args: Vec<&str> = ["-c", "cpu"].iter().chain(more).copied().chain(arg).collect();
        let said = complaint("relay-forward", &run(from(&server.url(), &args).envs(variables.clone())));
        assert!(said.contains("authorization violation; check ") && !said.contains(secret), "{said}");
    }
}

/// Writes a file of a secret; returns the option that names it.
#[track_caller]
fn file(dir: &Path, option: &str, content: &str) -> String {
    let path = dir.join(option.trim_start_matches('-'));
    fs::write(&path, content).expect("a file of a secret");
    format!("{option}={}", path.display())
}

#[test]
fn user_and_password_are_proof() {
    let server = Server::start("authorization { user: me, password: hunter2 }");
    let dir = tempfile::tempdir().expect("a temporary directory");
    let options = || ConnectOptions::with_user_and_password("me".into(), "hunter2".into());
    works(&server, options(), None, &[("NATS_USER", "me"), ("NATS_PASSWORD", "hunter2")]);
    works(&server, options(), Some(&file(dir.path(), "--user-file", "me\nhunter2\n")), &[]);
    is_refused(&server, None, &[("NATS_USER", "me"), ("NATS_PASSWORD", "hunter3")], "hunter3");
    is_refused(&server, Some(&file(dir.path(), "--user-file", "me\nhunter3\n")), &[], "hunter3");
    is_refused(&server, None, &[], "hunter2");
}

#[test]
fn token_is_proof() {
    let server = Server::start("authorization { token: hunter2 }");
    let dir = tempfile::tempdir().expect("a temporary directory");
    let options = || ConnectOptions::with_token("hunter2".into());
    works(&server, options(), None, &[("NATS_TOKEN", "hunter2")]);
    works(&server, options(), Some(&file(dir.path(), "--token-file", "hunter2\n")), &[]);
    is_refused(&server, None, &[("NATS_TOKEN", "hunter3")], "hunter3");
    is_refused(&server, Some(&file(dir.path(), "--token-file", "hunter3\n")), &[], "hunter3");
}

#[test]
fn credentials_are_proof() {
    let dir = tempfile::tempdir().expect("a temporary directory");
    let word = dir.path().join("operator.jwt");
    let operator = Operator::new(&word.display().to_string());
    fs::write(&word, &operator.jwt).expect("a file for the server");
    let server = Server::start(&operator.config);
    let options = ConnectOptions::with_credentials(&operator.creds).expect("credentials");
    works(&server, options, Some(&file(dir.path(), "--creds", &operator.creds)), &[]);
    // The server does not know the operator.
    let other = Operator::new("other");
    is_refused(&server, Some(&file(dir.path(), "--creds", &other.creds)), &[], &other.seed);
}
