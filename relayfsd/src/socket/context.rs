//! What all connections have in common.

use std::sync::Arc;

use nix::sys::epoll::{Epoll, EpollEvent, EpollFlags};
use nix::sys::eventfd::EventFd;

use crate::policy::quota::Quota;
use crate::policy::share_policy::Sharing;
use crate::registry::Registry;
use crate::socket::backpressure::{AllInFlight, Ring};
use crate::socket::reassembly::Budget;
use crate::writers::Writers;

/// What all connections have in common.
pub(crate) struct ConnectionContext {
    pub(crate) registry: Arc<Registry>,
    pub(crate) writers: Arc<Writers>,
    pub(crate) budget: Arc<Budget>,
    /// Channels that connections hold.
    pub(crate) holds: Arc<Quota>,
    /// What the writers have of all, and what of it is long messages that wait for room.
    pub(crate) all_in_flight: AllInFlight,
    pub(crate) long_waiting: Arc<Quota>,
    pub(crate) ring: Ring,
    pub(crate) sharing: Sharing,
    /// Whether an OPEN to write creates a channel that does not exist.
    pub(crate) create_on_write: bool,
    pub(crate) epoll: Epoll,
}

/// Set in the token of a connection's bell.
pub(crate) const CONNECTION_BELL: u64 = 1 << 63;

impl ConnectionContext {
    /// Lets the bell of connection `number` be heard.
    pub(crate) fn watch_bell(&self, bell: &EventFd, number: u64) -> nix::Result<()> {
        self.epoll
            .add(bell, EpollEvent::new(EpollFlags::EPOLLIN | EpollFlags::EPOLLET, number | CONNECTION_BELL))
    }
}
