//! Programs whose C library registers no areas for restartable sequences, with librelay loaded by dlopen: it registers
//! its own, for threads of all kinds. Every number is written once and directly.

use std::process::Command;

use relayfs_tests::direct::{is_without_sequences, with_own_areas};
use relayfs_tests::librelay::{Linked, prepare};
use relayfs_tests::{Mount, run, text};

/// Runs a case of `tests/c/areas.c` where the C library registers no areas, and checks the numbers in the channel.
#[track_caller]
fn check(case: &str, n: usize, prepare_further: impl FnOnce(&mut Command)) {
    // The program names none of the library's functions, so it is not linked with the library.
    let program = Linked::compile("tests/c/areas.c", &["-Wl,--as-needed"]);
    check_program(&program, case, n, |command| prepare_further(with_own_areas(command)));
}

/// Runs a case of a program that was compiled from `tests/c/areas.c`, and checks the numbers in the channel.
#[track_caller]
pub(crate) fn check_program(
    program: &Linked,
    case: &str,
    n: usize,
    prepare_further: impl FnOnce(&mut Command),
) {
    let mount = Mount::with_sequences(&["--subbuf-size=1M", "--n-subbufs=8"]);
    let mut command = Command::new(program.path());
    prepare(&mut command, mount.point());
    prepare_further(&mut command);
    let output = run(command.args([case, &n.to_string()]));
    let said = text(&output.stderr);
    assert!(output.status.success(), "{case}: {}: {said}", output.status);
    let written: usize = text(&output.stdout).trim().parse().expect("how many");

    let files = (0..).map(|cpu| format!("cpu{cpu}")).take_while(|file| mount.path(file).exists());
    let mut read: Vec<String> = files
        .flat_map(|file| text(&mount.read(&file)).lines().map(str::to_owned).collect::<Vec<_>>())
        .collect();
    read.sort_unstable();
    let expected: Vec<String> = (0..written).map(|number| format!("{number:07}")).collect();
    assert!(read == expected, "{case}: {} of {written} numbers, or others", read.len());
    let by_daemon = mount.stats("cpu")["total.written"];
    let expected = if is_without_sequences() { written as u64 } else { 0 };
    assert_eq!(by_daemon, expected, "{case}: messages by the socket");
}

fn with_library_at_start(command: &mut Command) {
    command.env("LD_PRELOAD", "librelay.so");
}

#[test]
fn ten_thousand_short_threads_write_and_leave_no_memory() {
    check("threads", 10_000, |_| {});
}

#[test]
fn threads_write_in_their_last_destructors() {
    check("ends", 500, |_| {});
}

#[test]
fn memory_of_ended_threads_stays_as_it_is() {
    check("stacks", 300, |_| {});
}

#[test]
fn memory_of_ended_threads_is_not_touched_with_a_checking_allocator() {
    let checking = |command: &mut Command| {
        let checks = "glibc.pthread.rseq=0:glibc.malloc.check=3:glibc.malloc.perturb=165:glibc.pthread.stack_cache_size=0";
        command.env("GLIBC_TUNABLES", checks).env("LD_PRELOAD", "libc_malloc_debug.so.0");
    };
    check("threads", 2_000, checking);
    check("ends", 200, checking);
}

#[test]
fn threads_by_clone_write_directly() {
    check("raw", 300, |_| {});
    check("raw", 100, with_library_at_start);
}

#[test]
fn first_write_of_a_thread_may_be_in_a_signal_handler() {
    check("signals", 300, |_| {});
    check("signals", 100, with_library_at_start);
}

#[test]
fn children_and_their_threads_write_directly() {
    check("forks", 20, |_| {});
}

#[test]
fn children_by_vfork_leave_their_parents_areas_alone() {
    check("vforks", 50, |_| {});
}

/// The same with the areas of the C library.
#[test]
fn areas_of_c_library_serve_as_well() {
    let with_its_areas = |command: &mut Command| {
        command.env_remove("GLIBC_TUNABLES");
    };
    check("ends", 100, with_its_areas);
    check("signals", 50, with_its_areas);
    check("forks", 5, with_its_areas);
    check("vforks", 20, with_its_areas);
}
