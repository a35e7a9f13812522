//! Receiving a channel's files: whether to ask for them, and mapping them.
//!
//! The files come in several packets, and are mapped and closed packet by packet: a machine with many CPUs has more
//! files than a process may have open. If one is unusable, the others are still received. The socket, which is then
//! used for messages, must not hold unexpected packets.
//!
//! A daemon that has taken over the files of its predecessor sends the same files again. Their mappings stay: a thread
//! that is writing there must not end up without a reader.

use std::fs::File;
use std::os::fd::OwnedFd;
use std::os::unix::fs::MetadataExt;
use std::sync::Arc;

use relay::Geometry;
use relay::layout::abi::LAYOUT_VERSION;
use relay::layout::channel_files::{self, FileError};
use relay::memory::mapping::Mapping;
use relay::ring::buffer::Buffer;
use relay::system::descriptor::HeldFd;
use relay::wire::frame::{SHARE_FIRST_EXTRA, ShareReply};
use relay::wire::socket::Socket;

use crate::direct::attachment::why_other_clock;
use crate::direct::buffers::{DirectBuffers, FileId};
use crate::direct::doorbell::{Doorbell, Endpoints};
use crate::direct::rseq::Sequences;
use crate::transport::TransportChoice;

/// Decides whether to ask for a channel's buffers; the error says why not.
pub(crate) fn wanted(choice: TransportChoice, geometry: &Geometry) -> Result<(), String> {
    let why = if choice == TransportChoice::Socket {
        "it was asked for"
    } else if geometry.global() {
        "a global channel is written by the daemon alone"
    } else if let Some(why) = Sequences::why_none() {
        why
    } else {
        return Ok(());
    };
    Err(why.into())
}

/// A channel's files while they arrive.
#[derive(Debug)]
pub(crate) struct FileReceiver {
    geometry: Geometry,
    n_bufs: usize,
    /// Number of data files that have arrived, usable or not.
    n_arrived: usize,
    /// Buffers that this process has mapped already, and may get again.
    mapped: Option<Arc<DirectBuffers>>,
    control: Option<Control>,
    buffers: Vec<Buffer>,
    /// The first fault of a file.
    unusable: Option<String>,
}

#[derive(Debug)]
struct Control {
    /// `None`: the control file is that of `mapped`.
    mapped: Option<channel_files::Control>,
    id: FileId,
    file: HeldFd,
    bell: HeldFd,
}

impl FileReceiver {
    pub(crate) fn new(geometry: Geometry, n_bufs: usize, mapped: Option<Arc<DirectBuffers>>) -> FileReceiver {
        FileReceiver {
            geometry,
            n_bufs,
            n_arrived: 0,
            mapped,
            control: None,
            buffers: Vec::new(),
            unusable: None,
        }
    }

    /// Takes the next packet. The error says why it is invalid.
    pub(crate) fn receive(&mut self, reply: ShareReply, descriptors: Vec<OwnedFd>) -> Result<(), String> {
        let count = reply.count as usize;
        let is_first = self.control.is_none() && self.n_arrived == 0;
        let progress = count > 0 || is_first;
        if reply.first as usize != self.n_arrived || count > self.n_bufs - self.n_arrived || !progress {
            return Err(format!("{reply:?} after {} of {} files", self.n_arrived, self.n_bufs));
        }
        if self.unusable.is_none() {
            self.unusable = self.map(reply, descriptors, is_first).err();
        }
        self.n_arrived += count;
        Ok(())
    }

    /// Returns whether all files have arrived.
    pub(crate) fn is_complete(&self) -> bool {
        self.n_arrived == self.n_bufs
    }

    /// Returns the buffers, or the reason for which they cannot be used.
    /// `process` is this process's number on a timed channel, `pid_there` that in the daemon's PID namespace.
    pub(crate) fn finish(
        self,
        socket: &Arc<Socket>,
        process: u32,
        pid_there: u32,
    ) -> Result<Arc<DirectBuffers>, String> {
        let control = match (self.unusable, self.control) {
            (None, Some(control)) => control,
            (why, _) => return Err(why.unwrap_or_else(|| "no control file came".into())),
        };
        let ends = Endpoints { bell: control.bell, socket: Arc::clone(socket), control: control.file };
        match self.mapped {
            Some(mapped) if control.mapped.is_none() => {
                mapped.attach(ends, process, pid_there);
                Ok(mapped)
            }
            _ => match self.buffers.first().and_then(why_other_clock) {
                Some(why) => Err(why),
                None => {
                    let doorbell = Doorbell::new(ends);
                    Ok(Arc::new(DirectBuffers::new(self.buffers, control.id, doorbell, process, pid_there)))
                }
            },
        }
    }

    fn map(&mut self, reply: ShareReply, descriptors: Vec<OwnedFd>, is_first: bool) -> Result<(), String> {
        if reply.layout_version != LAYOUT_VERSION {
            let theirs = reply.layout_version;
            return Err(format!(
                "the daemon's buffers have layout {theirs}, this release knows {LAYOUT_VERSION}"
            ));
        }
        let expected = reply.count as usize + if is_first { SHARE_FIRST_EXTRA } else { 0 };
        if descriptors.len() != expected {
            return Err(format!(
                "{} of {expected} descriptors came: perhaps too few may be open (ulimit -n)",
                descriptors.len()
            ));
        }
        let mut descriptors = descriptors.into_iter();
        if is_first && let (Some(control), Some(bell)) = (descriptors.next(), descriptors.next()) {
            self.control = Some(self.map_control(control.into(), bell)?);
        }
        let Some(control) = self.control.as_ref().and_then(|control| control.mapped.as_ref()) else {
            return Ok(());
        };
        for (file, index) in descriptors.zip(self.n_arrived..) {
            let buffer = control
                .buffer(&file.into(), index)
                .map_err(|why| format!("the file of buffer {index} cannot be used: {why}"))?;
            self.buffers.push(buffer);
        }
        Ok(())
    }

    fn map_control(&self, file: File, bell: OwnedFd) -> Result<Control, String> {
        let why = |why: FileError| format!("the control file cannot be used: {why}");
        let held = |fd| HeldFd::new(fd).map_err(|error| why(error.into()));
        let bell = held(bell)?;
        let metadata = file.metadata().map_err(|error| why(error.into()))?;
        let id = FileId { device: metadata.dev(), inode: metadata.ino() };
        if self.mapped.as_ref().is_some_and(|mapped| mapped.is_of(id, &self.geometry, self.n_bufs)) {
            return Ok(Control { mapped: None, id, file: held(file.into())?, bell });
        }
        let mapped =
            channel_files::Control::map(&file, Mapping::new, self.geometry, self.n_bufs).map_err(why)?;
        Ok(Control { mapped: Some(mapped), id, file: held(file.into())?, bell })
    }
}
