//! A reader's bell in the event loop.
#![allow(unsafe_code)]

use std::io;
use std::os::fd::{AsFd, OwnedFd};

use tokio::io::Interest;
use tokio::io::unix::AsyncFd;

/// Registers a duplicate of an eventfd, to wait until it is readable.
pub(crate) fn register(bell: impl AsFd) -> io::Result<AsyncFd<OwnedFd>> {
    let bell = bell.as_fd().try_clone_to_owned()?;
    // SAFETY: an OwnedFd returns the same number each time, and keeps that descriptor open until it is dropped. The
    // event loop owns it, and gives out no way to take it or to replace it; here it is only waited for.
    let registered = unsafe { AsyncFd::register_with_interest(bell, Interest::READABLE) };
    registered.map_err(io::Error::from)
}
