//! Long texts, made at the lookup of a name for the open behind it.
//!
//! The kernel looks a name up before each open, and asks for the size then. A text that takes some milliseconds is so
//! made once an open, and the open file has the size that the lookup said.

use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use crate::tree::inode::Node;

/// Longest time from a lookup to its open. A text that is older is of a lookup without an open, such as that of ls.
const AGE_MAX: Duration = Duration::from_millis(100);
/// Most texts that wait for their opens.
const KEPT_MAX: usize = 2;

/// The texts that wait for their opens, each for one.
#[derive(Default)]
pub(crate) struct Texts {
    kept: Mutex<Vec<(Node, Instant, String)>>,
}

impl Texts {
    /// Makes a node's text, keeps it for the next open, and returns its length.
    pub(crate) fn look(&self, node: Node, make: impl FnOnce() -> String) -> u64 {
        let (begun, text) = (Instant::now(), make());
        let len = text.len() as u64;
        let mut kept = self.lock();
        kept.retain(|(other, ..)| *other != node);
        kept.truncate(KEPT_MAX - 1);
        kept.push((node, begun, text));
        len
    }

    /// Takes the text that the last lookup made for an open.
    pub(crate) fn take(&self, node: Node) -> Option<String> {
        let mut kept = self.lock();
        let at = kept.iter().position(|(other, ..)| *other == node)?;
        let (_, begun, text) = kept.swap_remove(at);
        (begun.elapsed() <= AGE_MAX).then_some(text)
    }

    fn lock(&self) -> MutexGuard<'_, Vec<(Node, Instant, String)>> {
        self.kept.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn text_of_a_lookup_is_for_one_open_of_the_node() {
        let texts = Texts::default();
        assert_eq!(texts.take(Node::Status), None);
        assert_eq!(texts.look(Node::Status, || "old".to_owned()), 3);
        assert_eq!(texts.look(Node::Status, || "text".to_owned()), 4);
        assert_eq!(texts.take(Node::Metrics), None);
        let taken = texts.take(Node::Status);
        assert!(taken.is_none_or(|text| text == "text"), "none on a machine that slept");
        assert_eq!(texts.take(Node::Status), None);
    }
}
