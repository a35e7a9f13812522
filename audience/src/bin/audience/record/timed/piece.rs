//! The trace that is being written: the recording, or a piece of it.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::time::Instant;

use audience_common::trace_dir::stream::StreamFile;
use audience_common::trace_dir::{self, Texts};

use crate::error::Failure;
use crate::record::job::Job;

/// A trace that is being written.
pub(super) struct Piece {
    pub(super) dir: PathBuf,
    /// When the first record came.
    pub(super) since: Option<Instant>,
    pub(super) streams: BTreeMap<usize, StreamFile>,
}

impl Piece {
    /// Begins a trace: metadata first. Removes the oldest pieces if the new one is too many.
    pub(super) fn begin(job: &Job<'_>, number: Option<u64>, texts: &Texts) -> Result<Piece, Failure> {
        let dir = match number {
            None => {
                texts.write(&job.output)?;
                job.output.clone()
            }
            Some(number) => {
                let keep = job.rotation().and_then(|rotation| rotation.keep);
                let gone = keep.and_then(|keep| number.checked_sub(keep));
                for old in trace_dir::piece_numbers(&job.output)? {
                    if gone.is_some_and(|gone| old <= gone) {
                        trace_dir::remove(&trace_dir::piece(&job.output, old))?;
                    }
                }
                let dir = trace_dir::piece(&job.output, number);
                trace_dir::create(&dir, texts)?;
                dir
            }
        };
        job.store.begin(&dir);
        Ok(Piece { dir, since: None, streams: BTreeMap::new() })
    }
}
