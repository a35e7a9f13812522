//! Compiles `logf.c` into the archive, and adds the unwinder of a musl toolchain.
//!
//! The compiler is that of the variable `CC_` with the target's name, or of `CC`, else `cc` or the target's usual one.

use std::env;
use std::path::{Path, PathBuf};
use std::process::Command;

fn main() {
    println!("cargo::rerun-if-changed=logf.c");
    println!("cargo::rerun-if-changed=relay.h");
    let out = PathBuf::from(env::var_os("OUT_DIR").expect("set by cargo"));
    let (object, archive) = (out.join("logf.o"), out.join("librelay_logf.a"));
    run(Command::new(compiler())
        .args(["-O2", "-g", "-fPIC", "-Wall", "-Wextra", "-c", "logf.c", "-o"])
        .arg(&object));
    run(Command::new("ar").arg("crs").arg(&archive).arg(&object));
    println!("cargo::rustc-link-search=native={}", out.display());
    println!("cargo::rustc-link-lib=static:+whole-archive=relay_logf");
    if variable("CARGO_CFG_TARGET_ENV") == "musl" {
        add_unwinder();
    }
}

/// The C compiler for the target, whose headers `logf.c` is compiled with.
fn compiler() -> String {
    let (target, host) = (variable("TARGET"), variable("HOST"));
    let of_target = format!("CC_{}", target.replace('-', "_"));
    for name in [&*of_target, "CC"] {
        println!("cargo::rerun-if-env-changed={name}");
    }
    let named = [&*of_target, "CC"].into_iter().find_map(|name| env::var(name).ok());
    named.unwrap_or_else(|| {
        let arch = variable("CARGO_CFG_TARGET_ARCH");
        match variable("CARGO_CFG_TARGET_ENV").as_str() {
            _ if target == host => "cc".to_owned(),
            "musl" if host.starts_with(&arch) => "musl-gcc".to_owned(),
            "gnu" if !host.starts_with(&arch) => format!("{arch}-linux-gnu-gcc"),
            _ => "cc".to_owned(),
        }
    })
}

/// Puts the unwinder that the toolchain has for musl into the archive, as C compilers for musl may have none that works:
/// that of `musl-gcc` is glibc's. A toolchain without one, as a distribution's, uses that of the C compiler.
fn add_unwinder() {
    let mut rustc = Command::new(env::var_os("RUSTC").expect("set by cargo"));
    let output = rustc.args(["--print", "target-libdir", "--target", &variable("TARGET")]).output();
    let Some(said) = output.ok().and_then(|output| String::from_utf8(output.stdout).ok()) else { return };
    let libraries = Path::new(said.trim()).join("self-contained");
    if libraries.join("libunwind.a").exists() {
        println!("cargo::rustc-link-search=native={}", libraries.display());
        println!("cargo::rustc-link-lib=static=unwind");
    }
}

/// A variable that cargo sets; empty if there is none.
fn variable(name: &str) -> String {
    env::var(name).unwrap_or_default()
}

fn run(command: &mut Command) {
    let status =
        command.status().unwrap_or_else(|error| panic!("{command:?}: {error}; install a C compiler"));
    assert!(status.success(), "{command:?}: {status}");
}
