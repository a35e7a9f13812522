//! `docs/shippers.md`: what is there of programs that Debian has is run, and the units are checked.

use std::fs;
use std::path::Path;

use relayfs_tests::pages::{Page, START, content, lines, on_mnt_relay};
use relayfs_tests::{program, programs, run, stdout_of, text, tool};

const OUT: &str = "rsyslog, out of a relayfs";
const IN: &str = "rsyslog, into a relayfs";

#[test]
fn page_has_no_other_blocks() {
    let page = Page::open("shippers.md");
    page.has_only(&[
        ("Shippers, files and services", ""),
        ("Any program that takes lines", "sh"),
        (OUT, "rsyslog"),
        (OUT, "sh"),
        (IN, "rsyslog"),
        ("journald", "text"),
        ("fluent-bit", "text"),
        ("vector", "toml"),
        ("vector", "toml"),
        ("A systemd service", "ini"),
        ("A systemd service", "ini"),
    ]);
    assert_eq!(page.block("Shippers, files and services", ""), START);
}

#[test]
fn loop_of_the_shell_takes_each_record() {
    let page = Page::open("shippers.md");
    let dir = tempfile::tempdir().expect("a temporary directory");
    fs::write(dir.path().join("alarm.sh"), page.block("Any program that takes lines", "sh"))
        .expect("a script");
    let script = "sh alarm.sh &
        echo slow | relay-producer -c app/log --level warn
        echo fine | relay-producer -c app/log --level info
        echo over | relay-producer -c app/log --level error
        two() { test $(ls alarm-* | wc -l) = 2; }
        eventually two
        eventually grep -q over alarm-*
        cat alarm-*";
    let found = lines(&stdout_of(&mut on_mnt_relay(dir.path(), script)));
    let found: Vec<&str> = found.iter().map(|line| content(line)).collect();
    let expected = [("WARN", "slow"), ("ERROR", "over")]
        .map(|(level, message)| format!(r#""level":"{level}","event":"log","message":"{message}"}}"#));
    assert_eq!(found, expected);
}

/// Runs rsyslogd with a part of the page as a file of its configuration. Its input is the socket /run/syslog.
#[track_caller]
fn with_rsyslog(configuration: &str, script: &str) -> Vec<String> {
    tool("rsyslogd", "rsyslog");
    tool("logger", "bsdutils");
    let dir = tempfile::tempdir().expect("a temporary directory");
    let path = |name: &str| dir.path().join(name);
    fs::write(path("part.conf"), configuration).expect("a part");
    let main = format!(
        "module(load=\"imuxsock\" SysSock.Name=\"/run/syslog\")\n$IncludeConfig {}\n",
        path("part.conf").display()
    );
    fs::write(path("main.conf"), main).expect("a configuration");
    // The programs stand where the page has them.
    let start = "mount --bind \"$PROGRAMS\" /usr/local/bin
        mount -t tmpfs tmpfs /var/log
        rsyslogd -N1 -f \"$DIR/main.conf\" >said 2>&1 || { cat said >&2; false; }
        rsyslogd -n -f \"$DIR/main.conf\" -i /run/rsyslogd.pid &
        eventually test -S /run/syslog";
    lines(&stdout_of(&mut on_mnt_relay(dir.path(), &format!("{start}\n{script}"))))
}

#[test]
fn rsyslog_takes_warnings_out_of_a_relayfs() {
    let page = Page::open("shippers.md");
    let script = format!(
        "eventually test -S /run/relayfs-out
        {{ {}; }} &
        echo fine | relay-producer -c app/log --level info --target app::db
        echo slow | relay-producer -c app/log --level warn --target app::db
        eventually grep slow /var/log/relayfs.log
        cat /var/log/relayfs.log",
        page.block(OUT, "sh")
    );
    let found = with_rsyslog(page.block(OUT, "rsyslog"), &script);
    let [line] = &found[..] else { panic!("{found:#?}") };
    let line = line.strip_prefix("relay-producer[").expect("the writer");
    assert_eq!(line.split_once(']').expect("a pid").1, " WARN app::db: slow");
}

#[test]
fn rsyslog_writes_into_a_relayfs() {
    let page = Page::open("shippers.md");
    let script = "logger -u /run/syslog -t cron -p daemon.err 'job failed'
        logger -u /run/syslog -t cron -p daemon.info 'job done'
        both() { audience -c syslog --snapshot >now && grep failed now && grep done now; }
        eventually both
        audience -c syslog -o json";
    let found = with_rsyslog(page.block(IN, "rsyslog"), script);
    // Two programs have written them.
    let mut found: Vec<&str> = found.iter().map(|line| content(line)).collect();
    found.sort();
    let expected = [("ERROR", "cron: job failed"), ("INFO", "cron: job done")]
        .map(|(level, message)| format!(r#""level":"{level}","event":"log","message":"{message}"}}"#));
    assert_eq!(found, expected);
}

/// Whatever systemd does not know, it says.
#[track_caller]
fn verify(dir: &Path, names: &[&str]) {
    let script = format!(
        "mount -t tmpfs tmpfs /usr/local/bin
        ln -s {}/* /bin/true /usr/local/bin
        systemd-analyze verify --man=no {}",
        programs().display(),
        names.join(" ")
    );
    tool("systemd-analyze", "systemd");
    let output = run(&mut on_mnt_relay(dir, &script));
    assert!(output.status.success() && output.stderr.is_empty(), "{}", text(&output.stderr));
}

#[test]
fn units_are_what_systemd_takes() {
    let page = Page::open("shippers.md");
    let dir = tempfile::tempdir().expect("a temporary directory");
    let names = ["app.service", "relayfs-out.service"];
    let units: Vec<&str> = page
        .blocks()
        .into_iter()
        .filter(|(_, language, _)| *language == "ini")
        .map(|(.., code)| code)
        .collect();
    assert_eq!(units.len(), names.len());
    for (name, unit) in names.iter().zip(&units) {
        fs::write(dir.path().join(name), unit).expect("a unit");
    }
    verify(dir.path(), &names);
}

/// What the unit starts keeps the output of the application.
#[test]
fn service_keeps_its_output() {
    let page = Page::open("shippers.md");
    let unit = page.blocks().into_iter().find(|(_, language, _)| *language == "ini").expect("a unit").2;
    let start = unit.lines().find_map(|line| line.strip_prefix("ExecStart=")).expect("what it starts");
    let dir = tempfile::tempdir().expect("a temporary directory");
    let producer = program("relay-producer");
    // In the places that the unit names.
    let script = format!(
        "mount -t tmpfs tmpfs /usr/local/bin
        ln -s {} /usr/local/bin
        printf '#!/bin/sh\\necho out\\necho err >&2\\n' >/usr/local/bin/app
        chmod +x /usr/local/bin/app
        {start} >passed 2>&1
        test \"$(sort passed | tr '\\n' ' ')\" = 'err out '
        audience -c app/log -o json",
        producer.display()
    );
    let found = lines(&stdout_of(&mut on_mnt_relay(dir.path(), &script)));
    let mut found: Vec<&str> = found.iter().map(|line| content(line)).collect();
    found.sort();
    let expected = [("stderr", "err"), ("stdout", "out")]
        .map(|(stream, message)| format!(r#""event":"output","stream":"{stream}","message":"{message}"}}"#));
    assert_eq!(found, expected);
}
