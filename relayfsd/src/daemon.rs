//! Runs the daemon: starts all parts in order, waits for the end, and ends them in order.
//!
//! `main` calls [`run`]. This file uses every room except `channel` and `policy`, connects the rooms with each other,
//! and serves as the daemon's first thread. No room may know it.
//!
//! ```text
//! lock the state directory -> mount point clear -> socket -> privileges -> channels -> mount -> server -> ready
//!   a signal            stop the server, close the channels, unmount, keep or remove them, exit
//!   umount              the FUSE session ends: the same without unmounting
//!   umount -l, files    stop the server, close the channels; serve the open files until the last is closed,
//!     still open        or until the next daemon asks for the channels that would stay
//! ```
//!
//! The thread uses timers for four things only: the end has deadlines, `--flush-interval` passes while processes poll,
//! timed channels get an anchor each second while processes use them, and the doorbells of orphaned producers are replaced
//! by looks.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

use crossbeam_channel::{Receiver, bounded, never, select, tick};
use nix::unistd::geteuid;
use relay::cli::size::format_size;
use relay::layout::paths;
use relay::system::cpus;
use sd_notify::NotifyState;
use thiserror::Error;

use crate::config::options::{Keep, Options};
use crate::fuse::fs::{self, Fs, Mounted, REPLY_LOG};
use crate::kill_point;
use crate::mount::{self, How, Mount, MountError};
use crate::process::daemonize::{self, Starter};
use crate::process::host_limits;
use crate::process::logging::{self, Log};
use crate::process::privileges;
use crate::process::signals::{Asked, Caught};
use crate::registry::anchor_timer::AnchorTimer;
use crate::registry::flush_timer::FlushTimer;
use crate::registry::{Limits, OpenError, Registry};
use crate::socket::event_loop::Server;
use crate::socket::listener::{self, ListenError, SocketFile};
use crate::state::end_report;
use crate::state::moved;
use crate::state::recovery;
use crate::state::state_dir::{DirError, Place, StateDir};
use crate::state::takeover::{self, TakeoverError};
use crate::tree::Tree;
use crate::writers::Writers;

/// Longest time that users of the mount have to close their files when the daemon ends.
const UNMOUNT_MAX: Duration = Duration::from_secs(1);
/// Longest time that the FUSE threads may take to notice the unmount.
const END_MAX: Duration = Duration::from_secs(1);
/// Time between two tries to unmount.
const RETRY: Duration = Duration::from_millis(20);
/// Interval of looks at polled buffers whose orphaned producers ring for an earlier daemon.
const ORPHAN_INTERVAL: Duration = Duration::from_millis(10);
/// Every `ORPHAN_CHECK` looks, the daemon checks whether orphaned producers remain.
const ORPHAN_CHECK: u32 = 100;
/// Interval at which a daemon after `umount -l` checks whether the next daemon waits for it.
const WANTED_INTERVAL: Duration = Duration::from_millis(20);
/// Longest time that the writers may take for the last messages when the daemon ends.
const SETTLE_MAX: Duration = Duration::from_millis(500);

/// Why the daemon did not start, or did not end well.
#[derive(Debug, Error)]
pub(crate) enum SessionError {
    #[error("cannot log to {}: {source}", path.display())]
    Log { path: PathBuf, source: io::Error },
    #[error(transparent)]
    Mount(#[from] MountError),
    #[error("state directory: {error}{advice}", error = .0, advice = .0.remedy("--state-dir"))]
    State(#[from] DirError),
    #[error(transparent)]
    Channel(#[from] OpenError),
    #[error(transparent)]
    Listen(#[from] ListenError),
    #[error("the FUSE session cannot start: {0}")]
    Fuse(#[source] io::Error),
    #[error(
        "no memory for FUSE's threads, {}: raise the limit of memory (ulimit -v, LimitAS=)",
        format_size(*.0 as u64)
    )]
    Memory(usize),
    #[error("cannot start {what}: {source}")]
    Start { what: &'static str, source: io::Error },
    #[error("mounted, and unmounted again: {0}")]
    Starter(#[source] io::Error),
    #[error("the FUSE connection was cut while mounted; see /sys/fs/fuse/connections and the kernel's log")]
    Aborted,
}

impl From<TakeoverError> for SessionError {
    fn from(error: TakeoverError) -> SessionError {
        match error {
            TakeoverError::Mount(error) => SessionError::Mount(error),
            TakeoverError::State(error) => SessionError::State(error),
        }
    }
}

/// Runs the daemon to its end.
pub(crate) fn run(options: &Options, starter: &mut Starter) -> Result<(), SessionError> {
    mount::check_places(options)?;
    let log = logging::start(options, REPLY_LOG).map_err(|source| SessionError::Log {
        path: options.log_file.clone().unwrap_or_else(|| "standard error".into()),
        source,
    })?;
    let handling = |source| SessionError::Start { what: "handling signals", source };
    let signals = Caught::start(options.foreground).map_err(handling)?;
    let session = Session::start(options)?;
    let signals = signals.forward().map_err(handling)?;
    if options.verbose {
        daemonize::complain(&session.summary);
    }
    starter.ready().map_err(SessionError::Starter)?;
    session.notify_ready();
    session.serve(&signals, &log, options)
}

/// A running daemon. A drop, in any state, undoes everything, in the order of the fields.
struct Session {
    /// Which channels stay at the end.
    keep: Keep,
    server: Option<Server>,
    mount: Mount,
    socket: Option<SocketFile>,
    registry: Arc<Registry>,
    writers: Arc<Writers>,
    state: Option<StateDir>,
    mounted: Mounted,
    point: PathBuf,
    /// Gets a message when the mount is gone from its mount point.
    unmounted: Receiver<()>,
    /// The text for `-v`.
    summary: String,
}

impl Session {
    fn start(options: &Options) -> Result<Session, SessionError> {
        let point = mount::resolve(&options.mount_point)?;
        let uid = geteuid().as_raw();
        let state_place = match &options.state_dir {
            Some(dir) => Place::named(dir),
            None => Place::below(&[Path::new(paths::STATE_BASE)], &paths::state_dir(&point, uid)),
        };
        let state = takeover::claim(&point, &state_place)?;
        takeover::clear(&point)?;
        let (identity, named) = (mount::identity(&point)?, options.state_dir.is_some());
        let state = if named { state } else { moved::find(state, &state_place, &identity)? };
        let (path, place) = listener::place(options.socket.as_deref(), &point, uid);
        let (listener, socket) = listener::create(&path, &place, options.socket_mode, options.socket_gid)?;
        // Before the registry is created, which starts threads.
        let files = [Some(state.path()), Some(&path), options.log_file.as_deref()];
        privileges::give_up(&point, &files);

        let limits = Limits {
            memory: options.memory_max.unwrap_or_else(|| host_limits::memory_max(state.path())),
            channels: options.channels_max,
        };
        let n_cpus = cpus::count();
        let recovered = recovery::recover(&state, &identity, named, n_cpus)?;
        // If the start fails from here on, the producers' data stays.
        state.set_keep(!recovered.channels.is_empty());
        let writers = Arc::new(Writers::new(n_cpus));
        let registry = Registry::new(
            state.path().to_owned(),
            n_cpus,
            limits,
            options.general,
            recovered,
            writers.clone(),
        )
        .map_err(|source| SessionError::Start {
            what: "the threads that make channels and copies",
            source,
        })?;
        let saving = |source| SessionError::Start { what: "writing the state file", source };
        registry.begin().map_err(saving)?;
        for (name, spec) in &options.channels {
            registry.open_permanent(name, *spec)?;
        }
        registry.settle().map_err(saving)?;
        kill_point!("adopt-opened");

        fs::check_memory(&options.mount).map_err(SessionError::Memory)?;
        let (device, mount, _spare) = mount::attach(&point, &options.mount)?;
        let tree = Tree::new(registry.clone(), writers.clone(), socket.path().to_string_lossy().into_owned());
        let mounted = fs::serve(Fs::new(tree, options.access.clone()), device, &options.mount)
            .map_err(SessionError::Fuse)?;
        let unmounted =
            watch(&mount).map_err(|source| SessionError::Start { what: "watching the mount", source })?;

        let connections_max = host_limits::connections_max(options.connections_max);
        let server = Server::start(
            listener,
            registry.clone(),
            writers.clone(),
            connections_max,
            options.sharing,
            options.create_on_write,
        )
        .map_err(|source| SessionError::Start { what: "the server", source })?;
        let summary = summary(options, &point, socket.path(), &registry);
        kill_point!("started");
        Ok(Session {
            keep: options.keep,
            server: Some(server),
            mount,
            socket: Some(socket),
            registry,
            writers,
            state: Some(state),
            mounted,
            point,
            unmounted,
            summary,
        })
    }

    fn notify_ready(&self) {
        notify(&[
            NotifyState::Ready,
            NotifyState::Status(&self.summary),
            // The service manager may know only the starting process, which has ended.
            NotifyState::MainPid(std::process::id()),
        ]);
    }

    /// Serves as the first thread until the daemon ends.
    fn serve(mut self, signals: &Receiver<Asked>, log: &Log, options: &Options) -> Result<(), SessionError> {
        let mut flush_timer =
            FlushTimer::new(options.flush_interval, Arc::clone(self.registry.flush_request()));
        let flush_asked = flush_timer.asked();
        let mut anchor_timer = AnchorTimer::new(Arc::clone(self.registry.anchor_request()));
        let anchor_asked = anchor_timer.asked();
        let mut orphans = if self.registry.has_orphans() { tick(ORPHAN_INTERVAL) } else { never() };
        let mut listened = 0;
        let mut wanted = never();
        loop {
            select! {
                recv(orphans) -> _ => {
                    listened += 1;
                    if listened % ORPHAN_CHECK != 0 {
                        self.registry.wake_for_orphans();
                    } else {
                        self.registry.check_orphans();
                        orphans = if self.registry.has_orphans() { orphans } else { never() };
                    }
                }
                recv(signals) -> asked => match asked {
                    Ok(Asked::Reopen) => log.reopen(),
                    Ok(Asked::End(Some(why))) => {
                        log::warn!("ending: {why}");
                        return self.stop(signals);
                    }
                    _ => return self.stop(signals),
                },
                recv(self.mounted.ended()) -> _ => return self.ended(),
                recv(flush_asked) -> _ => flush_timer.start(),
                recv(flush_timer.due()) -> _ => flush_timer.flush(&self.registry),
                recv(anchor_asked) -> _ => anchor_timer.start(),
                recv(anchor_timer.due()) -> _ => anchor_timer.take(&self.registry),
                recv(self.unmounted) -> gone => {
                    self.unmounted = never();
                    if gone.is_ok() && self.released() {
                        wanted = tick(WANTED_INTERVAL);
                    }
                }
                recv(wanted) -> _ => if self.state.as_ref().is_some_and(StateDir::is_wanted) {
                    if self.registry.has_left(self.keep) {
                        self.finish();
                        return Ok(());
                    }
                    self.abandon();
                    wanted = never();
                },
            }
        }
    }

    /// Handles the unmount, after which files may still be open. Returns whether channels stay.
    ///
    /// The next daemon may take the mount point. If no channel stays, it may take the state directory too.
    fn released(&mut self) -> bool {
        log::info!("unmounted; the files that are open are served until they are closed");
        notify(&[NotifyState::Status("unmounted; serving open files")]);
        self.mount.let_go();
        self.close(self.keep);
        let has_left = self.registry.has_left(self.keep);
        if !has_left {
            self.abandon();
        }
        has_left
    }

    /// Removes the state directory while files are still open.
    fn abandon(&mut self) {
        self.registry.abandon();
        if let Some(state) = self.state.take() {
            state.set_keep(false);
        }
    }

    /// Handles the end of the FUSE session.
    fn ended(mut self) -> Result<(), SessionError> {
        notify(&[NotifyState::Stopping]);
        let still_there = self.mount.is_attached().unwrap_or(false);
        if still_there {
            // The user did not ask for this end: everything stays.
            self.close(Keep::All);
            return Err(SessionError::Aborted);
        }
        self.close(self.keep);
        self.finish();
        Ok(())
    }

    /// Ends the daemon after a signal.
    fn stop(mut self, signals: &Receiver<Asked>) -> Result<(), SessionError> {
        notify(&[NotifyState::Stopping]);
        let was_released = self.server.is_none();
        self.close(self.keep);
        if was_released {
            self.finish();
            return Ok(());
        }
        let result = self.unmount(signals);
        self.finish();
        result
    }

    /// Unmounts, lazily if files are still open after a while, or at another signal.
    fn unmount(&self, signals: &Receiver<Asked>) -> Result<(), SessionError> {
        let deadline = Instant::now() + UNMOUNT_MAX;
        loop {
            match self.mount.detach(How::IfIdle) {
                Ok(()) => {
                    let _ = self.mounted.ended().recv_timeout(END_MAX);
                    return Ok(());
                }
                Err(error) if Instant::now() >= deadline => {
                    log::warn!("files are still in use, unmounting lazily: {error}");
                    return Ok(()); // the drop unmounts lazily
                }
                Err(error) => log::debug!("unmounting: {error}; trying again"),
            }
            select! {
                recv(signals) -> _ => return Ok(()),
                recv(self.mounted.ended()) -> _ => return Ok(()),
                default(RETRY) => {}
            }
        }
    }

    /// Stops the server and takes what producers have sent.
    ///
    /// With [`Keep::Nothing`], ends the channels.
    fn close(&mut self, keep: Keep) {
        self.socket = None;
        if let Some(server) = self.server.take() {
            self.registry.begin_end();
            server.stop();
            self.writers.settle(SETTLE_MAX);
            let discarded = self.registry.close_all(keep);
            if let Some(line) = end_report::line_of_discarded(&discarded) {
                log::warn!("{line}");
            }
            if let Some(state) = &self.state {
                state.set_keep(keep != Keep::Nothing);
            }
        }
    }

    /// Decides, as the last step, which channels stay, and logs that.
    fn finish(&mut self) {
        let Some(state) = self.state.as_ref().filter(|_| self.keep != Keep::Nothing) else { return };
        let left = self.registry.finish(self.keep);
        state.set_keep(!left.is_empty());
        if !state.is_in_place() {
            end_report::line_of_lost(&left, state.path()).inspect(|line| log::error!("{line}"));
        } else if let Some(line) = end_report::line_of_kept(&left, state.path(), &self.point) {
            log::warn!("{line}");
        }
    }
}

/// Returns the receiver that gets a message when the mount is gone, unmounted lazily or not.
fn watch(mount: &Mount) -> io::Result<Receiver<()>> {
    let wait = mount.watch()?;
    let (sender, receiver) = bounded(1);
    thread::Builder::new().name("mounts".into()).spawn(move || match wait() {
        Ok(()) => drop(sender.send(())),
        Err(error) => log::warn!("cannot watch the table of mounts, so umount -l goes unnoticed: {error}"),
    })?;
    Ok(receiver)
}

fn summary(options: &Options, point: &Path, socket: &Path, registry: &Arc<Registry>) -> String {
    // A channel of an earlier daemon may have another geometry than the command line names.
    let channel = |(name, _): &(relay::ChannelName, relay::GeometrySpec)| {
        let held = registry.hold(name.as_str());
        held.map_or_else(|| name.to_string(), |channel| format!("{name}:{}", channel.geometry()))
    };
    let channels: Vec<String> = options.channels.iter().map(channel).collect();
    format!(
        "mounted on {}, socket {}, {} CPUs, {}, memory {} of {}",
        point.display(),
        socket.display(),
        registry.n_cpus(),
        channels.join(", "),
        format_size(registry.memory().used() as u64),
        format_size(registry.memory().max() as u64),
    )
}

/// Notifies systemd, if it started the daemon with a socket for that.
fn notify(states: &[NotifyState<'_>]) {
    if let Err(error) = sd_notify::notify(states) {
        log::warn!("cannot notify the service manager: {error}");
    }
}
