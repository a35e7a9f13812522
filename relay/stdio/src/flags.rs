//! The options that every command has, `--help` and `--version`.

use clap::{Arg, ArgAction};

/// Returns `--help`, listed below `heading`: the same as `-h`, a line for each option. The man page has the rest.
///
/// Subcommands have it, too.
pub fn help(heading: &'static str) -> Arg {
    Arg::new("help")
        .short('h')
        .long("help")
        .action(ArgAction::HelpShort)
        .help("Print this help")
        .help_heading(heading)
        .global(true)
}

/// Returns `--version`, listed below `heading`.
pub fn version(heading: &'static str) -> Arg {
    Arg::new("version")
        .short('V')
        .long("version")
        .action(ArgAction::Version)
        .help("Print the version")
        .help_heading(heading)
}
