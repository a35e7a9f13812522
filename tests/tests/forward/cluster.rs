//! A cluster of three: a node is killed and returns, the leader moves, and each sub-buffer is there once.

use std::thread;
use std::time::Duration;

use async_nats::jetstream::message::StreamMessage;
use relayfs_tests::stress::{StressWriter, assert_each_once};
use relayfs_tests::{Mount, eventually};

use crate::order::all_is_given_back;
use crate::server::{Client, Forwarder, Server, free_port};
use crate::stored::{raw, sub_buffers};

const ROUNDS: usize = 6;
/// Time from a sign of work to the next end of a node.
const LIFE: Duration = Duration::from_millis(50);

/// Starts a cluster of three.
#[track_caller]
pub(crate) fn start() -> [Server; 3] {
    let routes = [(); 3].map(|()| free_port());
    let clients = [(); 3].map(|()| free_port());
    let urls = routes.map(|port| format!("nats://127.0.0.1:{port}")).join(", ");
    [0, 1, 2].map(|n: usize| {
        let more = format!(
            "server_name: n{n}\ncluster {{ name: c, listen: 127.0.0.1:{}, routes: [{urls}] }}",
            routes[n]
        );
        Server::on_port(clients[n], &more)
    })
}

#[test]
fn killed_nodes_and_moved_leaders_leave_each_sub_buffer_once() {
    let mut servers = start();
    let all = servers.each_ref().map(Server::url).join(",");
    let client = Client::connect(&servers[0].url(), async_nats::ConnectOptions::new());
    client.create(|config| config.num_replicas = 3);
    let mount = Mount::with_sequences(&["--subbuf-size=16K", "--n-subbufs=8"]);
    let mut forwarder = Forwarder::start(&mount, &all, "h", &[]);
    let writer = StressWriter::start(&mount, 0, 1..=512, false);
    for round in 0..ROUNDS {
        let before = client.count();
        eventually("something stored", || client.count() > before + 4);
        thread::park_timeout(LIFE);
        if round % 2 == 0 {
            client.step_down();
        } else {
            // Not the node that the test asks.
            let node = 1 + round / 2 % 2;
            servers[node].kill();
            let before = client.count();
            eventually("something stored by two", || client.count() > before + 4);
            servers[node].restart();
        }
    }
    let done = writer.finish();
    mount.poke("cpu", "flush");
    all_is_given_back(&mount, "cpu");
    forwarder.end();
    let replicas_are_current = || {
        let cluster = client.info().and_then(|info| info.cluster);
        cluster.is_some_and(|cluster| cluster.replicas.iter().all(|replica| replica.current))
    };
    eventually("all nodes to have it", replicas_are_current);
    let messages = client.read();
    assert_each_once(raw(&sub_buffers(&messages), "h", "cpu"), &[done]);
    // Copies may disagree about the last message.
    let is_behind = |message: &StreamMessage| message.headers.get("Nats-Expected-Last-Msg-Id").is_some();
    assert!(!messages.iter().any(is_behind), "one message of a subject on the way");
}

/// The stream has one copy, and its node is down. What is said has the command that shows it.
#[test]
fn stream_without_a_leader_is_waited_for() {
    let mut servers = start();
    let all = servers.each_ref().map(Server::url).join(",");
    let client = Client::connect(&servers[0].url(), async_nats::ConnectOptions::new());
    client.create(|_| {});
    let leader = client.info().and_then(|info| info.cluster?.leader).expect("a leader");
    let node: usize = leader.trim_start_matches('n').parse().expect("a node's number");
    let mount = Mount::new(&["--subbuf-size=16K", "--n-subbufs=8"]);
    let mut forwarder = Forwarder::start(&mount, &all, "h", &[]);
    assert_eq!(mount.send(0, &[b"before "]).written, 1);
    all_is_given_back(&mount, "cpu");
    servers[node].kill();
    assert_eq!(mount.send(0, &[b"behind"]).written, 1);
    // nats-server 2.9 answers nothing then, later ones that it is offline.
    forwarder.says("(are the servers up that have it? nats stream report)");
    servers[node].restart();
    all_is_given_back(&mount, "cpu");
    forwarder.end();
    let client = Client::connect(&servers[node].url(), async_nats::ConnectOptions::new());
    assert_eq!(raw(&sub_buffers(&client.read()), "h", "cpu")[0], b"before behind");
}
