//! What changed between two looks, by second.

use super::look::{ChannelLook, Look, Numbers};

/// The rates of a buffer or of a channel.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub(crate) struct Rates {
    /// `None` of a raw channel: it does not know where messages end.
    pub(crate) messages: Option<f64>,
    pub(crate) bytes: f64,
    pub(crate) read_bytes: f64,
    pub(crate) subbufs: f64,
    pub(crate) lost: f64,
    pub(crate) overwritten_bytes: f64,
}

impl Rates {
    /// Returns the rates of a channel's buffers between two looks.
    pub(crate) fn between(before: &Look, now: &Look, channel: &ChannelLook) -> Vec<Rates> {
        let seconds = now.at.saturating_duration_since(before.at).as_secs_f64();
        let earlier = before.channel(&channel.name).filter(|before| before.created == channel.created);
        let of = |(cpu, numbers): (usize, &Numbers)| {
            let zero = Numbers::default();
            // A channel that came in between began with zeroes.
            let before = earlier.and_then(|before| before.buffers.get(cpu)).unwrap_or(&zero);
            let rate = |of: fn(&Numbers) -> u64| {
                // A counter that fell began again.
                let grown = of(numbers).checked_sub(of(before)).unwrap_or_else(|| of(numbers));
                if seconds > 0.0 { grown as f64 / seconds } else { 0.0 }
            };
            Rates {
                messages: channel.is_timed.then(|| rate(|numbers| numbers.messages)),
                bytes: rate(|numbers| numbers.bytes),
                read_bytes: rate(|numbers| numbers.read_bytes),
                subbufs: rate(|numbers| numbers.produced),
                lost: rate(Numbers::lost),
                overwritten_bytes: rate(|numbers| numbers.overwritten_bytes),
            }
        };
        channel.buffers.iter().enumerate().map(of).collect()
    }

    /// Returns the sum of several buffers' rates.
    pub(crate) fn sum(rates: &[Rates]) -> Rates {
        rates.iter().fold(Rates::default(), |sum, rates| Rates {
            messages: rates.messages.map(|messages| messages + sum.messages.unwrap_or(0.0)),
            bytes: sum.bytes + rates.bytes,
            read_bytes: sum.read_bytes + rates.read_bytes,
            subbufs: sum.subbufs + rates.subbufs,
            lost: sum.lost + rates.lost,
            overwritten_bytes: sum.overwritten_bytes + rates.overwritten_bytes,
        })
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn rates_are_differences_by_second() {
        let text = |created, bytes, messages| {
            format!(
                "channel a\nmode overwrite timed\ncreated {created}\ncpu0.bytes {bytes}\ncpu0.messages {messages}\n"
            )
        };
        let before = Look::parse(&text(1, 100, 10));
        let mut now = Look::parse(&text(1, 300, 30));
        now.at = before.at + Duration::from_secs(2);
        let rates = Rates::between(&before, &now, &now.channels[0]);
        assert_eq!((rates[0].bytes, rates[0].messages, rates[0].lost), (100.0, Some(10.0), 0.0));
        assert_eq!(Rates::sum(&[rates[0], rates[0]]).messages, Some(20.0));
        let mut other = Look::parse(&text(2, 300, 30));
        other.at = now.at;
        assert_eq!(Rates::between(&before, &other, &other.channels[0])[0].bytes, 150.0, "another channel");
        other.at = before.at;
        assert_eq!(Rates::between(&before, &other, &other.channels[0])[0].bytes, 0.0);
    }
}
