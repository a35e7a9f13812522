//! The macros of relay.h that log, relay_text, and the wrapper for C++.

use std::fs;

use nix::sys::signal::Signal;
use relay::trace::event::{Event, id};
use relay_producer::Level;
use relayfs_tests::audience::audience;
use relayfs_tests::librelay::{Caller, Linked, cplusplus_compilers};
use relayfs_tests::records::{FoundRecord, merged};
use relayfs_tests::{Mount, eventually, stdout_of, text, workspace};

fn ids(kept: &[FoundRecord]) -> Vec<u16> {
    kept.iter().map(|kept| kept.id).collect()
}

/// The lines of `audience -c CHANNEL --snapshot ARGS`.
#[track_caller]
fn shown(mount: &Mount, channel: &str, args: &[&str]) -> Vec<String> {
    let args = [&["-c", channel, "--snapshot"], args].concat();
    text(&stdout_of(&mut audience(mount.point(), &args))).lines().map(str::to_owned).collect()
}

#[test]
fn each_call_in_the_program_is_an_event_with_file_and_line() {
    let mount = Mount::new(&[]);
    let mut caller = Caller::start(mount.point());
    caller.expect(&[
        ("go 0", "0"),
        ("timed 0 - log 65536 4", "0"),
        ("timed 1 - other 65536 4", "0"),
        ("here 0 2 slow", "0"),
        ("here 0 2 slower", "0"),
        ("here 1 2 slow", "0"),
        ("here 0 3 text", "0"),
        ("here 0 2 slowest", "0"),
        ("here 0 4 detail", "0"),
        // Above RELAY_LEVEL_MAX: the argument that counts is not evaluated.
        ("here 0 5 detail", "0"),
        ("text 0 plain", "0"),
        ("flush 0", "0"),
        ("flush 1", "0"),
    ]);
    let lines = shown(&mount, "log", &["-o", "json"]);
    let kept = merged(&mount, "log");
    assert_eq!(ids(&kept), [256, 256, 257, 256, 258, id::TEXT]);
    assert_eq!(Event::decode(id::TEXT, &kept[5].payload), Event::Text(b"plain"));
    assert_eq!(ids(&merged(&mount, "other")), [256]);
    let place = |line: &str| {
        let rest = line.split_once("\"event\":\"api.c:").unwrap_or_else(|| panic!("{line}")).1;
        rest.split_once('"').expect("the end of a text").0.parse::<u32>().expect("a line")
    };
    let (warn, info) = (place(&lines[0]), place(&lines[2]));
    assert!(warn < info, "{lines:#?}");
    let target = format!("\"level\":\"WARN\",\"target\":\"api.c:{warn}\"");
    assert!(
        lines[0].contains(&target) && lines[0].ends_with(r#""fields":{"message":"slow"}}"#),
        "{lines:#?}"
    );
    assert!(lines[2].contains(r#""level":"INFO","target":"app::db""#), "{lines:#?}");
    let metadata = std::fs::read_to_string(mount.control("log", "metadata")).expect("the events");
    let path = format!("tests/c/api.c\"; line {warn} */");
    assert!(metadata.contains(&path), "{metadata}");
    caller.end();
}

#[test]
fn long_text_is_cut_and_wrong_channels_are_errors() {
    let mount = Mount::new(&["--channel=tiny:timed:subbuf-size=256"]);
    let mut caller = Caller::start(mount.point());
    let (most, longer) = ("x".repeat(238), "x".repeat(239));
    caller.expect(&[
        ("go 0", "0"),
        ("open 0 cpu 8192 2", "0"),
        ("here 0 3 text", "ENOTSUP"),
        ("text 0 text", "ENOTSUP"),
        ("here - 3 text", "EINVAL"),
        ("text - text", "EINVAL"),
        ("open 1 tiny 1 1", "0"),
        ("at-null 1", "EINVAL"),
        ("text 1 -", "EFAULT"),
        (&format!("here 1 1 {most}"), "0"),
        (&format!("here 1 1 {longer}"), "0"),
        ("flush 1", "0"),
        ("close 1", "0"),
        ("here 1 3 text", "EBADF"),
        ("text 1 text", "EBADF"),
    ]);
    let tiny = merged(&mount, "tiny");
    assert_eq!(ids(&tiny), [256, id::LOG]);
    let Event::Log { level, text, .. } = Event::decode(id::LOG, &tiny[1].payload) else { panic!("{tiny:?}") };
    assert!(level == Some(Level::Error) && text.ends_with("…".as_bytes()), "{tiny:?}");
    assert_eq!((tiny[0].payload.len(), tiny[1].payload.len()), (240, 240));
    caller.end();
}

/// What the channel's levels leave out takes no definition either. A place without a target goes by the name of its file.
#[test]
fn levels_of_the_channel_hold_for_places() {
    let mount = Mount::new(&[]);
    let mut caller = Caller::start(mount.point());
    caller.expect(&[("go 0", "0"), ("timed 0 - log 65536 4", "0")]);
    let level = mount.control("log", "level");
    for (directives, expected) in [
        ("off", vec![]),
        ("error", vec!["1"]),
        ("error,app::db=info", vec!["1", "3"]),
        ("off,api.c=warn", vec!["1", "2"]),
        ("debug", vec!["1", "2", "3", "4"]),
        ("error", vec!["1"]),
    ] {
        std::fs::write(&level, directives).expect("writing levels");
        for n in ["1", "2", "3", "4"] {
            caller.expect(&[(&format!("here 0 {n} {n}"), "0")]);
        }
        caller.expect(&[("flush 0", "0")]);
        let found = text(&stdout_of(&mut audience(mount.point(), &["-c", "log", "-o", "cat"])));
        assert_eq!(found.lines().collect::<Vec<_>>(), expected, "{directives}");
    }
    caller.end();
}

/// A place that cannot be defined now is not lost: the buffers take a record without a definition.
#[test]
fn place_without_a_daemon_becomes_a_log_record() {
    let mut mount = Mount::with_sequences(&["--channel=log:timed"]);
    let mut caller = Caller::direct(&mount);
    caller.expect(&[("timed 0 - log 65536 4", "0"), ("here 0 1 defined", "0")]);
    mount.end(Signal::SIGKILL);
    mount.detach();
    caller.expect(&[("here 0 1 defined", "0"), ("here 0 2 not", "0"), ("here 0 2 not", "0")]);
    mount.restart_with_sequences(&[]);
    let mut lines = Vec::new();
    eventually("the event to be defined with the next daemon", || {
        caller.expect(&[("here 0 2 again", "0")]);
        lines = shown(&mount, "log", &["--level", "warn"]);
        let json = shown(&mount, "log", &["-o", "json", "-n", "1"]);
        json.iter().any(|line| line.contains("\"event\":\"api.c:"))
    });
    let of = |line: &str| line.split_once("WARN").expect("a warning").1.replace("again", "not");
    assert_eq!(of(&lines[2]), of(lines.last().expect("a line")), "the same target");
    let kept = ids(&merged(&mount, "log"));
    assert_eq!(kept[..4], [256, 256, id::LOG, id::LOG]);
    assert_eq!(kept.last(), Some(&257));
    caller.end();
}

#[test]
fn wrapper_for_cplusplus_writes_and_reports_errors() {
    let source = fs::read_to_string(workspace().join("tests/c/wrapper.cc")).expect("the source");
    let line_of = |call: &str| 1 + source.lines().position(|line| line.contains(call)).expect(call);
    let (macro_line, format_line) = (line_of("RELAY_WARN(log"), line_of("log.debug(\"{} has {} rows"));
    let [old, _] = cplusplus_compilers();
    let [gcc, clang] = cplusplus_compilers();
    for (compiler, standard) in [(old, "c++11"), (gcc, "c++20"), (clang, "c++20")] {
        let mount = Mount::new(&[]);
        let must_have_format = compiler.get_program() != "g++";
        let args: &[&str] = &[&format!("-std={standard}"), "-pedantic", "-Wshadow"];
        let wrapper = Linked::compile_by(compiler, "tests/c/wrapper.cc", args);
        let said = text(&stdout_of(wrapper.command(mount.point()).arg(mount.point())));
        let lines = shown(&mount, "app/log", &["-o", "json"]);
        // What follows the thread's name.
        let ends: Vec<&str> =
            lines.iter().filter_map(|line| Some(line.split_once("\"command\":\"program\",")?.1)).collect();
        let mut expected = [
            r#""level":"INFO","target":"app::db","event":"log","message":"connected to db1"}"#,
            r#""level":"ERROR","event":"log","message":"a literal"}"#,
            r#""event":"text","message":"text"}"#,
            r#""event":"raw","data":"0102"}"#,
        ]
        .map(str::to_owned)
        .to_vec();
        let warning = format!(r#""event":"wrapper.cc:{macro_line}","fields":{{"message":"slow, rows=3"}}}}"#);
        expected.push(format!(r#""level":"WARN","target":"wrapper",{warning}"#));
        // GCC has it since 13.
        if said == "format\n" {
            let target = format!("wrapper.cc:{format_line}");
            expected.push(format!(
                r#""level":"DEBUG","target":"{target}","event":"log","message":"db1 has 3 rows"}}"#
            ));
        } else {
            assert!(!must_have_format, "this compiler has std::format: {said}");
        }
        expected.push(r#""level":"INFO","event":"log","message":"moved"}"#.to_owned());
        assert_eq!(ends, expected, "{standard}");
    }
}

/// Children are forked while threads log, and while one waits for the answer to a definition.
#[test]
fn children_of_a_process_whose_threads_log_log_too() {
    let mut mount = Mount::new(&["--channel=app/log:timed:overwrite:subbuf-size=1M:n-subbufs=8"]);
    let daemon = mount.daemon().pid().to_string();
    let forks = Linked::compile("tests/c/forks.c", &["-std=c11", "-pthread"]);
    stdout_of(forks.command(mount.point()).arg(mount.point()).arg(daemon));
    let found = shown(&mount, "app/log", &["-o", "cat"]);
    for message in ["child 39", "at exit", "later place of child"] {
        assert!(found.iter().any(|line| line == message), "{message}");
    }
}
