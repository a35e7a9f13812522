//! At the start, what only the operator can change is an error that says what to do. Afterwards all is waited for.

use std::fs::{self, File};
use std::os::unix::fs::PermissionsExt;

use async_nats::ConnectOptions;
use async_nats::jetstream::stream::{Config, RetentionPolicy};
use nix::sys::signal::Signal;
use relayfs_tests::users::{GROUP, NOBODY, USER, by_user, gid_of, mount_for_all, program_for_all};
use relayfs_tests::{Mount, Process, complaint, eventually, exit_code, run};

use crate::errors::{ARGS, write};
use crate::order::{all_is_given_back, is_given_back};
use crate::server::{Client, Forwarder, Server, free_port};
use crate::stored::{raw, sub_buffers};

const ONE_USER: &str = "authorization { user: me, password: hunter2 }";
const OTHER_PASSWORD: &str = "authorization { user: me, password: hunter3 }";

/// What is said to users that may not read channels.
const READERS: &str =
    "its files are for the user who mounted it, root, and the group that relayfsd --group names";

/// Sets a stream up.
type Set = fn(&mut Config);

/// Such streams acknowledge what they do not keep, or keep nothing of ours.
#[test]
fn stream_that_keeps_nothing_ends_the_start() {
    let (server, mount) = (Server::start(""), Mount::new(ARGS));
    let client = server.client();
    let written = write(&mount, "kept");
    let set_ups: [(Set, &str); 3] = [
        (
            |config| config.retention = RetentionPolicy::Interest,
            "keeps messages only for its consumers: create it again with --retention limits",
        ),
        (|config| config.no_ack = true, "acknowledges nothing: create it again without --no-ack"),
        (
            |config| config.subjects = vec!["other.>".to_owned()],
            "does not have the subjects relay.>: nats stream edit relay --subjects 'other.>,relay.>'",
        ),
    ];
    for (set, why) in set_ups {
        client.create(set);
        Forwarder::start(&mount, &server.url(), "h", &["--create"]).fails(&["stream 'relay' ", why]);
        client.delete();
    }
    assert!(!is_given_back(&mount, "cpu"));
    let mut forwarder = Forwarder::start(&mount, &server.url(), "h", &["--create"]);
    all_is_given_back(&mount, "cpu");
    forwarder.end();
    assert_eq!(raw(&sub_buffers(&client.read()), "h", "cpu")[0], written);
}

#[test]
fn stream_that_cannot_be_created_ends_the_start() {
    let (server, mount) = (Server::start(""), Mount::new(ARGS));
    Forwarder::start(&mount, &server.url(), "h", &["--create", "--replicas", "3"])
        .fails(&["stream 'relay' cannot be created: ", "; say --replicas 1"]);
    server.client().create(|config| config.name = "other".to_owned());
    Forwarder::start(&mount, &server.url(), "h", &["--create"])
        .fails(&["stream 'relay' cannot be created: ", "; say another --stream"]);
}

#[test]
fn right_that_is_missing_ends_the_start() {
    let user = "user: me, password: hunter2";
    let mount = Mount::new(ARGS);
    let variables = || vec![("NATS_USER", "me".to_owned()), ("NATS_PASSWORD", "hunter2".to_owned())];
    for denied in ["publish: { deny: \"$JS.API.>\" }", "subscribe: { deny: \"_INBOX.>\" }"] {
        let users = format!("authorization {{ users: [{{ {user}, permissions: {{ {denied} }} }}] }}");
        let server = Server::start(&users);
        let mut forwarder = Forwarder::with_variables(&mount, &server.url(), "h", &["--create"], variables());
        forwarder.fails(&["Permissions Violation for ", "; give this user that right"]);
    }
    let accounts =
        format!("accounts {{ none: {{ users: [{{ {user} }}] }}, some: {{ jetstream: enabled }} }}");
    let server = Server::start(&accounts);
    let mut forwarder = Forwarder::with_variables(&mount, &server.url(), "h", &["--create"], variables());
    forwarder.fails(&["stream 'relay': ", "; enable it in the server's configuration"]);
}

/// Root mounts, and other users may not read the channels.
#[test]
fn mount_that_refuses_ends_the_start() {
    let (server, mount) = (Server::start(""), mount_for_all(ARGS));
    server.client().create(|_| {});
    let point = mount.point().display().to_string();
    let program = program_for_all("relay-forward");
    for args in [&[][..], &["-c", "cpu"]] {
        for user in [USER, NOBODY] {
            let mut command = by_user(user, user, &program);
            command.args(["--to", &server.url(), "--mount", &point, "--host", "h"]).args(args);
            let said = complaint("relay-forward", &run(&mut command));
            assert!(said.ends_with(&format!("; {READERS}")), "{said}");
        }
    }
}

/// The directory below a mount may be root's alone. A daemon that is not there yet opens it to its group.
#[test]
fn directory_that_refuses_before_the_mount_is_waited_for() {
    let (server, mut mount) = (Server::start(""), mount_for_all(&[]));
    server.client().create(|_| {});
    mount.end(Signal::SIGTERM);
    fs::set_permissions(mount.point(), fs::Permissions::from_mode(0o700)).expect("a directory of ours");
    let point = mount.point().display().to_string();
    let program = program_for_all("relay-forward");
    let logs = ["all", "named"].map(|name| mount.beside(name));
    let mut forwarders: Vec<Process> = [&[][..], &["-c", "cpu"]]
        .iter()
        .zip(["h", "i"])
        .zip(&logs)
        .map(|((args, host), log)| {
            let mut command = by_user(NOBODY, gid_of(GROUP), &program);
            command.args(["--to", &server.url(), "--mount", &point, "--host", host]).args(*args);
            Process::start(command.stderr(File::create(log).expect("a log")))
        })
        .collect();
    let say = |what: &str| {
        let says = |log| fs::read_to_string(log).is_ok_and(|said| said.contains(what));
        eventually(what, || logs.iter().all(says));
    };
    say("waiting for");
    mount.restart(&[ARGS, &["--group", GROUP]].concat());
    say("forwarded again");
    for forwarder in &mut forwarders {
        forwarder.signal(Signal::SIGTERM);
        assert_eq!(exit_code(forwarder.wait()), 0);
    }
}

/// What the operator changes while it runs is waited for.
#[test]
fn running_forwarder_waits_for_the_operator() {
    let (mut server, mount) = (Server::start(ONE_USER), Mount::new(ARGS));
    let secret = mount.beside("secret");
    fs::write(&secret, "me\nhunter2\n").expect("a file");
    let file = format!("--user-file={}", secret.display());
    let mut forwarder = Forwarder::start(&mount, &server.url(), "h", &["--create", &file]);
    let mut written = write(&mount, "before");
    all_is_given_back(&mount, "cpu");
    server.kill();
    server.restart_with(OTHER_PASSWORD);
    forwarder.says("authorization violation; trying again");
    written.extend(write(&mount, "behind"));
    server.kill();
    server.restart_with(ONE_USER);
    all_is_given_back(&mount, "cpu");
    let options = ConnectOptions::with_user_and_password("me".into(), "hunter2".into());
    let client = Client::connect(&server.url(), options);
    client.update(|config| config.subjects = vec!["other.>".to_owned()]);
    written.extend(write(&mount, "last"));
    forwarder.says("does not have the subjects relay.>");
    client.update(|config| config.subjects = vec!["relay.>".to_owned()]);
    all_is_given_back(&mount, "cpu");
    forwarder.end();
    assert_eq!(raw(&sub_buffers(&client.read()), "h", "cpu")[0], written);
    let said = forwarder.said();
    assert!(!said.contains("hunter2") && said.matches("authorization violation").count() == 1, "{said}");
}

/// One of the servers may be the right one.
#[test]
fn refusal_of_one_of_two_servers_is_waited_out() {
    let (refusing, mount, port) = (Server::start(OTHER_PASSWORD), Mount::new(ARGS), free_port());
    let urls = format!("{},nats://127.0.0.1:{port}", refusing.url());
    let variables = vec![("NATS_USER", "me".to_owned()), ("NATS_PASSWORD", "hunter2".to_owned())];
    let mut forwarder = Forwarder::with_variables(&mount, &urls, "h", &["--create"], variables);
    write(&mount, "early");
    forwarder.says("authorization violation");
    forwarder.says("Connection refused");
    let _server = Server::on_port(port, ONE_USER);
    all_is_given_back(&mount, "cpu");
    forwarder.end();
}

/// Members of the daemon's group read, and the daemon alone finishes sub-buffers then.
#[test]
fn member_of_the_group_cannot_flush_and_says_so() {
    let (server, mount) = (Server::start(""), mount_for_all(&["--group", GROUP, "--flush-interval=never"]));
    server.client().create(|_| {});
    let log = mount.beside("log");
    let mut command = by_user(NOBODY, gid_of(GROUP), program_for_all("relay-forward"));
    command.args(["--to", &server.url(), "--host", "h", "--mount"]).arg(mount.point());
    command.arg("--flush-interval=10ms");
    let mut forwarder = Process::start(command.stderr(File::create(&log).expect("a log")));
    let said = || fs::read_to_string(&log).expect("its log");
    assert_eq!(mount.send(0, &[b"waits"]).written, 1);
    eventually("the trouble", || said().contains("--flush-interval has no effect on "));
    assert!(said().contains("; set relayfsd --flush-interval: only "), "{}", said());
    mount.poke("cpu", "flush");
    all_is_given_back(&mount, "cpu");
    assert_eq!(mount.send(1, &[b"waits again"]).written, 1);
    mount.poke("cpu", "flush");
    all_is_given_back(&mount, "cpu");
    forwarder.signal(Signal::SIGTERM);
    assert_eq!(exit_code(forwarder.wait()), 0);
    assert_eq!(said().lines().count(), 1, "{}", said());
}
