//! Names of users, each asked for once.

use std::collections::HashMap;

use nix::unistd::{Uid, User};

/// The names that were asked for.
#[derive(Debug, Default)]
pub(crate) struct Users(HashMap<u32, String>);

impl Users {
    /// Returns a user's name, or the number of one without a name.
    pub(crate) fn name(&mut self, uid: u32) -> &str {
        self.0.entry(uid).or_insert_with(|| {
            let user = User::from_uid(Uid::from_raw(uid)).ok().flatten();
            user.map_or_else(|| uid.to_string(), |user| user.name)
        })
    }
}
