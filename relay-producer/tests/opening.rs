//! Finding a daemon and opening a channel, and the errors of other things at the path.

mod common;

use std::fs;
use std::os::unix::fs::symlink;
use std::path::Path;

use common::{Daemon, Manners, PATIENCE, geometry, hello_reply, idle_socket, open_by_socket, open_reply};
use nix::sys::socket::SockType;
use relay::wire::frame::{Body, Frame, OpenReply, Refusal};
use relay_producer::{Channel, ConnectError, GeometrySpec, Mode, OpenError, Transport};
use tempfile::{TempDir, tempdir};

fn error(mount: &Path) -> OpenError {
    Channel::open(mount, "cpu").expect_err("no daemon is there")
}

/// A mount point as producers see it.
fn mount(dir: &TempDir, target: &Path) -> std::path::PathBuf {
    let mount = dir.path().join("mount");
    fs::create_dir_all(mount.join(".relay")).unwrap();
    symlink(target, mount.join(".relay/socket")).unwrap();
    mount
}

#[test]
fn channel_is_opened_by_socket_or_by_mount_point() {
    let dir = tempdir().unwrap();
    let daemon =
        Daemon::start(&dir, Manners { geometry: "subbuf-size=64K:n-subbufs=8", ..Manners::default() });
    let relative = Path::new("../../socket");
    for mount in [daemon.socket.clone(), mount(&dir, &daemon.socket), mount(&tempdir_in(&dir), relative)] {
        let channel = Channel::open(mount, "cpu").unwrap();
        assert_eq!(channel.geometry(), geometry("subbuf-size=64K:n-subbufs=8"));
        assert_eq!(channel.n_bufs(), common::N_CPUS as usize);
        assert!(!channel.created());
        assert_eq!(channel.transport(), Transport::Socket);
        assert_eq!(channel.transport().to_string(), "socket");
    }
    assert_eq!(daemon.store().opened, vec![("cpu".into(), false); 3]);
}

/// A directory beside the socket.
fn tempdir_in(dir: &TempDir) -> TempDir {
    let inner = TempDir::new_in(dir.path()).unwrap();
    // "../../socket", from inner/mount/.relay, is inner/socket.
    symlink(dir.path().join("socket"), inner.path().join("socket")).unwrap();
    inner
}

#[test]
fn socket_with_a_long_path_is_connected() {
    let dir = tempdir().unwrap();
    let daemon = Daemon::start(&dir, Manners::default());
    let deep = dir.path().join("d".repeat(200)).join("e".repeat(200));
    fs::create_dir_all(&deep).unwrap();
    let moved = deep.join("socket");
    fs::rename(&daemon.socket, &moved).unwrap();
    Channel::open(&moved, "cpu").unwrap().write(b"far away").unwrap();
    daemon.wait_for("the message", |store| store.messages.len() == 1);
}

#[test]
fn created_channel_has_the_geometry_of_the_reply() {
    let dir = tempdir().unwrap();
    let daemon = Daemon::start(&dir, Manners { geometry: "subbuf-size=4K", ..Manners::default() });
    let spec = "n-subbufs=3:header=16".parse::<GeometrySpec>().unwrap();
    let build = |name| {
        let builder = Channel::builder(&daemon.socket, name).create(true).geometry(spec);
        builder.mode(Mode::Overwrite).global(true).open().unwrap()
    };
    let channel = build("app/log");
    assert!(channel.created());
    assert_eq!(channel.geometry(), geometry("subbuf-size=4K:n-subbufs=3:header=16:overwrite:global"));
    assert_eq!(channel.n_bufs(), 1);
    let existing = build("cpu");
    assert!(!existing.created());
    assert_eq!(existing.geometry(), geometry("subbuf-size=4K"));
}

#[test]
fn refusal_has_the_daemons_text() {
    let dir = tempdir().unwrap();
    let daemon = Daemon::start(&dir, Manners::default());
    let error = Channel::open(&daemon.socket, "nosuch").unwrap_err();
    assert_eq!(error.to_string(), "no channel 'nosuch' (existing: cpu)");
    assert!(matches!(error, OpenError::Refused(refused) if refused.errno == 2));
}

#[test]
fn bad_name_or_geometry_is_not_sent_to_the_daemon() {
    let nowhere = Path::new("/nonexistent");
    assert!(matches!(Channel::open(nowhere, "../etc"), Err(OpenError::Name(_))));
    let spec = GeometrySpec { n_subbufs: Some(0), ..GeometrySpec::default() };
    let opened = Channel::builder(nowhere, "cpu").create(true).geometry(spec).open();
    assert!(matches!(opened, Err(OpenError::Geometry(_))));
}

#[test]
fn each_path_without_a_mount_has_its_error() {
    let dir = tempdir().unwrap();
    let path = |name: &str| dir.path().join(name);
    fs::write(path("file"), "").unwrap();
    fs::create_dir(path("empty")).unwrap();
    for (name, why) in [("nothing", "no such path"), ("file", "neither"), ("empty", "ordinary directory")] {
        let error = error(&path(name));
        assert!(matches!(error, OpenError::Connect(ConnectError::NotMounted { .. })), "{error}");
        assert!(error.to_string().contains(why), "{error}");
    }
    let error = error(&mount(&dir, &path("gone")));
    assert!(matches!(error, OpenError::Connect(ConnectError::NoDaemon { .. })), "{error}");
}

#[test]
fn each_socket_without_a_daemon_has_its_error() {
    let dir = tempdir().unwrap();
    let path = |name: &str| dir.path().join(name);
    drop(idle_socket(&path("dead"), SockType::SeqPacket).unwrap());
    assert!(matches!(error(&path("dead")), OpenError::Connect(ConnectError::NoDaemon { .. })));
    let _stream = idle_socket(&path("stream"), SockType::Stream).unwrap();
    assert!(matches!(error(&path("stream")), OpenError::Connect(ConnectError::NotOurs { .. })));
}

#[test]
fn silent_peer_is_given_up() {
    let dir = tempdir().unwrap();
    let silent = dir.path().join("silent");
    let _listener = idle_socket(&silent, SockType::SeqPacket).unwrap();
    let error = error(&silent).to_string();
    assert!(error.contains("no answer within 5 seconds"), "{error}");
}

/// Answers of a wrong daemon to HELLO, and then to OPEN.
#[test]
fn invalid_answer_to_open_is_an_error() {
    let good = geometry("");
    let hello = hello_reply().frame(0, 1);
    let open = |change: fn(&mut OpenReply)| {
        let mut reply = open_reply(&good, false);
        change(&mut reply);
        vec![hello.clone(), reply.frame(0, 2)]
    };
    let cases: Vec<(&str, Vec<Vec<u8>>)> = vec![
        ("hung up", vec![]),
        ("shorter than a frame", vec![b"HTTP/1.1".to_vec()]),
        ("of 9999 bytes", vec![vec![0; 9999]]),
        ("version: 2", vec![relay::wire::frame::HelloReply { version: 2, ..hello_reply() }.frame(0, 1)]),
        ("frame_max: 0", vec![relay::wire::frame::HelloReply { frame_max: 0, ..hello_reply() }.frame(0, 1)]),
        ("unexpected Hello", vec![hello_reply().frame(0, 7)]),
        ("unexpected Open", vec![open_reply(&good, false).frame(0, 1)]),
        ("hung up", vec![hello.clone()]),
        ("unexpected Hello", vec![hello.clone(), hello.clone()]),
        ("n_bufs: 0", open(|reply| reply.n_bufs = 0)),
        ("n_bufs: 4294967295", open(|reply| reply.n_bufs = u32::MAX)),
        ("subbuf_size: 0", open(|reply| reply.subbuf_size = 0)),
        ("header: 4294967295", open(|reply| reply.header = u32::MAX)),
        ("mode: 3", open(|reply| reply.mode = 3)),
        ("scope: 0", open(|reply| reply.scope = 0)),
    ];
    for (expected, answers) in cases {
        let dir = tempdir().unwrap();
        let daemon = Daemon::start_script(&dir, move |peer| {
            for answer in &answers {
                peer.receive();
                peer.send(answer);
            }
        });
        let error = error(&daemon.socket);
        let is_kind = match &error {
            OpenError::Connect(ConnectError::HungUp { .. }) => expected == "hung up",
            OpenError::Connect(ConnectError::NotOurs { .. }) => expected != "hung up",
            _ => false,
        };
        assert!(is_kind && error.to_string().contains(expected), "{expected}: {error}");
    }
}

#[test]
fn refusal_before_a_hang_up_is_reported() {
    let dir = tempdir().unwrap();
    let daemon = Daemon::start_script(&dir, |peer| {
        peer.send(&Refusal { errno: 11, text: "too many connections".into() }.frame(0, 0));
    });
    assert_eq!(error(&daemon.socket).to_string(), "too many connections");
}

#[test]
fn closed_channel_causes_no_reset() {
    let dir = tempdir().unwrap();
    let (sender, received) = std::sync::mpsc::channel();
    let daemon = Daemon::start_script(&dir, move |peer| {
        peer.receive();
        peer.send(&hello_reply().frame(0, 1));
        peer.receive();
        peer.send(&open_reply(&geometry(""), false).frame(0, 2));
        // The caller does not wait for this answer.
        peer.send(&Refusal { errno: 5, text: "unasked".into() }.frame(0, 99));
        while let Some(packet) = peer.receive() {
            sender.send(Frame::decode(&packet).unwrap().kind).unwrap();
        }
    });
    let channel = open_by_socket(&daemon);
    channel.write(b"last words").unwrap();
    drop(channel);
    assert_eq!(received.recv_timeout(PATIENCE).unwrap(), relay::wire::frame::FrameType::Write);
}
