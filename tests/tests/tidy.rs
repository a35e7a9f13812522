//! The rules of this repository that a machine can check.

use std::fs;
use std::path::Path;
use std::process::Command;

use relayfs_tests::{program, stdout_of, text, workspace};

/// Words of code, and the only files that may have them. What stands behind `//` does not count.
const CONFINED: &[(&str, &[&str])] = &[
    ("fuser::", &["relayfsd/src/fuse/fs.rs"]),
    ("env!(\"CARGO\")", &["tests/src/librelay.rs"]), // no test builds anything
    (
        "unsafe",
        &[
            "audience/preload/src/lib.rs", // takes the place of functions of the C library
            "relay-producer/src/bin/relay-producer/kernel_module/loader.rs", // loads and calls modules
            "relay-producer/librelay/src/c_api.rs", // what C gives
            "relay-producer/librelay/src/handle.rs", // what C keeps
            "relay/src/memory/lent.rs",
            "relay/src/ring/rseq.rs",
            "relay/stdio/src/lib.rs", // runs before the runtime opens what is closed
            "relay/src/memory/mapping.rs",
            "relay/src/memory/mapping/sigbus.rs", // the handler of SIGBUS
            "relay/src/memory/mapping_model.rs",
            "relay/src/system/signals.rs", // changes actions of signals
            "relay/tests/bus_errors.rs",   // the same
            "relayfsd/src/process/daemonize.rs",
            "tests/examples/test-plugin.rs",
            "tests/fuzz/src/arena.rs",
            "tests/src/bin/test-fork.rs",
            "tests/src/bin/test-stranger.rs",
            "tests/src/bin/test-stress-writer.rs",
            "tests/src/bin/test-unload.rs",
            "tests/src/progress.rs",
        ],
    ),
];
/// The same within the crate `relay`, where a model checker's types take the place of these.
const CONFINED_IN_RELAY: &[(&str, &[&str])] = &[("std::sync::atomic", &["relay/src/memory/sync.rs"])];
/// Most lines of a source file, so that it can be read at a sitting. Tests may go on for longer.
const LINES_MAX: usize = 500;
/// What is unfinished, tried out, or means nothing to whoever has this tree alone. Split, for other searches' sake.
const UNWANTED: &[&str] = &[
    concat!("TO", "DO"),
    concat!("FIX", "ME"),
    concat!("XX", "X"),
    concat!("todo", "!"),
    concat!("unimplemented", "!"),
    concat!("db", "g!("),
    concat!("#[ig", "nore"),
    concat!("issue", " #"),
    concat!("/ho", "me/"),
    concat!("/wo", "rk/"),
];

/// A file of the project.
struct Source {
    /// From the workspace on.
    path: String,
    text: String,
}

impl Source {
    fn is_rust(&self) -> bool {
        self.path.ends_with(".rs")
    }

    fn is_test(&self) -> bool {
        self.path.contains("tests/") || self.path.ends_with("/tests.rs")
    }

    /// The lines' numbers, and what of them is code.
    fn code(&self) -> impl Iterator<Item = (usize, &str)> {
        self.text.lines().enumerate().map(|(i, line)| (i + 1, line.split("//").next().unwrap_or_default()))
    }
}

/// All files that people write, but this one, which names what it looks for.
fn sources() -> Vec<Source> {
    let mut sources = Vec::new();
    collect(workspace(), &mut sources);
    assert!(sources.len() > 50, "only {} files found", sources.len());
    sources
}

fn collect(dir: &Path, sources: &mut Vec<Source>) {
    for entry in fs::read_dir(dir).expect("a directory of the project") {
        let path = entry.expect("an entry").path();
        let name = path.file_name().and_then(|name| name.to_str()).expect("a name of text");
        if path.is_dir() {
            if !["target", ".git"].contains(&name) {
                collect(&path, sources);
            }
        } else if [".rs", ".md", ".sh", ".toml", ".service"].iter().any(|end| name.ends_with(end)) {
            let text = fs::read_to_string(&path).expect("a text");
            let path = path.strip_prefix(workspace()).expect("below the workspace").display().to_string();
            if path != file!() {
                sources.push(Source { path, text });
            }
        }
    }
}

/// Fails with everything that was found.
#[track_caller]
fn none(what: &str, found: Vec<String>) {
    assert!(found.is_empty(), "{what}:\n  {}", found.join("\n  "));
}

#[test]
fn what_is_confined_stays_where_it_is() {
    let mut found = Vec::new();
    for source in sources().iter().filter(|source| source.is_rust()) {
        let rules: &[_] = if source.path.starts_with("relay/src/") { CONFINED_IN_RELAY } else { &[] };
        for (word, files) in CONFINED.iter().chain(rules) {
            let lines = source.code().filter(|(_, code)| has_word(code, word));
            if !files.contains(&source.path.as_str()) {
                found.extend(lines.map(|(line, _)| format!("{}:{line}: {word}", source.path)));
            }
        }
    }
    none("code in the wrong file", found);
}

/// Whether `word` occurs and is not part of a longer one, like `unsafe` in `unsafe_code`.
fn has_word(code: &str, word: &str) -> bool {
    let part = |c: char| c.is_alphanumeric() || c == '_' || c == '-';
    code.match_indices(word).any(|(at, _)| {
        let (before, after) = (&code[..at], &code[at + word.len()..]);
        let longer = before.ends_with(part) || word.ends_with(part) && after.starts_with(part);
        !longer
    })
}

#[test]
fn every_unsafe_says_why_it_is_not() {
    let mut found = Vec::new();
    for source in sources().iter().filter(|source| source.is_rust()) {
        let lines: Vec<&str> = source.text.lines().collect();
        for (number, _) in source.code().filter(|(_, code)| has_word(code, "unsafe")) {
            let above = lines[..number - 1].iter().rev().map(|line| line.trim());
            let mut reasons = above.take_while(|line| line.starts_with("//") || line.starts_with("#["));
            if !reasons.any(|line| line.contains("SAFETY:") || line.contains("# Safety")) {
                found.push(format!("{}:{number}", source.path));
            }
        }
    }
    none("no SAFETY comment above", found);
}

#[test]
fn files_are_short() {
    let long = |source: &Source| {
        let lines = source.text.lines().count();
        (lines > LINES_MAX && !source.is_test()).then(|| format!("{}: {lines} lines", source.path))
    };
    none("too long", sources().iter().filter(|source| source.is_rust()).filter_map(long).collect());
}

#[test]
fn nothing_is_unfinished() {
    let mut found = Vec::new();
    for source in sources() {
        for (i, line) in source.text.lines().enumerate() {
            let words = UNWANTED.iter().filter(|word| line.contains(**word));
            found.extend(words.map(|word| format!("{}:{}: {word}", source.path, i + 1)));
        }
    }
    none("words that have no place here", found);
}

/// Time is no way to wait for another process: the next machine is slower.
#[test]
fn no_test_sleeps() {
    let mut found = Vec::new();
    for source in sources().iter().filter(|source| source.path.contains("tests/tests/")) {
        let sleeping = source.code().filter(|(_, code)| has_word(code, "sleep"));
        found.extend(sleeping.map(|(line, _)| format!("{}:{line}", source.path)));
    }
    none("wait for a condition instead", found);
}

/// Tests of the room `stress` would disturb each other.
#[test]
fn stress_tests_take_turns() {
    let mut found = Vec::new();
    for source in sources().iter().filter(|source| source.path.starts_with("tests/tests/stress/")) {
        for test in source.text.split("#[test]\n").skip(1) {
            let mut lines = test.lines();
            let head = lines.next().expect("a function");
            if lines.next() != Some("    let _turn = turn();") {
                found.push(format!("{}: {head}", source.path));
            }
        }
    }
    none("no turn taken at the start", found);
}

/// Its minor releases have each changed its API.
#[test]
fn fuser_is_pinned() {
    let manifest = fs::read_to_string(workspace().join("Cargo.toml")).expect("the workspace's manifest");
    assert!(manifest.contains("\nfuser = \"="), "an exact version of fuser");
}

#[test]
fn what_tests_ask_for_is_what_their_script_installs() {
    let script = fs::read_to_string(workspace().join("tests/run.sh")).expect("tests/run.sh");
    let mut found = Vec::new();
    for source in sources().iter().filter(|source| source.is_rust()) {
        for call in source.text.split("tool(\"").skip(1) {
            let mut words = call.split('"').step_by(2);
            let (Some(tool), Some(package)) = (words.next(), words.next()) else { continue };
            let line = format!("\nneed {tool} {package}\n");
            if !script.contains(&line) {
                found.push(format!("{}: {}", source.path, line.trim()));
            }
        }
    }
    none("missing in tests/run.sh", found);
}

#[test]
fn readme_names_every_option() {
    let readme = fs::read_to_string(workspace().join("README.md")).expect("README.md");
    let mut found = Vec::new();
    for name in ["relayfsd", "relay-producer", "audience", "audience record"] {
        let mut words = name.split(' ');
        let mut command = Command::new(program(words.next().expect("a program")));
        let help = text(&stdout_of(command.args(words).arg("--help")));
        let options = help.lines().filter_map(|line| {
            // "  -f, --foreground", "      --cpu <N>"
            let (before, option) = line.split_once("--")?;
            let is_head = before.len() <= 6 && before.trim().len() <= 3;
            is_head.then(|| option.split(|c: char| !c.is_alphanumeric() && c != '-').next())?
        });
        let options: Vec<&str> = options.collect();
        assert!(options.len() > 3, "the options of {name}: {options:?}");
        let missing = options.iter().filter(|option| !has_word(&readme, &format!("--{option}")));
        found.extend(missing.map(|option| format!("{name} --{option}")));
    }
    none("not in README.md", found);
}

#[test]
fn links_lead_to_files() {
    let mut found = Vec::new();
    for source in sources().iter().filter(|source| source.path.ends_with(".md")) {
        for link in source.text.split("](").skip(1).filter_map(|rest| rest.split(')').next()) {
            let file = link.split('#').next().unwrap_or_default();
            let outside = link.contains("://");
            if !outside && !file.is_empty() && !workspace().join(&source.path).with_file_name(file).exists() {
                found.push(format!("{}: {link}", source.path));
            }
        }
    }
    none("no such file", found);
}

#[test]
fn the_changelog_speaks_of_this_version() {
    let changelog = fs::read_to_string(workspace().join("CHANGELOG.md")).expect("CHANGELOG.md");
    let head = format!("## [{}]", env!("CARGO_PKG_VERSION"));
    assert!(changelog.contains(&head), "{head} is missing in CHANGELOG.md");
}
