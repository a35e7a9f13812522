//! The files of a raw channel: the bytes of each CPU, back to back.

use std::collections::BTreeMap;
use std::fs::{File, OpenOptions};
use std::io::{ErrorKind, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::PathBuf;

use audience_common::error::Failure as Common;
use audience_common::trace_dir::stream::check_limit;
use audience_common::trace_dir::{MODE, stream_path};

use crate::read::error::Failure;

/// The files of a raw channel.
pub(super) struct Bytes {
    dir: PathBuf,
    /// By CPU, with their lengths.
    files: BTreeMap<u32, (File, u64)>,
}

impl Bytes {
    pub(super) fn new(dir: PathBuf) -> Bytes {
        Bytes { dir, files: BTreeMap::new() }
    }

    /// Appends bytes of a CPU. Returns how many.
    pub(super) fn append(&mut self, cpu: u32, bytes: &[u8]) -> Result<u64, Failure> {
        let path = stream_path(&self.dir, cpu as usize);
        if !self.files.contains_key(&cpu) {
            let opened = OpenOptions::new().write(true).create_new(true).mode(MODE).open(&path);
            let file = opened.map_err(|error| match error.kind() {
                ErrorKind::AlreadyExists => Common::Recorded(self.dir.clone()),
                _ => Common::record(&path, error),
            })?;
            self.files.insert(cpu, (file, 0));
        }
        let Some((file, len)) = self.files.get_mut(&cpu) else { return Ok(0) };
        check_limit(&path, *len, bytes.len() as u64)?;
        if let Err(error) = file.write_all(bytes) {
            // A part may be there.
            let _ = file.set_len(*len);
            return Err(Common::record(&path, error).into());
        }
        *len += bytes.len() as u64;
        Ok(bytes.len() as u64)
    }
}
