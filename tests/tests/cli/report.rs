//! `audience report`: the page of recordings, of a snapshot, and of live channels, as node reads it.
//!
//! `sh tests/report.sh` opens such pages in a browser.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Output, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::Duration;

use nix::sys::signal::Signal;
use relay_producer::{BatchOptions, Level, Wait};
use relayfs_tests::audience::Recorder;
use relayfs_tests::direct::on_cpu;
use relayfs_tests::{Mount, eventually, exit_code, program, run, text, tool, workspace};

const CHANNEL: &str = "--channel=app/log:timed:subbuf-size=4K:n-subbufs=8";
/// What must not become a part of the page.
const HOSTILE: &[&str] = &[
    "</script><script>document.title='hostile'</script>",
    "<!--<script>",
    "<img src=x onerror=\"document.title='hostile'\">",
    "]]></SCRIPT ><svg onload=alert(1)>",
    "\" onmouseover=\"alert(1) ' \\u003c \\",
    "/*DATA*/ /*SCRIPT*/ ${1+1} \u{2028}\u{2029}\u{feff}",
];

/// Checks a page with node, and returns what it found.
#[track_caller]
fn checked(page: &Path, args: &[&str]) -> Vec<String> {
    let script = workspace().join("tests/report/check.js");
    let output = run(tool("node", "nodejs").arg(script).arg(page).args(args));
    assert_eq!((exit_code(output.status), text(&output.stderr)), (0, String::new()));
    text(&output.stdout).lines().map(str::to_owned).collect()
}

/// Runs `audience report -o FILE ARGS`.
fn report(mount: &Mount, args: &[&str]) -> (PathBuf, Output) {
    let page = mount.beside("report.html");
    let mut command = tool("env", "coreutils");
    command.args(["-u", "RELAYFS"]).arg(program("audience")).args(["report", "-o"]).arg(&page);
    let output = run(command.args(args).stdin(Stdio::null()));
    (page, output)
}

#[track_caller]
fn reported(mount: &Mount, args: &[&str]) -> PathBuf {
    let (page, output) = report(mount, args);
    assert_eq!(
        (exit_code(output.status), text(&output.stdout), text(&output.stderr)),
        (0, String::new(), String::new())
    );
    page
}

/// Writes records of several kinds, among them hostile ones.
fn write_records(mount: &Mount) {
    let channel = mount.direct_channel("app/log");
    on_cpu(0, || {
        channel.log(Level::Error, "app::db", "broken").unwrap();
        channel.log(Level::Warn, "app::net", "slow").unwrap();
        channel.log(Level::Info, "<b>", "fine").unwrap();
        HOSTILE.iter().for_each(|hostile| channel.text(hostile).unwrap());
    });
}

/// The messages that a page has, as their texts.
fn texts(found: &[String]) -> Vec<String> {
    found.iter().filter(|line| line.starts_with('[')).cloned().collect()
}

#[track_caller]
fn assert_records(found: &[String]) {
    let texts = texts(found);
    assert!(texts.contains(&"[\"app/log\",1,\"app::db\",\"broken\"]".to_owned()), "{found:?}");
    assert!(texts.contains(&"[\"app/log\",3,\"<b>\",\"fine\"]".to_owned()), "{found:?}");
    assert!(texts.contains(&"[\"app/log\",0,\"\",\"<!--<script>\"]".to_owned()), "{found:?}");
    assert_eq!(texts.len(), 3 + HOSTILE.len(), "{found:?}");
    for count in ["level=1: 1", "level=2: 2", "target=app: 2", "text=SCRIPT: 4"] {
        assert!(found.contains(&count.to_owned()), "{count}: {found:?}");
    }
}

const COUNTS: &[&str] = &["level=1", "level=2", "target=app", "text=SCRIPT"];

#[test]
fn page_of_recordings_has_their_messages_numbers_and_losses() {
    let mount = Mount::new(&[CHANNEL, "--channel=other:timed", "--channel=raw"]);
    write_records(&mount);
    // More than the buffer of CPU 1 takes.
    let mut batch =
        mount.channel("app/log").batch(BatchOptions { cpu: Some(1), wait: Wait::No }).expect("a batch");
    (0..2000).for_each(|n| batch.push_text(format!("many {n}").as_bytes()).expect("a text"));
    let dropped = batch.finish().expect("writing").dropped;
    assert!(dropped > 0);
    fs::write(mount.control("other", "msg"), "elsewhere").unwrap();
    mount.send_to("raw", 0, &[b"raw"]);
    let mut recorder = Recorder::start(mount.point(), &["--all", "--progress=0"]);
    eventually("all recorded", || ["app/log", "other", "raw"].iter().all(|name| mount.is_read(name)));
    assert_eq!(recorder.end(Signal::SIGTERM), 0, "{}", recorder.said());
    let page = reported(&mount, &[recorder.dir.to_str().unwrap()]);
    let found = checked(&page, &["text=many", "text=elsewhere", "level=-1"]);
    let messages = 2000 - dropped + 3 + HOSTILE.len() as u64;
    let begin = format!("channel app/log: {messages} messages, ");
    let end = format!(" bytes, {dropped} lost, fill true");
    assert!(found.iter().any(|line| line.starts_with(&begin) && line.ends_with(&end)), "{found:?}");
    assert!(found.iter().any(|line| line.starts_with("channel other: 1 messages, ")), "{found:?}");
    assert!(found.contains(&format!("text=many: {}", 2000 - dropped)), "{found:?}");
    assert!(found.contains(&"text=elsewhere: 1".to_owned()), "{found:?}");
    assert!(found.contains(&"left out 0".to_owned()), "{found:?}");
    assert!(!found.contains(&"level=-1: 0".to_owned()), "losses are lines: {found:?}");
    // The newest messages alone.
    let page = reported(&mount, &[recorder.dir.to_str().unwrap(), "--messages=5"]);
    let found = checked(&page, &[]);
    assert_eq!(texts(&found).len(), 5);
    assert!(found.iter().any(|line| line.starts_with(&begin) && line.ends_with(&end)), "{found:?}");
}

#[test]
fn page_of_a_snapshot_has_hostile_texts_as_texts_and_consumes_nothing() {
    let mount = Mount::new(&[CHANNEL]);
    write_records(&mount);
    let before = mount.stats("app/log");
    let point = mount.point().to_str().unwrap().to_owned();
    let page = reported(&mount, &["-m", &point, "--snapshot", "-c", "app/log"]);
    assert_records(&checked(&page, COUNTS));
    let after = mount.stats("app/log");
    assert_eq!(after["total.read_bytes"], before["total.read_bytes"]);
    let mode = std::os::unix::fs::PermissionsExt::mode(&fs::metadata(&page).unwrap().permissions());
    assert_eq!(mode & 0o777, 0o600);
}

/// Channels are gathered one after another. The first of them has the newest messages here.
#[test]
fn newest_messages_are_those_of_all_channels() {
    let mount = Mount::new(&["--channel=a:timed", "--channel=b:timed"]);
    let write = |channel: &str, message: &str| mount.direct_channel(channel).text(message).unwrap();
    for (channel, message) in [("b", "1"), ("a", "2"), ("b", "3"), ("b", "4"), ("a", "5"), ("a", "6")] {
        write(channel, message);
    }
    let point = mount.point().to_str().unwrap().to_owned();
    let page = reported(&mount, &["-m", &point, "--snapshot", "-c", "a", "-c", "b", "--messages=3"]);
    let found = checked(&page, &[]);
    let newest = [("b", 4), ("a", 5), ("a", 6)].map(|(name, n)| format!("[\"{name}\",0,\"\",\"{n}\"]"));
    assert_eq!(texts(&found), newest, "{found:?}");
    assert!(found.contains(&"left out 3".to_owned()), "{found:?}");
    let page = reported(&mount, &["-m", &point, "--snapshot", "--messages=0"]);
    assert_eq!(texts(&checked(&page, &[])), [""; 0]);
}

#[test]
fn page_of_live_channels_has_what_comes_meanwhile() {
    let mount = Mount::new(&[CHANNEL, "--channel=raw"]);
    write_records(&mount);
    let point = mount.point().to_str().unwrap().to_owned();
    let (channel, stop) = (mount.direct_channel("app/log"), AtomicBool::new(false));
    thread::scope(|scope| {
        scope.spawn(|| {
            // All along, so that something comes between two looks.
            while !stop.load(Ordering::Relaxed) {
                on_cpu(1, || channel.text("meanwhile")).ok();
                mount.send_to("raw", 0, &[b"raw message"]);
                thread::park_timeout(Duration::from_millis(50));
            }
        });
        let page = std::panic::catch_unwind(|| reported(&mount, &["-m", &point, "--duration=2s"]));
        stop.store(true, Ordering::Relaxed);
        let page = page.unwrap_or_else(|panic| std::panic::resume_unwind(panic));
        let found = checked(&page, &["text=meanwhile", "level=1"]);
        assert!(found.contains(&"level=1: 1".to_owned()), "{found:?}");
        assert!(!found.contains(&"text=meanwhile: 0".to_owned()), "{found:?}");
        for channel in ["app/log", "raw"] {
            let begin = format!("channel {channel}: ");
            let line = found.iter().find(|line| line.starts_with(&begin)).expect("the channel");
            assert!(!line.contains(" 0 bytes") && line.ends_with(" 0 lost, fill true"), "{line}");
        }
    });
    assert_eq!(mount.stats("app/log")["total.read_bytes"], 0);
}

/// What is written and consumed between two looks is counted, and the page says how much that is.
#[test]
fn messages_that_no_look_has_found_are_counted() {
    let mount = Mount::new(&[CHANNEL]);
    let point = mount.point().to_str().unwrap().to_owned();
    let (channel, stop) = (mount.direct_channel("app/log"), AtomicBool::new(false));
    let (page, said, written) = thread::scope(|scope| {
        let writer = scope.spawn(|| {
            let mut written = 0;
            while !stop.load(Ordering::Relaxed) {
                on_cpu(1, || channel.text("gone at once")).unwrap();
                written += 1;
                mount.read("app/log1");
            }
            written
        });
        let done = std::panic::catch_unwind(|| report(&mount, &["-m", &point, "--duration=1s"]));
        stop.store(true, Ordering::Relaxed);
        let (page, output) = done.unwrap_or_else(|panic| std::panic::resume_unwind(panic));
        assert_eq!(exit_code(output.status), 0);
        (page, text(&output.stderr), writer.join().unwrap())
    });
    let (before, behind) = ("audience: counted, and not in the page: app/log: at least ", " messages, ");
    let missed = said.strip_prefix(before).and_then(|rest| rest.split_once(behind)).expect(&said);
    assert!(missed.1 == "consumed or overwritten between two looks\n", "{said}");
    let missed: u64 = missed.0.parse().unwrap();
    let found = checked(&page, &[]);
    let line = found.iter().find_map(|line| line.strip_prefix("channel app/log: ")).unwrap();
    let counted: u64 = line.split(' ').next().unwrap().parse().unwrap();
    assert!(missed > 0 && missed <= counted && counted <= written, "{missed}, {counted}, {written}");
    assert!(fs::read_to_string(&page).unwrap().contains("consumed or overwritten between two looks"));
}

#[test]
fn directory_without_a_recording_is_an_error() {
    let mount = Mount::new(&[CHANNEL]);
    let dir = mount.beside("empty");
    fs::create_dir(&dir).unwrap();
    let (page, output) = report(&mount, &[dir.to_str().unwrap()]);
    assert_eq!(exit_code(output.status), 1);
    assert!(text(&output.stderr).contains("is no recording of a timed channel"), "{}", text(&output.stderr));
    assert!(!page.exists());
}
