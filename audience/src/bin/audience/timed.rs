//! Timed channels: records of all CPUs in one order.

pub(crate) mod accounts;
pub(crate) mod follow;
pub(crate) mod left;
pub(crate) mod meaning;
pub(crate) mod one_shot;
pub(crate) mod print;
pub(crate) mod seen;
pub(crate) mod streams;
pub(crate) mod take;
mod unread;
