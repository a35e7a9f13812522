//! The two classic programs of relayfs, compiled unchanged.
//!
//! They use the fixed path /mnt/relay. Each run has a private mount namespace with a fresh /mnt/relay.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::{Command, Output};

use tempfile::TempDir;

use crate::{c, librelay, private_shell, program, run, stdout_of, text, tool};

/// Compiled programs in a directory that every user may enter.
#[derive(Debug)]
pub struct Classic {
    dir: TempDir,
}

impl Classic {
    /// Compiles the readers: `audience-classic`, `audience-printed`; and `mounts`.
    ///
    /// Only in `audience-printed` warnings are no errors.
    #[track_caller]
    pub fn readers() -> Classic {
        let dir = tempfile::tempdir().expect("a temporary directory");
        fs::set_permissions(dir.path(), fs::Permissions::from_mode(0o755)).expect("a directory of ours");
        let into = |name| dir.path().join(name);
        c::compile(&into("audience-classic"), &["-Wall", "-Werror"], &["classic/audience"]);
        let printed = ["classic/audience-printed", "classic/get_cputotal"];
        c::compile(&into("audience-printed"), &["-w"], &printed);
        c::compile(&into("mounts"), &["-Wall", "-Wextra", "-Werror"], &["mounts"]);
        Classic { dir }
    }

    /// Compiles the readers, and installs relayfs beside them.
    ///
    /// The directories are `bin`, `lib` and `include`, as below /usr/local.
    #[track_caller]
    pub fn installed() -> Classic {
        let classic = Classic::readers();
        let (bin, lib) = (classic.dir.path().join("bin"), classic.dir.path().join("lib/relayfs"));
        for (dir, names) in
            [(&bin, &["relayfsd", "relay-producer", "audience"][..]), (&lib, &["librelayfs_preload.so"])]
        {
            fs::create_dir_all(dir).expect("a directory");
            for name in names {
                let (built, installed) = (program(name), dir.join(name));
                // A link or a copy, not a symbolic link: the programs look for each other in their directory.
                if fs::hard_link(&built, &installed).is_err() {
                    // By another process: a child of this one may have a file open for writing that was copied here.
                    stdout_of(tool("install", "coreutils").args(["-m", "755"]).arg(&built).arg(&installed));
                }
            }
        }
        let root = librelay::installed().join("usr");
        let mut copy = tool("cp", "coreutils");
        stdout_of(copy.arg("-a").arg(root.join("lib")).arg(root.join("include")).arg(classic.dir.path()));
        classic
    }

    /// Compiles a module from `tests/c/SOURCE.c`. Needs [`Classic::installed`].
    #[track_caller]
    pub fn module(&self, name: &str, flags: &[&str], source: &str) {
        let include = format!("-I{}", self.dir.path().join("include/relayfs-compat").display());
        let flags = [flags, &["-shared", "-fPIC", &include]].concat();
        c::compile(&self.dir.path().join(name), &flags, &[source]);
    }

    /// The directory of the programs.
    pub fn path(&self) -> &Path {
        self.dir.path()
    }

    /// A script that runs with an empty directory /mnt/relay, and nothing else in /mnt.
    ///
    /// The classic programs and ours are in PATH.
    pub fn script(&self, script: &str) -> Command {
        let setup = r#"
            if [ -e "$1/bin" ]; then PATH=$1:$1/bin:$PATH; else PATH=$1:$2:$PATH; fi
            unset RELAYFS RELAYFSD LD_PRELOAD XDG_RUNTIME_DIR
            mount -t tmpfs tmpfs /mnt; mkdir /mnt/relay; cd /mnt
            mounted() { grep -q " /mnt/relay " /proc/self/mountinfo && echo mounted || echo "not mounted"; }
            no_daemons() { ! grep -qsx relayfsd /proc/[0-9]*/comm; }
            # Whether a child has ended; the shell can still wait for its exit status.
            ended() { ! grep -qs '^State:.[^Z]' /proc/$1/status; }
            # until_true COMMAND...: waits until COMMAND succeeds; after some time ends the script
            until_true() {
                tries=0
                until "$@"; do
                    tries=$((tries + 1)); [ $tries -lt 6000 ] || { echo "not true: $*"; exit 1; }
                    sleep 0.01
                done
            }
            set +e
        "#;
        let mut command = private_shell(&format!("{setup}\n{script}"));
        command.arg(self.path()).arg(program("audience").parent().expect("a directory of programs"));
        command
    }

    /// Runs a script to its end, and returns its standard output and error in their order.
    #[track_caller]
    pub fn run(&self, script: &str) -> String {
        let output: Output = run(&mut self.script(&format!("exec 2>&1\n{script}")));
        assert!(output.status.success(), "{output:?}");
        text(&output.stdout)
    }
}
