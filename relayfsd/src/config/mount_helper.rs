//! Translates the arguments of mount(8), which runs this program as /sbin/mount.relayfs.
//!
//! For `mount -t relayfs`, mount(8) runs that symbolic link with arguments from "EXTERNAL HELPERS" in its manual page.
//! In these, `-f` means *fake*, and `-s` *sloppy*.

use std::ffi::{OsStr, OsString};
use std::fs::File;
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use nix::sched::{CloneFlags, setns};

/// The name by which mount(8) calls its helper for a type.
const NAME: &[u8] = b"mount.relayfs";
/// Options of mount(8) that have a value.
const WITH_VALUE: &[u8] = b"oNt";

/// The request of mount(8).
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct Helper {
    /// Check everything, but do not mount.
    pub(crate) fake: bool,
    /// Ignore unknown mount options.
    pub(crate) sloppy: bool,
    /// The mount namespace to mount in.
    pub(crate) namespace: Option<PathBuf>,
    /// The command line as relayfsd understands it, the program's name first.
    pub(crate) args: Vec<OsString>,
}

/// Reads a command line, the program's name first. `None`: the caller is not mount(8).
pub(crate) fn read(args: &[OsString]) -> Option<Result<Helper, String>> {
    let name = args.first().and_then(|name| Path::new(name).file_name())?;
    (name.as_bytes() == NAME).then(|| translate(args))
}

fn translate(args: &[OsString]) -> Result<Helper, String> {
    let mut helper = Helper { args: args[..1].to_vec(), ..Helper::default() };
    let mut operands = Vec::new();
    let mut rest = args[1..].iter();
    while let Some(arg) = rest.next() {
        let bytes = arg.as_bytes();
        if bytes == b"--" {
            operands.extend(rest.by_ref().cloned());
        } else if bytes.starts_with(b"--") {
            // mount(8) passes no such options, so a person has written this one.
            helper.args.push(arg.clone());
        } else if let [b'-', letters @ ..] = bytes
            && !letters.is_empty()
        {
            let at = letters.iter().position(|letter| WITH_VALUE.contains(letter));
            let (flags, valued) = letters.split_at(at.unwrap_or(letters.len()));
            flags.iter().try_for_each(|flag| helper.flag(*flag))?;
            match valued {
                [] => {}
                [letter] => {
                    let value = rest.next().ok_or_else(|| format!("-{} needs a value", *letter as char))?;
                    helper.value(*letter, value);
                }
                [letter, value @ ..] => helper.value(*letter, OsStr::from_bytes(value)),
            }
        } else {
            operands.push(arg.clone());
        }
    }
    helper.args.push("--".into());
    helper.args.append(&mut operands);
    Ok(helper)
}

impl Helper {
    fn flag(&mut self, flag: u8) -> Result<(), String> {
        match flag {
            b'f' => self.fake = true,
            b's' => self.sloppy = true,
            // "Do not write mtab": the daemon never does.
            b'n' => {}
            b'v' => self.args.push("-v".into()),
            b'r' => self.args.extend(["-o".into(), "ro".into()]),
            b'w' => self.args.extend(["-o".into(), "rw".into()]),
            b'h' => self.args.push("--help".into()),
            b'V' => self.args.push("--version".into()),
            other => return Err(format!("unknown option -{}", (other as char).escape_default())),
        }
        Ok(())
    }

    fn value(&mut self, letter: u8, value: &OsStr) {
        match letter {
            b'N' => self.namespace = Some(value.into()),
            b'o' => self.args.extend(["-o".into(), value.to_owned()]),
            // `-t`: the type, which is always relayfs.
            _ => {}
        }
    }

    /// Enters the mount namespace that mount(8) names.
    pub(crate) fn enter_namespace(&self) -> Result<(), String> {
        let Some(path) = &self.namespace else { return Ok(()) };
        let enter = || -> io::Result<()> { Ok(setns(File::open(path)?, CloneFlags::CLONE_NEWNS)?) };
        enter().map_err(|error| format!("cannot enter the mount namespace {}: {error}", path.display()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(line: &str) -> Option<Result<Helper, String>> {
        super::read(&line.split_whitespace().map(OsString::from).collect::<Vec<_>>())
    }

    fn helper(line: &str) -> Helper {
        read(line).expect("called by mount").expect("a command line")
    }

    fn args(line: &str) -> String {
        helper(line).args.iter().map(|arg| arg.to_str().unwrap()).collect::<Vec<_>>().join(" ")
    }

    #[test]
    fn only_the_name_of_the_helper_is_translated() {
        assert_eq!(read("relayfsd -f /mnt"), None);
        assert_eq!(read("/usr/bin/mount.relayfsd -f /mnt"), None);
        assert!(read("/sbin/mount.relayfs none /mnt").is_some());
    }

    #[test]
    fn arguments_of_mount_are_translated() {
        for (line, expected) in [
            ("mount.relayfs none /mnt -o rw", "-o rw -- none /mnt"),
            ("mount.relayfs none /mnt -v -n -o rw,n_subbufs=8", "-v -o rw,n_subbufs=8 -- none /mnt"),
            ("mount.relayfs -nvorw,group=adm none /mnt", "-v -o rw,group=adm -- none /mnt"),
            ("mount.relayfs -t relayfs.x -r none /mnt", "-o ro -- none /mnt"),
            ("mount.relayfs -w -- -none /mnt", "-o rw -- -none /mnt"),
            ("mount.relayfs none - --help", "--help -- none -"),
        ] {
            assert_eq!(args(line), format!("mount.relayfs {expected}"), "{line}");
        }
    }

    #[test]
    fn fake_and_sloppy_are_not_foreground_and_single_threaded() {
        let sloppy = helper("mount.relayfs none /mnt -sf -N /proc/1/ns/mnt");
        assert!(sloppy.fake && sloppy.sloppy);
        assert_eq!(sloppy.namespace.as_deref(), Some(Path::new("/proc/1/ns/mnt")));
        assert_eq!(args("mount.relayfs none /mnt -sf -N x"), "mount.relayfs -- none /mnt");
    }

    #[test]
    fn arguments_that_mount_does_not_pass_are_refused() {
        for (line, part) in [("mount.relayfs -d none /mnt", "-d"), ("mount.relayfs none /mnt -o", "-o")] {
            assert!(read(line).unwrap().unwrap_err().contains(part), "{line}");
        }
    }
}
