//! Messages on standard error.

use std::fmt::Display;
use std::io::{self, Write};

use relay::cli::one_line::one_line;

/// Prints one line on standard error. A failure is ignored: no other place is left to report it.
pub(crate) fn say(message: impl Display) {
    let _ = writeln!(io::stderr(), "relay-forward: {}", one_line(&message.to_string()));
}
