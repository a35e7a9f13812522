//! Clocks that are set, that sleep, or are another process's: stamps keep their order, and times are right on both sides.

use std::fs;
use std::process::{Command, Output, Stdio};

use nix::sys::signal::Signal;
use nix::time::{ClockId, clock_gettime};
use relay_producer::Channel;
use relayfs_tests::audience::audience;
use relayfs_tests::clocks::{Clocks, OfKernel};
use relayfs_tests::ctf;
use relayfs_tests::direct::{is_without_sequences, on_cpu};
use relayfs_tests::timed::{anchors, records};
use relayfs_tests::{Mount, Process, eventually, program, run, stdout_of, text, tool};

const HOUR: i64 = 3600;

fn mount(clocks: &Clocks) -> Mount {
    Mount::prepared(&["--channel=log:timed:n-subbufs=4:subbuf-size=64K"], |command| clocks.of(command))
}

fn read(mount: &Mount, file: &str) -> String {
    fs::read_to_string(mount.control("log", file)).unwrap()
}

/// Whether the daemon has the processor's counter, where it may.
fn is_tsc(mount: &Mount) -> bool {
    read(mount, "clock").starts_with("clock tsc ")
}

fn say(channel: &Channel, text: &str) {
    channel.text(text).expect("room");
    channel.sync().expect("an answer");
}

/// What `audience -c log ARGS` prints, with these clocks.
fn look(mount: &Mount, clocks: &Clocks, args: &[&str]) -> Vec<String> {
    let mut command = audience(mount.point(), &[&["-c", "log", "--snapshot"], args].concat());
    text(&stdout_of(clocks.of(&mut command))).lines().map(str::to_owned).collect()
}

/// The time of a line of `-o short-unix`.
fn seconds(line: &str) -> i64 {
    line.split('.').next().and_then(|word| word.parse().ok()).unwrap_or_else(|| panic!("{line}"))
}

/// Writes until the channel has a line about the clock that ends so, and no other ones than these.
#[track_caller]
fn say_until_epoch(mount: &Mount, channel: &Channel, said: &str) {
    eventually(said, || {
        say(channel, "while it is set");
        read(mount, "trace").lines().any(|line| line.ends_with(&format!("-- {said} --")))
    });
}

#[test]
fn another_clock_source_stamps_with_clock_monotonic() {
    let clocks = Clocks::new("hpet");
    let mount = mount(&clocks);
    assert!(read(&mount, "clock").starts_with("clock monotonic 1000000000\n"), "{}", read(&mount, "clock"));
    let channel = mount.direct_channel("log");
    let now = || {
        let time = clock_gettime(ClockId::CLOCK_MONOTONIC).unwrap();
        time.tv_sec() as u64 * 1_000_000_000 + time.tv_nsec() as u64
    };
    let before = now();
    for n in 0..200 {
        on_cpu(n % 2, || say(&channel, &n.to_string()));
    }
    let after = now();
    let trace = read(&mount, "trace");
    let numbers: Vec<&str> = trace.lines().map(|line| line.rsplit(": ").next().unwrap()).collect();
    assert!(numbers.iter().eq((0..200).map(|n| n.to_string()).collect::<Vec<_>>().iter()), "{trace}");
    let stamps = (0..2)
        .flat_map(|cpu| records(&fs::read(mount.control("log", &format!("snapshot/cpu{cpu}"))).unwrap()));
    assert!(stamps.map(|(stamp, ..)| stamp).all(|stamp| (before..=after).contains(&stamp)));
    assert_eq!(ctf::read(&mount.control("log", "snapshot")).events.len(), 200);
}

/// The kernel gives its counter up if it finds the counter wrong.
#[test]
fn clock_source_that_changes_begins_an_epoch() {
    let clocks = Clocks::new("tsc");
    let mount = mount(&clocks);
    let channel = mount.direct_channel("log");
    say(&channel, "before");
    clocks.set_source("hpet");
    let may_change = is_tsc(&mount);
    eventually("an epoch, or several anchors", || {
        say(&channel, "meanwhile");
        read(&mount, "trace").contains("clock epoch 1 begins: the clock source changed")
            || !may_change && anchors(&read(&mount, "clock")).len() > 3
    });
    assert_eq!(mount.stats("log")["timed.epoch"], u64::from(may_change));
    assert_eq!(is_tsc(&mount), may_change, "a channel keeps its clock");
    let later = Channel::builder(mount.point(), "later").create(true).timed(true).open().unwrap();
    say(&later, "text");
    let clock = fs::read_to_string(mount.control("later", "clock")).unwrap();
    assert!(clock.starts_with("clock monotonic "), "{clock}");
    assert!(read(&mount, "trace").lines().next().unwrap().ends_with(": before"));
}

#[test]
fn real_clock_that_is_set_begins_an_epoch_and_times_are_right_on_both_sides() {
    for source in ["tsc", "hpet"] {
        let clocks = Clocks::new(source);
        let mount = mount(&clocks);
        let channel = mount.direct_channel("log");
        say(&channel, "before");
        clocks.set(OfKernel::Real, HOUR);
        say_until_epoch(&mount, &channel, "clock epoch 1 begins: the real time was set");
        say(&channel, "ahead");
        clocks.set(OfKernel::Real, -HOUR);
        say_until_epoch(&mount, &channel, "clock epoch 2 begins: the real time was set");
        say(&channel, "behind");
        let lines = look(&mount, &clocks, &["-o", "short-unix"]);
        let of =
            |what: &str| seconds(lines.iter().find(|line| line.ends_with(&format!(": {what}"))).unwrap());
        let [before, ahead, behind] = ["before", "ahead", "behind"].map(of);
        // A minute is more than the test takes, and less than the clock was set by.
        assert!((HOUR..HOUR + 60 * 20).contains(&(ahead - before)), "{before} {ahead} {behind}");
        assert!((-HOUR..-HOUR + 60 * 20).contains(&(behind - before)), "{before} {ahead} {behind}");
        // The order is that of the stamps, and the clock that programs measure with runs on.
        let place = |what: &str| lines.iter().position(|line| line.ends_with(&format!(": {what}"))).unwrap();
        assert!(place("before") < place("ahead") && place("ahead") < place("behind"));
        assert!(
            look(&mount, &clocks, &["-o", "short-monotonic"])
                .iter()
                .filter(|line| line.starts_with('['))
                .is_sorted()
        );
        // Within an hour of the present, which is behind: what was written ahead is younger.
        let since = look(&mount, &clocks, &["-S", "-30min", "-U", "now", "-o", "cat"]);
        assert!(since.contains(&"behind".to_owned()) && !since.contains(&"ahead".to_owned()), "{since:?}");
        assert_eq!(ctf::read(&mount.control("log", "snapshot")).discarded, 0);
    }
}

#[test]
fn machine_that_slept_begins_an_epoch() {
    let clocks = Clocks::new("tsc");
    let mount = mount(&clocks);
    let channel = mount.direct_channel("log");
    say(&channel, "before");
    clocks.set(OfKernel::Real, HOUR);
    clocks.set(OfKernel::Boot, HOUR);
    say_until_epoch(&mount, &channel, "clock epoch 1 begins: the machine slept");
    say(&channel, "after");
    let lines = look(&mount, &clocks, &["-o", "short-unix"]);
    let slept = seconds(lines.last().unwrap()) - seconds(&lines[0]);
    assert!((HOUR..HOUR + 60 * 20).contains(&slept), "{lines:?}");
}

/// A producer compares its clock with the last anchor, which would be from before the clock was set.
#[test]
fn clock_that_is_set_while_a_channel_rests_keeps_no_producer_from_writing_directly() {
    let clocks = Clocks::new("hpet");
    let mount = mount(&clocks);
    for by in [0, HOUR, -HOUR] {
        clocks.set(OfKernel::Real, by);
        let mut command = Command::new(program("relay-producer"));
        command.arg("-m").arg(mount.point()).args(["-c", "log", "-v", "--", &by.to_string()]);
        let output = run(clocks.of(&mut command));
        let said = text(&output.stderr);
        assert!(output.status.success() && !said.contains("CLOCK_MONOTONIC"), "{said}");
        assert!(is_without_sequences() || said.contains("transport: shared"), "{said}");
    }
    let mut lines = look(&mount, &clocks, &["-o", "cat"]);
    lines.retain(|line| !line.starts_with("-- clock epoch "));
    assert_eq!(lines, ["0", &HOUR.to_string(), &(-HOUR).to_string()].map(str::to_owned));
}

/// Runs a program in a time namespace with other zeros of CLOCK_MONOTONIC and CLOCK_BOOTTIME.
fn elsewhere(mount: &Mount, name: &str, args: &[&str]) -> Command {
    let mut command = tool("unshare", "util-linux");
    command.args(["--time", "--fork", "--kill-child", "--monotonic", "100000", "--boottime", "200000"]);
    command.arg(program(name)).arg("-m").arg(mount.point()).args(["-c", "log"]).args(args);
    command.stdin(Stdio::null());
    command
}

#[test]
fn processes_of_another_time_namespace_write_and_read_the_same_times() {
    for source in ["tsc", "hpet"] {
        let clocks = Clocks::new(source);
        let mut mount = mount(&clocks);
        let channel = mount.direct_channel("log");
        say(&channel, "first");
        let output = run(elsewhere(&mount, "relay-producer", &["-v"]).arg("second"));
        let said = text(&output.stderr);
        assert!(output.status.success(), "{said}");
        let by_socket = said.contains("transport: socket");
        assert_eq!(by_socket, !is_tsc(&mount) || is_without_sequences(), "{said}");
        say(&channel, "third");
        let all = |output: Output| text(&output.stdout);
        let here = look(&mount, &clocks, &[]).join("\n") + "\n";
        assert_eq!(all(run(&mut elsewhere(&mount, "audience", &["--snapshot"]))), here);
        assert!(here.lines().is_sorted() && here.lines().count() == 3, "{here}");
        // A reader that follows holds back what is younger than the present, by the daemon's clock.
        let mut follower = elsewhere(&mount, "audience", &["-f", "-o", "cat"]);
        let out = mount.beside("followed");
        let mut follower = Process::start(follower.stdout(fs::File::create(&out).unwrap()));
        let followed = || fs::read_to_string(&out).unwrap();
        eventually("the three texts", || followed() == "first\nsecond\nthird\n");
        say(&channel, "fourth");
        eventually("the fourth text", || followed() == "first\nsecond\nthird\nfourth\n");
        follower.signal(Signal::SIGKILL);
        follower.wait();
        say(&channel, "left");
        // Takes an anchor behind the record: by that a reader knows that its own present is another one.
        read(&mount, "clock");
        mount.end(Signal::SIGKILL);
        // There, the present is a second earlier.
        let mut there = tool("unshare", "util-linux");
        there.args(["--time", "--fork", "--monotonic=-1"]);
        let mut here = tool("env", "coreutils");
        let left = |command: &mut Command| {
            command.arg(program("audience")).arg("--state").arg(mount.point()).args(["-c", "log"]);
            text(&stdout_of(command))
        };
        let here = left(&mut here);
        assert!(here.ends_with(": left\n") && here.lines().count() == 1, "{here}");
        assert_eq!(left(&mut there), here);
    }
}
