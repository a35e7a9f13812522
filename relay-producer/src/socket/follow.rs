//! The thread that calls a front end when the levels of its channel change.
//!
//! Disabled places of a program run no code of the library, so one of its threads must hear of a change. It sleeps in
//! futex(2) on the mapped number of changes. Now and then it looks whether the daemon is still there: a program that
//! writes nothing finds the next one, and with it other levels, by this alone.

use std::fmt;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Weak};
use std::thread;
use std::time::Duration;

use nix::sys::signal::{SigSet, SigmaskHow};
use relay::system::at_fork;
use relay::system::thread_id::ThisThread;

use crate::levels::Levels;
use crate::socket::reconnect::Link;

/// Longest sleep while there is a daemon, and while there is none.
const LOOK_INTERVAL: Duration = Duration::from_secs(5);
const SEARCH_INTERVAL: Duration = Duration::from_secs(1);

/// Called with the levels at the start, and after each change.
pub(crate) type Act = Arc<dyn Fn(&Levels) + Send + Sync>;

/// A front end that wants to know of changes.
pub(crate) struct Follower {
    link: Weak<Link>,
    act: Act,
    /// The process that has a thread for it, see [`ThisThread::process`]; 0: none.
    process: AtomicU64,
}

impl fmt::Debug for Follower {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Follower").field("process", &self.process).finish_non_exhaustive()
    }
}

impl Follower {
    /// Returns one without a thread.
    pub(crate) fn new(link: Weak<Link>, act: Act) -> Follower {
        Follower { link, act, process: AtomicU64::new(0) }
    }

    /// Starts the thread, unless this process has it. A forked child has none.
    pub(crate) fn start(&self) {
        // Relaxed: of the threads of a process that come here, one finds another number.
        let process = ThisThread::find().process();
        if self.process.swap(process, Ordering::Relaxed) == process {
            return;
        }
        let (link, act) = (Weak::clone(&self.link), Arc::clone(&self.act));
        // Signals of the program are for its own threads.
        let mut before = SigSet::empty();
        let blocked = SigSet::all().thread_swap_mask(SigmaskHow::SIG_SETMASK).map(|mask| before = mask);
        // Without the thread, levels change only where the library looks at each message.
        let _ = thread::Builder::new()
            .name("relay-levels".into())
            .stack_size(128 << 10)
            .spawn(move || run(&link, &act));
        if blocked.is_ok() {
            let _ = before.thread_set_mask();
        }
    }
}

fn run(link: &Weak<Link>, act: &Act) {
    let mut told = None;
    while let Some(link) = link.upgrade() {
        if link.is_closed() {
            return;
        }
        let levels = Arc::clone(link.levels());
        let (change, state) = (levels.change(), levels.state());
        if told != Some(state) {
            // It takes locks of the crates `tracing` and `log`.
            at_fork::whole(|| act(&levels));
            told = Some(state);
        }
        let works = link.look_for_daemon();
        drop(link);
        if levels.state() == state {
            levels.wait(change, if works { LOOK_INTERVAL } else { SEARCH_INTERVAL });
        }
    }
}
