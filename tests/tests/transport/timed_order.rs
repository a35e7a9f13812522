//! The order of records that different CPUs and processes write, where the test knows what happened first.

use std::sync::mpsc;
use std::thread;

use relayfs_tests::Mount;
use relayfs_tests::direct::pin;
use relayfs_tests::records::merged;

/// How often the token is handed over.
const ROUNDS: u32 = 2000;

/// Each thread has a CPU and a connection, and writes the token's number before it passes the token on.
#[test]
fn token_handed_from_cpu_to_cpu_is_in_order_in_a_global_channel() {
    let mount = Mount::new(&["--channel=log:timed:global:subbuf-size=256K"]);
    let (to_first, first) = mpsc::channel::<u32>();
    let (to_second, second) = mpsc::channel::<u32>();
    to_first.send(0).expect("a thread that takes the token");
    thread::scope(|scope| {
        let pass = |cpu: usize, from: mpsc::Receiver<u32>, to: mpsc::Sender<u32>| {
            let channel = mount.channel("log");
            scope.spawn(move || {
                pin(cpu);
                // The thread with the last token drops its end, and so ends the other thread.
                while let Ok(token) = from.recv() {
                    channel.text(&token.to_string()).expect("room");
                    // Without the answer the record may be on its way while the other thread's overtakes it.
                    channel.sync().expect("an answer");
                    if token == ROUNDS {
                        return;
                    }
                    to.send(token + 1).expect("a thread that takes the token");
                }
            });
        };
        pass(0, first, to_second);
        pass(1, second, to_first);
    });
    let all = merged(&mount, "log");
    let tokens: Vec<u32> = all.iter().map(|kept| kept.text().parse().expect("a token")).collect();
    assert_eq!(tokens, (0..=ROUNDS).collect::<Vec<u32>>());
    assert!(all.is_sorted_by(|a, b| a.stamp < b.stamp), "each token is younger than the one before");
}
