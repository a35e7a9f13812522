//! `--help` of every command: a line for each option, at most 80 columns, under headings.

use std::process::Command;

use relayfs_tests::{program, stdout_of, text};

/// Widest line, in characters: that of a terminal.
const COLUMNS_MAX: usize = 80;

/// Returns the commands with their subcommands, as words of a command line.
fn commands() -> Vec<Vec<String>> {
    let mut commands = Vec::new();
    for name in ["relayfsd", "relay-producer", "audience", "relay-forward"] {
        let own = vec![name.to_owned()];
        let help = help(&own);
        let listed =
            help.split("Commands:\n").nth(1).unwrap_or_default().split("\n\n").next().unwrap_or_default();
        let subs = listed.lines().filter_map(|line| line.split_whitespace().next());
        commands.extend(subs.map(|sub| vec![name.to_owned(), sub.to_owned()]));
        commands.push(own);
    }
    assert!(commands.len() > 6, "{commands:?}");
    commands
}

fn help(words: &[String]) -> String {
    text(&stdout_of(Command::new(program(&words[0])).args(&words[1..]).arg("--help")))
}

#[test]
fn help_is_narrow_and_has_a_line_for_each_option() {
    for words in commands() {
        let help = help(&words);
        let short = text(&stdout_of(Command::new(program(&words[0])).args(&words[1..]).arg("-h")));
        assert_eq!(help, short, "{words:?}");
        assert!(!help.contains("<MOUNTPOINT>..."), "{help}");
        for line in help.lines() {
            assert!(line.chars().count() <= COLUMNS_MAX, "{words:?}: {line}");
        }
        let options: Vec<&str> = help.lines().filter(|line| line.trim_start().starts_with('-')).collect();
        assert!(options.len() > 1, "{words:?}: {help}");
        for option in options {
            // `  -f, --follow   Read until interrupted`
            let described = option.trim_start().split("  ").filter(|part| !part.is_empty()).count();
            assert_eq!(described, 2, "{words:?}: {option}");
        }
    }
}

#[test]
fn options_have_headings() {
    let programs = [("relayfsd", 6), ("relay-producer", 5), ("audience", 4), ("relay-forward", 7)];
    for (name, n_headings) in programs {
        let help = help(&[name.to_owned()]);
        let headings = help.lines().filter(|line| line.ends_with(':') && !line.starts_with(' '));
        let headings: Vec<&str> = headings.filter(|line| *line != "Commands:").collect();
        assert_eq!(headings.len(), n_headings, "{headings:?}");
        assert!(!headings.contains(&"Options:"), "{headings:?}");
    }
}
