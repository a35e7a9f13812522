//! `audience report`: a page, in one file, of recordings, of a snapshot, or of some time with live channels.
//!
//! ```text
//! recordings, snapshots, counters --> gathered --> JSON in a script element --> page.js draws it
//! ```
//!
//! The page opens without a network. Its script puts texts into the page as texts alone, never as HTML, and its policy
//! forbids to load or to send anything.

mod gather;
mod json;
mod series;
mod source;
mod spans;

use jiff::Timestamp;

use self::gather::Gathered;
use crate::convert::target::{Leftover, Target};
use crate::error::Failure;
use crate::monitor;
use crate::mount::is_mounted;
use crate::options::Report;
use crate::output::say;

/// The parts of the page.
const PAGE: &str = include_str!("report/page.html");
const STYLE: &str = include_str!("report/page.css");
const SCRIPT: &str = include_str!("report/page.js");
/// Bytes that are written at once.
const BLOCK: usize = 1 << 20;

/// Writes the report.
pub(crate) fn run(options: &Report) -> Result<(), Failure> {
    let (stop, left) = Leftover::catch_signals()?;
    let mut gathered = Gathered::new(options.messages);
    let mut is_damaged = false;
    let mut facts = Vec::new();
    if let Some(dir) = &options.dir {
        facts.push(("recording", dir.display().to_string()));
        is_damaged = source::recordings(dir, &mut gathered, &stop)?;
    } else {
        monitor::check_answer(&options.mount)?;
        is_mounted(&options.mount)?;
        let time = (!options.snapshot).then_some(options.duration);
        let what = time.map_or("snapshot".to_owned(), |time| format!("{time:?}"));
        facts.push(("mount", options.mount.display().to_string()));
        facts.push(("watched", what));
        if let Some(missed) = source::live(&options.mount, &options.channel, time, &mut gathered, &stop)? {
            say(format_args!("counted, and not in the page: {missed}"));
            facts.push(("counted, and not in the page", missed));
        }
    }
    facts.push(("made", Timestamp::now().strftime("%Y-%m-%d %H:%M:%S UTC").to_string()));
    facts.push(("by", format!("audience {}", env!("CARGO_PKG_VERSION"))));
    let page = page(&gathered.json(&facts));
    let mut target = Target::create(&options.output, &left)?;
    page.as_bytes().chunks(BLOCK).try_for_each(|block| target.write(block))?;
    target.finish()?;
    match &options.dir {
        Some(dir) if is_damaged => Err(Failure::PartlyConverted(dir.clone())),
        _ => Ok(()),
    }
}

/// Puts the page together. The JSON goes last, so that nothing in it is taken for a mark.
fn page(json: &str) -> String {
    let page = PAGE.replacen("/*STYLE*/", STYLE, 1).replacen("/*SCRIPT*/", SCRIPT, 1);
    match page.split_once("/*DATA*/") {
        Some((before, behind)) => [before, json, behind].concat(),
        None => page,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn page_has_all_parts_and_loads_nothing() {
        let page = page("{\"base\":\"/*SCRIPT*/ \\u003c/script\\u003e\"}");
        assert!(page.contains(STYLE) && page.contains(SCRIPT));
        assert_eq!(page.matches("</script>").count(), 2);
        for word in [
            "http://",
            "https://",
            " src=",
            "@import",
            "url(",
            "innerHTML",
            "insertAdjacentHTML",
            "eval(",
            "document.write",
        ] {
            assert!(!page.contains(word), "{word}");
        }
        assert!(page.contains("default-src 'none'"));
    }
}
