//! The man pages, and the completions of shells.

use std::fs;
use std::path::PathBuf;

use relayfs_tests::pages::Page;
use relayfs_tests::{Mount, run, stdout_of, text, tool, workspace};

fn pages() -> Vec<PathBuf> {
    let entries = fs::read_dir(workspace().join("manual/man")).expect("the man pages");
    let mut pages: Vec<PathBuf> = entries.map(|entry| entry.expect("an entry").path()).collect();
    pages.sort();
    assert!(pages.len() > 9, "{pages:?}");
    pages
}

#[test]
fn pages_are_clean() {
    let output = run(tool("mandoc", "mandoc").arg("-Tlint").args(pages()));
    assert!(output.status.success() && output.stdout.is_empty(), "{}", text(&output.stdout));
}

/// A person who looks for any of these finds it.
#[test]
fn pages_have_their_sections() {
    for page in pages() {
        let shown = text(&stdout_of(tool("mandoc", "mandoc").args(["-Tascii", "-O", "width=78"]).arg(&page)));
        // Bold letters are struck twice.
        let mut plain = String::new();
        for c in shown.chars() {
            if c == '\u{8}' {
                plain.pop();
            } else {
                plain.push(c);
            }
        }
        let section = page.extension().and_then(|end| end.to_str()).expect("a section");
        let wanted: &[&str] = match section {
            "1" | "8" => &["NAME", "SYNOPSIS", "OPTIONS", "EXIT STATUS", "EXAMPLES", "SEE ALSO"],
            _ => &["NAME", "DESCRIPTION", "FILES", "EXAMPLES", "SEE ALSO"],
        };
        for heading in wanted {
            assert!(plain.lines().any(|line| line == *heading), "{}: {heading}", page.display());
        }
        assert!(plain.lines().all(|line| line.chars().count() <= 80), "{}", page.display());
    }
}

/// Every page that a page names exists.
#[test]
fn pages_refer_to_pages() {
    let names: Vec<String> =
        pages().iter().filter_map(|page| Some(page.file_name()?.to_str()?.to_owned())).collect();
    for page in pages() {
        let source = fs::read_to_string(&page).expect("a page");
        for line in source.lines().filter_map(|line| line.strip_prefix(".BR ")) {
            let line = line.replace('\\', "");
            let Some((name, section)) = line.split_once(" (").map(|(name, rest)| (name, &rest[..1])) else {
                continue;
            };
            let is_ours = ["relay", "audience"].iter().any(|begin| name.starts_with(begin));
            let is_page = section.bytes().all(|byte| byte.is_ascii_digit());
            assert!(
                !is_ours || !is_page || names.contains(&format!("{name}.{section}")),
                "{}: {line}",
                page.display()
            );
        }
    }
}

/// relay(7) and the tree in `docs/reading.md` have each name in `.relay`.
#[test]
fn files_are_described() {
    let mount = Mount::new(&["--channel=app/log:timed"]);
    let names = |dir: &str| {
        let entries = fs::read_dir(mount.path(dir)).expect("a directory of the mount");
        entries
            .map(|entry| entry.expect("an entry").file_name().into_string().expect("text"))
            .collect::<Vec<_>>()
    };
    let (of_daemon, of_channel) = (names(".relay"), names(".relay/channels/app/log"));
    assert!(of_daemon.len() > 5 && of_channel.len() > 15, "{of_daemon:?} {of_channel:?}");
    let page = fs::read_to_string(workspace().join("manual/man/relay.7")).expect("relay(7)");
    let page = page.split_once(".SH FILES").and_then(|(_, rest)| rest.split_once(".SH ")).expect("FILES").0;
    let described: Vec<&str> = page.lines().filter_map(|line| line.strip_prefix(".I .relay/")).collect();
    let (of_the_channel, of_the_daemon): (Vec<&str>, Vec<&str>) =
        described.iter().partition(|line| line.starts_with("channels/app/log/"));
    let reading = Page::open("reading.md");
    let (tree_of_daemon, tree_of_channel) =
        reading.block("The tree", "").split_once("channels/app/log/").expect("the channel's directory");
    for (names, described, tree) in
        [(of_daemon, of_the_daemon, tree_of_daemon), (of_channel, of_the_channel, tree_of_channel)]
    {
        let described = described.join("\n");
        for name in names.iter().filter(|name| *name != "channels") {
            assert!(is_word(&described, name), "relay.7 lacks {name}: {described}");
            assert!(is_word(tree, name), "reading.md lacks {name}: {tree}");
        }
    }
}

/// Whether a text has a word, not as a part of another one.
fn is_word(text: &str, word: &str) -> bool {
    text.split(|c: char| !c.is_alphanumeric() && c != '_').any(|found| found == word)
}

#[test]
fn bash_completes() {
    let script = r#"
        for name in relayfsd relay-producer audience relay-forward; do . ./$name.bash; done
        complete_word() {
            COMP_WORDS=("$@"); COMP_CWORD=$(($# - 1)); COMPREPLY=()
            local words=($(complete -p "$1")) function= i
            for i in "${!words[@]}"; do [ "${words[i]}" = -F ] && function=${words[i + 1]}; done
            $function "$1" "${@: -1}" "${@: -2:1}"; echo "${COMPREPLY[@]}"
        }
        complete_word relayfsd --subb; complete_word relayfsd doctor --st
        complete_word relay-producer --wait-m; complete_word audience record --rotate-s
        complete_word relay-forward --flush-i
    "#;
    let completed = stdout_of(
        tool("bash", "bash")
            .args(["--norc", "-euc", script])
            .current_dir(workspace().join("manual/completions")),
    );
    assert_eq!(
        text(&completed),
        "--subbuf-size\n--state-dir\n--wait-mount\n--rotate-size\n--flush-interval\n"
    );
}

/// The shell's own function offers what the file describes: here a stand-in prints that.
#[test]
fn zsh_completes() {
    let script = r#"
        autoload -Uz compinit; compinit -u -D
        fpath=($PWD $fpath)
        _arguments() { print -rl -- "$@"; }
        for name in relayfsd relay-producer audience relay-forward; do
            autoload -Uz _$name; words=($name ''); CURRENT=2; _$name || true
            print "function $(whence -w _$name)"
        done
    "#;
    let output = run(tool("zsh", "zsh")
        .args(["-f", "-c", script])
        .current_dir(workspace().join("manual/completions")));
    let completed = text(&output.stdout);
    for offered in [
        "--subbuf-size=",
        "--wait-mount",
        "--follow",
        "--flush-interval=",
        "function _audience: function",
        "function _relay-forward: function",
    ] {
        assert!(completed.contains(offered), "{offered}: {output:?}");
    }
}

#[test]
fn fish_completes() {
    let script = r#"
        for name in relayfsd relay-producer audience relay-forward; source ./$name.fish; end
        complete -C 'relayfsd --subb'; complete -C 'relay-producer --wait-m'; complete -C 'audience record --rotate-s'
        complete -C 'relay-forward --flush-i'
        complete -C 'audience --color al'; complete -C 'audience --utc --color al'; complete -C 'relayfsd --shared ow'
    "#;
    let home = tempfile::tempdir().expect("a temporary directory");
    let mut fish = tool("fish", "fish");
    fish.args(["--no-config", "-c", script]).current_dir(workspace().join("manual/completions"));
    let completed = text(&stdout_of(fish.env("HOME", home.path()).env("XDG_CONFIG_HOME", home.path())));
    let offered: Vec<&str> = completed.lines().filter_map(|line| line.split('\t').next()).collect();
    assert_eq!(
        offered,
        ["--subbuf-size", "--wait-mount", "--rotate-size", "--flush-interval", "always", "always", "owner"],
        "{completed}"
    );
}
