//! Programs of other C libraries, which write directly as well: musl, and a glibc that is linked statically.

use std::path::Path;
use std::process::Command;

use relayfs_tests::built::{musl_producer, static_producer};
use relayfs_tests::direct::{WHY_NO_SEQUENCES, is_without_sequences, with_own_areas, with_sequences};
use relayfs_tests::librelay::{Linked, installed, installed_for_musl};
use relayfs_tests::{Mount, run, text, tool};

use crate::areas::check_program;

/// Compiles `tests/c/areas.c` for musl.
#[track_caller]
fn with_musl(args: &[&str]) -> Linked {
    let cc = tool("musl-gcc", "musl-tools");
    Linked::compile_with(&installed_for_musl(), cc, "tests/c/areas.c", args)
}

/// Threads that come and go, in the ways that matter for areas which outlive them.
#[track_caller]
fn check_threads(program: &Linked, prepare: fn(&mut Command)) {
    for (case, n) in [("threads", 2_000), ("ends", 300), ("stacks", 100), ("signals", 100)] {
        check_program(program, case, n, prepare);
    }
}

#[track_caller]
fn check_children(program: &Linked, prepare: fn(&mut Command)) {
    for (case, n) in [("forks", 10), ("vforks", 30)] {
        check_program(program, case, n, prepare);
    }
}

fn as_it_is(command: &mut Command) {
    with_sequences(command);
}

#[test]
fn program_of_musl_linked_statically_writes_directly() {
    let program = with_musl(&["-static", "-DLINKED"]);
    check_threads(&program, as_it_is);
    check_children(&program, as_it_is);
}

#[test]
fn program_of_musl_loads_the_library() {
    let program = with_musl(&["-Wl,--as-needed"]);
    let with_its_library = |command: &mut Command| {
        with_sequences(command).env("LD_LIBRARY_PATH", installed_for_musl().join("usr/lib"));
    };
    check_threads(&program, with_its_library);
    check_children(&program, with_its_library);
}

/// It writes by the areas that its C library registers, and where that registers none, by the project's.
#[test]
fn program_of_glibc_linked_statically_writes_directly() {
    for kind in ["-static", "-static-pie"] {
        let cc = tool("cc", "gcc");
        let args = [kind, "-DLINKED"];
        let program = Linked::compile_with(&installed(), cc, "tests/c/areas.c", &args);
        check_threads(&program, as_it_is);
        check_children(&program, as_it_is);
        let own = |command: &mut Command| {
            with_own_areas(command);
        };
        check_threads(&program, own);
        check_children(&program, own);
        check_program(&program, "raw", 100, own);
    }
}

/// `relay-producer` is a program in Rust.
#[test]
fn programs_in_rust_write_directly() {
    for program in [musl_producer(), static_producer()] {
        let is_static = !has_loader(&program);
        assert!(is_static, "{}: linked statically", program.display());
        let mount = Mount::with_sequences(&[]);
        let mut command = Command::new(&program);
        with_sequences(&mut command).env("RELAYFS", mount.point()).args(["-v", "one", "two"]);
        let output = run(&mut command);
        let said = text(&output.stderr);
        assert!(output.status.success(), "{}: {said}", program.display());
        let (transport, by_daemon) = if is_without_sequences() {
            (format!("transport: socket, {WHY_NO_SEQUENCES}"), 2)
        } else {
            ("transport: shared".to_owned(), 0)
        };
        assert!(said.contains(&transport), "{}: {said}", program.display());
        assert_eq!(mount.stats("cpu")["total.written"], by_daemon, "{}", program.display());
    }
}

/// Whether a program names a loader for its libraries.
fn has_loader(program: &Path) -> bool {
    let mut command = tool("readelf", "binutils");
    let output = run(command.args(["--program-headers", "--wide"]).arg(program));
    assert!(output.status.success(), "{}", text(&output.stderr));
    text(&output.stdout).contains("INTERP")
}
