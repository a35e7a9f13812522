//! The conformance program in C, on channels of all kinds, by root and by an ordinary user. And a check that it can
//! fail.

use std::collections::BTreeMap;
use std::fs;
use std::io::{BufRead, BufReader, Read};
use std::process::Stdio;

use nix::sys::signal::Signal;
use relayfs_tests::conformance::{Conformance, Outcome, outcomes};
use relayfs_tests::users::where_users_mount;
use relayfs_tests::{Mount, Process, exit_code, run, text};

/// A channel, and which of the cases' needs it meets.
struct Channel {
    name: &'static str,
    spec: &'static str,
    meets: &'static [&'static str],
}

const NO_OVERWRITE: &str = "no-overwrite mode";
const OVERWRITE: &str = "overwrite mode";
const MANY: &str = "two sub-buffers or more";
const ONE: &str = "a single sub-buffer";
const HEADER: &str = "a header";
const NO_HEADER: &str = "no header";
const KEEPS: &str = "no-overwrite mode or two sub-buffers";
const MODES: &str = "a mount with default_permissions";

const CHANNELS: [Channel; 9] = [
    Channel {
        name: "cpu",
        spec: "subbuf-size=8192:n-subbufs=2",
        meets: &[NO_OVERWRITE, MANY, NO_HEADER, KEEPS],
    },
    Channel {
        name: "small",
        spec: "subbuf-size=64:n-subbufs=4",
        meets: &[NO_OVERWRITE, MANY, NO_HEADER, KEEPS],
    },
    Channel {
        name: "header",
        spec: "subbuf-size=64:n-subbufs=4:header=16",
        meets: &[NO_OVERWRITE, MANY, HEADER, KEEPS],
    },
    Channel {
        name: "odd",
        spec: "subbuf-size=1000:n-subbufs=3:header=8:overwrite",
        meets: &[OVERWRITE, MANY, HEADER, KEEPS],
    },
    Channel {
        name: "over",
        spec: "subbuf-size=8192:n-subbufs=2:overwrite",
        meets: &[OVERWRITE, MANY, NO_HEADER, KEEPS],
    },
    Channel {
        name: "one",
        spec: "subbuf-size=4096:n-subbufs=1",
        meets: &[NO_OVERWRITE, ONE, NO_HEADER, KEEPS],
    },
    Channel {
        name: "single",
        spec: "subbuf-size=4096:n-subbufs=1:overwrite",
        meets: &[OVERWRITE, ONE, NO_HEADER],
    },
    Channel {
        name: "app/log",
        spec: "subbuf-size=256K:n-subbufs=4",
        meets: &[NO_OVERWRITE, MANY, NO_HEADER, KEEPS],
    },
    Channel {
        name: "app/all",
        spec: "subbuf-size=4096:n-subbufs=4:global",
        meets: &[NO_OVERWRITE, MANY, NO_HEADER, KEEPS],
    },
];

/// Checks a run: each case that the channel meets has passed, and no other has run. Returns the cases that ran.
#[track_caller]
fn check(listed: &BTreeMap<String, Vec<String>>, printed: &str, meets: &[&str]) -> Vec<String> {
    let came = outcomes(printed);
    let expected = listed.iter().map(|(name, needs)| {
        let lacking: Vec<&str> =
            needs.iter().map(String::as_str).filter(|need| !meets.contains(need)).collect();
        let outcome = if lacking.is_empty() { Outcome::Passed } else { Outcome::Skipped(lacking.join(", ")) };
        (name.clone(), outcome)
    });
    for (name, outcome) in expected {
        assert_eq!(came.get(&name), Some(&outcome), "{name}, of:\n{printed}");
    }
    assert_eq!(came.len(), listed.len(), "{printed}");
    came.into_iter().filter(|(_, outcome)| *outcome == Outcome::Passed).map(|(name, _)| name).collect()
}

/// Root's mount with all kinds of channels at once, and then a user's mount, where the kernel maps nothing and no
/// process opens for writing. Together they run each case.
#[test]
fn all_cases_pass() {
    let program = Conformance::compile();
    let listed = program.list();
    assert!(listed.len() > 100, "{listed:?}");
    let channels = CHANNELS.each_ref().map(|channel| format!("{}:{}", channel.name, channel.spec));
    let mut args: Vec<&str> = channels.iter().flat_map(|channel| ["--channel", channel]).collect();
    args.push("--flush-interval=never");
    let mut mount = Mount::new(&args);
    let n_bufs = mount.channel("cpu").n_bufs();
    let mut ran: Vec<String> = std::thread::scope(|scope| {
        let running: Vec<_> = CHANNELS
            .iter()
            .map(|channel| {
                let (program, listed, point) = (&program, &listed, mount.point());
                scope.spawn(move || {
                    let output = program.try_on(point, channel.name, "ring");
                    let printed = text(&output.stdout);
                    let mut meets = [channel.meets, &["root", "files that can be mapped", MODES]].concat();
                    if n_bufs > 1 && !channel.spec.contains("global") {
                        meets.push("two buffers or more");
                    }
                    let ran = check(listed, &printed, &meets);
                    assert_eq!(exit_code(output.status), 0, "{printed}{}", text(&output.stderr));
                    ran
                })
            })
            .collect();
        running.into_iter().flat_map(|run| run.join().expect("a run")).collect()
    });
    assert_eq!(exit_code(mount.end(Signal::SIGTERM)), 0);

    let script = "
        $nobody relayfsd --discard --flush-interval=never -o default_permissions --subbuf-size=8192 --n-subbufs=2 relay
        $nobody PROGRAM --mapping none relay cpu; echo \"# status $?\"
        $nobody fusermount3 -u relay
        while ls -A /dev/shm | grep -q .; do :; done
    ";
    let printed = where_users_mount(&script.replace("PROGRAM", program.path().to_str().expect("ASCII")));
    assert!(printed.contains(&"# status 0".to_owned()), "{printed:?}");
    let mut meets = vec![NO_OVERWRITE, MANY, NO_HEADER, KEEPS];
    meets.extend(["a user other than root", "files that cannot be mapped", MODES]);
    if n_bufs > 1 {
        meets.push("two buffers or more");
    }
    ran.extend(check(&listed, &printed.join("\n"), &meets));
    ran.sort();
    ran.dedup();
    let mut all: Vec<String> = listed.into_keys().collect();
    if n_bufs == 1 {
        all.retain(|name| name != "read-of-another-cpu");
    }
    assert_eq!(ran, all, "which cases have run");
}

/// Another buffer, and a single case, can be checked.
#[test]
fn options_choose_buffer_and_case() {
    let program = Conformance::compile();
    let mount = Mount::new(&["--flush-interval=never", "--subbuf-size=8192", "--n-subbufs=2"]);
    let last = (mount.channel("cpu").n_bufs() - 1).to_string();
    let cases = ["poll-is-woken-by-flush", "read-crosses-sub-buffers"];
    let output = run(program.command().args(["--cpu", &last]).arg(mount.point()).arg("cpu").args(cases));
    let outcomes = outcomes(&text(&output.stdout));
    assert_eq!(outcomes, cases.map(|name| (name.to_owned(), Outcome::Passed)).into());
    assert_eq!(exit_code(output.status), 0);
}

/// Open files when their channel ends: sleepers wake, unread data can be read, maps stay.
#[test]
fn open_files_outlive_the_channel() {
    let program = Conformance::compile();
    for mode in ["no-overwrite", "overwrite"] {
        let mut mount = Mount::new(&[
            "--flush-interval=never",
            "--channel",
            &format!("cpu:subbuf-size=8192:n-subbufs=2:header=8:{mode}"),
        ]);
        let mut command = program.command();
        command.args(["--until-closed", "--mapping", "ring"]).arg(mount.point()).arg("cpu");
        let mut running = Process::start(command.stdout(Stdio::piped()));
        let mut stdout = BufReader::new(running.child().stdout.take().expect("piped"));
        let mut line = String::new();
        while !line.starts_with("# waiting") {
            line.clear();
            assert_ne!(stdout.read_line(&mut line).expect("what it prints"), 0, "it ended");
            assert!(line.starts_with('#'), "{line}");
        }
        mount.detach();
        let mut rest = String::new();
        stdout.read_to_string(&mut rest).expect("what it prints");
        assert_eq!(rest, "ok channel-ends\n", "{mode}");
        assert_eq!(exit_code(running.wait()), 0);
        assert_eq!(exit_code(mount.daemon().wait()), 0);
    }
}

/// Ordinary files of the same names are no relay files, and the program says so: it can fail.
#[test]
fn ordinary_files_fail() {
    let program = Conformance::compile();
    let mount = Mount::new(&["--flush-interval=never", "--subbuf-size=8192", "--n-subbufs=2"]);
    let dir = tempfile::tempdir().expect("a temporary directory");
    let control = dir.path().join(".relay/channels/cpu");
    for dir in ["consumed", "map"] {
        fs::create_dir_all(control.join(dir)).expect("a directory");
    }
    for cpu in 0..mount.channel("cpu").n_bufs() {
        fs::write(dir.path().join(format!("cpu{cpu}")), "").expect("a file");
        fs::write(control.join(format!("consumed/cpu{cpu}")), "0\n").expect("a file");
        fs::write(control.join(format!("map/cpu{cpu}")), "").expect("a file");
    }
    for name in ["subbuf_size", "n_subbufs", "mode", "control", "stats", "dropped"] {
        fs::copy(mount.control("cpu", name), control.join(name)).expect("a copy");
    }
    for name in ["msg", "flush", "reset"] {
        fs::write(control.join(name), "").expect("a file");
    }
    // Some cases only, because each waits for an event that does not come.
    let cases: Vec<String> = program.list().into_keys().step_by(8).collect();
    let output = run(program.command().args(["--mapping", "ring"]).arg(dir.path()).arg("cpu").args(&cases));
    let printed = text(&output.stdout);
    assert_eq!(exit_code(output.status), 1, "{printed}{}", text(&output.stderr));
    let outcomes = outcomes(&printed);
    assert_eq!(outcomes.len(), cases.len(), "{printed}");
    let passed: Vec<&String> =
        outcomes.iter().filter(|(_, outcome)| **outcome == Outcome::Passed).map(|(name, _)| name).collect();
    // Cases that an ordinary file passes too.
    let as_files = [
        "access-goes-by-the-mode",
        "ioctl-is-refused",
        "mmap-is-not-written",
        "open-refusals",
        "read-of-nothing-there",
        "stat-of-the-file",
    ];
    assert!(passed.iter().all(|name| as_files.contains(&name.as_str())), "{passed:?}");
}

/// Wrong usage has another status than a failure, and one line.
#[test]
fn wrong_usage_has_another_status_than_failure() {
    let program = Conformance::compile();
    let mount = Mount::new(&["--flush-interval=never", "--channel", "tiny:subbuf-size=16:n-subbufs=4"]);
    let point = mount.point().to_str().expect("ASCII");
    for args in [
        &[][..],
        &["--what"],
        &[point],
        &[point, "nothing"],
        &["/nowhere", "cpu"],
        &[point, "tiny"],
        &[point, "cpu", "no-such-case"],
        &["--cpu", "4000", point, "cpu"],
    ] {
        let output = run(program.command().args(args));
        let said = text(&output.stderr);
        assert_eq!(exit_code(output.status), 2, "{args:?}: {said}");
        assert!(said.starts_with("conformance: ") && said.lines().count() == 1, "{args:?}: {said}");
    }
    let help = run(program.command().arg("--help"));
    assert_eq!(exit_code(help.status), 0);
    assert!(text(&help.stdout).starts_with("usage: "), "{help:?}");
}
