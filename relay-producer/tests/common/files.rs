//! A channel's files as the daemon makes them, and the reading end of its buffers.

use std::fs::File;
use std::os::fd::{AsFd, AsRawFd, RawFd};
use std::path::Path;
use std::sync::{Arc, Mutex};

use nix::sched::{CpuSet, sched_getaffinity, sched_setaffinity};
use nix::sys::eventfd::{EfdFlags, EventFd};
use nix::unistd::{Pid, SysconfVar, sysconf};
use relay::Geometry;
use relay::layout::abi::{self, LAYOUT_VERSION};
use relay::memory::mapping::Mapping;
use relay::ring::buffer::Buffer;
use relay::ring::reader::Reader;
use relay::ring::writer::{AnyExecutor, WriteResult, Writer};
use relay::wire::frame::{Body, DESCRIPTORS_MAX, ShareReply, WriteReply};

use super::Peer;

#[derive(Debug)]
pub struct Files {
    pub control: File,
    pub data: Vec<File>,
    pub bell: EventFd,
    pub buffers: Vec<Buffer>,
    readers: Vec<Mutex<Reader>>,
    /// Most data files in one reply.
    pub at_once: usize,
}

/// Returns the number of this machine's CPUs, including offline ones.
pub fn n_cpus() -> usize {
    sysconf(SysconfVar::_NPROCESSORS_CONF).unwrap().unwrap() as usize
}

/// Returns the CPUs that the calling thread may run on.
pub fn allowed_cpus() -> Vec<usize> {
    let set = sched_getaffinity(Pid::from_raw(0)).unwrap();
    (0..CpuSet::count()).filter(|cpu| set.is_set(*cpu).unwrap()).collect()
}

/// Binds the calling thread to a CPU.
pub fn pin(cpu: usize) {
    let mut set = CpuSet::new();
    set.set(cpu).unwrap();
    sched_setaffinity(Pid::from_raw(0), &set).unwrap();
}

/// Binds the calling thread to a CPU that it may run on, and returns the CPU.
pub fn pin_anywhere() -> usize {
    let cpu = allowed_cpus()[0];
    pin(cpu);
    cpu
}

impl Files {
    pub fn new(geometry: Geometry) -> Arc<Files> {
        Files::with(geometry, n_cpus(), DESCRIPTORS_MAX - 2)
    }

    /// Creates files without names: no daemon finds them again.
    pub fn with(geometry: Geometry, n_bufs: usize, at_once: usize) -> Arc<Files> {
        Files::make(geometry, n_bufs, at_once, || tempfile::tempfile().unwrap())
    }

    /// Creates files with names in a directory, for another daemon to find.
    pub fn in_dir(dir: &Path, geometry: Geometry) -> Arc<Files> {
        let file = || tempfile::Builder::new().tempfile_in(dir).unwrap().keep().unwrap().0;
        Files::make(geometry, n_cpus(), DESCRIPTORS_MAX - 2, file)
    }

    fn make(geometry: Geometry, n_bufs: usize, at_once: usize, new: impl Fn() -> File) -> Arc<Files> {
        let file = |len: u64| {
            let file = new();
            file.set_len(len).unwrap();
            file
        };
        let header = abi::control_header(&geometry, n_bufs);
        let control = file(header.control_len());
        let map = Arc::new(Mapping::new(&control, header.control_len()).unwrap());
        map.put_header(header);
        let data: Vec<_> = (0..n_bufs).map(|_| file(abi::data_len(&geometry))).collect();
        let buffers: Vec<_> = (0..n_bufs)
            .map(|cpu| {
                let ring = Arc::new(Mapping::new(&data[cpu], abi::data_len(&geometry)).unwrap());
                let buffer = Buffer::new(map.clone(), ring, geometry, &header, cpu).unwrap();
                buffer.init(0);
                buffer
            })
            .collect();
        let readers = buffers.iter().map(|buffer| Mutex::new(Reader::new(buffer.clone()))).collect();
        let bell = EventFd::from_flags(EfdFlags::EFD_NONBLOCK | EfdFlags::EFD_CLOEXEC).unwrap();
        Arc::new(Files { control, data, bell, buffers, readers, at_once })
    }

    /// Answers a request for the files.
    pub fn send(&self, peer: &Peer, id: u32) {
        let mut first = 0;
        while first == 0 || first < self.data.len() {
            let part = &self.data[first..self.data.len().min(first + self.at_once)];
            let mut descriptors: Vec<RawFd> = Vec::new();
            if first == 0 {
                descriptors.extend([self.control.as_raw_fd(), self.bell.as_fd().as_raw_fd()]);
            }
            descriptors.extend(part.iter().map(AsRawFd::as_raw_fd));
            let (start, count) = (first as u32, part.len() as u32);
            let reply = ShareReply { layout_version: LAYOUT_VERSION, first: start, count };
            peer.send_with(&reply.frame(0, id), &descriptors);
            first += part.len();
        }
    }

    /// Writes like a daemon that may end meanwhile. Only one thread may call it at a time.
    pub fn write(
        &self,
        cpu: usize,
        message: &[u8],
        waits: bool,
        ended: impl Fn() -> bool,
        reply: &mut WriteReply,
    ) {
        pin(cpu);
        let (buffer, here) = (&self.buffers[cpu], AnyExecutor::on(Some(cpu)));
        loop {
            match Writer::new(buffer, here).place(message).unwrap().placed {
                WriteResult::Written => reply.written += 1,
                WriteResult::TooBig => reply.too_big += 1,
                WriteResult::Full if waits && ended() => {} // and counts nothing
                WriteResult::Full if waits => {
                    std::thread::yield_now();
                    continue;
                }
                WriteResult::Full | WriteResult::Closed => {
                    reply.dropped += 1;
                    buffer.count_dropped_elsewhere(1);
                }
            }
            return;
        }
    }

    /// Ends the channel like the daemon.
    pub fn close(&self) {
        for cpu in allowed_cpus() {
            std::thread::scope(|scope| {
                scope.spawn(|| {
                    pin(cpu);
                    Writer::new(&self.buffers[cpu], AnyExecutor::on(Some(cpu))).close().unwrap();
                });
            });
        }
    }

    /// Returns the readable bytes of a buffer.
    pub fn read(&self, cpu: usize) -> Vec<u8> {
        let mut reader = self.readers[cpu].lock().unwrap();
        let (mut scratch, mut out) = (Vec::new(), Vec::new());
        loop {
            let before = out.len();
            reader.read(1 << 20, &mut scratch, |bytes| assert!(bytes.copy_to(&mut out)));
            if out.len() == before {
                return out;
            }
        }
    }

    /// Returns the number of rings since the last call.
    pub fn rings(&self) -> u64 {
        self.bell.read().unwrap_or(0)
    }

    /// Returns the messages lost in all buffers.
    pub fn lost(&self) -> u64 {
        self.buffers.iter().map(Buffer::lost).sum()
    }
}
