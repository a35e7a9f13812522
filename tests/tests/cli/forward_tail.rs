//! `relay-forward --from` with -S and -n: the end of a stream is found, exactly, and the rest of it is not read.

use std::time::{Duration, Instant, SystemTime};

use relayfs_tests::forwarded::{Follower, Origin, from};
use relayfs_tests::nats::{NatsClient, NatsServer};
use relayfs_tests::{eventually, exit_code, run, text};

const NAME: &str = "app/log";
/// Sub-buffers of the old part of a stream, for each of its lanes.
const OLD: u64 = 1000;
/// Longest difference of clocks that -n allows for beyond what it has seen.
const APART: Duration = Duration::from_secs(1);

/// Nanoseconds since 1970.
fn now() -> u64 {
    let since = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).expect("a time after 1970");
    u64::try_from(since.as_nanos()).expect("a time before 2500")
}

/// A stream whose hosts `a` and `b` have three busy lanes, and `quiet` has one whose messages are the oldest.
///
/// The end of the stream is younger than the rest. `ahead`: by how much clocks of hosts are ahead of the server's.
struct Tail {
    server: NatsServer,
    client: NatsClient,
    hosts: Vec<Origin>,
    /// When the clocks of the hosts are zero, in nanoseconds since 1970, by the server's clock.
    begin: u64,
}

impl Tail {
    fn new(more: &str, ahead: u64) -> Tail {
        let server = NatsServer::start(&[]);
        let mut client = server.client();
        client.create_stream("relay", more);
        let begin = now();
        let mut hosts: Vec<Origin> =
            ["a", "b", "quiet"].map(|host| Origin::made_up_at(host, NAME, begin + ahead)).to_vec();
        hosts.iter_mut().for_each(|host| host.send_own_texts("", &mut client));
        let mut tail = Tail { server, client, hosts, begin };
        (0..5).for_each(|number| tail.send(2, 0, number));
        (0..OLD).for_each(|number| tail.send_busy(number));
        // The messages that follow are younger than these by more than clocks may differ.
        let end = Instant::now();
        eventually("the next second", || end.elapsed() > APART);
        (OLD..OLD + 10).for_each(|number| tail.send_busy(number));
        tail
    }

    /// Sends a record with the present time.
    fn send(&mut self, host: usize, cpu: u32, number: u64) {
        let stamp = now() - self.begin;
        self.hosts[host].send_text(cpu, number, 0, stamp, &mut self.client);
    }

    fn send_busy(&mut self, number: u64) {
        [(0, 0), (1, 0), (0, 1)].into_iter().for_each(|(host, cpu)| self.send(host, cpu, number));
    }

    /// Returns the lines that are printed, and how many messages the reader has sent to the server.
    #[track_caller]
    fn read(&self, args: &[&str]) -> (Vec<String>, u64) {
        let before = self.server.counted().messages;
        let output = run(&mut from(&self.server.url(), args));
        assert_eq!((exit_code(output.status), text(&output.stderr)), (0, String::new()), "{args:?}");
        let lines = text(&output.stdout).lines().map(str::to_owned).collect();
        (lines, self.server.counted().messages - before)
    }
}

/// Requests that find the end of these streams, at most: much fewer than there are messages.
const FEW: u64 = OLD / 2;

#[test]
fn last_records_are_found_without_reading_the_stream() {
    for (more, ahead) in [("", 0), (",\"allow_direct\":true", 0), ("", 3_600_000_000_000)] {
        let tail = Tail::new(more, ahead);
        let (all, n_all) = tail.read(&["-o", "cat"]);
        assert!(all.len() as u64 == 3 * (OLD + 10) + 5 && n_all > 3 * OLD, "{} {n_all}", all.len());
        for n in [0, 1, 7, 29] {
            let (last, n_asked) = tail.read(&["-o", "cat", "-n", &n.to_string()]);
            assert_eq!(last, all[all.len() - n..], "-n {n}");
            // A clock that is ahead costs as much of the stream as it is ahead.
            assert!(ahead > 0 || n_asked < FEW, "-n {n}: {n_asked} requests");
        }
        // What is asked for is far from the end, and alone.
        let (last, n_asked) = tail.read(&["-o", "cat", "--host", "quiet", "-n", "3"]);
        assert_eq!(last, ["quiet.0.2", "quiet.0.3", "quiet.0.4"]);
        assert!(n_asked < FEW, "{n_asked} requests");
        // Records that do not pass do not count: the one that does is the oldest of all.
        let (last, _) = tail.read(&["-o", "cat", "-n", "2", "-g", "quiet.0.[03]|a.0.7$"]);
        assert_eq!(last, ["quiet.0.3", "a.0.7"]);
        let (last, _) = tail.read(&["-o", "cat", "-n", "5000"]);
        assert_eq!(last, all);
    }
}

#[test]
fn last_records_before_a_time_are_found() {
    let tail = Tail::new("", 0);
    let (all, _) = tail.read(&["-o", "short-unix"]);
    for at in [3, 1500, all.len() - 4] {
        // "HOST CHANNEL TIME cpu0 ..."
        let time = all[at].split(' ').nth(2).expect("a time");
        let until = format!("@{time}999");
        let (last, _) = tail.read(&["-o", "short-unix", "-U", &until, "-n", "3"]);
        assert_eq!(last.len(), 3);
        let end = all.iter().rposition(|line| *line == last[2]).expect("a line of all");
        assert_eq!(last, all[end - 2..=end], "-U {until}");
        let time_of = |line: &str| line.split(' ').nth(2).expect("a time").to_owned();
        assert!(
            time_of(&last[2]) == time && all.get(end + 1).is_none_or(|next| time_of(next).as_str() > time)
        );
        let (since, _) = tail.read(&["-o", "short-unix", "-S", &format!("@{time}"), "-n", "5000"]);
        assert_eq!(since, all[all.len() - since.len()..]);
        assert!(since.len() >= all.len() - at && time_of(&since[0]) == time, "-S {time}");
    }
}

#[test]
fn records_since_a_time_are_read_without_what_is_older() {
    let tail = Tail::new("", 0);
    // A minute, by which clocks may differ, is over at that time. So no message may have it.
    let since = (now() + 62_000_000_000) / 1_000_000_000;
    let (none, n_asked) = tail.read(&["-o", "cat", "-S", &format!("@{since}")]);
    assert!(none.is_empty() && n_asked < FEW, "{none:?}, {n_asked} requests");
    // Clocks that are an hour ahead are noticed.
    let ahead = Tail::new("", 3_600_000_000_000);
    let (all, _) = ahead.read(&["-o", "short-unix"]);
    let time = all[2000].split(' ').nth(2).expect("a time");
    let (found, _) = ahead.read(&["-o", "short-unix", "-S", &format!("@{time}")]);
    assert!(found.len() >= all.len() - 2000 && found == all[all.len() - found.len()..], "{}", found.len());
}

#[test]
fn follower_begins_with_the_last_records() {
    let mut tail = Tail::new("", 0);
    let before = tail.server.counted().messages;
    let follower = Follower::start(&tail.server, &["-o", "cat", "-n", "3", "--hold", "50ms"]);
    let last = |n: u64| ["a.0", "b.0", "a.1"].map(|lane| format!("{lane}.{n}")).to_vec();
    let mut expected = last(OLD + 9);
    let has = |expected: &[String]| {
        eventually(&format!("{expected:?}: {}", follower.said()), || {
            follower.out().lines().eq(expected.iter().map(String::as_str))
        });
    };
    has(&expected);
    assert!(tail.server.counted().messages - before < FEW);
    // And then what comes, also of a host that has no message behind the begin.
    tail.send_busy(OLD + 10);
    expected.extend(last(OLD + 10));
    has(&expected);
    tail.send(2, 0, 5);
    expected.push("quiet.0.5".to_owned());
    has(&expected);
    assert_eq!(follower.end(), "");
}

/// Parts whose first one is before the begin are left out without a word, as what is older is.
#[test]
fn sub_buffers_in_parts_are_found_as_others() {
    let server = NatsServer::start(&[]);
    let mut client = server.client();
    client.create_stream("relay", "");
    let begin = now();
    let mut origin = Origin::made_up_at("a", NAME, begin);
    origin.send_own_texts("", &mut client);
    let send = |from: u64, to: u64, client: &mut NatsClient| {
        for number in from..to {
            let stamp = now() - begin;
            let packet = relayfs_tests::forwarded::packet(0, number, 0, stamp, &format!("text {number}"));
            origin.send(0, number, 0, 3, &packet, client);
        }
    };
    send(0, 300, &mut client);
    let end = Instant::now();
    eventually("the next second", || end.elapsed() > APART);
    send(300, 330, &mut client);
    for n in 1..30 {
        let before = server.counted().messages;
        let output = run(&mut from(&server.url(), &["-o", "cat", "-n", &n.to_string()]));
        let expected: String = (330 - n..330).map(|number| format!("text {number}\n")).collect();
        assert_eq!((text(&output.stdout), text(&output.stderr)), (expected, String::new()));
        assert!(server.counted().messages - before < FEW);
    }
}
