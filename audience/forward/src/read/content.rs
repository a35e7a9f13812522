//! Whether what is asked for has records or bytes.

use std::collections::BTreeSet;

use super::arrivals::Arrivals;
use super::delivery::Delivery;
use super::error::Failure;
use super::hub::{Hub, LOOK_AGAIN};
use super::meaning::shown;
use crate::output::say;

/// What channels have to print.
pub(super) enum Content {
    /// Records.
    Timed,
    /// The bytes of the only channel.
    Raw,
    /// Nothing has come that says so.
    Unknown,
}

impl Content {
    /// Finds out what the channels are, by the first sub-buffer of each lane. `None`: the end came first.
    ///
    /// `is_partial`: there is more in the stream than the lanes read.
    pub(super) fn find(hub: &mut Hub, is_partial: bool) -> Result<Option<Content>, Failure> {
        loop {
            let (mut timed, mut raw) = (BTreeSet::new(), BTreeSet::new());
            let mut is_known = true;
            for lane in &hub.lanes {
                let mut lane = lane.borrow_mut();
                let first = |delivery: &Delivery| match delivery {
                    Delivery::SubBuffer(arrived) => Some(arrived.timed.is_some()),
                    Delivery::Notice { .. } | Delivery::End => None,
                };
                let is_timed = loop {
                    let known = lane.queued().find_map(first);
                    if known.is_some() || !lane.wait(&hub.waiter) {
                        break known.or_else(|| lane.queued().find_map(first));
                    }
                };
                let channel = name(&lane);
                match is_timed.or(lane.is_timed) {
                    Some(true) => drop(timed.insert(channel)),
                    Some(false) => drop(raw.insert(channel)),
                    None => is_known = false,
                }
            }
            if hub.waiter.stops.is_ended() {
                return Ok(None);
            }
            if timed.is_empty() && is_partial && !is_known {
                return Ok(Some(Content::Unknown));
            }
            let is_alone = hub.selection.n_channels() == 1 && raw.len() == 1;
            if timed.is_empty() && is_alone {
                return Ok(Some(Content::Raw));
            }
            // A channel that was created again may be both.
            let left_out: BTreeSet<_> = raw.difference(&timed).cloned().collect();
            hub.leave_out(|lane| left_out.contains(&name(lane)));
            for (host, channel) in &left_out {
                let (option, host) = (host_option(host), shown(host));
                say(format_args!(
                    "channel '{channel}' of {host} is raw, and is left out: {option} -c {channel} prints its bytes, \
                     --record DIR writes them into files"
                ));
            }
            if !timed.is_empty() || !raw.is_empty() && hub.follow {
                return Ok(Some(Content::Timed));
            }
            if !raw.is_empty() {
                return Err(Failure::Raw(
                    "there are raw channels alone, which are printed one at a time".to_owned(),
                ));
            }
            if !hub.follow {
                let is_refused = hub.n_refused() > 0;
                return Ok(Some(if is_refused { Content::Timed } else { Content::Unknown }));
            }
            hub.pause(LOOK_AGAIN);
            for lane in &hub.lanes {
                lane.borrow_mut().poll();
            }
        }
    }
}

/// Returns host and channel of a lane.
fn name(lane: &Arrivals) -> (String, String) {
    (lane.subject.host.clone(), lane.subject.channel.to_string())
}

/// Returns the option that chooses a host, as a shell takes it.
fn host_option(host: &str) -> String {
    let is_plain = |c: char| c.is_ascii_alphanumeric() || "._/:@%+,-".contains(c);
    if host.chars().all(is_plain) && !host.starts_with('-') {
        return format!("--host {host}");
    }
    match host.chars().all(|c| c.is_ascii_graphic() || c == ' ') {
        true => format!("--host='{}'", host.replace('\'', "'\\''")),
        // No terminal shows how to type it.
        false => "--host with its name and".to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shell_takes_the_option() {
        for (host, option) in [
            ("web1.example.org", "--host web1.example.org"),
            ("%2F", "--host %2F"),
            ("-n", "--host='-n'"),
            ("a b", "--host='a b'"),
            ("it's $HOME", "--host='it'\\''s $HOME'"),
            ("a\x1b", "--host with its name and"),
            ("\u{e4}", "--host with its name and"),
        ] {
            assert_eq!(host_option(host), option);
        }
    }
}
