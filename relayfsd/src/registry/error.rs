//! Errors of opening a channel: texts for people, errnos for programs.

use std::path::PathBuf;

use nix::sys::resource::{Resource, getrlimit};
use relay::cli::size::format_size;
use relay::{ChannelName, Geometry};
use thiserror::Error;

use crate::channel::integrity::remedy;

/// Why a channel cannot be opened.
#[derive(Debug, Error)]
pub(crate) enum OpenError {
    #[error("no channel '{name}' (existing: {others})")]
    Unknown { name: ChannelName, others: String },
    #[error("channel '{name}': {why}")]
    Conflict { name: ChannelName, why: String },
    #[error("channel '{name}': {source}")]
    Geometry { name: ChannelName, source: relay::GeometryError },
    #[error(
        "channel '{name}' needs {} ({geometry}, {n_bufs} buffers); {} of {} are in use: use smaller buffers or raise --max-memory of relayfsd",
        format_size(*.needed), format_size(*.used), format_size(*.max)
    )]
    Memory { name: ChannelName, geometry: Geometry, n_bufs: usize, needed: u64, used: u64, max: u64 },
    #[error(
        "channel '{name}': there are {max} channels already: close some or raise --max-channels of relayfsd"
    )]
    TooMany { name: ChannelName, max: usize },
    #[error(
        "channel '{name}': uid {uid} has as many channels as are left for others, of {max}: close some or raise --max-channels of relayfsd"
    )]
    TooManyOfUser { name: ChannelName, uid: u32, max: usize },
    #[error(
        "channel '{name}' needs {}, and the channels of uid {uid} may have as much as is left for others, of {}: use smaller buffers or raise --max-memory of relayfsd",
        format_size(*.needed), format_size(*.max)
    )]
    MemoryOfUser { name: ChannelName, uid: u32, needed: u64, max: u64 },
    #[error("channel '{name}': the daemon has used up its numbers for channels: restart it")]
    NoIds { name: ChannelName },
    #[error("channel '{name}': cannot allocate its buffers in {}: {source}{}", dir.display(), more_room(.source))]
    Allocate { name: ChannelName, dir: PathBuf, source: std::io::Error },
    #[error("channel '{name}' is broken: {why}; {}", remedy(name))]
    Broken { name: ChannelName, why: String },
    #[error("the daemon is ending")]
    Closed,
}

/// Says what the administrator can do if there is no room for the files.
fn more_room(error: &std::io::Error) -> String {
    match error.kind() {
        std::io::ErrorKind::StorageFull | std::io::ErrorKind::QuotaExceeded => {
            "; use smaller buffers, or free or enlarge it (docker run --shm-size), or name another with relayfsd --state-dir"
                .to_owned()
        }
        std::io::ErrorKind::Unsupported => {
            "; it takes a file system that allocates (tmpfs, ext4, xfs): name another with relayfsd --state-dir".to_owned()
        }
        std::io::ErrorKind::NotFound => "; the directory was removed while relayfsd used it: restart relayfsd".to_owned(),
        _ if error.raw_os_error() == Some(libc::EFBIG) => {
            let (limit, _) = getrlimit(Resource::RLIMIT_FSIZE).unwrap_or((0, 0));
            format!(
                "; relayfsd may write files of at most {} (ulimit -f, LimitFSIZE=): raise that limit or use smaller buffers",
                format_size(limit)
            )
        }
        _ => String::new(),
    }
}

impl OpenError {
    /// Makes the error for a name that no channel has.
    ///
    /// `names` are existing names, and `more` counts further ones.
    pub(super) fn unknown(name: ChannelName, names: &[ChannelName], more: usize) -> OpenError {
        let names: Vec<&str> = names.iter().map(ChannelName::as_str).collect();
        let others = match more {
            _ if names.is_empty() => "none".to_owned(),
            0 => names.join(", "),
            _ => format!("{} and {more} more", names.join(", ")),
        };
        OpenError::Unknown { name, others }
    }

    pub(crate) fn errno(&self) -> i32 {
        match self {
            OpenError::Unknown { .. } => libc::ENOENT,
            OpenError::Conflict { .. } => libc::EEXIST,
            OpenError::Geometry { .. } => libc::EINVAL,
            OpenError::Memory { .. } | OpenError::MemoryOfUser { .. } => libc::ENOMEM,
            OpenError::TooMany { .. } | OpenError::TooManyOfUser { .. } | OpenError::NoIds { .. } => {
                libc::ENOSPC
            }
            // ENOENT says that there is no such channel.
            OpenError::Allocate { source, .. } if source.kind() == std::io::ErrorKind::NotFound => libc::EIO,
            OpenError::Allocate { source, .. } => source.raw_os_error().unwrap_or(libc::EIO),
            OpenError::Broken { .. } => libc::EIO,
            OpenError::Closed => libc::ENODEV,
        }
    }
}
