//! Replaces `integrity.rs` in models, whose threads are all correct.
//!
//! The loads of checks would only add orders to try.

use super::{Readable, Reader};
use crate::layout::position::Position;
use crate::ring::buffer::Buffer;

#[derive(Debug)]
pub(super) struct Checks;

impl Checks {
    pub(super) fn new(_: &Buffer) -> Checks {
        Checks
    }
}

impl Reader {
    pub(super) fn check_padding(&self, _: u64) {}
    pub(super) fn check_readable(&self, _: &Readable) {}
    pub(super) fn check_next(&mut self) {}
    pub(super) fn expect_any_stream(&mut self) {}
    pub(super) fn check_begun(&self, _: Position, _: Position) {}
    pub(super) fn check_back(&self) {}
    pub(super) fn check_high_water(&self, _: u64, _: u64) {}
    pub(super) fn check_consumed(&self) {}
    pub(super) fn expect_consumed(&mut self) {
        let Checks = self.checks;
    }
}
