//! The pages in `docs/`, and `README.md`: their blocks of code, run as they stand, with a relayfs on /mnt/relay.

use std::fs;
use std::path::Path;
use std::process::Command;

use crate::{private_shell, programs, text, workspace};

/// A page.
#[derive(Debug)]
pub struct Page {
    name: String,
    text: String,
}

impl Page {
    /// Reads `docs/NAME`.
    #[track_caller]
    pub fn open(name: &str) -> Page {
        Page::read(&format!("docs/{name}"))
    }

    /// Reads a page by its path below the workspace.
    #[track_caller]
    pub fn read(name: &str) -> Page {
        let path = workspace().join(name);
        let text = fs::read_to_string(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
        Page { name: name.to_owned(), text }
    }

    /// Returns the whole text.
    pub fn text(&self) -> &str {
        &self.text
    }

    /// Returns all blocks of code: their heading, their language and their lines.
    pub fn blocks(&self) -> Vec<(&str, &str, &str)> {
        let (mut blocks, mut heading, mut rest) = (Vec::new(), "", &self.text[..]);
        while let Some((line, behind)) = rest.split_once('\n') {
            rest = behind;
            if let Some(title) = line.strip_prefix('#') {
                heading = title.trim_start_matches('#').trim();
            } else if let Some(language) = line.strip_prefix("```") {
                let (code, behind) = rest.split_once("\n```\n").expect("the end of a block");
                blocks.push((heading, language, code));
                rest = behind;
            }
        }
        blocks
    }

    /// Returns the only block in a language below a heading.
    #[track_caller]
    pub fn block(&self, heading: &str, language: &str) -> &str {
        let blocks = self.blocks();
        let mut found = blocks.iter().filter(|(of, kind, _)| (*of, *kind) == (heading, language));
        match (found.next(), found.next()) {
            (Some((.., code)), None) => code,
            _ => panic!("{}: {heading}: not one block of {language:?}", self.name),
        }
    }

    /// Checks that the page's blocks are these, by heading and language: each is run, or named as one that is not.
    #[track_caller]
    pub fn has_only(&self, known: &[(&str, &str)]) {
        let blocks: Vec<_> =
            self.blocks().iter().map(|(heading, language, _)| (*heading, *language)).collect();
        assert_eq!(blocks, known, "the blocks of {}", self.name);
    }
}

/// A function of the shell that waits until a command succeeds.
pub const EVENTUALLY: &str = r#"
    eventually() {
        end=$(($(date +%s) + 60))
        until "$@" >/dev/null 2>&1; do
            [ "$(date +%s)" -lt $end ] || { echo "not within a minute: $*" >&2; exit 1; }
            sleep 0.05
        done
    }
"#;

/// How pages say that the relayfs of their commands is mounted. [`on_mnt_relay`] runs it.
pub const START: &str = "mkdir -p /mnt/relay\nrelayfsd --channel app/log:timed:overwrite /mnt/relay";

/// A command that runs a shell script with relayfsd on /mnt/relay, which has the timed channel `app/log`.
///
/// As root, in private mount and process namespaces: nothing of it is outside, and all of it ends with the command. The
/// project's programs come first in PATH. In `dir`, which is `$DIR`, the test may have files for the script.
#[track_caller]
pub fn on_mnt_relay(dir: &Path, script: &str) -> Command {
    let mount = format!("PATH=$PROGRAMS:$PATH\nmount -t tmpfs tmpfs /mnt\n{START}");
    let start = r#"
        # Prints the records as JSON, until one of them matches. It needs no end of what it follows.
        records_until() {
            mkfifo "$DIR/records"
            audience -c app/log -f -o json >"$DIR/records" &
            timeout 100 sed -u "/$1/q" "$DIR/records"
        }
        cd "$DIR"
    "#;
    let mut command = private_shell(&format!("{EVENTUALLY}\n{mount}\n{start}\n{script}"));
    command.env("PROGRAMS", programs()).env("DIR", dir).env("LC_ALL", "C.UTF-8").env_remove("RELAYFS");
    command
}

/// The part of a JSON line behind the process and the thread.
pub fn content(line: &str) -> &str {
    let from = ["\"level\":", "\"event\":"].iter().filter_map(|key| line.find(key)).min();
    &line[from.unwrap_or(0)..]
}

/// The lines of some output.
pub fn lines(output: &[u8]) -> Vec<String> {
    text(output).lines().map(str::to_owned).collect()
}
