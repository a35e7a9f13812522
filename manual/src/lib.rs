//! Keeps the man pages and the completions of shells true to the options of the programs.
//!
//! A test of each program passes its options to [`check`]. The test fails if a checked-in file is not what the options
//! and the hand-written part of the page make. `make manual` writes the files.
//!
//! ```text
//! options (clap) --+--> completions/NAME.bash  _NAME  NAME.fish
//!                  +--> man/NAME.SECTION, and a page for each subcommand
//! parts/NAME.SECTION --^    EXAMPLES, EXIT STATUS, FILES, SEE ALSO, as roff
//! ```
//!
//! The programs do not contain this package. Pages without options are in `man/` alone: relay(3), relay(7),
//! mount.relayfs(8).

mod page;

use std::fs;
use std::path::{Path, PathBuf};

use clap::Command;
use clap_complete::Shell;

/// With the value `write`, the tests write the files.
const WRITE_ENV: &str = "RELAYFS_MANUAL";
/// Shells, and how each names the file for a program.
const SHELLS: [(Shell, &str, &str); 3] =
    [(Shell::Bash, "", ".bash"), (Shell::Zsh, "_", ""), (Shell::Fish, "", ".fish")];

/// Fails unless the pages and completions of a program are what its options make.
///
/// `section` is that of the manual: 1 for commands, 8 for the administrator's.
///
/// # Panics
///
/// If a file differs, or a page has no hand-written part.
pub fn check(mut command: Command, section: u8) {
    command.build();
    let name = command.get_name().to_owned();
    let mut differing = Vec::new();
    let mut keep = |path: PathBuf, text: String| {
        if std::env::var_os(WRITE_ENV).is_some_and(|value| value == "write") {
            fs::write(&path, text).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
        } else if fs::read_to_string(&path).ok().as_deref() != Some(&text) {
            differing.push(path.display().to_string());
        }
    };
    for (page_name, command) in pages(&command) {
        let file = format!("{page_name}.{section}");
        let part = home().join("parts").join(&file);
        let part = fs::read_to_string(&part).unwrap_or_else(|error| {
            panic!("{}: {error}: write its EXAMPLES and EXIT STATUS, as roff", part.display())
        });
        keep(home().join("man").join(&file), page::page(&page_name, section, command, &part));
    }
    for (shell, before, after) in SHELLS {
        let mut text = Vec::new();
        clap_complete::generate(shell, &mut command, &name, &mut text);
        let mut text = String::from_utf8(text).expect("the options are text");
        if shell == Shell::Fish {
            text = completing_values(&text);
        }
        // Lines must not end in spaces: people see them in diffs.
        let lines: Vec<&str> = text.lines().map(str::trim_end).collect();
        let path = home().join("completions").join(format!("{before}{name}{after}"));
        keep(path, format!("{}\n", lines.join("\n").trim_end()));
    }
    assert!(
        differing.is_empty(),
        "the options have changed: make manual; differing: {}",
        differing.join(" ")
    );
}

/// Fails unless each option, also of subcommands, may be written with underscores in the place of dashes.
///
/// # Panics
///
/// If an option may not.
pub fn check_underscores(command: &Command) {
    for command in command.get_subcommands().chain([command]) {
        for arg in command.get_arguments().filter(|arg| !arg.is_positional()) {
            let name = arg.get_long().expect("an option");
            let other = name.replace('-', "_");
            let aliases = arg.get_all_aliases().unwrap_or_default();
            assert!(name == other || aliases.contains(&other.as_str()), "--{name}");
        }
    }
}

/// Returns completions for fish that also complete the value of an option before a subcommand.
///
/// Those of clap_complete parse the words before the cursor. If the last of these is an option that takes a value,
/// argparse refuses them, and fish offers files.
fn completing_values(text: &str) -> String {
    let (call, end) = ("    argparse -s (__fish_", " -- $cmd 2>/dev/null");
    let mut lines = Vec::new();
    for line in text.lines() {
        lines.push(line.to_owned());
        if let Some(specs) = line.strip_prefix(call).and_then(|rest| rest.strip_suffix(end)) {
            lines.push("    # The value of the last option is being typed.".to_owned());
            lines.push(format!("    or argparse -s (__fish_{specs} -- $cmd[1..-2] 2>/dev/null"));
        }
    }
    lines.join("\n")
}

/// Returns the names of a program's pages, each with its command: its own, and one for each subcommand.
fn pages(command: &Command) -> Vec<(String, Command)> {
    let visible = command.get_subcommands().filter(|sub| !sub.is_hide_set() && sub.get_name() != "help");
    let subs = visible.map(|sub| (format!("{}-{}", command.get_name(), sub.get_name()), sub.clone()));
    [(command.get_name().to_owned(), command.clone())].into_iter().chain(subs).collect()
}

fn home() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}
