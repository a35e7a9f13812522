//! The status as text, for people.

use std::fmt::Write as _;
use std::path::Path;

use relay::cli::one_line::one_line;

use super::Shown;
use crate::monitor::amounts::{age, bytes, count, number};
use crate::monitor::look::{ChannelLook, Client, Look, Numbers};
use crate::monitor::rates::Rates;
use crate::monitor::users::Users;

/// Cells of the bar of a buffer.
const BAR: u64 = 8;
/// Most processes that a channel's lists show.
const CLIENTS_MAX: usize = 8;

/// Returns the text.
pub(super) fn print(mount: &Path, look: &Look, shown: &[Shown<'_>], users: &mut Users) -> String {
    let mut text = format!(
        "relayfsd {} on {}: {}, memory {} of {}, {}, up {}\n",
        look.version,
        mount.display(),
        count(look.channels.len() as u64, "channel"),
        bytes(look.memory_bytes as f64),
        bytes(look.memory_max_bytes as f64),
        count(look.connections, "connection"),
        age(look.uptime()),
    );
    for shown in shown {
        text.push('\n');
        channel(&mut text, shown, users);
    }
    text
}

fn channel(text: &mut String, Shown { channel, rates, advice }: &Shown<'_>, users: &mut Users) {
    let ChannelLook { name, n_subbufs, subbuf_size, buffers, .. } = channel;
    let mode = channel.mode();
    let n_buffers = count(buffers.len() as u64, "CPU");
    line(text, format_args!("{name}: {mode}, {n_subbufs} x {}, {n_buffers}", bytes(*subbuf_size as f64)));
    if channel.broken.is_none() && !buffers.is_empty() {
        line(text, "        messages/s    bytes/s     read/s  full            unread  oldest    lost");
        for (cpu, (numbers, rates)) in buffers.iter().zip(rates).enumerate() {
            buffer(text, channel, &format!("cpu{cpu}"), numbers, rates);
        }
        for (cpu, numbers) in buffers.iter().enumerate() {
            losses(text, channel, cpu, numbers);
        }
    }
    clients(text, "writers", &channel.writers, users);
    if channel.has_orphans {
        line(text, "  writers: also producers of an earlier relayfsd, which have not connected again");
    }
    clients(text, "readers", &channel.readers, users);
    for advice in advice {
        line(text, format_args!("  advice: {}", one_line(advice)));
    }
}

fn buffer(text: &mut String, channel: &ChannelLook, name: &str, numbers: &Numbers, rates: &Rates) {
    let unread = numbers.unread_subbufs().min(channel.n_subbufs);
    let filled = if channel.n_subbufs == 0 { 0 } else { (unread * BAR).div_ceil(channel.n_subbufs).min(BAR) };
    let bar: String = (0..BAR).map(|cell| if cell < filled { '#' } else { '.' }).collect();
    let messages = rates.messages.map_or("-".to_owned(), number);
    let oldest = match numbers.oldest_unread {
        0 => "-".to_owned(),
        time => age(channel.time.saturating_sub(time)),
    };
    line(
        text,
        format_args!(
            "  {name:<5} {messages:>10} {:>10} {:>10}  {bar} {unread}/{:<4} {:>7} {oldest:>7} {:>7}",
            bytes(rates.bytes),
            bytes(rates.read_bytes),
            channel.n_subbufs,
            bytes(numbers.unread_bytes as f64),
            number(numbers.lost() as f64),
        ),
    );
}

/// Says what a buffer lost since the channel was created, by cause, and when that last was.
fn losses(text: &mut String, channel: &ChannelLook, cpu: usize, numbers: &Numbers) {
    let ago = |time: u64| match time {
        0 => String::new(),
        time => format!(", last {} ago", age(channel.time.saturating_sub(time))),
    };
    let Numbers { dropped, too_big, contended, overwritten_bytes, .. } = *numbers;
    let causes = [
        (
            dropped,
            format!("{} dropped, the buffer was full", count(dropped, "message")),
            numbers.last_dropped,
        ),
        (too_big, format!("{} too big", count(too_big, "message")), numbers.last_too_big),
        (contended, format!("{} interrupted each time", count(contended, "message")), numbers.last_contended),
        (
            overwritten_bytes,
            format!("{} overwritten unread", bytes(overwritten_bytes as f64)),
            numbers.last_overwritten,
        ),
    ];
    for (n, what, last) in causes {
        if n > 0 {
            line(text, format_args!("  lost on cpu{cpu}: {what}{}", ago(last)));
        }
    }
}

/// Lists processes, those with the same command and way together.
fn clients(text: &mut String, what: &str, clients: &[Client], users: &mut Users) {
    if clients.is_empty() {
        return line(text, format_args!("  {what}: none"));
    }
    let mut groups: Vec<(&Client, Vec<usize>)> = Vec::new();
    for client in clients {
        let same = |(other, _): &&mut (&Client, Vec<usize>)| {
            (other.pid, other.uid, &other.way, &other.command)
                == (client.pid, client.uid, &client.way, &client.command)
        };
        match groups.iter_mut().find(same) {
            Some((_, cpus)) => cpus.extend(client.cpu),
            None => groups.push((client, client.cpu.into_iter().collect())),
        }
    }
    let mut named = Vec::new();
    for (client, cpus) in groups.iter().take(CLIENTS_MAX) {
        let command = client.command.as_deref().unwrap_or("(gone or hidden)");
        let cpus: Vec<String> = cpus.iter().map(|cpu| format!(" cpu{cpu}")).collect();
        let user = users.name(client.uid);
        named.push(format!("{}[{}] {user} {}{}", one_line(command), client.pid, client.way, cpus.concat()));
    }
    if groups.len() > CLIENTS_MAX {
        named.push(format!("and {} more", groups.len() - CLIENTS_MAX));
    }
    line(text, format_args!("  {what}: {}", named.join(", ")));
}

fn line(text: &mut String, what: impl std::fmt::Display) {
    writeln!(text, "{}", what.to_string().trim_end()).expect("writing to a string");
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn channel_is_shown_with_its_losses_and_processes() {
        let look = Look::parse(
            "relayfs 1\nchannel a\nmode no-overwrite timed\nsubbuf_size 65536\nn_subbufs 4\ntime 20000000000\n\
             cpu0.produced 3\ncpu0.consumed 1\ncpu0.dropped 2\ncpu0.last_dropped 8000000000\ncpu0.oldest_unread 19000000000\n\
             reader 9 0 read cpu0 a b\nreader 9 0 read cpu1 a b\n",
        );
        let rates = vec![Rates { messages: Some(1500.0), bytes: 2048.0, ..Rates::default() }];
        let shown = Shown { channel: &look.channels[0], rates, advice: vec!["more\nroom".to_owned()] };
        let text = print(Path::new("/m"), &look, &[shown], &mut Users::default());
        let lines: Vec<&str> = text.lines().skip(2).collect();
        assert_eq!(lines[0], "a: no-overwrite timed, 4 x 64K, 1 CPU");
        assert_eq!(
            lines[2],
            "  cpu0        1.5k       2.0K          0  ####.... 2/4          0      1s       2"
        );
        assert_eq!(lines[3], "  lost on cpu0: 2 messages dropped, the buffer was full, last 12s ago");
        assert_eq!(lines[4], "  writers: none");
        assert_eq!(lines[5], "  readers: a b[9] root read cpu0 cpu1");
        assert_eq!(lines[6], "  advice: more\\nroom");
    }
}
