//! Which messages programs write into a timed channel: directives, in `ID.levels`, which producers map.
//!
//! The file outlives the daemon, so producers keep their levels meanwhile, and the next daemon continues with them. It
//! is worth less than the channel: a damaged one is replaced.

use std::fs;
use std::io;
use std::path::Path;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use relay::layout::levels::{LEVELS_LEN, LEVELS_TEXT_MAX, LevelPage};
use relay::memory::mapping::{Located, Mapping};
use relay::trace::directives::{Directives, DirectivesError};

use crate::channel::files::{self, FindError};

/// Longest text that a process may write, in bytes. It may have spaces and remarks that are not kept.
const WRITE_MAX: usize = 4 * LEVELS_TEXT_MAX;
/// What the file `level` says if there are no directives. As a remark it can be written back.
const NONE: &str = "# no directives: the levels that each program has set apply\n";

/// The directives of a channel.
pub(super) struct Levels {
    page: Located<LevelPage>,
    directives: Mutex<Directives>,
}

impl Levels {
    /// Makes the file of a new channel, without directives.
    pub(super) fn create(path: &Path) -> io::Result<Levels> {
        let page = page(files::create(path, LEVELS_LEN)?)?;
        page.init();
        Ok(Levels { page, directives: Mutex::default() })
    }

    /// Continues with the file that an earlier daemon left. A missing or damaged one is made again.
    pub(super) fn find(path: &Path) -> Result<Levels, FindError> {
        let said = |source: io::Error| FindError::of(path, source);
        let why = match files::find(path, LEVELS_LEN) {
            Ok(mapping) => match Levels::of_page(page(mapping).map_err(said)?) {
                Ok(levels) => return Ok(levels),
                Err(why) => format!("{}: {why}", path.display()),
            },
            Err(FindError::Unsound(why)) => why,
            Err(shortage) => return Err(shortage),
        };
        if fs::symlink_metadata(path).is_ok() {
            log::warn!("{why}: it is replaced, without directives");
            fs::remove_file(path).map_err(said)?;
        }
        Levels::create(path).map_err(said)
    }

    /// Reads the directives of a page. The error says why it has none.
    fn of_page(page: Located<LevelPage>) -> Result<Levels, &'static str> {
        if !page.is_known() {
            return Err("it is no file of levels");
        }
        let text = page.text().ok_or("it has no text")?;
        let directives = str::from_utf8(text.bytes()).ok().and_then(|text| text.parse().ok());
        let directives: Directives = directives.ok_or("its text is no list of directives")?;
        Ok(Levels { page, directives: Mutex::new(directives) })
    }

    /// Sets the directives to those of a text that a process has written.
    pub(super) fn set(&self, text: &[u8]) -> Result<Directives, DirectivesError> {
        if text.len() > WRITE_MAX {
            return Err(DirectivesError::TooMany);
        }
        // Bytes that are not UTF-8 become a character that no target has.
        let directives: Directives = String::from_utf8_lossy(text).parse()?;
        let mut present = self.lock();
        self.page.set(directives.as_str());
        *present = directives.clone();
        Ok(directives)
    }

    /// Takes the directives from those that have the file. The channel is gone, or another one takes its place.
    pub(super) fn retire(&self) {
        let _present = self.lock();
        self.page.set("");
    }

    /// Returns the text of the file `level`.
    pub(super) fn text(&self) -> String {
        let directives = self.lock();
        if directives.as_str().is_empty() { NONE.to_owned() } else { format!("{directives}\n") }
    }

    fn lock(&self) -> MutexGuard<'_, Directives> {
        self.directives.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn page(mapping: Mapping) -> io::Result<Located<LevelPage>> {
    Located::new(&Arc::new(mapping), 0).ok_or_else(|| io::ErrorKind::InvalidData.into())
}

#[cfg(test)]
mod tests {
    use std::fs::File;
    use std::os::unix::fs::{FileExt, PermissionsExt};

    use super::*;

    #[test]
    fn next_daemon_continues_with_the_directives() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("7.levels");
        let levels = Levels::create(&path).unwrap();
        assert_eq!(levels.text(), NONE);
        assert_eq!(levels.set(b"info, app::db=DEBUG\n").unwrap().as_str(), "info,app::db=debug");
        assert_eq!(levels.set(b"loud"), "loud=trace".parse());
        assert!(levels.set(b"a=loud").is_err() && levels.set(b"\xff").is_err());
        assert_eq!(levels.set(&[b' '; WRITE_MAX + 1]), Err(DirectivesError::TooMany));
        assert_eq!(levels.text(), "loud=trace\n");
        assert_eq!(Levels::find(&path).unwrap().text(), "loud=trace\n");
        // What is read can be written.
        levels.set(NONE.as_bytes()).unwrap();
        assert_eq!(Levels::find(&path).unwrap().text(), NONE);
    }

    #[test]
    fn missing_or_damaged_file_is_made_again() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("7.levels");
        assert_eq!(Levels::find(&path).unwrap().text(), NONE);
        let damages: [&dyn Fn(&File); 6] = [
            &|file| file.set_len(0).unwrap(),
            &|file| file.set_len(LEVELS_LEN * 2).unwrap(),
            &|file| file.write_all_at(b"x", 0).unwrap(),
            &|file| file.write_all_at(&[9], 8).unwrap(),
            &|file| file.write_all_at(b"app=loud", 1280).unwrap(),
            &|file| file.set_permissions(fs::Permissions::from_mode(0o666)).unwrap(),
        ];
        for damage in damages {
            Levels::find(&path).unwrap().set(b"app=info").unwrap();
            assert_eq!(Levels::find(&path).unwrap().text(), "app=info\n");
            damage(&File::options().write(true).open(&path).unwrap());
            assert_eq!(Levels::find(&path).unwrap().text(), NONE);
        }
    }
}
