//! Decides which peers get the files of channels, to write them or to read them.
//!
//! A peer may write the files if `--shared` trusts it with the memory. It may read them if it may read the buffers'
//! files in the mount. Sharing memory means trust: a process with a channel's files can damage what others wrote to
//! that channel. By truncating the files, it can end the channel's other producers (SIGBUS). The kernel's report of the
//! peer decides, never the peer's own claim.

use std::fmt;

use clap::ValueEnum;
use relay::ring::writer::AnyExecutor;

use crate::policy::quota::is_trusted;

/// `--shared`: which users get the files for writing.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum Shared {
    /// No user: all messages go over the socket.
    Never,
    /// Root, and the daemon's own user.
    Owner,
    /// Root, the daemon's own user, and the members of `--group`.
    Group,
    /// Every user that can connect.
    All,
}

/// The rule in force.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Sharing {
    pub(crate) with: Shared,
    /// The group of `--group`.
    pub(crate) gid: Option<u32>,
    /// Owner, group and permission bits of the buffers' files in the mount.
    pub(crate) owner: (u32, u32),
    pub(crate) mode: u32,
}

/// Why a producer does not get the files.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum NotShared {
    Never,
    Stranger { uid: u32, with: Shared },
    NoSequences,
    Global,
    NoReader { uid: u32 },
}

impl fmt::Display for NotShared {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            NotShared::Never => f.write_str("relayfsd runs with --shared=never"),
            NotShared::Stranger { uid, with: Shared::Group } => {
                write!(
                    f,
                    "uid {uid} is neither relayfsd's user nor of its --group (--shared=all admits every user)"
                )
            }
            NotShared::Stranger { uid, .. } => {
                write!(f, "uid {uid} is not relayfsd's user (--shared=group or --shared=all admit others)")
            }
            NotShared::NoSequences => {
                f.write_str("relayfsd has no restartable sequences here (rseq(2), x86-64 or aarch64)")
            }
            NotShared::NoReader { uid } => write!(f, "uid {uid} may not read the channel's files"),
            NotShared::Global => f.write_str("a global channel is written by relayfsd alone"),
        }
    }
}

impl Sharing {
    /// Checks whether a peer gets the files of channels for writing. `is_member` says whether it is in a group.
    pub(crate) fn admits(&self, uid: u32, is_member: impl Fn(u32) -> bool) -> Result<(), NotShared> {
        if !AnyExecutor::can_share() {
            return Err(NotShared::NoSequences);
        }
        let trusted = is_trusted(uid);
        match self.with {
            Shared::Never => Err(NotShared::Never),
            Shared::All => Ok(()),
            Shared::Owner if trusted => Ok(()),
            Shared::Group if trusted || self.gid.is_some_and(is_member) => Ok(()),
            Shared::Owner | Shared::Group => Err(NotShared::Stranger { uid, with: self.with }),
        }
    }

    /// Checks whether a peer gets the files for reading: whether it could open them in the mount.
    pub(crate) fn admits_reader(&self, uid: u32, is_member: impl Fn(u32) -> bool) -> Result<(), NotShared> {
        let (owner, group) = self.owner;
        let class = match uid {
            0 => return Ok(()),
            _ if uid == owner => 6,
            _ if is_member(group) => 3,
            _ => 0,
        };
        if self.mode >> class & 4 != 0 { Ok(()) } else { Err(NotShared::NoReader { uid }) }
    }
}
