//! `docs/languages.md` and `docs/go.md`: each program there is run, and its records are read.

use std::fs;
use std::path::Path;
use std::process::Command;

use relayfs_tests::librelay::{cplusplus_compilers, libraries, pkg_config};
use relayfs_tests::pages::{Page, START, content, lines, on_mnt_relay};
use relayfs_tests::{stdout_of, tool, workspace};
use tempfile::TempDir;

/// A directory with a program of the page in it.
#[track_caller]
fn program(file: &str, code: &str) -> TempDir {
    let dir = tempfile::tempdir().expect("a temporary directory");
    fs::write(dir.path().join(file), code).expect("a program");
    dir
}

/// Runs a script, and returns the records up to the one that matches, without time, CPU and writer.
#[track_caller]
fn records(dir: &Path, script: &str, last: &str) -> Vec<String> {
    let mut command = on_mnt_relay(dir, &format!("{script} >&2\nrecords_until '{last}'"));
    command.env("LD_LIBRARY_PATH", libraries());
    lines(&stdout_of(&mut command)).iter().map(|line| content(line).to_owned()).collect()
}

/// Compiles a program of the page, and returns its records.
#[track_caller]
fn compiled(compiler: &mut Command, file: &str, code: &str, last: &str) -> Vec<String> {
    let dir = program(file, code);
    // In the directory, since the name of the file is in the records.
    compiler.current_dir(dir.path()).args(["-Wall", "-Wextra", "-Werror", "-o", "program", file]);
    stdout_of(compiler.args(pkg_config(&["--cflags", "--libs"])));
    records(dir.path(), "./program", last)
}

#[test]
fn page_has_no_other_programs() {
    let page = Page::open("languages.md");
    page.has_only(&[
        ("From your language", ""),
        ("C", "c"),
        ("C", "text"),
        ("C++ (relay.hpp)", "cpp"),
        ("Python", "python"),
        ("Node.js", "js"),
        ("Java", "java"),
        ("Shell", "sh"),
        ("Reading", "sh"),
    ]);
    Page::open("go.md").has_only(&[("Go", "go")]);
    // What `on_mnt_relay` runs.
    assert_eq!(page.block("From your language", ""), START);
}

#[test]
fn c_has_file_and_line() {
    let page = Page::open("languages.md");
    let found = compiled(&mut tool("cc", "gcc"), "main.c", page.block("C", "c"), "slow");
    // The lines that the page shows.
    let shown = page.block("C", "text").lines().map(|line| line.split_once("] ").expect("a line").1);
    let expected = shown.map(|line| {
        let (level, rest) = line.split_once(' ').expect("a level");
        let (target, message) = rest.split_once(": ").expect("a target");
        format!(
            r#""level":"{level}","target":"{target}","event":"{target}","fields":{{"message":"{message}"}}}}"#
        )
    });
    assert_eq!(found, expected.collect::<Vec<_>>());
}

#[test]
fn cplusplus_closes_its_channel() {
    let page = Page::open("languages.md");
    let code = page.block("C++ (relay.hpp)", "cpp");
    let line_of = |call: &str| 1 + code.lines().position(|line| line.contains(call)).expect(call);
    let (warning, error) = (line_of("RELAY_WARN("), line_of("log.error("));
    let expected = [
        r#""level":"INFO","target":"app::db","event":"log","message":"connected to db1"}"#.to_owned(),
        format!(
            r#""level":"WARN","target":"main.cc:{warning}","event":"main.cc:{warning}","fields":{{"message":"slow query, rows=3"}}}}"#
        ),
        format!(
            r#""level":"ERROR","target":"main.cc:{error}","event":"log","message":"no answer from db1"}}"#
        ),
    ];
    let [mut system, mut with_format] = cplusplus_compilers();
    // That of the system need not have std::format.
    let found = compiled(system.arg("-std=c++20"), "main.cc", code, "slow");
    assert_eq!(found, expected[..2]);
    let found = compiled(with_format.arg("-std=c++20"), "main.cc", code, "no answer");
    assert_eq!(found, expected);
}

#[test]
fn python_logs_by_its_handler() {
    let page = Page::open("languages.md");
    let dir = program("main.py", page.block("Python", "python"));
    tool("python3", "python3");
    let path = workspace().join("python/src");
    let script = format!("PYTHONDONTWRITEBYTECODE=1 PYTHONPATH={} python3 main.py", path.display());
    let found = records(dir.path(), &script, "slow");
    assert_eq!(found, [r#""level":"WARN","target":"app.db","event":"log","message":"slow query rows=3"}"#]);
}

/// By gccgo, since golang-go takes twice the room.
#[test]
fn go_speaks_the_protocol() {
    let page = Page::open("go.md");
    let dir = program("main.go", page.block("Go", "go"));
    stdout_of(tool("gccgo", "gccgo").current_dir(dir.path()).args(["-o", "program", "main.go"]));
    let found = records(dir.path(), "./program", "connected");
    assert_eq!(
        found,
        [
            r#""level":"WARN","target":"app::db","event":"log","message":"slow query, rows=3"}"#,
            r#""level":"INFO","target":"log","event":"log","message":"connected to db1"}"#,
        ]
    );
}

#[test]
fn node_writes_to_msg() {
    let page = Page::open("languages.md");
    let dir = program("main.js", page.block("Node.js", "js"));
    tool("node", "nodejs");
    let found = records(dir.path(), "node main.js", "rows");
    assert_eq!(
        found,
        [
            r#""event":"text","message":"connected to db1"}"#,
            r#""event":"text","message":"{\"slow\":true,\"rows\":3}"}"#,
        ]
    );
}

#[test]
fn java_writes_to_msg() {
    let page = Page::open("languages.md");
    let dir = program("Relay.java", page.block("Java", "java"));
    tool("java", "openjdk-17-jdk-headless");
    let found = records(dir.path(), "java Relay.java", "rows");
    assert_eq!(found, [r#""event":"text","message":"WARNING app.db: slow query, rows=3"}"#]);
}

#[test]
fn shell_writes_and_runs_programs() {
    let page = Page::open("languages.md");
    let dir = program("main.sh", page.block("Shell", "sh"));
    let found = records(dir.path(), "sh main.sh", "cannot access");
    let expected = [
        r#""event":"text","message":"started"}"#,
        r#""level":"WARN","target":"backup","event":"log","message":"the disk is slow"}"#,
        r#""event":"output","stream":"stderr","message":"ls: cannot access '/no/such/place': No such file or directory"}"#,
    ];
    assert_eq!(found, expected);
}

/// The block follows, so it runs until it has printed what the program before it has written.
#[test]
fn node_reads_the_objects() {
    let page = Page::open("languages.md");
    let dir = program("main.sh", page.block("Shell", "sh"));
    fs::write(dir.path().join("reading.sh"), page.block("Reading", "sh")).expect("a script");
    tool("node", "nodejs");
    let script = "sh main.sh >&2\nmkfifo said\nsh reading.sh >said &\ntimeout 100 sed -u /cannot/q said";
    let said = lines(&stdout_of(&mut on_mnt_relay(dir.path(), script)));
    assert_eq!(said[..2], ["- - started", "WARN backup the disk is slow"]);
    assert_eq!(said[2], "- - ls: cannot access '/no/such/place': No such file or directory");
}
