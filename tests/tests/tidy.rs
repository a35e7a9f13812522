//! The rules of this repository that a machine can check. `tidy/rooms.rs` has those about rooms.

#[path = "tidy/rooms.rs"]
mod rooms;

use std::fs;
use std::path::Path;

use relayfs_tests::workspace;

/// Words of code, and the only files that may have them. Comments do not count.
const CONFINED: &[(&str, &[&str])] = &[
    ("fuser::", &["relayfsd/src/fuse/fs.rs"]),
    ("env!(\"CARGO\")", &["tests/src/librelay.rs"]), // no test builds anything
    (
        "unsafe",
        &[
            "audience/forward/src/send/bell.rs", // registers a descriptor in the event loop
            "audience/preload/src/lib.rs",       // takes the place of functions of the C library
            "relay-producer/src/bin/relay-producer/kernel_module/loader.rs", // loads and calls modules
            "relay-producer/librelay/src/c_api.rs", // what C gives
            "relay-producer/librelay/src/handle.rs", // what C keeps
            "relay-producer/librelay/src/timed.rs", // what C gives about timed channels
            "relay-producer/librelay/src/write.rs", // what C gives, off the usual way
            "relay-producer/src/bin/relay-producer/exec/child.rs", // runs, splits and ends processes
            "relay-producer/src/tracing/layer.rs", // passes on a call of the crate's
            "relay-producer/tests/fork.rs",
            "relay/src/clock/source.rs", // reads the processor's counter
            "relay/src/memory/lent.rs",
            "relay/src/ring/rseq.rs",
            "relay/src/ring/rseq/aarch64.rs",
            "relay/src/ring/rseq/area.rs",
            "relay/src/ring/rseq/linked.rs", // asks the kernel, and the auxiliary vector
            "relay/src/ring/rseq/own.rs",    // registers threads
            "relay/src/ring/rseq/pool.rs",   // the memory of their areas
            "relay/src/ring/rseq/record.rs",
            "relay/src/ring/rseq/switch.rs",
            "relay/stdio/src/lib.rs", // runs before the runtime opens what is closed
            "relay/src/memory/mapping.rs",
            "relay/src/memory/mapping/sigbus.rs", // the handler of SIGBUS
            "relay/src/memory/mapping_model.rs",
            "relay/src/system/at_fork.rs",      // asks for calls at each fork
            "relay/src/system/process_lock.rs", // its test forks
            "relay/src/system/signals.rs",      // changes actions of signals
            "relay/src/system/thread_id.rs",    // a page that a fork zeroes
            "relay/tests/bus_errors.rs",        // the same
            "relay/tests/stamps.rs",            // the same
            "relayfsd/src/process/daemonize.rs",
            "relayfsd/src/process/peer_groups.rs", // a socket option that no crate has
            "relayfsd/src/process/pidfd.rs",       // an ioctl that no crate has
            "tests/examples/test-plugin.rs",
            "tests/fuzz/src/arena.rs",
            "tests/src/bin/test-fork.rs",
            "tests/src/bin/test-forks.rs",
            "tests/src/bin/test-frontend.rs", // counts allocations
            "tests/src/bin/test-stranger.rs",
            "tests/src/bin/test-stress-writer.rs",
            "tests/src/bin/test-timed-writer.rs",
            "tests/src/bin/test-unload.rs",
            "tests/src/ends.rs", // a filter of system calls
            "tests/src/progress.rs",
            "tests/src/refused.rs", // the same
        ],
    ),
];
/// The same within the crate `relay`, where a model checker's types take the place of these.
const CONFINED_IN_RELAY: &[(&str, &[&str])] = &[(
    "std::sync::atomic",
    &[
        "relay/src/memory/sync.rs",
        "relay/src/layout/levels.rs",       // is in no model
        "relay/src/system/at_fork.rs",      // its test
        "relay/src/system/descriptor.rs",   // the same as levels
        "relay/src/system/next_try.rs",     // the same as levels
        "relay/src/system/process_lock.rs", // the same
        "relay/src/system/thread_id.rs",    // the same
        "relay/src/ring/rseq/own.rs",       // the same
        "relay/src/clock/source.rs",        // the clock of a model, which loom is not to watch
    ],
)];
/// Most lines of a source file. Tests may have more.
const LINES_MAX: usize = 500;
/// Marks of unfinished work, and words that mean nothing outside. They are split, so that searches do not find them here.
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
/// Words that a reader has to translate, in product code, in documents and in comments of tests.
const DIALECT: &[&str] = &[
    "anew",
    "go on with",
    "goes on",
    "gone on with",
    "in vain",
    "is told",
    "nobody",
    "of its own",
    "save that",
    "so many",
    "somebody",
    "to be had",
    "to go on",
    "whoever",
];

/// A file of the project.
struct Source {
    /// The path below the workspace.
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

    /// Returns the lines' numbers and their code, without comments.
    fn code(&self) -> impl Iterator<Item = (usize, &str)> {
        self.text.lines().enumerate().map(|(i, line)| (i + 1, line.split("//").next().unwrap_or_default()))
    }
}

/// Returns all files that people write, except this one, which has the words that it looks for.
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

/// Fails with all findings.
#[track_caller]
fn none(what: &str, found: Vec<String>) {
    assert!(found.is_empty(), "{what}:\n  {}", found.join("\n  "));
}

#[test]
fn confined_words_are_in_their_files() {
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

/// Returns whether `word` occurs, not as a part of a longer word, like `unsafe` in `unsafe_code`.
fn has_word(code: &str, word: &str) -> bool {
    let part = |c: char| c.is_alphanumeric() || c == '_' || c == '-';
    code.match_indices(word).any(|(at, _)| {
        let (before, after) = (&code[..at], &code[at + word.len()..]);
        let longer = before.ends_with(part) || word.ends_with(part) && after.starts_with(part);
        !longer
    })
}

#[test]
fn every_unsafe_block_has_a_safety_comment() {
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
fn sources_have_no_unwanted_words() {
    let mut found = Vec::new();
    for source in sources() {
        for (i, line) in source.text.lines().enumerate() {
            let words = UNWANTED.iter().filter(|word| line.contains(**word));
            found.extend(words.map(|word| format!("{}:{}: {word}", source.path, i + 1)));
        }
    }
    none("words that have no place here", found);
}

#[test]
fn sources_use_plain_words() {
    let mut found = Vec::new();
    let end_to_end = |source: &&Source| source.path.starts_with("tests/tests/");
    let is_checked = |source: &&Source| !source.is_test() || end_to_end(source);
    for source in sources().iter().filter(is_checked).filter(|source| source.path != "CHANGELOG.md") {
        let text = source.text.to_lowercase();
        for (i, line) in text.lines().enumerate() {
            let comment = line.split_once("//").map_or("", |(_, comment)| comment);
            let checked = if end_to_end(&source) { comment } else { line };
            let words = DIALECT.iter().filter(|word| has_word(checked, word));
            found.extend(words.map(|word| format!("{}:{}: {word}", source.path, i + 1)));
        }
    }
    none("words to translate", found);
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

/// Each minor release of fuser changes its API.
#[test]
fn fuser_is_pinned() {
    let manifest = fs::read_to_string(workspace().join("Cargo.toml")).expect("the workspace's manifest");
    assert!(manifest.contains("\nfuser = \"="), "an exact version of fuser");
}

#[test]
fn script_installs_what_tests_need() {
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

/// Longest line of a document, in characters, outside of tables and code. The changelog has longer ones.
const COLUMNS_MAX: usize = 100;
/// Most lines of a document. The changelog may have more.
const DOCUMENT_LINES_MAX: usize = 300;
/// Most lines of the README, which is for strangers.
const README_LINES_MAX: usize = 250;

/// Returns the documents.
fn documents() -> Vec<Source> {
    sources().into_iter().filter(|source| source.path.ends_with(".md")).collect()
}

/// Returns the lines of a document with their numbers, without blocks of code.
fn prose(document: &Source) -> impl Iterator<Item = (usize, &str)> {
    let mut in_code = false;
    document.text.lines().enumerate().filter_map(move |(i, line)| {
        let is_fence = line.trim_start().starts_with("```");
        in_code ^= is_fence;
        (!in_code && !is_fence).then_some((i + 1, line))
    })
}

/// Returns the words between backticks of a text.
fn quoted(text: &str) -> impl Iterator<Item = &str> {
    text.split('`').skip(1).step_by(2)
}

#[test]
fn documents_are_narrow_and_short() {
    let mut found = Vec::new();
    for document in documents().iter().filter(|document| document.path != "CHANGELOG.md") {
        let wide = |line: &str| line.chars().count() > COLUMNS_MAX && !line.starts_with('|');
        let wide = prose(document).filter(|(_, line)| wide(line));
        found.extend(wide.map(|(line, _)| format!("{}:{line}: too wide", document.path)));
        let n_lines = document.text.lines().count();
        let max = if document.path == "README.md" { README_LINES_MAX } else { DOCUMENT_LINES_MAX };
        if n_lines > max {
            found.push(format!("{}: {n_lines} lines", document.path));
        }
    }
    none("documents that are hard to read", found);
}

/// Returns the name of a heading in links, as forges make it.
fn anchor(heading: &str) -> String {
    let kept = |c: &char| c.is_alphanumeric() || [' ', '-', '_'].contains(c);
    let text = heading.trim_start_matches('#').trim().to_lowercase();
    text.chars().filter(kept).map(|c| if c == ' ' { '-' } else { c }).collect()
}

#[test]
fn links_lead_to_files_and_headings() {
    let (mut found, documents) = (Vec::new(), documents());
    for document in &documents {
        let text: Vec<&str> = prose(document).map(|(_, line)| line).collect();
        for link in text.join("\n").split("](").skip(1).filter_map(|rest| rest.split(')').next()) {
            let (file, heading) = link.split_once('#').unwrap_or((link, ""));
            if link.contains("://") {
                continue;
            }
            let path = workspace().join(&document.path);
            let path = if file.is_empty() { path } else { path.with_file_name(file) };
            let Ok(path) = path.canonicalize() else {
                found.push(format!("{}: {link}: no such file", document.path));
                continue;
            };
            let root = workspace().canonicalize().expect("the workspace");
            let target = documents.iter().find(|other| root.join(&other.path) == path);
            let has_heading = target.is_some_and(|target| {
                prose(target).any(|(_, line)| line.starts_with('#') && anchor(line) == heading)
            });
            if !heading.is_empty() && !has_heading {
                found.push(format!("{}: {link}: no such heading", document.path));
            }
        }
    }
    none("links that lead nowhere", found);
}

/// Paths in a document's text and drawings, relative to the workspace or the document.
#[test]
fn paths_in_documents_exist() {
    let mut found = Vec::new();
    for source in sources() {
        let is_document = source.path.ends_with(".md");
        let dirs = [Path::new("").to_owned(), Path::new(&source.path).with_file_name("")];
        let dirs = if is_document { &dirs[..] } else { &dirs[..1] };
        let part = |c: char| c.is_alphanumeric() || "._-/@".contains(c);
        for word in source.text.split(|c| !part(c)).map(|word| word.trim_end_matches('.')) {
            let Some((first, rest)) = word.split_once('/').filter(|_| is_document || word.ends_with(".md"))
            else {
                continue;
            };
            let is_place = !["", ".", "..", "target"].contains(&first);
            let bases = dirs.iter().map(|dir| workspace().join(dir));
            let mut bases = bases.filter(|base| is_place && base.join(first).is_dir()).peekable();
            if bases.peek().is_some() && !bases.any(|base| base.join(first).join(rest).exists()) {
                found.push(format!("{}: {word}", source.path));
            }
        }
    }
    none("no such file", found);
}

/// Returns whether there is a file of tests with this name.
fn is_test_file(sources: &[Source], name: &str) -> bool {
    let file = format!("/{name}.rs");
    file!().ends_with(&file)
        || sources.iter().any(|source| source.path.contains("tests/") && source.path.ends_with(&file))
}

#[test]
fn tests_named_in_documents_exist() {
    let (sources, mut found) = (sources(), Vec::new());
    let named = |text: &str| text.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'_');
    for document in sources.iter().filter(|source| source.path.ends_with(".md")) {
        // "Tests: `read`, `poll`.", to the end of the paragraph or of the item of a list.
        let lists = document.text.split("ests: ").skip(1).map(|rest| {
            let end = ["\n\n", "\n- ", "\n|"].iter().filter_map(|end| rest.find(end)).min();
            &rest[..end.unwrap_or(rest.len())]
        });
        // The table of where a test goes.
        let is_table = document.path == "tests/README.md";
        let cells = document.text.lines().filter(|line| is_table && line.starts_with('|'));
        let cells = cells.filter_map(|line| line.trim_end_matches('|').rsplit('|').next());
        for list in lists.chain(cells) {
            let missing = quoted(list).filter(|name| named(name) && !is_test_file(&sources, name));
            found.extend(missing.map(|name| format!("{}: {name}", document.path)));
        }
    }
    let models = sources.iter().filter(|source| source.path.starts_with("relay/tests/models"));
    let models: String = models.map(|source| source.text.as_str()).collect();
    let algorithm = sources.iter().find(|source| source.path == "relay/docs/ALGORITHM.md");
    let algorithm = &algorithm.expect("the document of the ring").text;
    let table = algorithm.split_once("| models that fail |").expect("the table of mutations").1;
    let rows: Vec<&str> = table.lines().skip(2).take_while(|line| line.starts_with('|')).collect();
    assert!(rows.len() > 10, "the table of mutations: {rows:?}");
    for models_of_row in rows.iter().filter_map(|row| row.trim_end_matches([' ', '|']).rsplit('|').next()) {
        let function = |name: &str| format!("fn {}()", name.rsplit("::").next().unwrap_or_default());
        let missing = quoted(models_of_row).filter(|name| !models.contains(&function(name)));
        found.extend(missing.map(|name| format!("{}: model {name}", "relay/docs/ALGORITHM.md")));
    }
    none("no such test", found);
}

#[test]
fn changelog_has_this_version() {
    let changelog = fs::read_to_string(workspace().join("CHANGELOG.md")).expect("CHANGELOG.md");
    let head = format!("## [{}]", env!("CARGO_PKG_VERSION"));
    assert!(changelog.contains(&head), "{head} is missing in CHANGELOG.md");
}
