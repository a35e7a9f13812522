//! The example services: each is killed, and `audience` shows what `README.md` shows.

use std::process::Command;

use nix::sys::signal::Signal;
use relayfs_tests::audience::audience;
use relayfs_tests::librelay::libraries;
use relayfs_tests::pages::{Page, lines};
use relayfs_tests::{Mount, Process, eventually, program, stdout_of, tool, workspace};

/// The line with `0` for each number, so that lines of two runs are the same.
fn without_numbers(line: &str) -> String {
    let mut kept = String::new();
    for c in line.chars() {
        if !c.is_ascii_digit() {
            kept.push(c);
        } else if !kept.ends_with('0') {
            kept.push('0');
        }
    }
    kept
}

/// The commands of the README's block, each with the lines that it shows.
fn shown_commands(page: &Page) -> Vec<(&str, Vec<String>)> {
    let block = page.block("From your language", "text");
    let commands = block.split("$ ").skip(1).filter_map(|part| part.split_once('\n'));
    commands.map(|(command, shown)| (command, shown.lines().map(without_numbers).collect())).collect()
}

/// Runs a service until it has written each line of the README, kills it, and returns all that `audience` shows then.
///
/// Its lines are those of the README's first or second command.
#[track_caller]
fn killed(number: usize, mount: &Mount, service: &mut Command) -> Vec<String> {
    let page = Page::read("README.md");
    let mut commands = shown_commands(&page);
    assert_eq!(commands.len(), 2, "{commands:?}");
    let (command, shown) = commands.swap_remove(number);
    let options = command.strip_prefix("audience -c app/log -n ").expect("a command of audience");
    assert_eq!(options.parse(), Ok(shown.len()), "{command}");
    let (end, before) = shown.split_last().expect("lines");
    assert!(end.ends_with("] killed by signal 0 (SIGKILL) --"), "{end}");

    let mut service = Process::start(service.env("RELAYFS", mount.point()));
    let mut found = Vec::new();
    let mut has_all = |wanted: &[String]| {
        if mount.control("app/log", "trace").exists() {
            let mut audience = audience(mount.point(), &["-c", "app/log", "--snapshot"]);
            found = lines(&stdout_of(&mut audience));
        }
        wanted.iter().all(|wanted| found.iter().any(|line| without_numbers(line) == *wanted))
    };
    eventually("the lines of the README", || has_all(before));
    service.signal(Signal::SIGKILL);
    service.wait();
    eventually("the end of the service", || has_all(std::slice::from_ref(end)));
    assert!(without_numbers(found.last().expect("lines")) == *end, "its last line: {found:#?}");
    found
}

#[track_caller]
fn assert_has(lines: &[String], parts: &[&str]) {
    let found = lines.iter().any(|line| parts.iter().all(|part| line.contains(part)));
    assert!(found, "{parts:?} in {lines:#?}");
}

#[test]
fn killed_service_has_left_its_last_lines() {
    let mount = Mount::new(&["--overwrite"]);
    let lines = killed(0, &mount, &mut Command::new(program("examples/service")));
    assert_has(&lines, &["begins: request id=", "path=/broken"]);
    assert_has(&lines, &[" begins: query path=/broken", " in "]);
    assert_has(&lines, &["ERROR service: failed span=", r#"status=500 error="no table for"#]);
}

#[test]
fn killed_service_in_python_has_left_its_last_lines() {
    for has_library in [true, false] {
        let mount = Mount::new(&["--overwrite"]);
        let mut python = tool("python3", "python3");
        python.arg(workspace().join("python/examples/service.py"));
        python.env("PYTHONPATH", workspace().join("python/src")).env("PYTHONDONTWRITEBYTECODE", "1");
        if has_library {
            python.env("LD_LIBRARY_PATH", libraries());
        }
        let lines = killed(1, &mount, &mut python);
        let crashed = r"crashed id=";
        assert_has(
            &lines,
            &["ERROR service: GET /empty", crashed, r"\nTraceback ", r"\nZeroDivisionError: "],
        );
    }
}
