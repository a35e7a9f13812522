//! Reports of wrong usage: one line on standard error, after the program's name.

/// Joins a command-line parser's paragraphs about an error into one line.
/// Paragraphs about usage in general are left out; `try --help` is added instead.
///
/// ```text
/// error: unexpected argument '--foo' found
///
///   tip: a similar argument exists: '--force'         unexpected argument '--foo' found; tip: a similar
///                                               ->     argument exists: '--force'; try --help
/// Usage: program [OPTIONS]
///
/// For more information, try '--help'.
/// ```
pub fn of_usage(error: &str) -> String {
    let general =
        |paragraph: &&str| !["Usage:", "For more information"].iter().any(|p| paragraph.starts_with(p));
    let paragraphs = error.strip_prefix("error:").unwrap_or(error).split("\n\n").take_while(general);
    let mut parts: Vec<String> =
        paragraphs.map(|paragraph| paragraph.split_whitespace().collect::<Vec<_>>().join(" ")).collect();
    parts.push("try --help".to_owned());
    parts.join("; ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paragraphs_become_one_line() {
        let missing =
            "error: the following required arguments were not provided:\n  <MOUNTPOINT>\n\nUsage: x\n";
        assert_eq!(
            of_usage(missing),
            "the following required arguments were not provided: <MOUNTPOINT>; try --help"
        );
        let tip = "error: unexpected argument '--foo' found\n\n  tip: to pass '--foo' as a value, use '-- --foo'\n\n\
                   Usage: x [OPTIONS]\n\nFor more information, try '--help'.\n";
        assert_eq!(
            of_usage(tip),
            "unexpected argument '--foo' found; tip: to pass '--foo' as a value, use '-- --foo'; try --help"
        );
        assert_eq!(of_usage("plain"), "plain; try --help");
    }
}
