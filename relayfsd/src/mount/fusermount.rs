//! Runs fusermount3(1), the set-uid helper that mounts for users without privileges.
//!
//! The helper sends the mounted /dev/fuse through a socket whose number it finds in `_FUSE_COMMFD`. This socket is the
//! helper's standard input, so no other descriptor has to stay open over exec(2).

use std::io::{self, IoSliceMut, Read};
use std::mem::MaybeUninit;
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use nix::mount::MsFlags;
use rustix::net::{RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, recvmsg};

use crate::config::options::MountOptions;
use crate::mount::{How, MountError, words};

pub(super) const FUSERMOUNT: &str = "fusermount3";
/// Where execvp(3) looks in an environment without PATH.
const PATH_DEFAULT: &str = "/bin:/usr/bin";
/// The error text if fusermount3 is needed and missing.
pub(crate) const MISSING: &str =
    "mounting takes fusermount3, which is not in PATH: install the package fuse3, or run relayfsd as root";

/// Returns whether fusermount3 is in `PATH`.
pub(crate) fn is_installed() -> bool {
    find().is_some()
}

/// Finds fusermount3 in `PATH`.
pub(crate) fn find() -> Option<PathBuf> {
    let paths = std::env::var_os("PATH").unwrap_or_else(|| PATH_DEFAULT.into());
    std::env::split_paths(&paths).map(|dir| dir.join(FUSERMOUNT)).find(|path| path.is_file())
}

/// Mounts on `point`.
///
/// With `auto_unmount` the helper stays, and unmounts when the returned socket closes.
pub(crate) fn mount(point: &Path, options: &MountOptions) -> Result<(OwnedFd, UnixStream), MountError> {
    let refused = |reason: String| MountError::Refused { path: point.to_owned(), reason };
    let failed = |source| MountError::Helper { path: point.to_owned(), source };

    let (ours, theirs) = UnixStream::pair().map_err(failed)?;
    let mut helper = Command::new(FUSERMOUNT)
        .arg("-o")
        .arg(option_list(options))
        .arg("--")
        .arg(point)
        .env("_FUSE_COMMFD", "0")
        .stdin(OwnedFd::from(theirs))
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()
        .map_err(|error| match error.kind() {
            io::ErrorKind::NotFound => MountError::NoFusermount,
            _ => failed(error),
        })?;
    match receive_descriptor(&ours).map_err(failed)? {
        Some(device) => {
            if !options.auto_unmount {
                helper.wait().map_err(failed)?;
            }
            Ok((device, ours))
        }
        None => {
            let mut message = String::new();
            if let Some(mut stderr) = helper.stderr.take() {
                stderr.read_to_string(&mut message).map_err(failed)?;
            }
            helper.wait().map_err(failed)?;
            Err(refused(one_line(&message)))
        }
    }
}

/// Unmounts the calling user's mount on `point`.
pub(crate) fn unmount(point: &Path, how: How) -> io::Result<()> {
    let mut command = Command::new(FUSERMOUNT);
    command.arg("-u");
    if how == How::Lazily {
        command.arg("-z");
    }
    let output = command.arg("--").arg(point).stdin(Stdio::null()).output()?;
    if output.status.success() {
        return Ok(());
    }
    Err(io::Error::other(one_line(&String::from_utf8_lossy(&output.stderr))))
}

fn option_list(options: &MountOptions) -> String {
    let fsname = options.fsname.replace('\\', "\\\\").replace(',', "\\,");
    // The helper always sets nosuid and nodev for users.
    let mut list = format!("nosuid,nodev,subtype=relayfsd,fsname={fsname}");
    let flags =
        [(MsFlags::MS_RDONLY, "ro"), (MsFlags::MS_NOEXEC, "noexec"), (MsFlags::MS_NOATIME, "noatime")];
    let flags = flags.into_iter().filter(|(flag, _)| options.flags.contains(*flag)).map(|(_, word)| word);
    let auto_unmount = options.auto_unmount.then_some("auto_unmount");
    for word in flags.chain(words(options)).chain(auto_unmount) {
        list.push(',');
        list.push_str(word);
    }
    // The helper itself reports that it takes no context.
    for word in &options.contexts {
        list.push(',');
        list.push_str(word);
    }
    list
}

/// Receives the descriptor through the socket; `None` if the helper closes the socket.
fn receive_descriptor(socket: &UnixStream) -> io::Result<Option<OwnedFd>> {
    let mut byte = [0];
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut control = RecvAncillaryBuffer::new(&mut space);
    let received = loop {
        match recvmsg(socket, &mut [IoSliceMut::new(&mut byte)], &mut control, RecvFlags::CMSG_CLOEXEC) {
            Err(rustix::io::Errno::INTR) => {}
            result => break result?,
        }
    };
    if received.bytes == 0 {
        return Ok(None);
    }
    let descriptor = control.drain().find_map(|message| match message {
        RecvAncillaryMessage::ScmRights(mut descriptors) => descriptors.next(),
        _ => None,
    });
    descriptor.map(Some).ok_or_else(|| io::Error::other("it sent no descriptor"))
}

/// Joins the lines of a program's error, without the empty ones.
fn one_line(message: &str) -> String {
    let lines: Vec<&str> = message.lines().map(str::trim).filter(|line| !line.is_empty()).collect();
    if lines.is_empty() { format!("{FUSERMOUNT} failed and did not say why") } else { lines.join("; ") }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn options_reach_the_helper() {
        let options = MountOptions {
            allow_other: true,
            auto_unmount: true,
            threads: 1,
            fsname: "a,b".into(),
            flags: MsFlags::MS_RDONLY | MsFlags::MS_NOSUID | MsFlags::MS_NODEV,
            contexts: Vec::new(),
        };
        assert_eq!(
            option_list(&options),
            "nosuid,nodev,subtype=relayfsd,fsname=a\\,b,ro,allow_other,default_permissions,auto_unmount"
        );
    }

    #[test]
    fn error_of_several_lines_becomes_one_line() {
        assert_eq!(one_line("a: b\n\n  c\n"), "a: b; c");
        assert!(one_line("").contains("fusermount3"));
    }
}
