//! `relayfsd doctor`: checks what relayfsd needs on this machine, and what is left of earlier daemons.
//!
//! For each thing it says whether it works, what it costs if not, and the command that mends it. It looks, and changes
//! nothing: it mounts nothing, consumes nothing, and asks no daemon. `machine` has what is the same for all mount points,
//! `place` what concerns one. The room uses the rules of `mount` and `process`, as the daemon does at its start.

mod machine;
mod place;

use std::io::Write;
use std::path::Path;
use std::process::ExitCode;

use relay::cli::one_line::one_line;
use relay::layout::paths::{mount_by_environment, shell_word};

use crate::config::cli::Doctor;
use crate::process::daemonize::complain;

/// Columns of the names of things.
const NAME_COLUMNS: usize = 18;

/// How a thing is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Verdict {
    /// It works.
    Works,
    /// It works less well than it could, or administrators may want to know of it.
    Costs,
    /// relayfsd cannot work so.
    Fails,
}

/// What was found about a thing.
#[derive(Debug, PartialEq, Eq)]
struct Finding {
    /// The name of the thing.
    thing: &'static str,
    verdict: Verdict,
    /// What is there, and what that costs.
    text: String,
    /// The command that mends it, or what to do.
    mend: Option<String>,
}

impl Finding {
    fn works(thing: &'static str, text: impl Into<String>) -> Finding {
        Finding { thing, verdict: Verdict::Works, text: text.into(), mend: None }
    }

    fn costs(thing: &'static str, text: impl Into<String>, mend: impl Into<String>) -> Finding {
        Finding { thing, verdict: Verdict::Costs, text: text.into(), mend: Some(mend.into()) }
    }

    fn fails(thing: &'static str, text: impl Into<String>, mend: impl Into<String>) -> Finding {
        Finding { thing, verdict: Verdict::Fails, text: text.into(), mend: Some(mend.into()) }
    }

    /// Returns the finding as lines. Paths in it may have any characters.
    fn lines(&self) -> String {
        let verdict = match self.verdict {
            Verdict::Works => "ok",
            Verdict::Costs => "costs",
            Verdict::Fails => "FAILS",
        };
        let line = format!("{verdict:<6}{:<NAME_COLUMNS$}{}\n", self.thing, one_line(&self.text));
        let mend =
            self.mend.as_ref().map(|mend| format!("{:6}{:NAME_COLUMNS$}mend: {}\n", "", "", one_line(mend)));
        line + &mend.unwrap_or_default()
    }
}

/// Prints all findings. The exit status is 0 if relayfsd can work, and 1 if something fails.
pub(crate) fn run(asked: &Doctor) -> ExitCode {
    let point = asked.mount_point.clone().unwrap_or_else(mount_by_environment);
    let point = std::path::absolute(&point).unwrap_or(point);
    let mut findings = machine::findings();
    findings.extend(place::findings(&point, asked.state_dir.as_deref()));
    let report = report(&point, &findings);
    let printed = relay_stdio::print(|| {
        let mut out = std::io::stdout().lock();
        out.write_all(report.as_bytes())?;
        out.flush()
    });
    if let Err(why) = printed {
        complain(&why);
        return ExitCode::FAILURE;
    }
    let has_failed = findings.iter().any(|finding| finding.verdict == Verdict::Fails);
    if has_failed { ExitCode::FAILURE } else { ExitCode::SUCCESS }
}

fn report(point: &Path, findings: &[Finding]) -> String {
    let count = |verdict| findings.iter().filter(|finding| finding.verdict == verdict).count();
    let lines: String = findings.iter().map(Finding::lines).collect();
    let costs = match count(Verdict::Costs) {
        0 => String::new(),
        1 => "; 1 thing costs something".to_owned(),
        n => format!("; {n} things cost something"),
    };
    let word = shell_word(point);
    match count(Verdict::Fails) {
        0 => format!("{lines}relayfsd works here, on {word}{costs}\n"),
        1 => format!("{lines}relayfsd does not work here, on {word}: 1 thing fails{costs}\n"),
        n => format!("{lines}relayfsd does not work here, on {word}: {n} things fail{costs}\n"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn report_says_what_is_wrong_and_counts() {
        let works = Finding::works("device", "fine");
        let costs = Finding::costs("clock", "slow\nline", "buy another");
        let fails = || Finding::fails("room", "none", "make some");
        let text = report(Path::new("/mnt/x"), &[works, costs]);
        assert_eq!(
            text,
            "ok    device            fine\n\
             costs clock             slow\\nline\n                        mend: buy another\n\
             relayfsd works here, on /mnt/x; 1 thing costs something\n"
        );
        assert!(report(Path::new("/x"), &[fails(), fails()]).ends_with("on /x: 2 things fail\n"));
    }
}
