//! The options of `audience convert`.

use std::path::PathBuf;

use clap::{ArgGroup, Args};

/// Heading of the options.
const FORM: &str = "Result";

/// The options of a conversion.
#[derive(Debug, Args)]
#[command(group(ArgGroup::new("form").required(true).args(["perfetto", "json", "text"])))]
pub(crate) struct Convert {
    /// Make a trace for ui.perfetto.dev
    ///
    /// It has a track for each thread, and counters for each CPU.
    #[arg(long, help_heading = FORM)]
    pub(crate) perfetto: bool,

    /// Make a JSON object of each record
    ///
    /// One a line, as 'audience -o json' prints it.
    #[arg(long, help_heading = FORM)]
    pub(crate) json: bool,

    /// Make a line of each record
    ///
    /// As 'audience --utc' prints it.
    #[arg(long, help_heading = FORM)]
    pub(crate) text: bool,

    /// File for the result; - is standard output
    ///
    /// The file is replaced when it is complete.
    #[arg(short, long, value_name = "FILE", help_heading = FORM)]
    pub(crate) output: PathBuf,

    /// Directory of the recording
    ///
    /// All its pieces are converted.
    #[arg(value_name = "DIR", help_heading = FORM)]
    pub(crate) dir: PathBuf,
}
