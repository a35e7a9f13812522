//! `README.md`: each command in it is run, and nothing else, in the order in which it stands there. What it shows is what is
//! printed.
//!
//! A block `console` is a session: the output must be as shown, with other times and numbers. A block `sh` must succeed.
//! A block without a language that has commands is in [`ELSEWHERE`], with the test that runs it. The block `text` is run by
//! `services`, and the block `toml` read by `pages`.

use std::collections::BTreeSet;
use std::fs;
use std::path::PathBuf;

use relayfs_tests::users::where_users_mount;
use relayfs_tests::{private_shell, programs, run, text, tool, workspace};

/// Commands of blocks without a language, and what runs them.
const ELSEWHERE: &[(&str, &str)] = &[
    (
        "sudo apt-get install build-essential pkg-config fuse3",
        "cli: install uses them; no test installs packages",
    ),
    ("make", "cli: install"),
    ("sudo make install", "cli: install"),
    ("sudo ldconfig", "cli: install names the directory; no test changes the system's cache"),
    ("relayfsd doctor", "cli: doctor"),
    (
        "sudo systemctl enable --now relayfsd@mnt-relay",
        "cli: boot checks the unit; no test machine runs systemd",
    ),
    ("ssh host audience -c box -f", "cli: audience_timed follows; no test machine has a host to reach"),
    ("relay-forward --to nats://log1 --create", "forward: order, with another server"),
    ("relay-forward --from nats://log1 -c box -f", "forward: followed, with another server"),
    (
        "docker run -v /run/relayfs/mnt-relay:/run/relayfs -e RELAYFS=/run/relayfs/socket IMAGE",
        "tools: containers has the same mounts and namespaces; no test machine has docker",
    ),
    (
        "kubectl apply -f packaging/containers/kubernetes.yaml",
        "tools: container_files runs its commands; no test machine has a cluster",
    ),
];

/// A block of code: the heading above it, the language, the lines.
struct Block {
    heading: String,
    language: String,
    lines: Vec<String>,
}

fn blocks() -> Vec<Block> {
    let text = fs::read_to_string(workspace().join("README.md")).expect("README.md");
    let (mut blocks, mut heading, mut block) = (Vec::new(), String::new(), None::<Block>);
    for line in text.lines() {
        match (line.strip_prefix("```"), &mut block) {
            (Some(language), None) => {
                block =
                    Some(Block { heading: heading.clone(), language: language.into(), lines: Vec::new() });
            }
            (Some(_), Some(_)) => blocks.extend(block.take()),
            (None, Some(block)) => block.lines.push(line.to_owned()),
            (None, None) => {
                if let Some(found) = line.strip_prefix("## ") {
                    heading = found.to_owned();
                }
            }
        }
    }
    assert!(blocks.len() > 8, "only {} blocks", blocks.len());
    blocks
}

/// The programs with their man pages' names, in a directory for PATH.
fn path() -> PathBuf {
    tool("babeltrace2", "babeltrace2");
    tool("timeout", "coreutils");
    programs()
}

/// Runs a script as root, in a private place with an empty /mnt; returns what it printed, with its complaints.
#[track_caller]
fn in_private(script: &str) -> String {
    let setup = "PATH=$1:$PATH; export TZ=UTC; ulimit -c 0; mount -t tmpfs tmpfs /mnt; cd /mnt; exec 2>&1";
    let output = run(private_shell(&format!("{setup}\n{script}")).arg(path()));
    assert!(
        output.status.success(),
        "{script}: {}\n{}{}",
        output.status,
        text(&output.stdout),
        text(&output.stderr)
    );
    text(&output.stdout)
}

/// Replaces what differs from run to run: digits.
fn shape(text: &str) -> String {
    let mut shape = String::new();
    for c in text.trim_end().chars() {
        match c {
            '0'..='9' if shape.ends_with('0') => {}
            '0'..='9' => shape.push('0'),
            c => shape.push(c),
        }
    }
    shape
}

/// The commands of the session, as a script, and what the session shows.
fn session() -> (String, Vec<String>) {
    let block = blocks().into_iter().find(|block| block.language == "console").expect("a session");
    let (mut script, mut shown) = (String::new(), Vec::new());
    for line in block.lines {
        match line.strip_prefix("$ ") {
            // The daemon notes the end of a process a moment after it: the reader looks until it is there.
            Some(command) if command.starts_with("audience -c box") => {
                script += &format!("until {command} | grep killed >/dev/null; do :; done; {command}\n");
            }
            // The daemon ends a moment after its mount has gone.
            Some(command) if command.starts_with("audience --state") => {
                script += &format!(
                    "while {command} 2>&1 >/dev/null | grep 'is at work' >/dev/null; do :; done; {command}\n"
                );
            }
            Some(command) => script += &format!("{command} || [ $? -eq 137 ]\n"),
            None => shown.push(line),
        }
    }
    (script, shown)
}

#[test]
fn session_is_as_shown() {
    let (script, shown) = session();
    assert_eq!(shape(&in_private(&script)), shape(&shown.join("\n")), "{script}");
}

/// Behind the session, which has unmounted.
#[test]
fn blocks_of_commands_run() {
    let all = blocks();
    let blocks = all.iter().filter(|block| block.language == "sh" && block.heading != "Without root");
    let blocks: Vec<&Block> = blocks.collect();
    assert!(blocks.len() > 5, "only {} blocks", blocks.len());
    let (mut script, _) = session();
    for line in blocks.iter().flat_map(|block| &block.lines) {
        // `timeout` says by its status that it has ended the watch.
        let end = if line.starts_with("timeout ") { " || [ $? -eq 124 ]" } else { "" };
        script += &format!("{line}{end}\n");
    }
    let said = in_private(&script);
    for expected in [
        "from a file\ntotal.bytes 12\n",
        "stdout: started\n",
        "stderr: a warning\n",
        "\"message\":\"disk full\"",
        "ERROR app::db: disk full\n",
        "relayfs_dropped_messages_total{channel=\"box\",cpu=\"0\"} 0\n",
        "box: overwrite timed, ",
    ] {
        assert!(said.contains(expected), "{expected:?} is missing in:\n{said}");
    }
}

#[test]
fn user_mounts_as_shown() {
    let all = blocks();
    let block = all.iter().find(|block| block.heading == "Without root").expect("a block for users");
    let script = block.lines.join("\n").replace('\'', "'\\''");
    let said = where_users_mount(&format!(
        "mkdir home; chown 65534:65534 home; $nobody env HOME=\"$PWD/home\" sh -euc '{script}'; echo status $?; rm -r home"
    ));
    assert_eq!(said, ["from me", "status 0"]);
}

#[test]
fn other_commands_are_run_elsewhere() {
    let mut found = BTreeSet::new();
    for block in blocks().iter().filter(|block| block.language.is_empty()) {
        let is_figure = block.lines.iter().any(|line| line.contains("+----"));
        found.extend(
            block
                .lines
                .iter()
                .filter(|_| !is_figure)
                .map(|line| line.split("  #").next().unwrap_or_default().trim().to_owned()),
        );
    }
    assert_eq!(found, ELSEWHERE.iter().map(|(command, _)| (*command).to_owned()).collect());
    let known = ["console", "sh", "", "toml", "text"];
    assert!(blocks().iter().all(|block| known.contains(&block.language.as_str())));
}
