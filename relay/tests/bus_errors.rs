//! SIGBUS in a process that outlives truncations.
//!
//! Mappings of truncated files are repaired and marked as torn. Every other SIGBUS runs the earlier action. The handler
//! stays for the life of the process.

use std::fs::File;
use std::io::Read;
use std::os::unix::process::ExitStatusExt;
use std::process::{Command, ExitStatus};

use nix::sys::signal::{SaFlags, SigAction, SigHandler, SigSet, Signal, raise, sigaction};
use relay::memory::mapping::{Mapping, outlive_truncation, truncations_met};

const PAGE: usize = 4096;
const ACT: &str = "RELAY_BUS_ERRORS_ACT";

fn mapped(pages: usize) -> (File, Mapping) {
    let file = tempfile::tempfile().unwrap();
    let len = (pages * PAGE) as u64;
    file.set_len(len).unwrap();
    let mapping = Mapping::new(&file, len).unwrap();
    (file, mapping)
}

/// Reads a byte of every page.
fn touch(mapping: &Mapping, pages: usize) {
    for page in 0..pages {
        mapping.copy_out(page * PAGE, 1, &mut Vec::new());
    }
}

#[test]
fn last_page_of_lent_bytes_is_repaired() {
    outlive_truncation().unwrap();
    for (from, len) in [(PAGE - 96, 200), (PAGE - 1, 2), (100, PAGE), (PAGE, 1), (PAGE - 1, PAGE + 1)] {
        let (file, mapping) = mapped(2);
        mapping.copy_in(PAGE - 1, b"a");
        file.set_len(PAGE as u64).unwrap();
        let (mut reader, writer) = std::io::pipe().unwrap();
        let lent = mapping.lend(from, len).unwrap();
        assert!(mapping.is_torn(), "{from} {len}");
        // The kernel stops at a missing page.
        assert_eq!(lent.write_to(&writer).unwrap(), len);
        drop(writer);
        let mut got = Vec::new();
        reader.read_to_end(&mut got).unwrap();
        let expected: Vec<u8> = (from..from + len).map(|at| if at == PAGE - 1 { b'a' } else { 0 }).collect();
        assert_eq!(got, expected);
    }
    let (_file, mapping) = mapped(1);
    assert!(mapping.lend(0, 0).unwrap().is_empty() && mapping.lend(PAGE, 0).unwrap().is_empty());
    assert!(mapping.lend(1, PAGE).is_none() && !mapping.is_torn());
}

#[test]
fn torn_mapping_stays_known_however_many_pages_of_others_are_replaced() {
    outlive_truncation().unwrap();
    let (first, other) = (mapped(1), mapped(5000));
    for (file, _) in [&first, &other] {
        file.set_len(0).unwrap();
    }
    touch(&first.1, 1);
    assert!(!other.1.is_torn());
    let met = truncations_met();
    touch(&other.1, 5000);
    assert!(truncations_met() >= met + 5000);
    assert!(first.1.is_torn() && other.1.is_torn());
    // The next mapping at this address is another one.
    for _ in 0..200 {
        drop(mapped(5000));
        assert!(!mapped(1).1.is_torn());
    }
}

/// Runs an act in a child process.
fn end_of(act: &str) -> ExitStatus {
    let mut child = Command::new(std::env::current_exe().unwrap());
    child.args(["--exact", "act_in_child", "--nocapture"]).env(ACT, act);
    child.output().unwrap().status
}

/// Runs an act in a child process of the other tests. Without an act it passes.
#[test]
fn act_in_child() {
    let Ok(act) = std::env::var(ACT) else { return };
    let act_on = |handler| {
        let action = SigAction::new(handler, SaFlags::empty(), SigSet::empty());
        #[allow(unsafe_code)]
        // SAFETY: no handler, or one that only ends the process.
        unsafe { sigaction(Signal::SIGBUS, &action) }.unwrap();
    };
    if let Some(before) = act.split(' ').nth(1) {
        act_on(match before {
            "default" => SigHandler::SigDfl,
            "ignored" => SigHandler::SigIgn,
            _ => SigHandler::Handler(exit_7),
        });
    }
    let (foreign_file, foreign) = mapped(1); // mapped before the handler was installed, so it is not listed
    outlive_truncation().unwrap();
    let (file, ours) = mapped(1);
    match act.split(' ').next().unwrap() {
        "foreign" => {
            foreign_file.set_len(0).unwrap();
            touch(&foreign, 1);
        }
        "sent" => raise(Signal::SIGBUS).unwrap(),
        _ => {}
    }
    // The handler still works.
    file.set_len(0).unwrap();
    touch(&ours, 1);
    std::process::exit(if ours.is_torn() { 3 } else { 4 });
}

extern "C" fn exit_7(_: i32) {
    std::process::exit(7);
}

#[test]
fn other_bus_error_runs_the_earlier_action() {
    let by_signal = |act: &str| end_of(act).signal();
    let bus = Some(Signal::SIGBUS as i32);
    // Without a second word: the handler of the Rust runtime, which a process has from its start.
    for before in ["", " default", " ignored"] {
        assert_eq!(by_signal(&format!("foreign{before}")), bus, "{before}");
    }
    for before in ["", " default"] {
        assert_eq!(by_signal(&format!("sent{before}")), bus, "{before}");
    }
    for act in ["none", "none default", "sent ignored"] {
        assert_eq!(end_of(act).code(), Some(3), "{act}");
    }
    for act in ["foreign handled", "sent handled"] {
        assert_eq!(end_of(act).code(), Some(7), "{act}");
    }
}
