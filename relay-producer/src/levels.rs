//! Which messages are written: by the directives of the channel, which the daemon tells, and by those of the program.
//!
//! ```text
//! echo app::db=debug > level -> daemon -> ID.levels, mapped here: one load says whether it has changed
//!                                           |
//! message: level, target                    v
//!   level above the highest limit of all targets: not written      a load and a branch
//!   level within the lowest limit of all targets: written
//!   else: the directive of the target, in the mapped text          no memory, no lock
//! ```
//!
//! A directive of the channel comes before all of the program. What no directive is about is written, or up to the level
//! that a front end says. The room may not know sockets or buffers.

use std::fmt;
use std::fs::File;
use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicU8, AtomicU32, AtomicU64, Ordering};
use std::time::Duration;

use once_cell::race::OnceBox;
use relay::layout::levels::{LEVELS_LEN, LevelPage};
use relay::memory::mapping::{Located, Mapping};
use relay::trace::directives::{Directives, Limit, Limits, limit_of};
use relay::trace::level::Level;

/// A level's number that lets everything pass.
const ALL: Limit = Level::Trace as Limit;

/// The levels of a channel in this process.
pub(crate) struct Levels {
    /// The daemon's file, once it has come. Other files take the same place.
    page: OnceBox<Page>,
    /// Directives of the program.
    own: Directives,
    /// Limit of messages that no directive is about.
    rest: AtomicU8,
    /// What follows from the present text: `change << 32 | highest limit << 8 | lowest limit`.
    seen: AtomicU64,
    /// Number of files that have come.
    files: AtomicU32,
}

struct Page {
    mapping: Arc<Mapping>,
    page: Located<LevelPage>,
}

impl fmt::Debug for Levels {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Levels").field("own", &self.own).finish_non_exhaustive()
    }
}

impl Levels {
    /// Returns the levels by directives of the program, until the channel's come.
    pub(crate) fn new(own: Directives) -> Levels {
        let levels = Levels {
            page: OnceBox::new(),
            own,
            rest: AtomicU8::new(ALL),
            seen: AtomicU64::new(0),
            files: AtomicU32::new(0),
        };
        levels.look();
        levels
    }

    /// Returns whether messages with this level and target are written.
    #[inline(always)]
    pub(crate) fn enabled(&self, level: Level, target: &[u8]) -> bool {
        let mut seen = self.seen.load(Ordering::Relaxed);
        if (seen >> 32) as u32 != self.change() {
            seen = self.look();
        }
        if level.number() > (seen >> 8) as Limit {
            return false;
        }
        level.number() <= seen as Limit || level.number() <= self.limit_of(target)
    }

    /// Returns the highest limit of any target.
    #[cfg(any(test, feature = "log", feature = "tracing"))]
    pub(crate) fn highest(&self) -> Limit {
        (self.look() >> 8) as Limit
    }

    /// Returns a word that changes when the levels do.
    pub(crate) fn state(&self) -> u64 {
        u64::from(self.files.load(Ordering::Relaxed)) << 32 | u64::from(self.change())
    }

    /// Returns whether the program has set directives.
    #[cfg(feature = "log")]
    pub(crate) fn has_own(&self) -> bool {
        !self.own.as_str().is_empty()
    }

    /// Returns whether the channel has directives.
    #[cfg(any(test, feature = "log"))]
    pub(crate) fn has_directives(&self) -> bool {
        self.page().and_then(LevelPage::text).is_some_and(|text| !text.bytes().is_empty())
    }

    /// Sets the limit of messages that no directive is about.
    #[cfg(any(test, feature = "log"))]
    pub(crate) fn set_rest(&self, rest: Limit) {
        // Relaxed, as all accesses here: the page orders its text, and a late look costs one message.
        self.rest.store(rest, Ordering::Relaxed);
        self.look();
    }

    /// Returns the number of changes of the channel's directives, as far as this process knows.
    #[inline(always)]
    pub(crate) fn change(&self) -> u32 {
        self.page().map_or(0, LevelPage::change)
    }

    #[inline(always)]
    fn page(&self) -> Option<&LevelPage> {
        self.page.get().map(|page| &*page.page)
    }

    /// Computes what follows from the present text.
    #[cold]
    #[inline(never)]
    fn look(&self) -> u64 {
        let text = self.page().and_then(LevelPage::text);
        let (change, text) =
            text.as_ref().map_or((self.change(), &[][..]), |text| (text.change(), text.bytes()));
        let (channel, own) = (Limits::of(text), Limits::of(self.own.as_str().as_bytes()));
        let rest = self.rest.load(Ordering::Relaxed);
        let (mut lowest, mut highest) = (channel.lowest, channel.highest);
        if !channel.is_for_all {
            (lowest, highest) = (lowest.min(own.lowest), highest.max(own.highest));
        }
        if !channel.is_for_all && !own.is_for_all {
            (lowest, highest) = (lowest.min(rest), highest.max(rest));
        }
        let seen = u64::from(change) << 32 | u64::from(highest) << 8 | u64::from(lowest);
        self.seen.store(seen, Ordering::Relaxed);
        seen
    }

    #[cold]
    #[inline(never)]
    fn limit_of(&self, target: &[u8]) -> Limit {
        let text = self.page().and_then(LevelPage::text);
        let of_channel = text.and_then(|text| limit_of(text.bytes(), target));
        let limit = of_channel.or_else(|| limit_of(self.own.as_str().as_bytes(), target));
        limit.unwrap_or(self.rest.load(Ordering::Relaxed))
    }

    /// Takes the file of a new connection; `None` if the daemon has none, or it cannot be read.
    /// Only one thread may call it at a time.
    pub(crate) fn attach(&self, file: Option<&File>) {
        let file = file.filter(|file| is_known(file).unwrap_or(false));
        match (self.page.get(), file) {
            (None, None) => {}
            (None, Some(file)) => {
                // Without memory for it the levels stay as they are.
                if let Ok(mapping) = Mapping::read_only(file, LEVELS_LEN).map(Arc::new)
                    && let Some(page) = Located::new(&mapping, 0)
                {
                    let _ = self.page.set(Box::new(Page { mapping, page }));
                }
            }
            (Some(Page { mapping, page }), file) => {
                // Those that wait for a change of the other file look again.
                page.wake();
                // As above.
                let _ = file.map_or_else(|| mapping.retire(), |file| mapping.replace(file));
            }
        }
        self.files.fetch_add(1, Ordering::Relaxed);
        self.look();
    }

    /// Waits until the channel's directives change, at most this long. It may return early.
    pub(crate) fn wait(&self, change: u32, limit: Duration) {
        match self.page() {
            Some(page) => page.wait(change, limit),
            None => std::thread::sleep(limit),
        }
    }

    /// Wakes those that wait, of all processes.
    pub(crate) fn wake(&self) {
        if let Some(page) = self.page() {
            page.wake();
        }
    }
}

/// Returns whether a file is a levels file that this release can read.
fn is_known(file: &File) -> io::Result<bool> {
    let status = file.metadata()?;
    if !status.is_file() || status.len() < LEVELS_LEN {
        return Ok(false);
    }
    let mapping = Arc::new(Mapping::read_only(file, LEVELS_LEN)?);
    Ok(Located::<LevelPage>::new(&mapping, 0).is_some_and(|page| page.is_known()))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A levels file as the daemon makes it.
    fn file() -> (File, Located<LevelPage>) {
        let file = tempfile::tempfile_in("/dev/shm").unwrap();
        file.set_len(LEVELS_LEN).unwrap();
        let page: Located<LevelPage> =
            Located::new(&Arc::new(Mapping::new(&file, LEVELS_LEN).unwrap()), 0).unwrap();
        page.init();
        (file, page)
    }

    fn passing(levels: &Levels, target: &str) -> String {
        let passes = |level: &Level| levels.enabled(*level, target.as_bytes());
        Level::ALL.into_iter().filter(passes).map(|level| level.name().chars().next().unwrap()).collect()
    }

    #[test]
    fn directive_of_the_channel_comes_before_those_of_the_program() {
        let (file, page) = file();
        let levels = Levels::new("info,app::db=warn".parse().unwrap());
        assert_eq!((passing(&levels, "app"), passing(&levels, "app::db")), ("EWI".into(), "EW".into()));
        levels.attach(Some(&file));
        for (text, app, db) in [
            ("", "EWI", "EW"),
            ("app::db=trace", "EWI", "EWIDT"),
            ("debug", "EWID", "EWID"),
            ("off", "", ""),
            ("error,app=debug,app::db=off", "EWID", ""),
            ("", "EWI", "EW"),
        ] {
            assert!(page.set(text));
            assert_eq!((passing(&levels, "app"), passing(&levels, "app::db")), (app.into(), db.into()));
            assert_eq!(levels.has_directives(), !text.is_empty());
        }
        let levels = Levels::new(Directives::default());
        assert_eq!((passing(&levels, "app"), levels.highest()), ("EWIDT".into(), 5));
        levels.set_rest(3);
        levels.attach(Some(&file));
        assert!(page.set("app::db=debug"));
        assert_eq!((passing(&levels, "app"), passing(&levels, "app::db")), ("EWI".into(), "EWID".into()));
        assert_eq!(levels.highest(), 4);
    }

    #[test]
    fn file_of_the_next_daemon_takes_the_place_of_the_last() {
        let (first, page) = file();
        assert!(page.set("warn"));
        let levels = Levels::new(Directives::default());
        levels.attach(Some(&first));
        assert_eq!(passing(&levels, "app"), "EW");
        // The same number of changes, and another text.
        let (second, page) = file();
        assert!(page.set("error"));
        levels.attach(Some(&second));
        assert_eq!(passing(&levels, "app"), "E");
        assert!(page.set("info"));
        assert_eq!(passing(&levels, "app"), "EWI");
        levels.attach(None);
        assert_eq!(passing(&levels, "app"), "EWIDT");
        levels.attach(Some(&first));
        assert_eq!(passing(&levels, "app"), "EW");
    }

    #[test]
    fn hostile_file_means_nothing() {
        let levels = Levels::new(Directives::default());
        let wrong = tempfile::tempfile_in("/dev/shm").unwrap();
        levels.attach(Some(&wrong));
        wrong.set_len(LEVELS_LEN).unwrap();
        levels.attach(Some(&wrong));
        levels.attach(Some(&File::open("/dev/zero").unwrap()));
        assert!(levels.page.get().is_none());
        assert_eq!(passing(&levels, "app"), "EWIDT");
    }
}
