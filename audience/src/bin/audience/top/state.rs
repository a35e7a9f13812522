//! What is shown, and what the user has chosen.

use std::cmp::Ordering;
use std::collections::BTreeMap;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use super::asking::{Answer, Ask};
use super::history::History;
use crate::error::SILENT;
use crate::monitor::amounts::age;
use crate::monitor::look::{ChannelLook, Look, Numbers};
use crate::monitor::rates::Rates;
use crate::monitor::users::Users;

/// How long the result of an action stands in the place of the keys' names.
const MESSAGE_TIME: Duration = Duration::from_secs(5);

/// The order of the list.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Sort {
    Name,
    Messages,
    Bytes,
    Fill,
    Lost,
}

impl Sort {
    pub(super) const ALL: [Sort; 5] = [Sort::Name, Sort::Messages, Sort::Bytes, Sort::Fill, Sort::Lost];

    pub(super) fn name(self) -> &'static str {
        match self {
            Sort::Name => "name",
            Sort::Messages => "messages",
            Sort::Bytes => "bytes",
            Sort::Fill => "fill",
            Sort::Lost => "lost",
        }
    }

    fn next(self) -> Sort {
        let at = Sort::ALL.iter().position(|sort| *sort == self).unwrap_or(0);
        Sort::ALL[(at + 1) % Sort::ALL.len()]
    }
}

/// All that the screen shows.
pub(super) struct State {
    pub(super) mount: PathBuf,
    pub(super) look: Look,
    /// The rates between the last two looks, by channel and buffer.
    pub(super) rates: BTreeMap<String, Vec<Rates>>,
    pub(super) history: History,
    pub(super) sort: Sort,
    pub(super) reversed: bool,
    /// The chosen channel.
    pub(super) chosen: Option<String>,
    /// Whether the chosen channel alone is shown.
    pub(super) is_open: bool,
    /// The last lines of the open channel, if the user follows its text.
    pub(super) text: Option<Vec<String>>,
    /// The first CPU of the open channel that is shown.
    pub(super) first_cpu: usize,
    /// Whether the screen asks the user for a reset of the open channel.
    pub(super) asks: bool,
    /// The result of the last action, and when it came.
    message: Option<(String, Instant)>,
    /// Why there is no new look.
    pub(super) failed: Option<String>,
    /// When the mount was asked for a look that has not come.
    asked: Option<Instant>,
    pub(super) users: Users,
}

impl State {
    pub(super) fn new(mount: PathBuf, look: Look) -> State {
        let mut state = State {
            mount,
            look,
            rates: BTreeMap::new(),
            history: History::default(),
            sort: Sort::Name,
            reversed: false,
            chosen: None,
            is_open: false,
            text: None,
            first_cpu: 0,
            asks: false,
            message: None,
            failed: None,
            asked: None,
            users: Users::default(),
        };
        state.choose(0);
        state
    }

    /// Returns the question for the next look, unless the last one is not answered.
    pub(super) fn next_look(&mut self) -> Option<Ask> {
        if let Some(asked) = self.asked {
            let waiting = asked.elapsed();
            if waiting >= SILENT {
                let nanoseconds = u64::try_from(waiting.as_nanos()).unwrap_or(u64::MAX);
                self.failed =
                    Some(format!("no answer from relayfsd for {}: see relayfsd doctor", age(nanoseconds)));
            }
            return None;
        }
        self.asked = Some(Instant::now());
        Some(Ask::Look { text_of: self.chosen.clone().filter(|_| self.text.is_some()) })
    }

    /// Returns the request to write into a control file of the open channel.
    pub(super) fn write(&self, file: &'static str) -> Option<Ask> {
        Some(Ask::Write { channel: self.open_channel()?.name.clone(), file })
    }

    /// Returns the result of the last action, until a key is pressed or its time is over.
    pub(super) fn message(&self) -> Option<&str> {
        let (message, since) = self.message.as_ref()?;
        (since.elapsed() < MESSAGE_TIME).then_some(message)
    }

    pub(super) fn forget_message(&mut self) {
        self.message = None;
    }

    /// Takes what the mount has answered. Without a new look the last one stays, with the reason.
    pub(super) fn take(&mut self, answer: Answer) {
        let (look, lines) = match answer {
            Answer::Done(message) => {
                self.message = Some((message, Instant::now()));
                return;
            }
            Answer::Look { look, lines } => (look, lines),
        };
        self.asked = None;
        if let (Some(text), Some(lines)) = (&mut self.text, lines) {
            *text = lines;
        }
        let place = self.place();
        match look {
            Ok(now) => {
                let rates =
                    |channel: &ChannelLook| (channel.name.clone(), Rates::between(&self.look, &now, channel));
                self.rates = now.channels.iter().map(rates).collect();
                self.history.add(&now, &self.rates);
                (self.look, self.failed) = (now, None);
                // The row that is highlighted is the chosen one.
                if !self.is_open && self.open_channel().is_none() {
                    self.choose_at(place);
                }
            }
            Err(reason) => self.failed = Some(reason),
        }
    }

    /// Returns the channels in their order.
    pub(super) fn sorted(&self) -> Vec<&ChannelLook> {
        let mut channels: Vec<&ChannelLook> = self.look.channels.iter().collect();
        let rates = |channel: &ChannelLook| self.sum(channel);
        // The greatest comes first. Names go the other way.
        let by = |a: f64, b: f64| b.partial_cmp(&a).unwrap_or(Ordering::Equal);
        channels.sort_by(|a, b| {
            let order = match self.sort {
                Sort::Name => Ordering::Equal,
                Sort::Messages => by(rates(a).messages.unwrap_or(0.0), rates(b).messages.unwrap_or(0.0)),
                Sort::Bytes => by(rates(a).bytes, rates(b).bytes),
                Sort::Fill => by(fill(a), fill(b)),
                Sort::Lost => by(lost(a) as f64, lost(b) as f64),
            };
            order.then_with(|| a.name.cmp(&b.name))
        });
        if self.reversed {
            channels.reverse();
        }
        channels
    }

    /// Returns the rates of all of a channel.
    pub(super) fn sum(&self, channel: &ChannelLook) -> Rates {
        self.rates.get(&channel.name).map_or_else(Rates::default, |rates| Rates::sum(rates))
    }

    /// Returns the place of the chosen channel in the list.
    pub(super) fn place(&self) -> usize {
        let chosen = self.chosen.as_deref();
        self.sorted().iter().position(|channel| Some(channel.name.as_str()) == chosen).unwrap_or(0)
    }

    /// Chooses the channel some places down the list, or up.
    pub(super) fn choose(&mut self, by: isize) {
        self.choose_at(self.place().saturating_add_signed(by));
    }

    /// Chooses the channel at a place of the list, or the last one.
    fn choose_at(&mut self, place: usize) {
        let last = self.look.channels.len().saturating_sub(1);
        self.chosen = self.sorted().get(place.min(last)).map(|channel| channel.name.clone());
    }

    /// Goes back from the open channel to the list.
    pub(super) fn close(&mut self) {
        (self.is_open, self.text, self.first_cpu) = (false, None, 0);
        // The channel may have gone.
        self.choose(0);
    }

    /// Moves the list of the open channel's CPUs. Drawing keeps it within what there is.
    pub(super) fn scroll(&mut self, by: isize) {
        self.first_cpu = self.first_cpu.saturating_add_signed(by);
    }

    pub(super) fn sort_next(&mut self) {
        self.sort = self.sort.next();
    }

    /// Returns the open channel. `None`: it has gone.
    pub(super) fn open_channel(&self) -> Option<&ChannelLook> {
        self.chosen.as_ref().and_then(|name| self.look.channel(name))
    }
}

/// Returns the fullest buffer's part of unread sub-buffers.
pub(super) fn fill(channel: &ChannelLook) -> f64 {
    let unread = channel.buffers.iter().map(Numbers::unread_subbufs).max().unwrap_or(0);
    if channel.n_subbufs == 0 { 0.0 } else { (unread as f64 / channel.n_subbufs as f64).min(1.0) }
}

/// Returns the messages that a channel lost.
pub(super) fn lost(channel: &ChannelLook) -> u64 {
    channel.buffers.iter().map(Numbers::lost).fold(0, u64::saturating_add)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn list_is_sorted_and_the_choice_stays() {
        let look = Look::parse(
            "channel a\nn_subbufs 4\nbuffers 1\ncpu0.dropped 1\nchannel b\nn_subbufs 4\nbuffers 1\ncpu0.produced 2\n\
             channel c\nn_subbufs 4\nbuffers 1\ncpu0.dropped 5\n",
        );
        let mut state = State::new("/m".into(), look);
        let names = |state: &State| state.sorted().iter().map(|c| c.name.clone()).collect::<Vec<_>>();
        assert_eq!(
            (names(&state), state.chosen.as_deref()),
            (vec!["a".into(), "b".into(), "c".into()], Some("a"))
        );
        state.choose(1);
        state.sort = Sort::Lost;
        assert_eq!((names(&state), state.place()), (vec!["c".into(), "a".into(), "b".into()], 2));
        state.choose(7);
        assert_eq!(state.chosen.as_deref(), Some("b"));
        state.choose(-9);
        state.sort_next();
        state.reversed = true;
        assert_eq!((state.sort, state.chosen.as_deref()), (Sort::Name, Some("c")));
        assert_eq!(names(&state), ["c", "b", "a"]);
    }

    #[test]
    fn highlighted_channel_is_the_chosen_one_when_channels_come_and_go() {
        let look = |names: &[&str]| {
            let channels = names.iter().map(|name| format!("channel {name}\nn_subbufs 4\nbuffers 1\n"));
            Look::parse(&channels.collect::<String>())
        };
        let mut state = State::new("/m".into(), look(&[]));
        let chosen = |state: &mut State, names: &[&str]| {
            state.take(Answer::Look { look: Ok(look(names)), lines: None });
            state.chosen.clone().unwrap_or_default()
        };
        assert_eq!(chosen(&mut state, &["a", "b", "c"]), "a");
        state.choose(1);
        assert_eq!(chosen(&mut state, &["a", "c", "d"]), "c", "the next one is in its place");
        assert_eq!(chosen(&mut state, &["a"]), "a");
        assert_eq!(chosen(&mut state, &[]), "");
        assert_eq!(chosen(&mut state, &["b"]), "b");
        // The open channel stays chosen, until the user goes back.
        state.is_open = true;
        assert_eq!(chosen(&mut state, &["c"]), "b");
        state.close();
        assert_eq!(state.chosen.as_deref(), Some("c"));
    }
}
