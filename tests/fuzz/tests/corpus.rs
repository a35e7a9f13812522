//! Every target with its corpus, and with a few thousand inputs made of that, the same each time.

use std::fs;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};

use relayfs_fuzz::{TARGETS, Target};

/// Inputs made of the corpus.
const MUTATIONS: usize = 5000;
/// Longest of them, in bytes.
const LEN_MAX: usize = 1024;

/// Xorshift: not random, but everything comes.
struct Numbers(u64);

impl Numbers {
    fn below(&mut self, end: usize) -> usize {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        (self.0 >> 11) as usize % end.max(1)
    }
}

fn corpus(target: &str) -> Vec<(PathBuf, Vec<u8>)> {
    let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("corpus").join(target);
    let entries = fs::read_dir(&dir).unwrap_or_else(|error| panic!("{}: {error}", dir.display()));
    let mut files: Vec<PathBuf> = entries.map(|entry| entry.expect("an entry").path()).collect();
    files.sort();
    assert!(files.len() > 5, "{}: {} files", dir.display(), files.len());
    let read = |path: PathBuf| fs::read(&path).map(|bytes| (path, bytes)).expect("a file");
    files.into_iter().map(read).collect()
}

/// One of the corpus with a few bytes changed, left out, put in, or taken from another one.
fn mutation(corpus: &[(PathBuf, Vec<u8>)], numbers: &mut Numbers) -> Vec<u8> {
    let mut bytes = corpus[numbers.below(corpus.len())].1.clone();
    for _ in 0..=numbers.below(6) {
        let at = numbers.below(bytes.len() + 1);
        let end = (at + 1 + numbers.below(8)).min(bytes.len());
        match numbers.below(6) {
            0 if at < end => bytes[at] ^= 1 << numbers.below(8),
            1 if at < end => bytes[at] = numbers.below(256) as u8,
            2 if at < end => bytes[at..end].fill(if numbers.below(2) == 0 { 0 } else { 0xff }),
            3 if at < end => drop(bytes.drain(at..end)),
            4 => bytes.insert(at, numbers.below(256) as u8),
            _ => {
                let other = &corpus[numbers.below(corpus.len())].1;
                let from = numbers.below(other.len() + 1);
                let len = numbers.below(other.len() - from + 1).min(64);
                bytes.splice(at..at, other[from..from + len].iter().copied());
            }
        }
    }
    bytes.truncate(LEN_MAX);
    bytes
}

/// Should the process die of an input, it is the one in this file.
fn last_input(name: &str) -> PathBuf {
    Path::new(env!("CARGO_TARGET_TMPDIR")).join(format!("{name}.input"))
}

fn run(name: &str, target: Target, what: &str, bytes: &[u8]) {
    fs::write(last_input(name), bytes).expect("the target directory");
    if catch_unwind(AssertUnwindSafe(|| target(bytes))).is_err() {
        panic!("{name} with {what}, which is in {}", last_input(name).display());
    }
}

fn go_through(name: &str) {
    let (_, target) = TARGETS.into_iter().find(|(known, _)| *known == name).expect("a target");
    let corpus = corpus(name);
    run(name, target, "nothing", b"");
    for (path, bytes) in &corpus {
        run(name, target, &path.display().to_string(), bytes);
    }
    let mut numbers = Numbers(0x9e37_79b9_7f4a_7c15);
    for number in 0..MUTATIONS {
        run(name, target, &format!("mutation {number}"), &mutation(&corpus, &mut numbers));
    }
}

#[test]
fn frames() {
    go_through("frames");
}

#[test]
fn reader() {
    go_through("reader");
}

#[test]
fn writer() {
    go_through("writer");
}

#[test]
fn options() {
    go_through("options");
}

#[test]
fn names() {
    go_through("names");
}

#[test]
fn no_corpus_is_left_out() {
    let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("corpus");
    let mut found: Vec<_> =
        fs::read_dir(dir).expect("corpora").map(|e| e.expect("an entry").file_name()).collect();
    let mut known: Vec<_> = TARGETS.iter().map(|(name, _)| std::ffi::OsString::from(name)).collect();
    found.sort();
    known.sort();
    assert_eq!(found, known);
}
