//! The processes that use a channel: which write it and how, and which read it.
//!
//! A [`Client`] is a connection that opened the channel, or an open file that consumes. `status` and `metrics` show
//! them. The command of a process is looked up when they do, so that opening a file costs nothing.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use crate::process::identity::{self, BootTime};

/// How long a look at a process counts. Many looks at many clients then do not add up.
const LOOK_MAX: Duration = Duration::from_secs(2);

/// What a client does with the channel.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Use {
    /// Writes by the socket: the daemon writes for it.
    Socket,
    /// Writes the buffers in its memory.
    Direct,
    /// Has a buffer's file open for reading.
    Read(usize),
    /// Has a file in `take` open.
    Take(usize),
    /// Reads the buffers in its memory.
    Map,
}

impl Use {
    pub(crate) fn writes(self) -> bool {
        matches!(self, Use::Socket | Use::Direct)
    }
}

/// The words of `status`: `socket`, `direct`; `read cpu0`, `take cpu0`, `map -`.
impl fmt::Display for Use {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Use::Socket => f.write_str("socket"),
            Use::Direct => f.write_str("direct"),
            Use::Read(cpu) => write!(f, "read cpu{cpu}"),
            Use::Take(cpu) => write!(f, "take cpu{cpu}"),
            Use::Map => f.write_str("map -"),
        }
    }
}

/// A client as a look found it.
#[derive(Clone, Debug)]
pub(crate) struct Client {
    /// The process, or the thread if the process is not known; 0 if neither is.
    pub(crate) pid: u32,
    pub(crate) uid: u32,
    /// The command's name; `None`: the process is gone, and another one has what it opened.
    pub(crate) command: Option<String>,
    pub(crate) what: Use,
}

struct Entry {
    /// The thread or process that opened.
    task: u32,
    uid: u32,
    since: BootTime,
    what: Use,
    /// The process as last found: its number, its command.
    found: Option<(Instant, u32, Option<String>)>,
}

/// The clients of a channel.
#[derive(Default)]
pub(crate) struct Clients {
    table: Mutex<Table>,
}

#[derive(Default)]
struct Table {
    last: u64,
    entries: BTreeMap<u64, Entry>,
}

impl Clients {
    /// Adds a client, which goes when the result is dropped.
    pub(crate) fn enter(self: &Arc<Self>, task: u32, uid: u32, what: Use) -> Presence {
        let entry = Entry { task, uid, since: BootTime::now(), what, found: None };
        let mut table = self.lock();
        table.last += 1;
        let number = table.last;
        table.entries.insert(number, entry);
        Presence { clients: Arc::clone(self), number }
    }

    /// Returns how each client uses the channel.
    pub(crate) fn uses(&self) -> Vec<Use> {
        self.lock().entries.values().map(|entry| entry.what).collect()
    }

    /// Returns the clients, in the order in which they came.
    pub(crate) fn look(&self) -> Vec<Client> {
        let known: Vec<(u64, u32, bool, BootTime)> = {
            let table = self.lock();
            let is_old =
                |entry: &Entry| entry.found.as_ref().is_none_or(|(looked, ..)| looked.elapsed() >= LOOK_MAX);
            let old = table.entries.iter().filter(|(_, entry)| is_old(entry));
            // The kernel names a connection's process, and the thread that opens a file.
            let is_process = |entry: &Entry| entry.what.writes() || entry.what == Use::Map;
            old.map(|(number, entry)| (*number, entry.task, is_process(entry), entry.since)).collect()
        };
        // Without the lock: /proc takes time, and connections come and go meanwhile.
        let found: Vec<_> = known
            .into_iter()
            .map(|(number, task, is_process, since)| {
                (number, Instant::now(), identity::command_since(task, is_process, since))
            })
            .collect();
        let mut table = self.lock();
        for (number, at, command) in found {
            if let Some(entry) = table.entries.get_mut(&number) {
                let (pid, command) = command.map_or((entry.task, None), |(pid, name)| (pid, Some(name)));
                entry.found = Some((at, pid, command));
            }
        }
        let client = |entry: &Entry| {
            let (pid, command) = match &entry.found {
                Some((_, pid, command)) => (*pid, command.clone()),
                None => (entry.task, None),
            };
            Client { pid, uid: entry.uid, command, what: entry.what }
        };
        table.entries.values().map(client).collect()
    }

    fn lock(&self) -> MutexGuard<'_, Table> {
        self.table.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A client's place among the clients of a channel.
pub(crate) struct Presence {
    clients: Arc<Clients>,
    number: u64,
}

impl Presence {
    /// Notes that the client uses the channel in another way from now on.
    pub(crate) fn set(&self, what: Use) {
        if let Some(entry) = self.clients.lock().entries.get_mut(&self.number) {
            entry.what = what;
        }
    }
}

impl Drop for Presence {
    fn drop(&mut self) {
        self.clients.lock().entries.remove(&self.number);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn clients_come_change_and_go() {
        let clients = Arc::new(Clients::default());
        let writer = clients.enter(std::process::id(), 7, Use::Socket);
        let gone = clients.enter(u32::MAX, 8, Use::Read(1));
        writer.set(Use::Direct);
        let found = clients.look();
        assert_eq!(found.iter().map(|client| client.what).collect::<Vec<_>>(), [Use::Direct, Use::Read(1)]);
        assert_eq!((found[0].pid, found[0].uid), (std::process::id(), 7));
        assert!(found[0].command.as_ref().is_some_and(|name| !name.is_empty()));
        assert_eq!(found[1].command, None);
        drop(writer);
        assert_eq!(clients.uses(), [Use::Read(1)]);
        drop(gone);
        assert!(clients.look().is_empty());
    }
}
