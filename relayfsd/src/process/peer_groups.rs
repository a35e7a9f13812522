//! Groups of the process at the other end of a socket, as they were when it connected.
//!
//! With `unsafe`: one getsockopt(2) of variable length that no crate has.
#![allow(unsafe_code)]

use std::ffi::CString;
use std::os::fd::{AsFd, AsRawFd};

use nix::errno::Errno;
use nix::sys::socket::UnixCredentials;
use nix::unistd::{Gid, Uid, User, getgrouplist};

/// Socket option of Linux 4.13; the `libc` crate lacks it for most platforms.
const SO_PEERGROUPS: libc::c_int = 59;
/// Groups that are asked for at first.
const USUAL: usize = 64;

/// Returns whether a peer was in a group when it connected.
///
/// A kernel that does not tell the groups of peers leaves those of the peer's user, as the system's database has them.
pub(crate) fn is_member(socket: &impl AsFd, credentials: &UnixCredentials, group: u32) -> bool {
    credentials.gid() == group
        || supplementary(socket)
            .map_or_else(|_| is_listed(credentials, group), |groups| groups.contains(&group))
}

/// Asks the kernel for the peer's supplementary groups.
fn supplementary(socket: &impl AsFd) -> nix::Result<Vec<u32>> {
    let mut groups = vec![0_u32; USUAL];
    loop {
        let room = size_of_val(&groups[..]);
        let mut len = room as libc::socklen_t;
        let place = groups.as_mut_ptr().cast();
        // SAFETY: the kernel writes at most `len` bytes, which the vector has, and any bytes are numbers.
        let result = unsafe {
            libc::getsockopt(socket.as_fd().as_raw_fd(), libc::SOL_SOCKET, SO_PEERGROUPS, place, &raw mut len)
        };
        let n_groups = len as usize / size_of::<u32>();
        match Errno::result(result) {
            Ok(_) => {
                groups.truncate(n_groups);
                return Ok(groups);
            }
            // The kernel says how many there are. They do not change any more.
            Err(Errno::ERANGE) if n_groups > groups.len() => groups.resize(n_groups, 0),
            Err(error) => return Err(error),
        }
    }
}

/// Returns whether the system's database has a peer's user in a group.
fn is_listed(credentials: &UnixCredentials, group: u32) -> bool {
    let Ok(Some(user)) = User::from_uid(Uid::from_raw(credentials.uid())) else { return false };
    let Ok(name) = CString::new(user.name) else { return false };
    getgrouplist(&name, Gid::from_raw(credentials.gid()))
        .is_ok_and(|groups| groups.contains(&Gid::from_raw(group)))
}
