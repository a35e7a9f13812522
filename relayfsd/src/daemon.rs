//! One life of the daemon: start everything in order, wait for the end, and end in order.
//!
//! ```text
//! lock the state directory -> mount point clear -> socket -> privileges -> channels -> mount -> server -> ready
//!   a signal            stop the server, close the channels, unmount, keep or remove them, exit
//!   umount              the FUSE session ends: the same without unmounting
//!   umount -l, files    stop the server, close the channels; serve the open files until the last is closed,
//!     still open        or a successor wants what would be kept
//! ```
//!
//! Nothing here has a timer, except for three things: the end does not wait for ever, `--flush-interval` passes while processes poll, and
//! producers of an earlier daemon are looked after.

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

use crate::channel::flush_timer::Schedule;
use crate::config::options::{Keep, Options};
use crate::fuse::fs::{self, Fs, Mounted};
use crate::kill_point;
use crate::mount::takeover;
use crate::mount::{self, How, Mount, MountError};
use crate::process::daemonize::{self, Starter};
use crate::process::host_limits;
use crate::process::logging::{self, Log};
use crate::process::privileges;
use crate::process::signals::{Asked, Caught};
use crate::registry::{Limits, OpenError, Registry};
use crate::socket::event_loop::Server;
use crate::socket::listener::{self, ListenError, SocketFile};
use crate::state::end_report;
use crate::state::moved;
use crate::state::recovery;
use crate::state::state_dir::{DirError, Place, StateDir};
use crate::tree::Tree;

/// How long users of the mount have to go away when the daemon is told to end.
const UNMOUNT_MAX: Duration = Duration::from_secs(1);
/// How long the FUSE threads may take to notice that they are unmounted.
const END_MAX: Duration = Duration::from_secs(1);
/// Time between two tries to unmount.
const RETRY: Duration = Duration::from_millis(20);
/// How often buffers that somebody polls are looked at, while their producers ring for a daemon that is gone.
const ORPHAN_INTERVAL: Duration = Duration::from_millis(10);
/// One in so many times, it is looked whether there are such producers.
const ORPHAN_CHECK: u32 = 100;
/// How often a daemon that serves open files after `umount -l` looks whether the next one waits for it.
const WANTED_INTERVAL: Duration = Duration::from_millis(20);
/// How long the writers may take for what producers have sent, when the daemon ends.
const SETTLE_MAX: Duration = Duration::from_millis(500);

/// Why the daemon did not start, or did not end well.
#[derive(Debug, Error)]
pub(crate) enum SessionError {
    #[error("cannot log to {}: {source}", path.display())]
    Log { path: PathBuf, source: io::Error },
    #[error(transparent)]
    Mount(#[from] MountError),
    #[error("state directory: {0}; --state-dir names another")]
    State(#[from] DirError),
    #[error(transparent)]
    Channel(#[from] OpenError),
    #[error(transparent)]
    Listen(#[from] ListenError),
    #[error("the FUSE session cannot start: {0}")]
    Fuse(io::Error),
    #[error("cannot start {what}: {source}")]
    Start { what: &'static str, source: io::Error },
    #[error("nobody waits any more for the mount: {0}")]
    Starter(io::Error),
    #[error("the FUSE connection was cut while mounted; see /sys/fs/fuse/connections and the kernel's log")]
    Aborted,
}

/// Runs the daemon to its end.
pub(crate) fn run(options: &Options, starter: &mut Starter) -> Result<(), SessionError> {
    mount::check_places(options)?;
    let log = logging::start(options).map_err(|source| SessionError::Log {
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

/// A daemon at work. Dropping it, in whatever state, undoes everything, in the order of the fields.
struct Session {
    /// What stays at the end.
    keep: Keep,
    server: Option<Server>,
    mount: Mount,
    socket: Option<SocketFile>,
    registry: Arc<Registry>,
    state: Option<StateDir>,
    mounted: Mounted,
    point: PathBuf,
    /// Something comes when the mount has been taken off its mount point.
    unmounted: Receiver<()>,
    /// What `-v` says.
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
        // The channels may need threads.
        let files = [Some(state.path()), Some(&path), options.log_file.as_deref()];
        privileges::give_up(&point, &files);

        let limits = Limits {
            memory: options.memory_max.unwrap_or_else(|| host_limits::memory_max(state.path())),
            channels: options.channels_max,
        };
        let n_cpus = cpus::count();
        let recovered = recovery::recover(&state, &identity, named, n_cpus)?;
        // Whatever goes wrong from now on, what others have written stays.
        state.set_keep(!recovered.channels.is_empty());
        let registry =
            Registry::new(state.path().to_owned(), n_cpus, limits, options.general, recovered).map_err(
                |source| SessionError::Start { what: "the threads that make channels and copies", source },
            )?;
        let saving = |source| SessionError::Start { what: "writing the state file", source };
        registry.begin().map_err(saving)?;
        for (name, spec) in &options.channels {
            registry.open_permanent(name, *spec)?;
        }
        registry.settle().map_err(saving)?;
        kill_point!("adopt-opened");

        let (device, mount) = mount::attach(&point, &options.mount)?;
        let tree = Tree::new(registry.clone(), socket.path().to_string_lossy().into_owned());
        let mounted = fs::serve(Fs::new(tree, options.access.clone()), device, &options.mount)
            .map_err(SessionError::Fuse)?;
        let unmounted =
            watch(&mount).map_err(|source| SessionError::Start { what: "watching the mount", source })?;

        let connections_max = host_limits::connections_max(options.connections_max);
        let server = Server::start(listener, registry.clone(), connections_max, options.sharing)
            .map_err(|source| SessionError::Start { what: "the server", source })?;
        let summary = summary(options, &point, socket.path(), &registry);
        kill_point!("started");
        Ok(Session {
            keep: options.keep,
            server: Some(server),
            mount,
            socket: Some(socket),
            registry,
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
            // It may know only the process that has ended.
            NotifyState::MainPid(std::process::id()),
        ]);
    }

    /// Waits for the end, whichever way it comes.
    fn serve(mut self, signals: &Receiver<Asked>, log: &Log, options: &Options) -> Result<(), SessionError> {
        let mut looks = Schedule::new(options.flush_interval, Arc::clone(self.registry.looks()));
        let asked = looks.asked();
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
                recv(asked) -> _ => looks.plan(),
                recv(looks.due()) -> _ => looks.look(&self.registry),
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

    /// Unmounted, and perhaps files are open yet. The mount point is for a successor to take; so is the state directory, if
    /// nothing in it is to stay. Returns whether something is.
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

    /// Removes the state directory while files are open.
    fn abandon(&mut self) {
        self.registry.abandon();
        if let Some(state) = self.state.take() {
            state.set_keep(false);
        }
    }

    /// The FUSE session has ended.
    fn ended(mut self) -> Result<(), SessionError> {
        notify(&[NotifyState::Stopping]);
        let still_there = self.mount.is_attached().unwrap_or(false);
        if still_there {
            // Not asked for: everything stays.
            self.close(Keep::All);
            return Err(SessionError::Aborted);
        }
        self.close(self.keep);
        self.finish();
        Ok(())
    }

    /// Told to end.
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
                    return Ok(()); // by dropping
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

    /// No new producers, no new channels; what has been sent is taken. With [`Keep::Nothing`] the channels end here.
    fn close(&mut self, keep: Keep) {
        self.socket = None;
        if let Some(server) = self.server.take() {
            self.registry.begin_end();
            server.stop();
            self.registry.writers().settle(SETTLE_MAX);
            let discarded = self.registry.close_all(keep);
            if let Some(line) = end_report::line_of_discarded(&discarded) {
                log::warn!("{line}");
            }
            if let Some(state) = &self.state {
                state.set_keep(keep != Keep::Nothing);
            }
        }
    }

    /// The last thing: decides what stays, and says it.
    fn finish(&mut self) {
        let Some(state) = self.state.as_ref().filter(|_| self.keep != Keep::Nothing) else { return };
        let left = self.registry.finish(self.keep);
        state.set_keep(!left.is_empty());
        if let Some(line) = end_report::line_of_kept(&left, state.path(), &self.point) {
            log::warn!("{line}");
        }
    }
}

/// Tells when the mount has gone from the table, lazily unmounted ones included.
fn watch(mount: &Mount) -> io::Result<Receiver<()>> {
    let wait = mount.watch();
    let (sender, receiver) = bounded(1);
    thread::Builder::new().name("mounts".into()).spawn(move || match wait() {
        Ok(()) => drop(sender.send(())),
        Err(error) => log::warn!("cannot watch the table of mounts, so umount -l goes unnoticed: {error}"),
    })?;
    Ok(receiver)
}

fn summary(options: &Options, point: &Path, socket: &Path, registry: &Arc<Registry>) -> String {
    // One that another daemon has left may have another geometry than the command line names.
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
        format_size(registry.memory()),
        format_size(registry.memory_max()),
    )
}

/// Tells systemd, if it asked to be told.
fn notify(states: &[NotifyState<'_>]) {
    if let Err(error) = sd_notify::notify(states) {
        log::warn!("cannot notify the service manager: {error}");
    }
}
