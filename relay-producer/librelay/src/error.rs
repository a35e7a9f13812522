//! Errors as errno.

use std::ffi::c_int;
use std::io;
use std::panic::{AssertUnwindSafe, catch_unwind};

use nix::errno::Errno;
use relay_producer::{ConnectError, OpenError, RequestError, WriteError};

/// Returns the errno of a channel that could not be opened.
pub(crate) fn of_open(error: &OpenError) -> Errno {
    match error {
        OpenError::Name(_) | OpenError::Geometry(_) => Errno::EINVAL,
        OpenError::Connect(error) => of_connect(error),
        OpenError::Refused(refused) => Errno::from_raw(refused.errno),
        OpenError::NotShared { .. } => Errno::ENOTSUP,
    }
}

fn of_connect(error: &ConnectError) -> Errno {
    match error {
        ConnectError::NotMounted { .. } => Errno::ENODEV,
        ConnectError::Stale { .. } => Errno::ENOTCONN,
        ConnectError::NoDaemon { .. } | ConnectError::HungUp { .. } => Errno::ECONNREFUSED,
        ConnectError::Silent { .. } => Errno::ETIMEDOUT,
        ConnectError::Forbidden { .. } => Errno::EACCES,
        ConnectError::NotOurs { .. } => Errno::EPROTO,
        ConnectError::Io { source, .. } => of_io(source),
    }
}

/// Returns the errno of a lost message: the same that `msg` in the mounted tree returns.
pub(crate) fn of_write(error: WriteError) -> Errno {
    match error {
        WriteError::Full => Errno::ENOSPC,
        WriteError::TooBig { .. } => Errno::EMSGSIZE,
        WriteError::OtherKind => Errno::ENOTSUP,
        WriteError::NotDefined => Errno::ENOENT,
        WriteError::Mismatch => Errno::EINVAL,
        WriteError::NoSuchCpu(_) => Errno::ENXIO,
        WriteError::Disconnected => Errno::ENODEV,
        WriteError::Refused { errno } => Errno::from_raw(errno),
    }
}

/// Returns the errno of a failed request.
pub(crate) fn of_request(error: &RequestError) -> Errno {
    match error {
        RequestError::NoSuchCpu(_) => Errno::ENXIO,
        RequestError::Refused(refused) => Errno::from_raw(refused.errno),
        RequestError::Definition(_) => Errno::EINVAL,
        RequestError::NotTimed => Errno::ENOTSUP,
        // A garbled answer has ended the connection.
        RequestError::Disconnected
        | RequestError::Unanswered { .. }
        | RequestError::Reopen(_)
        | RequestError::Garbled(_) => Errno::ENODEV,
        RequestError::NoReply => Errno::ETIMEDOUT,
    }
}

/// Returns the errno of a failed system call.
pub(crate) fn of_io(error: &io::Error) -> Errno {
    error.raw_os_error().map_or(Errno::EIO, Errno::from_raw)
}

/// Returns the errno of a failed access to the mounted tree.
/// A daemon that has gone, or is about to go, shows as one of several errors.
pub(crate) fn of_tree(error: &io::Error) -> Errno {
    match of_io(error) {
        Errno::ENOENT | Errno::ENOTDIR | Errno::ENOTCONN | Errno::ECONNABORTED => Errno::ENODEV,
        errno => errno,
    }
}

/// Runs `act`, and turns a panic into an error.
pub(crate) fn guarded<T>(act: impl FnOnce() -> Result<T, Errno>) -> Result<T, Errno> {
    catch_unwind(AssertUnwindSafe(act)).unwrap_or(Err(Errno::EIO))
}

/// Sets errno, and returns `value`.
pub(crate) fn failed<T>(errno: Errno, value: T) -> T {
    errno.set();
    value
}

/// Returns 0, or -1 with errno set.
pub(crate) fn status(result: Result<(), Errno>) -> c_int {
    result.map_or_else(|errno| failed(errno, -1), |()| 0)
}
