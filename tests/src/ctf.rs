//! Reads CTF traces with babeltrace2, as other programs do.

use std::path::Path;

use crate::{exit_code, program, run, run_with_input, text, tool};

/// An event as babeltrace2 prints it: CPU, thread, and the text of a `text` event.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct CtfEvent {
    /// CPU of the buffer.
    pub cpu: u32,
    /// Thread that wrote it.
    pub tid: u32,
    /// Name of the event.
    pub name: String,
    /// Its fields.
    pub fields: String,
}

/// What babeltrace2 finds in a trace.
#[derive(Debug, Default)]
pub struct CtfTrace {
    /// The events, in order.
    pub events: Vec<CtfEvent>,
    /// Messages that the tracer discarded.
    pub discarded: u64,
}

/// Reads a directory with babeltrace2, which must not complain.
#[track_caller]
pub fn read(dir: &Path) -> CtfTrace {
    let output = run(tool("babeltrace2", "babeltrace2").arg("--clock-seconds").arg(dir));
    let said = text(&output.stderr);
    assert_eq!(exit_code(output.status), 0, "{said}");
    let mut trace = CtfTrace::default();
    for line in said.lines().filter(|line| !line.trim().is_empty()) {
        // "WARNING: Tracer discarded 5 events between ..."
        let number = line
            .split("Tracer discarded ")
            .nth(1)
            .and_then(|rest| rest.split(' ').next()?.parse::<u64>().ok());
        let number = number.filter(|_| line.contains(" event"));
        trace.discarded += number.unwrap_or_else(|| panic!("babeltrace2 says: {line}"));
    }
    let value = |line: &str, key: &str| -> u32 {
        let rest = line.split(key).nth(1).unwrap_or_else(|| panic!("no {key} in {line}"));
        rest.split([' ', ','])
            .next()
            .and_then(|word| word.parse().ok())
            .unwrap_or_else(|| panic!("{key} in {line}"))
    };
    for line in text(&output.stdout).lines() {
        // "[1.5] (+0.1) host text: { cpu_id = 0 }, { tid = 7 }, { len = 3, msg = "one" }"
        let (head, rest) = line.split_once(": { cpu_id = ").unwrap_or_else(|| panic!("{line}"));
        let name = head.rsplit(' ').next().unwrap_or_default().to_owned();
        let fields = rest.splitn(3, " }, { ").nth(2).unwrap_or_default().trim_end_matches(" }").to_owned();
        trace.events.push(CtfEvent {
            cpu: value(line, "cpu_id = "),
            tid: value(line, "tid = "),
            name,
            fields,
        });
    }
    trace
}

/// What `audience --trace DIR ARGS` prints.
#[track_caller]
pub fn trace(dir: &Path, args: &[&str]) -> Vec<String> {
    let output = run(tool("env", "coreutils").arg(program("audience")).arg("--trace").arg(dir).args(args));
    assert_eq!((exit_code(output.status), text(&output.stderr)), (0, String::new()));
    text(&output.stdout).lines().map(str::to_owned).collect()
}

/// Checks that babeltrace2 and `audience` read the same of a trace. Returns the number of records.
#[track_caller]
pub fn agree(dir: &Path) -> usize {
    let found = read(dir);
    let lines = trace(dir, &["-o", "json"]);
    let script = "import json, sys\nfor line in sys.stdin:\n  it = json.loads(line)\n  print(it['cpu'], it.get('tid', 0), it.get('message', ''))\n";
    let mut python = tool("python3", "python3");
    let parsed = run_with_input(python.args(["-c", script]), lines.join("\n").as_bytes());
    let ours: Vec<String> = text(&parsed.stdout).lines().map(str::to_owned).collect();
    let is_text = |event: &&CtfEvent| event.name == "text";
    let message =
        |fields: &str| fields.split("msg = \"").nth(1).map(|rest| rest.trim_end_matches('"').to_owned());
    let theirs: Vec<String> = found
        .events
        .iter()
        .filter(is_text)
        .map(|event| format!("{} {} {}", event.cpu, event.tid, message(&event.fields).unwrap_or_default()))
        .collect();
    let ours: Vec<String> = ours.into_iter().filter(|line| line.split(' ').nth(1) != Some("0")).collect();
    assert_eq!(ours, theirs, "{}", dir.display());
    // Both say what was lost.
    let lost = trace(dir, &[])
        .iter()
        .filter_map(|line| line.strip_prefix("-- ")?.split_once(" message")?.0.parse::<u64>().ok())
        .sum::<u64>();
    assert_eq!(lost, found.discarded, "{}", dir.display());
    theirs.len()
}
