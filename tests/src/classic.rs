//! The two classic programs of relayfs, compiled without a changed character, and the place they know of: /mnt/relay, each
//! time another one, in a mount namespace of its own.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::{Command, Output};

use tempfile::TempDir;

use crate::{c, librelay, private_shell, program, run, stdout_of, text, tool};

/// Compiled programs in a directory that everybody may enter.
#[derive(Debug)]
pub struct Classic {
    dir: TempDir,
}

impl Classic {
    /// The readers, with and without a care: `audience-classic`, `audience-printed`; and `mounts`.
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

    /// The same, where relayfs is installed: `bin`, `lib`, `include`, as below /usr/local.
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
                // A file of its own in either case: programs look beside themselves.
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

    /// Compiles a module from `tests/c/SOURCE.c`. For [`Classic::installed`].
    #[track_caller]
    pub fn module(&self, name: &str, flags: &[&str], source: &str) {
        let include = format!("-I{}", self.dir.path().join("include/relayfs-compat").display());
        let flags = [flags, &["-shared", "-fPIC", &include]].concat();
        c::compile(&self.dir.path().join(name), &flags, &[source]);
    }

    /// Where they are.
    pub fn path(&self) -> &Path {
        self.dir.path()
    }

    /// A script that runs where /mnt/relay is an empty directory, and nothing else is in /mnt. They are in PATH, with our
    /// own programs.
    pub fn script(&self, script: &str) -> Command {
        let setup = r#"
            if [ -e "$1/bin" ]; then PATH=$1:$1/bin:$PATH; else PATH=$1:$2:$PATH; fi
            unset RELAYFS RELAYFSD LD_PRELOAD XDG_RUNTIME_DIR
            mount -t tmpfs tmpfs /mnt; mkdir /mnt/relay; cd /mnt
            mounted() { grep -q " /mnt/relay " /proc/self/mountinfo && echo mounted || echo "not mounted"; }
            no_daemons() { ! grep -qsx relayfsd /proc/[0-9]*/comm; }
            # Whether a child has ended; its exit status is still to be had.
            ended() { ! grep -qs '^State:.[^Z]' /proc/$1/status; }
            # until_true COMMAND...: waits, and ends the script if it does not come true
            until_true() {
                tries=0
                until "$@"; do
                    tries=$((tries + 1)); [ $tries -lt 2000 ] || { echo "not true: $*"; exit 1; }
                    sleep 0.01
                done
            }
            set +e
        "#;
        let mut command = private_shell(&format!("{setup}\n{script}"));
        command.arg(self.path()).arg(program("audience").parent().expect("a directory of programs"));
        command
    }

    /// Runs it to its end, and returns all that was printed, in the order in which it came.
    #[track_caller]
    pub fn run(&self, script: &str) -> String {
        let output: Output = run(&mut self.script(&format!("exec 2>&1\n{script}")));
        assert!(output.status.success(), "{output:?}");
        text(&output.stdout)
    }
}
