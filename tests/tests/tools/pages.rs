//! The blocks of `docs/classic.md`, `forwarding.md`, `libraries.md`, `recording.md`, `running.md` and `timed.md`: each is run, or
//! named as one that is not. The programs in Rust are compiled by rustdoc, see `tests/src/lib.rs`.

use std::fs;
use std::process::Command;

use relayfs_tests::classic::Classic;
use relayfs_tests::librelay::{installed_for_musl, libraries, pkg_config};
use relayfs_tests::pages::{EVENTUALLY, Page, START, lines, on_mnt_relay};
use relayfs_tests::{stdout_of, text, tool, workspace};
use tempfile::TempDir;

fn directory() -> TempDir {
    tempfile::tempdir().expect("a temporary directory")
}

/// Returns the commands of a block without their comments.
fn commands(block: &str) -> Vec<&str> {
    let commands = block.lines().map(|line| line.split("  #").next().unwrap_or_default().trim_end());
    commands.filter(|line| !line.is_empty()).collect()
}

#[test]
fn libraries_have_these_programs() {
    let page = Page::open("libraries.md");
    page.has_only(&[
        ("From a program", "rust,no_run"),
        ("tracing, log, panics", "toml"),
        ("tracing, log, panics", "rust,no_run"),
        ("From C", "c"),
        ("C libraries", "text"), // its last line runs below, with what the others have installed
        ("From Python", "python"),
    ]);
}

/// The raw channel's program is linked statically, with glibc and with musl.
#[test]
fn c_is_linked_statically_by_these_commands() {
    let page = Page::open("libraries.md");
    let dir = directory();
    fs::write(dir.path().join("raw.c"), page.block("From C", "c")).expect("a program");
    assert!(
        page.text().contains("`cc -static raw.c $(pkg-config --static --cflags --libs\nrelay)`"),
        "{page:?}"
    );
    let mut cc = tool("cc", "gcc");
    cc.current_dir(dir.path()).args(["-static", "raw.c", "-o", "a.out"]);
    stdout_of(cc.args(pkg_config(&["--static", "--cflags", "--libs"])));

    let block = page.block("C libraries", "text");
    let [_, _, link] = commands(block)[..] else { panic!("{block}") };
    tool("musl-gcc", "musl-tools");
    std::os::unix::fs::symlink(installed_for_musl().join("usr"), dir.path().join("musl")).expect("a link");
    stdout_of(Command::new("sh").current_dir(dir.path()).args(["-c", &format!("{link} -o b.out")]));
    let mut command = on_mnt_relay(dir.path(), "./a.out && ./b.out\naudience -c app/raw");
    assert_eq!(text(&stdout_of(&mut command)), "started\nstarted\n");
}

#[test]
fn c_writes_a_raw_channel() {
    let page = Page::open("libraries.md");
    let dir = directory();
    fs::write(dir.path().join("raw.c"), page.block("From C", "c")).expect("a program");
    // As the page says.
    assert!(page.text().contains("`cc raw.c $(pkg-config --cflags --libs relay)`"), "{page:?}");
    let mut cc = tool("cc", "gcc");
    cc.current_dir(dir.path()).args(["-Wall", "-Wextra", "-Werror", "raw.c"]);
    stdout_of(cc.args(pkg_config(&["--cflags", "--libs"])));
    let mut command = on_mnt_relay(dir.path(), "./a.out\naudience -c app/raw");
    assert_eq!(text(&stdout_of(command.env("LD_LIBRARY_PATH", libraries()))), "started\n");
}

#[test]
fn python_logs_and_reads() {
    let page = Page::open("libraries.md");
    let dir = directory();
    fs::write(dir.path().join("main.py"), page.block("From Python", "python")).expect("a program");
    tool("python3", "python3");
    let script = format!(
        "echo slow | relay-producer -c app/log --level warn --target app::db
        PYTHONDONTWRITEBYTECODE=1 PYTHONPATH={} python3 main.py",
        workspace().join("python/src").display()
    );
    let said = text(&stdout_of(&mut on_mnt_relay(dir.path(), &script)));
    assert!(said.ends_with(" WARN app::db slow\n"), "{said}");
}

/// The blocks `toml` of README and page ask for what there is, and for what `tests/run.sh` compiles.
#[test]
fn dependency_is_one_that_is_compiled() {
    let of = |page: &Page, heading| {
        let block = page.block(heading, "toml").to_owned();
        block.lines().find(|line| line.starts_with("relay-producer = ")).expect("the dependency").to_owned()
    };
    let line = of(&Page::read("README.md"), "From your language");
    assert_eq!(line, of(&Page::open("libraries.md"), "tracing, log, panics"));
    let features = line
        .strip_prefix(
            r#"relay-producer = { path = "relayfs/relay-producer", default-features = false, features = ["#,
        )
        .and_then(|rest| rest.strip_suffix("] }"))
        .expect("a dependency as cargo takes it");
    let features: Vec<&str> = features.split(", ").map(|feature| feature.trim_matches('"')).collect();
    let manifest = fs::read_to_string(workspace().join("relay-producer/Cargo.toml")).expect("the manifest");
    let known = manifest.split_once("\n[features]\n").expect("features").1;
    let known = known.split_once("\n[").expect("the next table").0;
    for feature in &features {
        assert!(known.contains(&format!("\n{feature} = [")), "{feature}: {known}");
    }
    let script = fs::read_to_string(workspace().join("tests/run.sh")).expect("tests/run.sh");
    let step =
        format!("--package relay-producer --lib --no-default-features --features {}", features.join(","));
    assert!(script.contains(&step), "{step}");
}

/// A module and a reader of the kernel, by the commands of the page.
#[test]
fn classic_programs_run_by_these_commands() {
    let page = Page::open("classic.md");
    page.has_only(&[("The classic programs", ""), ("The classic programs", "")]);
    let (module, reader) = (page.blocks()[0].2, page.blocks()[1].2);
    let [mkdir, mount, compile, load] = commands(module)[..] else { panic!("{module}") };
    assert_eq!(load, "relay-producer --load hello-mod.so");
    let classic = Classic::installed();
    let sources = workspace().join("tests/c/classic");
    let printed = classic.run(&format!(
        "set -e
        rmdir /mnt/relay
        mount --bind \"$1\" /usr/local
        cp {}/hello-mod.c {}/audience.c .
        {mkdir}
        {mount}
        {compile}
        {load} &
        until_true grep -q 'total.bytes [1-9]' /mnt/relay/.relay/channels/cpu/stats
        {reader}
        kill -TERM $!
        wait $!",
        sources.display(),
        sources.display()
    ));
    // The reader's puts(3) adds a line.
    assert_eq!(printed, "Hello world\n\n");
}

#[test]
fn recordings_and_pages_are_made_by_these_commands() {
    let page = Page::open("recording.md");
    page.has_only(&[("For years", ""), ("For years", ""), ("A page", "")]);
    let blocks = page.blocks();
    assert_eq!(
        blocks[1].2, "systemctl enable --now audience-record@mnt-relay",
        "no test machine runs systemd"
    );
    let [of_recordings, of_a_minute, of_buffers] = commands(blocks[2].2)[..] else { panic!("{page:?}") };
    let dir = directory();
    let script = format!(
        "mount -t tmpfs tmpfs /var/log
        {} &
        echo kept | relay-producer -c app/log --level warn
        eventually test -d /var/log/relay/app/log
        kill -TERM $!
        wait $!
        audience --trace /var/log/relay/app/log -o cat
        {of_recordings} >&2
        # Its default is a minute.
        {of_a_minute} --duration 1s >&2
        echo waits | relay-producer -c app/log
        {of_buffers} >&2
        grep -c kept rec.html
        grep -c '<html' minute.html
        grep -c waits now.html",
        blocks[0].2
    );
    let said = lines(&stdout_of(&mut on_mnt_relay(dir.path(), &script)));
    assert_eq!(said[0], "kept");
    assert!(said.len() == 4 && said[1..].iter().all(|count| count != "0"), "{said:?}");
}

#[test]
fn running_has_no_other_commands() {
    let page = Page::open("running.md");
    page.has_only(&[("Boot", "")]);
    // `boot` checks the unit; no test machine runs systemd.
    assert_eq!(commands(page.block("Boot", "")), ["systemctl enable --now relayfsd@mnt-relay"]);
}

/// Runs a script in a network without anything else, so that each port is free.
fn in_a_network(dir: &TempDir, script: &str) -> Command {
    tool("ip", "iproute2");
    tool("nats-server", "nats-server");
    let script = format!("{EVENTUALLY}\nip link set lo up\n{script}");
    let mut command = on_mnt_relay(dir.path(), "exec unshare --net sh -euc \"$SCRIPT\"");
    command.env("SCRIPT", script);
    command
}

#[test]
fn forwarding_works_by_these_commands() {
    let page = Page::open("forwarding.md");
    page.has_only(&[
        ("Try it", ""),
        ("Try it", ""),
        ("Three machines and one server", ""),
        ("Three machines and one server", ""),
        ("A cluster of three", ""),
        ("A cluster of three", ""),
        ("As a service", ""),
        ("Read", ""),
        ("Recordings", ""),
    ]);
    let blocks = page.blocks();
    let [server, forward] = commands(blocks[0].2)[..] else { panic!("{page:?}") };
    let [write, read] = commands(blocks[1].2)[..] else { panic!("{page:?}") };
    let read_all = read.replace(" -c box", "");
    let here = |command: &str| {
        let command = command.replace("nats://log1:4222", "nats://localhost:4223");
        command.replace("--host web1", "--host \"$(uname -n)\"").replace("rec/web1", "\"rec/$(uname -n)\"")
    };
    let [record, print] = commands(blocks[8].2)[..] else { panic!("{page:?}") };
    let dir = directory();
    let script = format!(
        "{}
        {forward} &
        {write}
        echo hello | relay-producer -c app/log --level warn
        written() {{ {read} >box && grep -q ' relay-producer.*: it works$' box; }}
        eventually written
        forwarded() {{ {read_all} >read && grep -q ' WARN: hello' read; }}
        eventually forwarded
        grep hello read
        {}
        {} && {}",
        // A place that ends with the test.
        server.replace("/tmp/nats", "\"$DIR/nats\""),
        further_reads(&here(blocks[7].2)),
        here(record),
        here(print),
    );
    let said = lines(&stdout_of(&mut in_a_network(&dir, &script)));
    assert!(said[0].contains(" cpu") && said[0].ends_with(" WARN: hello"), "{said:#?}");
    assert_eq!(said[1..4], ["1", "1", "1"], "{said:#?}");
    assert!(said.len() == 5 && said[4].ends_with(" WARN: hello"), "{said:#?}");
}

/// The commands of a block that end, each with its records counted.
fn further_reads(block: &str) -> String {
    let ending = commands(block).into_iter().filter(|command| !command.ends_with(" -f"));
    ending.map(|command| format!("{command} | grep -c hello\n")).collect()
}

/// nats-server checks a configuration without a start. The lines about certificates name files of the reader.
#[test]
fn servers_take_these_configurations() {
    let page = Page::open("forwarding.md");
    let blocks = page.blocks();
    for (number, begin) in [(2, "listen: "), (4, "server_name: n1")] {
        let (heading, _, configuration) = blocks[number];
        assert!(configuration.starts_with(begin), "{heading}: {configuration}");
        let plain: Vec<&str> = configuration.lines().filter(|line| !line.starts_with("tls ")).collect();
        let dir = directory();
        fs::write(dir.path().join("nats.conf"), plain.join("\n")).expect("a configuration");
        stdout_of(tool("nats-server", "nats-server").current_dir(dir.path()).args(["-t", "-c", "nats.conf"]));
    }
}

/// Those that do not end by themselves are ended.
#[test]
fn timed_channels_are_used_by_these_commands() {
    let page = Page::open("timed.md");
    // The second one is the example's, which `audience_timed` runs.
    page.has_only(&[("Timed channels", ""), ("Timed channels", "")]);
    tool("babeltrace2", "babeltrace2");
    tool("timeout", "coreutils");
    let (mut script, endless) = (String::new(), [" -f", " -o rec", " -o saved"]);
    for command in commands(page.blocks()[0].2) {
        if endless.iter().any(|end| command.ends_with(end)) && !command.starts_with("audience convert") {
            // In the foreground, since timeout would send the signal twice, and the second one ends a command at once.
            script += &format!("timeout --foreground --preserve-status -s INT 2 {command}\n");
        } else {
            script += &format!("{command}\n");
        }
        // A record for the next commands.
        if command.contains(" --exec ") {
            script += "echo timeout | relay-producer -c box --level error\n";
        }
    }
    let program = "printf '#!/bin/sh\\necho served $2\\n' >service; chmod +x service; umount /mnt/relay";
    let dir = directory();
    // In the same file system as the mount, for its first command.
    let said = text(&stdout_of(&mut on_mnt_relay(dir.path(), &format!("{program}\n{script}"))));
    for expected in ["stdout: served 80\n", "INFO: started\n", "\"message\":\"timeout\"", "ERROR: timeout\n"]
    {
        assert!(said.contains(expected), "{expected:?} is missing in:\n{said}");
    }
    assert!(START.starts_with(commands(page.blocks()[0].2)[0]));
}
