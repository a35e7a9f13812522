//! Compiles `logf.c` into the archive, with the C compiler `cc` or that of the variable CC.

use std::env;
use std::path::PathBuf;
use std::process::Command;

fn main() {
    println!("cargo::rerun-if-changed=logf.c");
    println!("cargo::rerun-if-changed=relay.h");
    println!("cargo::rerun-if-env-changed=CC");
    let out = PathBuf::from(env::var_os("OUT_DIR").expect("set by cargo"));
    let cc = env::var_os("CC").unwrap_or_else(|| "cc".into());
    let (object, archive) = (out.join("logf.o"), out.join("librelay_logf.a"));
    run(Command::new(cc).args(["-O2", "-g", "-fPIC", "-Wall", "-Wextra", "-c", "logf.c", "-o"]).arg(&object));
    run(Command::new("ar").arg("crs").arg(&archive).arg(&object));
    println!("cargo::rustc-link-search=native={}", out.display());
    println!("cargo::rustc-link-lib=static:+whole-archive=relay_logf");
}

fn run(command: &mut Command) {
    let status =
        command.status().unwrap_or_else(|error| panic!("{command:?}: {error}; install a C compiler"));
    assert!(status.success(), "{command:?}: {status}");
}
