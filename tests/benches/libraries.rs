//! What one message costs programs of other C libraries: musl, and a glibc that is linked statically.

use std::path::PathBuf;
use std::process::Command;

use relayfs_tests::librelay::{Linked, installed, released_for_musl};
use relayfs_tests::measure::{Measurement, WRITER_CPU, alternately, head, on_cpu, row, title};
use relayfs_tests::refused::{NO_AREAS, TUNABLES};
use relayfs_tests::{Mount, stdout_of, text, tool};

const LENGTHS: [usize; 2] = [16, 64];
const MESSAGES: usize = 10_000_000;

fn main() {
    head("one message from C");
    let mount = Mount::new(&["--channel=overwritten:subbuf-size=1M:n-subbufs=4:overwrite"]);
    let (glibc, musl) = (("cc", "gcc", installed()), ("musl-gcc", "musl-tools", released_for_musl()));
    let compile = |of: &(&str, &str, PathBuf), args: &[&str]| {
        Linked::compile_with(&of.2, tool(of.0, of.1), "tests/c/write.c", args)
    };
    let own = format!("{TUNABLES}={NO_AREAS}");
    let programs = [
        ("glibc, librelay.so", compile(&glibc, &[]), None),
        ("glibc, librelay.so, areas of the project", compile(&glibc, &[]), Some(&own)),
        ("glibc, linked statically", compile(&glibc, &["-static"]), None),
        ("musl, librelay.so", compile(&musl, &[]), None),
        ("musl, linked statically", compile(&musl, &["-static"]), None),
    ];
    for len in LENGTHS {
        title(&format!("{len} B, 4 x 1 MiB overwritten"), "ns");
        let written = |program: &Linked, variable: Option<&String>, library: PathBuf| {
            let mut command = Command::new("env");
            command.args(variable).arg(program.path()).args([len.to_string(), MESSAGES.to_string()]);
            command.env("RELAYFS", mount.point()).env("LD_LIBRARY_PATH", library);
            let said = text(&on_cpu(WRITER_CPU, || stdout_of(&mut command)));
            said.trim().parse().unwrap_or_else(|_| panic!("what the C program came to: {said:?}"))
        };
        let mut measurements: Vec<Measurement<'_>> = Vec::new();
        for (name, program, variable) in &programs {
            let root = if name.starts_with("musl") { &musl.2 } else { &glibc.2 };
            measurements.push(Box::new(|| written(program, *variable, root.join("usr/lib"))));
        }
        for ((name, ..), values) in programs.iter().zip(alternately(&mut measurements)) {
            row(name, values);
        }
    }
    assert_eq!(mount.stats("overwritten")["total.written"], 0, "all programs write directly");
}
