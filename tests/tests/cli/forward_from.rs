//! `relay-forward --from`: what is in a stream of JetStream comes out in one order over hosts, channels and CPUs, as
//! `audience` prints it at its origin, or as recordings; what is missing or wrong is said in place.

use std::fs;
use std::path::Path;
use std::process::{Command, Output, Stdio};

use nix::sys::signal::Signal;
use relay::trace::packet::HEADER_LEN;
use relay_producer::{BatchOptions, Wait};
use relayfs_tests::audience::audience;
use relayfs_tests::clocks::{Clocks, OfKernel};
use relayfs_tests::ctf;
use relayfs_tests::forwarded::{Follower, Origin, from, packet};
use relayfs_tests::nats::{NatsClient, NatsServer};
use relayfs_tests::{Mount, Process, complaint, eventually, exit_code, program, run, text, tool};

const CHANNEL: &str = "--channel=app/log:timed:subbuf-size=1K:n-subbufs=64";
const NAME: &str = "app/log";

/// Writes a text into a CPU's buffer.
#[track_caller]
fn say(mount: &Mount, cpu: usize, text: &str) {
    let channel = mount.channel(NAME);
    let mut batch = channel.batch(BatchOptions { cpu: Some(cpu), wait: Wait::No }).expect("a batch");
    batch.push_text(text.as_bytes()).expect("a text");
    assert_eq!(batch.finish().expect("writing").written, 1, "{text}");
}

/// A server with the stream, and a client of it.
fn server(more: &str) -> (NatsServer, NatsClient) {
    let server = NatsServer::start(&[]);
    let mut client = server.client();
    client.create_stream("relay", more);
    (server, client)
}

/// Runs `relay-forward --from` to its end.
fn read(server: &NatsServer, args: &[&str]) -> Output {
    run(&mut from(&server.url(), args))
}

/// What it prints if it succeeds and complains about nothing.
#[track_caller]
fn lines(server: &NatsServer, args: &[&str]) -> Vec<String> {
    let output = read(server, args);
    assert_eq!((exit_code(output.status), text(&output.stderr)), (0, String::new()));
    text(&output.stdout).lines().map(str::to_owned).collect()
}

/// What `audience` prints of a channel at its origin.
#[track_caller]
fn at_origin(mount: &Mount, args: &[&str]) -> Vec<String> {
    let output = run(&mut audience(mount.point(), &[&["-c", NAME, "--snapshot"], args].concat()));
    assert_eq!((exit_code(output.status), text(&output.stderr)), (0, String::new()));
    text(&output.stdout).lines().map(str::to_owned).collect()
}

/// The last word of each line.
fn last_words(lines: &[String]) -> Vec<&str> {
    lines.iter().map(|line| line.rsplit(' ').next().unwrap_or_default()).collect()
}

/// Lines without their times: the daemon has later anchors, so a microsecond may be another.
fn without_times(lines: &[String]) -> Vec<&str> {
    lines.iter().map(|line| line.split_once(' ').expect("a time").1).collect()
}

#[test]
fn hosts_with_other_clocks_are_printed_in_one_order() {
    let (server, mut client) = server("");
    // Another clock, another frequency, and another CLOCK_MONOTONIC.
    let clocks = [Clocks::new("tsc"), Clocks::new("hpet")];
    clocks[1].set(OfKernel::Monotonic, 100_000);
    clocks[1].set(OfKernel::Boot, 100_000);
    let mounts = clocks.each_ref().map(|clocks| Mount::prepared(&[CHANNEL], |command| clocks.of(command)));
    let numbers: Vec<String> = (0..600).map(|n| n.to_string()).collect();
    for (n, number) in numbers.iter().enumerate() {
        say(&mounts[n % 2], n / 2 % 2, number);
    }
    let hosts = ["web1", "web2%2Eexample"];
    let origins: Vec<Origin> =
        mounts.iter().zip(hosts).map(|(mount, host)| Origin::of(mount, host, NAME, &mut client)).collect();
    for (origin, mount) in origins.iter().zip(&mounts) {
        for cpu in 0..2 {
            assert!(origin.send_copy(mount, cpu, 1 + cpu, &mut client) > 1);
        }
    }
    let found = lines(&server, &[]);
    assert_eq!(last_words(&found), numbers);
    // The same lines as at their origin.
    for (host, mount) in ["web1", "web2.example"].into_iter().zip(&mounts) {
        let prefix = format!("{host} {NAME} ");
        let of_host = |line: &String| line.strip_prefix(&prefix).map(str::to_owned);
        let of_host: Vec<String> = found.iter().filter_map(of_host).collect();
        assert_eq!(without_times(&of_host), without_times(&at_origin(mount, &[])));
        let alone = lines(&server, &["--host", host, "-c", NAME]);
        let with_host: Vec<String> = of_host.iter().map(|line| format!("{host} {line}")).collect();
        assert_eq!(alone, with_host);
    }
    // Reading consumes nothing, and a channel that is named has the host in front alone.
    let last = lines(&server, &["-c", NAME, "-n", "3", "-o", "short-unix"]);
    assert_eq!(last_words(&last), ["597", "598", "599"]);
    assert!(last[0].starts_with("web2.example 1"), "{last:?}");
    let json = lines(&server, &["-o", "json", "-n", "1", "--host", "all"]);
    assert!(
        json[0].starts_with("{\"host\":\"web2.example\",\"channel\":\"app/log\",\"time\":\""),
        "{json:?}"
    );
    assert!(json[0].contains("\"event\":\"text\",\"message\":\"599\"}"), "{json:?}");
    assert_eq!(lines(&server, &["-o", "cat", "-g", "^1.1$"]).len(), 10);
    // Times are those of the records.
    let time = |line: &str| line.split(' ').nth(1).expect("a time").to_owned();
    let (since, until) = (time(&last[0]), time(&last[1]));
    let between = lines(&server, &["-S", &format!("@{since}"), "-U", &format!("@{until}999"), "-o", "cat"]);
    assert_eq!(between, ["597", "598"]);
}

#[test]
fn direct_and_other_streams_give_the_same() {
    let mount = Mount::new(&[CHANNEL]);
    for n in 0..300 {
        say(&mount, n % 2, &n.to_string());
    }
    let mut found: Vec<Vec<String>> = Vec::new();
    for more in ["", ",\"allow_direct\":true"] {
        let (server, mut client) = server(more);
        let origin = Origin::of(&mount, "a", NAME, &mut client);
        (0..2).for_each(|cpu| assert!(origin.send_copy(&mount, cpu, 3, &mut client) > 1));
        found.push(lines(&server, &["-c", NAME, "-o", "cat"]));
    }
    assert_eq!(found[0], found[1]);
    assert_eq!(found[0], at_origin(&mount, &["-o", "cat"]));
}

#[test]
fn recording_of_a_host_is_as_at_its_origin() {
    let (server, mut client) = server("");
    let mount = Mount::new(&[CHANNEL]);
    for n in 0..400 {
        say(&mount, n % 2, &n.to_string());
    }
    for host in ["a.b", "../c"] {
        let token = host.replace('.', "%2E");
        let origin = Origin::of(&mount, &token, NAME, &mut client);
        (0..2).for_each(|cpu| assert!(origin.send_copy(&mount, cpu, 2, &mut client) > 1));
    }
    let dir = mount.beside("recorded");
    let output = run(from(&server.url(), &["--record"]).arg(&dir));
    assert_eq!(exit_code(output.status), 0, "{}", text(&output.stderr));
    assert!(text(&output.stderr).contains("a.b app/log: "), "{}", text(&output.stderr));
    for host in ["a.b", "%2E.%2Fc"] {
        let dir = dir.join(host).join(NAME);
        assert_eq!(ctf::agree(&dir), 400);
        assert_eq!(without_times(&ctf::trace(&dir, &[])), without_times(&at_origin(&mount, &[])), "{host}");
    }
    let again = run(from(&server.url(), &["--record"]).arg(&dir));
    assert!(complaint("relay-forward", &again).contains("holds a recording already"));
}

#[test]
fn raw_channels_are_bytes() {
    let (server, mut client) = server("");
    let origin = |host: &str| Origin {
        host: host.to_owned(),
        channel: "cpu".to_owned(),
        instance: 9,
        geometry: "subbuf-size=4K:n-subbufs=4".to_owned(),
        clock: Vec::new(),
        texts: None,
    };
    let one = origin("one");
    for (cpu, number, parts, body) in
        [(0, 0, 1, "a"), (1, 0, 2, "12\n"), (0, 1, 1, "b\n"), (0, 4, 1, "late\n")]
    {
        one.send(cpu, number, 0, parts, body.as_bytes(), &mut client);
    }
    let output = read(&server, &["-c", "cpu"]);
    assert_eq!((exit_code(output.status), text(&output.stdout)), (0, "ab\nlate\n12\n".to_owned()));
    let told = "relay-forward: one cpu cpu0: sub-buffers 2 to 3 are missing: discarded by a reset, or read elsewhere\n";
    assert_eq!(text(&output.stderr), told);
    let refused = complaint("relay-forward", &read(&server, &["-c", "cpu", "-n", "1"]));
    assert!(refused.contains("raw") && refused.contains("--lines"), "{refused}");
    // Two are told apart, and not mixed.
    origin("two").send(0, 0, 0, 1, b"two\n", &mut client);
    let both = read(&server, &["-c", "cpu"]);
    assert!(!both.status.success() && both.stdout.is_empty(), "{both:?}");
    assert!(text(&both.stderr).contains("--host two -c cpu"), "{}", text(&both.stderr));
    assert_eq!(lines(&server, &["-c", "cpu", "--host", "two"]), ["two"]);
    let dir = tempfile::tempdir().expect("a temporary directory");
    let output = run(from(&server.url(), &["--record"]).arg(dir.path().join("r")));
    assert_eq!(exit_code(output.status), 0, "{}", text(&output.stderr));
    let file = |path: &str| fs::read(dir.path().join("r").join(path)).expect("a recording");
    assert_eq!((file("one/cpu/cpu0"), file("one/cpu/cpu1")), (b"ab\nlate\n".to_vec(), b"12\n".to_vec()));
    assert_eq!(file("two/cpu/cpu0"), b"two\n");
}

#[test]
fn gaps_and_losses_are_told_where_they_are() {
    let (server, mut client) = server("");
    let mut origin = Origin::made_up("a", NAME);
    origin.send_own_texts("7 700 0 0 app\t/bin/app\nthread 7 7\n", &mut client);
    origin.send_text(0, 0, 0, 1000, &mut client);
    origin.send_text(0, 3, 5, 3000, &mut client);
    origin.send_text(1, 8, 0, 2000, &mut client);
    // The channel is created again, with other numbers and losses.
    let mut again = Origin { instance: 2, ..origin.clone() };
    again.send_own_texts("", &mut client);
    again.send_text(0, 1, 2, 4000, &mut client);
    again.send_text(0, 2, 2, 5000, &mut client);
    let time = |micros: u32| format!("2023-11-14T22:13:20.{micros:06}Z");
    let expected = [
        format!("a {} cpu0 app[700]: a.0.0", time(1)),
        "a -- 2 sub-buffers overwritten on cpu0 --".to_owned(),
        format!("a {} cpu1 app[700]: a.1.8", time(2)),
        "a -- 5 messages lost on cpu0 --".to_owned(),
        format!("a {} cpu0 app[700]: a.0.3", time(3)),
        "a -- the channel was created again on cpu0 --".to_owned(),
        format!("a {} cpu0 tid 7: a.0.1", time(4)),
        format!("a {} cpu0 tid 7: a.0.2", time(5)),
    ];
    assert_eq!(lines(&server, &["-c", NAME, "--utc"]), expected);
    let json = lines(&server, &["-o", "json"]);
    assert!(
        json[5].contains("\"notice\":\"recreated\",\"message\":\"the channel was created again\""),
        "{json:?}"
    );
    // A recording has a trace for each.
    let dir = tempfile::tempdir().expect("a temporary directory");
    let output = run(from(&server.url(), &["--record"]).arg(dir.path().join("r")));
    assert_eq!(exit_code(output.status), 0, "{}", text(&output.stderr));
    let recorded = dir.path().join("r/a").join(NAME);
    let words = last_words_of(&recorded);
    assert_eq!(words, ["a.0.0", "a.1.8", "a.0.3", "a.0.1", "a.0.2"]);
    assert!(recorded.join("000000/cpu1").exists() && recorded.join("000001/cpu0").exists());
}

/// The last words of the records in a recording.
fn last_words_of(dir: &Path) -> Vec<String> {
    let lines = ctf::trace(dir, &[]);
    let records: Vec<String> = lines.into_iter().filter(|line| !line.starts_with("--")).collect();
    last_words(&records).into_iter().map(str::to_owned).collect()
}

#[test]
fn hostile_messages_are_refused_and_the_rest_is_read() {
    for more in ["", ",\"allow_direct\":true"] {
        let (server, mut client) = server(more);
        let mut origin = Origin::made_up("a", NAME);
        origin.send_own_texts("", &mut client);
        let cpu0 = origin.subject("cpu0");
        origin.send_text(0, 0, 0, 1000, &mut client);
        // No headers, foreign ones, those of an answer, and what no client can parse.
        client.publish_with(&cpu0, b"NATS/1.0\r\n\r\n", b"hello");
        client.publish(
            &cpu0,
            &[("Nats-Sequence", "999999"), ("Nats-Subject", "x"), ("Relay-Format", "2")],
            b"hello",
        );
        client.publish_with(&cpu0, b"NATS/1.0 404 No Messages\r\n\r\n", b"");
        client.publish_with(&cpu0, b"no headers at all", b"");
        client.publish_with(&cpu0, b"NATS/1.0\r\n\xff\xfe: \xff\r\n:\r\n\r\n", b"");
        // Bodies that are not what the headers say.
        origin.send(0, 1, 0, 1, b"no packet", &mut client);
        origin.send(0, 1, 0, 1, &packet(0, 77, 0, 1, "another number"), &mut client);
        origin.send(0, 1, 0, 1, &packet(5, 1, 0, 1, "another cpu"), &mut client);
        origin.send(0, 1, 0, 1, &packet(0, 1, 0, 1, "torn")[..70], &mut client);
        origin.send(
            0,
            1,
            0,
            1,
            &[packet(0, 1, 0, 1, "one"), packet(0, 1, 0, 1, "two")].concat(),
            &mut client,
        );
        let mut lying = packet(0, 1, 0, 1, "lying");
        lying[40] ^= 0xff;
        origin.send(0, 1, 0, 1, &lying, &mut client);
        // Parts that are not whole, and one that is too long.
        let headers = origin.headers(2, 0);
        let part = |part: &str, client: &mut NatsClient, body: &[u8]| {
            let mut headers: Vec<(&str, &str)> =
                headers.iter().map(|(name, value)| (name.as_str(), value.as_str())).collect();
            headers.push(("Relay-Part", part));
            client.publish(&cpu0, &headers, body);
        };
        for (name, len) in
            [("2/3", 9), ("1/3", 9), ("3/3", 9), ("0/1", 9), ("1/0", 9), ("1/2", 9), ("2/2", 200_000)]
        {
            part(name, &mut client, &vec![b'x'; len]);
        }
        // A number that came already, wild stamps, and records that are none.
        origin.send_text(0, 0, 0, 1000, &mut client);
        let mut damaged = packet(0, 3, 0, 2000, "damaged");
        damaged[HEADER_LEN + 14] = 0xff;
        origin.send(0, 3, 0, 1, &damaged, &mut client);
        origin.send_text(0, 4, 0, u64::MAX, &mut client);
        origin.send_text(0, 5, 0, 3000, &mut client);
        // Texts that are not there, and those of another channel.
        for texts in [(1_000_000, 1_000_000), (3, 3)] {
            let number = 6 + u64::from(texts.0 == 3);
            (Origin { texts: Some(texts), ..origin.clone() }).send_text(
                0,
                number,
                0,
                4000 + number,
                &mut client,
            );
        }
        // Subjects that no forwarder has.
        for subject in
            ["relay.a", "relay.a.b.c.d", "relay.%41.x.cpu0", "relay.a.app/log.cpu00", "relay.a.%2E%2E.cpu0"]
        {
            client.publish(subject, &[], b"x");
        }
        let other = format!("relay.{}.{NAME}.cpu0", "x".repeat(3000));
        client.publish(&other, &[], b"x");
        origin.send_text(1, 0, 0, 2500, &mut client);
        let output = read(&server, &["-c", NAME, "--host", "a"]);
        let (stdout, stderr) = (text(&output.stdout), text(&output.stderr));
        assert_eq!(exit_code(output.status), 1, "{stdout}{stderr}");
        assert!(stderr.contains("messages of the stream are refused or incomplete, see above"), "{stderr}");
        let words: Vec<&str> = stdout.lines().filter_map(|line| line.rsplit(": ").next()).collect();
        for record in ["a.0.0", "a.1.0", "a.0.5", "a.0.6", "a.0.7"] {
            assert_eq!(words.iter().filter(|word| **word == record).count(), 1, "{record}: {stdout}");
        }
        for told in ["damaged byte", "is refused", "without its dictionary"] {
            assert!(stdout.contains(told), "{told}: {stdout}");
        }
        // All of it, also the subjects that are nonsense.
        let all = read(&server, &["-o", "json"]);
        assert_eq!(exit_code(all.status), 1, "{}", text(&all.stderr));
        let dir = tempfile::tempdir().expect("a temporary directory");
        let output = run(from(&server.url(), &["--host", "a", "--record"]).arg(dir.path().join("r")));
        assert_eq!(exit_code(output.status), 1, "{}", text(&output.stderr));
        let said = text(&output.stderr);
        assert!(said.contains("message 5 is refused"), "{said}");
        // It says which numbers are missing, and reads the rest.
        let mut reader = tool("babeltrace2", "babeltrace2");
        let output = run(reader.arg(dir.path().join("r/a").join(NAME)));
        assert_eq!(exit_code(output.status), 0, "{}", text(&output.stderr));
        assert!(text(&output.stdout).contains("\"a.0.7\""), "{}", text(&output.stdout));
    }
}

#[test]
fn follower_prints_what_comes_of_old_and_new_hosts() {
    let (server, mut client) = server("");
    let follower = Follower::start(&server, &["-c", NAME, "--hold", "50ms"]);
    let mut a = Origin::made_up("a", NAME);
    a.send_own_texts("", &mut client);
    a.send_text(0, 0, 0, 1000, &mut client);
    follower.has(&["a.0.0"]);
    let mut b = Origin::made_up("b", NAME);
    b.send_own_texts("", &mut client);
    b.send_text(3, 0, 0, 2000, &mut client);
    follower.has(&["a.0.0", "b.3.0"]);
    // A record of before is late; one of an unknown channel is of no interest.
    a.send_text(1, 0, 0, 1500, &mut client);
    let other = Origin { channel: "other".to_owned(), ..a.clone() };
    other.send_text(0, 0, 0, 1500, &mut client);
    a.send_text(0, 1, 0, 9000, &mut client);
    follower.has(&["a.0.0", "b.3.0", "a.1.0", "a.0.1"]);
    let out = follower.out();
    assert!(out.lines().nth(2).is_some_and(|line| line.contains(" cpu1 late tid 7: ")), "{out}");
    assert_eq!(follower.end(), "");
}

#[test]
fn records_that_come_within_the_hold_are_in_order() {
    let (server, mut client) = server("");
    let (mut a, mut b) = (Origin::made_up("a", NAME), Origin::made_up("b", NAME));
    for origin in [&mut a, &mut b] {
        origin.send_own_texts("", &mut client);
        origin.send_text(0, 0, 0, 1000, &mut client);
    }
    // Of what is there already, the last record alone.
    let follower = Follower::start(&server, &["-n", "1", "--hold", "3s"]);
    follower.has(&["b.0.0"]);
    // It finds all at once.
    follower.process().signal(Signal::SIGSTOP);
    for (origin, number, stamp) in [(&b, 1, 3000), (&a, 1, 2000), (&b, 2, 4000), (&a, 2, 3500)] {
        origin.send_text(0, number, 0, stamp, &mut client);
    }
    follower.process().signal(Signal::SIGCONT);
    follower.has(&["b.0.0", "a.0.1", "b.0.1", "a.0.2", "b.0.2"]);
    assert!(!follower.out().contains("late"));
    follower.end();
}

#[test]
fn server_that_is_away_is_waited_for() {
    let (mut server, mut client) = server("");
    let mut a = Origin::made_up("a", NAME);
    a.send_own_texts("", &mut client);
    a.send_text(0, 0, 0, 1000, &mut client);
    let follower = Follower::start(&server, &["--hold", "10ms"]);
    follower.has(&["a.0.0"]);
    server.kill();
    eventually("a complaint", || follower.said().contains("trying again"));
    server.restart(&[]);
    let mut client = server.client();
    a.send_text(0, 1, 0, 2000, &mut client);
    follower.has(&["a.0.0", "a.0.1"]);
    // A stream that is created again begins again.
    client.request("$JS.API.STREAM.DELETE.relay", "");
    client.create_stream("relay", "");
    a.instance = 5;
    a.send_own_texts("", &mut client);
    a.send_text(0, 0, 0, 3000, &mut client);
    eventually("a record of the other stream", || follower.out().matches("a.0.0").count() == 2);
    let said = follower.end();
    assert!(said.matches("trying again").count() <= 3 && said.contains("again"), "{said}");
}

#[test]
fn what_is_not_there_is_said() {
    let server = NatsServer::start(&[]);
    let missing = complaint("relay-forward", &read(&server, &[]));
    assert!(missing.contains("has no stream 'relay'"), "{missing}");
    let other = complaint("relay-forward", &read(&server, &["--stream", "logs"]));
    assert!(other.contains("--stream logs --create makes it"), "{other}");
    server.client().create_stream("relay", "");
    let nothing = complaint("relay-forward", &read(&server, &["--host", "x", "-c", "cpu"]));
    assert_eq!(nothing, "stream 'relay' has nothing of host 'x' of channel cpu");
    let away = complaint("relay-forward", &run(&mut from("nats://127.0.0.1:1", &[])));
    assert!(away.starts_with("cannot read from 127.0.0.1:1: "), "{away}");
    for wrong in [&["-f", "--record"][..], &["--record", "d", "-n", "1"], &["--hold", "1s"], &["-n", "x"]] {
        assert_eq!(exit_code(read(&server, wrong).status), 2, "{wrong:?}");
    }
}

/// Starts `relay-forward --to` for a mount.
#[track_caller]
fn forward(mount: &Mount, server: &NatsServer, host: &str) -> Process {
    let mut command = Command::new(program("relay-forward"));
    command.args(["--to", &server.url(), "--create", "--flush-interval", "20ms", "--host", host, "-m"]);
    Process::start(command.arg(mount.point()).stdin(Stdio::null()))
}

#[test]
fn two_daemons_are_forwarded_and_read_in_one_order() {
    let server = NatsServer::start(&[]);
    let clocks = [Clocks::new("tsc"), Clocks::new("hpet")];
    clocks[1].set(OfKernel::Monotonic, 50_000);
    clocks[1].set(OfKernel::Boot, 50_000);
    let mounts = clocks.each_ref().map(|clocks| Mount::prepared(&[CHANNEL], |command| clocks.of(command)));
    let hosts = ["web1", "web2.example"];
    let mut forwarders: Vec<Process> =
        mounts.iter().zip(hosts).map(|(mount, host)| forward(mount, &server, host)).collect();
    eventually("a stream", || !has_no_stream(&server));
    let follower = Follower::start(&server, &["-c", NAME, "--hold", "500ms"]);
    let n_records = 1000;
    let numbers: Vec<String> = (0..n_records).map(|n| n.to_string()).collect();
    for (n, number) in numbers.iter().enumerate() {
        let mount = &mounts[n % 2];
        // The buffer may be full, since the forwarder gives back what is stored.
        let channel = mount.channel(NAME);
        let mut batch =
            channel.batch(BatchOptions { cpu: Some(n / 2 % 2), wait: Wait::Forever }).expect("a batch");
        batch.push_text(number.as_bytes()).expect("a text");
        assert_eq!(batch.finish().expect("writing").written, 1);
        mount.send(n % 2, &[format!("raw {number}\n").as_bytes()]);
    }
    eventually("all records in the stream", || lines(&server, &["-c", NAME]).len() == n_records);
    let found = lines(&server, &["-c", NAME]);
    assert_eq!(last_words(&found), numbers);
    let with_process = |line: &&String| line.contains(&format!("[{}]: ", std::process::id()));
    assert_eq!(found.iter().filter(with_process).count(), n_records, "{}", found[0]);
    for (host, of_host) in hosts.into_iter().zip([0, 1]) {
        let raw = || lines(&server, &["-c", "cpu", "--host", host]);
        eventually("all raw messages", || raw().len() == n_records / 2);
        let mut raw = raw();
        raw.sort_unstable();
        let mut expected: Vec<String> =
            (0..n_records).filter(|n| n % 2 == of_host).map(|n| format!("raw {n}")).collect();
        expected.sort_unstable();
        assert_eq!(raw, expected);
    }
    eventually("all records of the follower", || follower.out().lines().count() == n_records);
    let mut followed: Vec<usize> = follower
        .out()
        .lines()
        .map(|line| line.rsplit(' ').next().expect("a word").parse().expect("a number"))
        .collect();
    followed.sort_unstable();
    assert!(followed.into_iter().eq(0..n_records));
    follower.end();
    let dir = tempfile::tempdir().expect("a temporary directory");
    let output = run(from(&server.url(), &["--record"]).arg(dir.path().join("r")));
    assert_eq!(exit_code(output.status), 0, "{}", text(&output.stderr));
    let agreed: usize =
        hosts.iter().map(|host| ctf::agree(&dir.path().join("r").join(host).join(NAME))).sum();
    assert_eq!(agreed, n_records);
    for forwarder in &mut forwarders {
        forwarder.signal(Signal::SIGTERM);
        assert_eq!(exit_code(forwarder.wait()), 0);
    }
}

/// Whether the server says that it has no stream.
fn has_no_stream(server: &NatsServer) -> bool {
    text(&read(server, &[]).stderr).contains("has no stream")
}
