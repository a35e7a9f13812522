//! Serves FUSE requests. A handler looks up a node, makes one call and replies.
//!
//! No handler waits. It hands long work, such as a copy, to another thread, which replies.
//!
//! Every file is opened with direct I/O, so that each `read()` reaches the daemon. A page-cache fill reaches the daemon
//! too, from splice(2), sendfile(2) or a private mapping. A fill could take bytes that its caller never gets. The
//! daemon recognizes a fill because it has no lock owner, and refuses it with EINVAL, as debugfs does: programs then
//! fall back.

use std::convert::Infallible;
use std::ffi::OsStr;
use std::io;
use std::ops::ControlFlow;
use std::os::fd::OwnedFd;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use crossbeam_channel::{Receiver, Sender};
use fuser::{
    BackgroundSession, BackingId, BsdFileFlags, Config, Errno, FileAttr, FileHandle, FileType, Filesystem,
    FopenFlags, Generation, INodeNo, InitFlags, IoctlFlags, KernelConfig, LockOwner, OpenAccMode, OpenFlags,
    PollEvents, PollFlags, PollNotifier, RenameFlags, ReplyAttr, ReplyCreate, ReplyData, ReplyDirectory,
    ReplyEmpty, ReplyEntry, ReplyIoctl, ReplyLseek, ReplyOpen, ReplyPoll, ReplyWrite, ReplyXattr, Request,
    Session, SessionACL, TimeOrNow, WriteFlags,
};

use crate::channel::{PollState, Wake};
use crate::config::options::{Access, MountOptions};
use crate::fuse::passthrough::Behind;
use crate::fuse::permissions;
use crate::tree::inode::Node;
use crate::tree::listing::{self, Entry};
use crate::tree::open_file::{OpenFiles, Source};
use crate::tree::{NodeStat, Tree};

/// Target of fuser's log records about replies that the kernel does not take.
/// Such a request was interrupted, or ended by the unmount.
pub(crate) const REPLY_LOG: &str = "fuser::reply";
/// Names and attributes change at any time, so the kernel asks each time.
const TTL: Duration = Duration::ZERO;
/// Size that programs like cat ask for at a time: the most that one request can carry.
const IO_SIZE: u32 = 1 << 20;

/// Memory that fuser takes for a thread's requests, in bytes. It aborts the process if it does not get it.
const REQUEST_BUFFER: usize = (16 << 20) + 4096;
/// Memory of a thread besides, in bytes: its stack, and what it allocates first.
const THREAD_MEMORY: usize = 4 << 20;

/// Most file systems that may lie on each other below a mapped file: the kernel's limit.
///
/// The channels' files are on tmpfs, unless `--state-dir` says otherwise.
const STACK_DEPTH: u32 = 2;

/// The mounted tree.
pub(crate) struct Fs {
    tree: Arc<Tree>,
    access: Access,
    files: Arc<OpenFiles>,
    /// Created when the kernel has announced its capabilities.
    behind: Arc<Behind<BackingId>>,
    /// Dropped when the session ends.
    alive: Option<Sender<Infallible>>,
}

/// Replies to an open, from any thread.
fn answer(behind: &Behind<BackingId>, ino: INodeNo, opened: Result<(u64, Source), i32>, reply: ReplyOpen) {
    let (handle, source) = match opened {
        Ok((number, source)) => (FileHandle(number), source),
        Err(errno) => return reply.error(Errno::from_i32(errno)),
    };
    let flags = flags_of(&source);
    match behind.of_source(ino.0, handle.0, source, |file| reply.open_backing(file)) {
        Some(Ok(backing)) => reply.opened_passthrough(handle, flags, &backing),
        _ => reply.opened(handle, flags),
    }
}

impl Fs {
    pub(crate) fn new(tree: Tree, access: Access) -> Fs {
        Fs {
            tree: Arc::new(tree),
            access,
            files: Arc::new(OpenFiles::new()),
            behind: Arc::default(),
            alive: None,
        }
    }

    fn stat(&self, ino: INodeNo) -> Result<(Node, FileAttr), Errno> {
        let node = self.node(ino)?;
        // The node has gone since its name was looked up. The kernel looks the name up again.
        let stat = self.tree.stat(node).ok_or(Errno::ESTALE)?;
        Ok((node, attr(self.ino(node), node, &stat, &self.access)))
    }

    fn ino(&self, node: Node) -> INodeNo {
        INodeNo(node.ino(self.tree.registry().salt()))
    }

    fn node(&self, ino: INodeNo) -> Result<Node, Errno> {
        let node = Node::from_ino(ino.0, self.tree.registry().salt()).ok_or(Errno::ENOENT)?;
        Ok(self.tree.present(node))
    }
}

fn kind_of(node: Node) -> FileType {
    match node {
        _ if node.is_dir() => FileType::Directory,
        Node::Socket => FileType::Symlink,
        _ => FileType::RegularFile,
    }
}

/// Returns a node's attributes, with the permissions that the access options give it.
fn attr(ino: INodeNo, node: Node, stat: &NodeStat, access: &Access) -> FileAttr {
    let kind = kind_of(node);
    // A producer may have damaged the size. The kernel takes none above this, and would answer EIO for the file.
    let size = stat.size.min(i64::MAX as u64);
    FileAttr {
        ino,
        size,
        blocks: size.div_ceil(512),
        atime: stat.ctime,
        mtime: stat.mtime,
        ctime: stat.ctime,
        crtime: stat.ctime,
        kind,
        perm: permissions::bits(access, node, stat.class),
        nlink: if kind == FileType::Directory { 2 } else { 1 },
        uid: access.uid,
        gid: permissions::gid(access, stat.class),
        rdev: 0,
        blksize: IO_SIZE,
        flags: 0,
    }
}

/// Returns the flags of an open, apart from the file behind it.
fn flags_of(source: &Source) -> FopenFlags {
    match source {
        Source::Us | Source::UsUnmapped | Source::UsAndFile(_) => {
            FopenFlags::FOPEN_DIRECT_IO | FopenFlags::FOPEN_NOFLUSH
        }
        Source::UntilClosed(_) => FopenFlags::FOPEN_DIRECT_IO,
        Source::Cache { is_new: true } => FopenFlags::empty(),
        Source::Cache { is_new: false } => FopenFlags::FOPEN_KEEP_CACHE,
    }
}

/// Checks that there is memory for [`serve`]. The error is the number of bytes that are missing or more.
pub(crate) fn check_memory(options: &MountOptions) -> Result<(), usize> {
    // One more for the kernel's greeting, and for the threads that the daemon starts later.
    let needed = (options.threads + 1) * (REQUEST_BUFFER + THREAD_MEMORY);
    Vec::<u8>::new().try_reserve_exact(needed).map_err(|_| needed)
}

/// Serves the tree on a mounted `/dev/fuse`, and returns when the mount is usable.
///
/// That is after the kernel's first request. `mount.rs` mounts and unmounts.
pub(crate) fn serve(mut fs: Fs, device: OwnedFd, options: &MountOptions) -> io::Result<Mounted> {
    let acl = if options.allow_other { SessionACL::All } else { SessionACL::Owner };
    let mut config = Config::default();
    config.acl = acl;
    config.n_threads = Some(options.threads);
    let (alive, ended) = crossbeam_channel::bounded(0);
    fs.alive = Some(alive);
    let session = Session::from_fd(fs, device, acl, config)?.spawn()?;
    Ok(Mounted { _session: session, ended })
}

/// A mounted tree with the threads that serve it.
pub(crate) struct Mounted {
    _session: BackgroundSession,
    ended: Receiver<Infallible>,
}

impl Mounted {
    /// Disconnects when the tree is unmounted, by any process, and the last open file is closed.
    ///
    /// Nothing is ever sent: the sending end is dropped with the file system.
    pub(crate) fn ended(&self) -> &Receiver<Infallible> {
        &self.ended
    }
}

impl Filesystem for Fs {
    fn init(&mut self, _: &Request, config: &mut KernelConfig) -> io::Result<()> {
        // Old kernels that lack one of these work too, with small differences.
        let _ = config.add_capabilities(InitFlags::FUSE_ATOMIC_O_TRUNC);
        let _ = config.add_capabilities(InitFlags::FUSE_PARALLEL_DIROPS);
        let _ = config.set_max_write(IO_SIZE);
        if permissions::needs_acl(&self.access) {
            let added = config.add_capabilities(InitFlags::FUSE_POSIX_ACL);
            let _ = added.inspect_err(|_| permissions::tell_no_acl());
        }
        let passthrough = config.add_capabilities(InitFlags::FUSE_PASSTHROUGH).is_ok()
            && config.set_max_stack_depth(STACK_DEPTH).is_ok();
        self.behind = Arc::new(Behind::new(passthrough));
        Ok(())
    }

    fn lookup(&self, request: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEntry) {
        let found = self.stat(parent).and_then(|(parent, _)| {
            let found = name.to_str().and_then(|name| self.tree.lookup(parent, name));
            let found = self.tree.as_seen_by(found.ok_or(Errno::ENOENT)?, request.pid());
            self.stat(self.ino(found))
        });
        match found {
            Ok((_, attr)) => reply.entry(&TTL, &attr, Generation(0)),
            Err(errno) => reply.error(errno),
        }
    }

    fn getattr(&self, _: &Request, ino: INodeNo, _: Option<FileHandle>, reply: ReplyAttr) {
        match self.stat(ino) {
            Ok((_, attr)) => reply.attr(&TTL, &attr),
            Err(errno) => reply.error(errno),
        }
    }

    /// Allows only truncating a file that takes writes, as shells do before they write.
    fn setattr(
        &self,
        _: &Request,
        ino: INodeNo,
        mode: Option<u32>,
        uid: Option<u32>,
        gid: Option<u32>,
        size: Option<u64>,
        _: Option<TimeOrNow>,
        _: Option<TimeOrNow>,
        _: Option<SystemTime>,
        _: Option<FileHandle>,
        _: Option<SystemTime>,
        _: Option<SystemTime>,
        _: Option<SystemTime>,
        _: Option<BsdFileFlags>,
        reply: ReplyAttr,
    ) {
        let changes_owner = mode.is_some() || uid.is_some() || gid.is_some();
        match self.stat(ino) {
            Err(errno) => reply.error(errno),
            Ok(_) if changes_owner => reply.error(Errno::EPERM),
            Ok((node, attr)) if size.is_some() && node.takes_writes() => reply.attr(&TTL, &attr),
            Ok(_) if size.is_some() => reply.error(Errno::EINVAL),
            Ok(_) => reply.error(Errno::EPERM),
        }
    }

    fn readlink(&self, _: &Request, _: INodeNo, reply: ReplyData) {
        reply.data(self.tree.socket().as_bytes());
    }

    fn open(&self, request: &Request, ino: INodeNo, flags: OpenFlags, reply: ReplyOpen) {
        let node = match self.node(ino) {
            // EINVAL is the answer of the kernel's relay. Otherwise O_DIRECT, with an unmappable file behind, would be
            // EIO.
            Ok(Node::Buffer { .. }) if flags.0 & libc::O_DIRECT != 0 => return reply.error(Errno::EINVAL),
            // Root may open any file for writing, and could then change the file behind other programs' mappings.
            Ok(Node::Take { .. }) if flags.acc_mode() != OpenAccMode::O_RDONLY => {
                return reply.error(Errno::EACCES);
            }
            Ok(node) => node,
            Err(errno) => return reply.error(errno),
        };
        let (readable, uid) = (flags.acc_mode() != OpenAccMode::O_WRONLY, request.uid());
        let by = (request.pid(), uid);
        let (files, tree, behind) = (self.files.clone(), self.tree.clone(), self.behind.clone());
        let open = move || answer(&behind, ino, files.open(&tree, node, readable, by), reply);
        if node.is_copied_at_open() {
            self.tree.registry().copier().order(uid, Box::new(open));
        } else {
            open();
        }
    }

    fn read(
        &self,
        _: &Request,
        _: INodeNo,
        fh: FileHandle,
        offset: u64,
        size: u32,
        _: OpenFlags,
        lock_owner: Option<LockOwner>,
        reply: ReplyData,
    ) {
        match self.files.get(fh.0) {
            None => reply.error(Errno::EBADF),
            Some(file) if lock_owner.is_none() && !file.is_cached() => {
                file.refuse_fill();
                reply.error(Errno::EINVAL);
            }
            Some(file) => {
                let process = lock_owner.map_or(0, |owner| owner.0);
                file.read(&self.tree, fh.0, process, offset, size as usize, |read| match read {
                    Ok(bytes) => bytes.pass_to_kernel(|bytes| reply.data(bytes)),
                    Err(errno) => reply.error(Errno::from_i32(errno)),
                });
            }
        }
    }

    /// Comes only for files opened without NOFLUSH.
    ///
    /// The process waits for the reply, even when it is killed.
    fn flush(&self, request: &Request, _: INodeNo, fh: FileHandle, lock_owner: LockOwner, reply: ReplyEmpty) {
        if let Some(file) = self.files.get(fh.0) {
            file.flush(&self.tree, fh.0, lock_owner.0, request.pid());
        }
        reply.ok();
    }

    fn write(
        &self,
        request: &Request,
        _: INodeNo,
        fh: FileHandle,
        _: u64,
        data: &[u8],
        _: WriteFlags,
        _: OpenFlags,
        _: Option<LockOwner>,
        reply: ReplyWrite,
    ) {
        let len = data.len() as u32;
        match self.files.get(fh.0) {
            None => reply.error(Errno::EBADF),
            Some(file) => file.write(
                &self.tree,
                data,
                request.pid(),
                Box::new(move |written| match written {
                    Ok(()) => reply.written(len),
                    Err(errno) => reply.error(Errno::from_i32(errno)),
                }),
            ),
        }
    }

    fn poll(
        &self,
        _: &Request,
        _: INodeNo,
        fh: FileHandle,
        notifier: PollNotifier,
        _: PollEvents,
        flags: PollFlags,
        reply: ReplyPoll,
    ) {
        let Some(file) = self.files.get(fh.0) else { return reply.error(Errno::EBADF) };
        let wanted = flags.contains(PollFlags::FUSE_POLL_SCHEDULE_NOTIFY);
        // This fails if the poller has closed the file meanwhile, and then has no poller to wake.
        let wake = wanted.then(|| Box::new(move || drop(notifier.notify())) as Wake);
        reply.poll(match file.poll(fh.0, wake) {
            Some(PollState::Idle) => PollEvents::empty(),
            Some(PollState::Readable) => PollEvents::POLLIN | PollEvents::POLLRDNORM,
            Some(PollState::Closed | PollState::Broken) => PollEvents::POLLERR,
            None => {
                PollEvents::POLLIN | PollEvents::POLLRDNORM | PollEvents::POLLOUT | PollEvents::POLLWRNORM
            }
        });
    }

    fn release(
        &self,
        _: &Request,
        _: INodeNo,
        fh: FileHandle,
        _: OpenFlags,
        _: Option<LockOwner>,
        _: bool,
        reply: ReplyEmpty,
    ) {
        // First what the kernel maps: the end of a copy lets the next one have its inode.
        self.behind.close(fh.0);
        self.files.remove(fh.0);
        reply.ok();
    }

    fn readdir(&self, _: &Request, ino: INodeNo, _: FileHandle, offset: u64, mut reply: ReplyDirectory) {
        let Ok(dir) = self.node(ino) else { return reply.error(Errno::ENOENT) };
        for (cookie, name) in (1..=listing::DOTS).zip([".", ".."]).skip(offset.min(listing::DOTS) as usize) {
            if reply.add(ino, cookie, FileType::Directory, name) {
                return reply.ok();
            }
        }
        let listed = self.tree.list(dir, offset, |Entry { cookie, name, node }| {
            let is_full = reply.add(self.ino(node), cookie, kind_of(node), name);
            if is_full { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
        });
        match listed {
            Some(()) => reply.ok(),
            None => reply.error(Errno::ENOENT),
        }
    }

    /// Makes a channel. The kernel has checked that the user may, by the directory's mode.
    fn mkdir(&self, request: &Request, parent: INodeNo, name: &OsStr, _: u32, _: u32, reply: ReplyEntry) {
        let Ok(parent) = self.node(parent) else { return reply.error(Errno::ENOENT) };
        let (salt, access) = (self.tree.registry().salt(), self.access.clone());
        self.tree.make_directory(parent, name.to_str(), request.uid(), move |made| match made {
            Ok((node, stat)) => {
                let attr = attr(INodeNo(node.ino(salt)), node, &stat, &access);
                reply.entry(&TTL, &attr, Generation(0));
            }
            Err(errno) => reply.error(Errno::from_i32(errno)),
        });
    }

    /// Removes a channel that mkdir made.
    fn rmdir(&self, request: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEmpty) {
        let Ok(parent) = self.node(parent) else { return reply.error(Errno::ENOENT) };
        match self.tree.remove_directory(parent, name.to_str(), request.uid()) {
            Ok(()) => reply.ok(),
            Err(errno) => reply.error(Errno::from_i32(errno)),
        }
    }

    // Operations that the tree does not have, with the errnos of the kernel's relay files on debugfs.

    fn fsync(&self, _: &Request, _: INodeNo, _: FileHandle, _: bool, reply: ReplyEmpty) {
        reply.error(Errno::EINVAL);
    }

    fn ioctl(
        &self,
        _: &Request,
        _: INodeNo,
        _: FileHandle,
        _: IoctlFlags,
        _: u32,
        _: &[u8],
        _: u32,
        reply: ReplyIoctl,
    ) {
        reply.error(Errno::ENOTTY);
    }

    fn getxattr(&self, _: &Request, ino: INodeNo, name: &OsStr, size: u32, reply: ReplyXattr) {
        if !permissions::needs_acl(&self.access) {
            return reply.error(Errno::ENOSYS); // the kernel does not ask again
        }
        let node = self.node(ino).ok().filter(|_| name == permissions::ACL);
        let class = node.and_then(|node| self.tree.class(node));
        match class.and_then(|class| permissions::acl(&self.access, class)) {
            None => reply.error(Errno::from_i32(libc::ENODATA)),
            Some(list) if size == 0 => reply.size(list.len() as u32),
            Some(list) if (size as usize) < list.len() => reply.error(Errno::ERANGE),
            Some(list) => reply.data(&list),
        }
    }

    fn listxattr(&self, _: &Request, _: INodeNo, _: u32, reply: ReplyXattr) {
        reply.error(Errno::ENOSYS);
    }

    /// Refuses SEEK_DATA and SEEK_HOLE.
    ///
    /// The kernel does not ask again, and reports data from begin to end.
    ///
    /// That is right: a read at a consumed position gives the next bytes, not zeroes.
    fn lseek(&self, _: &Request, _: INodeNo, _: FileHandle, _: i64, _: i32, reply: ReplyLseek) {
        reply.error(Errno::ENOSYS);
    }

    fn create(&self, _: &Request, _: INodeNo, _: &OsStr, _: u32, _: u32, _: i32, reply: ReplyCreate) {
        reply.error(Errno::EACCES);
    }

    fn mknod(&self, _: &Request, _: INodeNo, _: &OsStr, _: u32, _: u32, _: u32, reply: ReplyEntry) {
        reply.error(Errno::EACCES);
    }

    fn symlink(&self, _: &Request, _: INodeNo, _: &OsStr, _: &Path, reply: ReplyEntry) {
        reply.error(Errno::EACCES);
    }

    fn link(&self, _: &Request, _: INodeNo, _: INodeNo, _: &OsStr, reply: ReplyEntry) {
        reply.error(Errno::EPERM);
    }

    fn unlink(&self, _: &Request, _: INodeNo, _: &OsStr, reply: ReplyEmpty) {
        reply.error(Errno::EPERM);
    }

    fn rename(
        &self,
        _: &Request,
        _: INodeNo,
        _: &OsStr,
        _: INodeNo,
        _: &OsStr,
        _: RenameFlags,
        reply: ReplyEmpty,
    ) {
        reply.error(Errno::EPERM);
    }
}
