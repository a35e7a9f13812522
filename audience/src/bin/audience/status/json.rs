//! The status as one line of JSON, for programs.

use std::path::Path;

use jiff::Timestamp;
use serde_json::{Map, Value, json};

use super::Shown;
use crate::monitor::look::{Client, Look, Numbers};
use crate::monitor::rates::Rates;
use crate::monitor::users::Users;

/// Returns the line.
pub(super) fn print(mount: &Path, look: &Look, shown: &[Shown<'_>], users: &mut Users) -> String {
    let channels: Vec<Value> = shown.iter().map(|shown| channel(shown, users)).collect();
    let line = json!({
        "mount": mount.to_string_lossy(),
        "version": look.version,
        "time": time(look.time),
        "started": time(look.started),
        "uptime_seconds": look.uptime() as f64 / 1e9,
        "epoch": look.epoch,
        "memory_bytes": look.memory_bytes,
        "memory_max_bytes": look.memory_max_bytes,
        "connections": look.connections,
        "connections_max": look.connections_max,
        "open_files": look.open_files,
        "channels": channels,
    });
    format!("{line}\n")
}

fn channel(Shown { channel, rates, advice }: &Shown<'_>, users: &mut Users) -> Value {
    let buffers: Vec<Value> = channel
        .buffers
        .iter()
        .zip(rates)
        .enumerate()
        .map(|(cpu, (numbers, rates))| buffer(cpu, numbers, rates, channel.is_timed))
        .collect();
    json!({
        "name": channel.name,
        "mode": if channel.overwrites { "overwrite" } else { "no-overwrite" },
        "timed": channel.is_timed,
        "global": channel.is_global,
        "subbuf_size": channel.subbuf_size,
        "n_subbufs": channel.n_subbufs,
        "header": channel.header,
        "memory_bytes": channel.memory_bytes,
        "created": time(channel.created),
        "clock": channel.clock,
        "clock_epoch": channel.clock.as_ref().map(|_| channel.clock_epoch),
        "broken": channel.broken,
        "rates": of_rates(&Rates::sum(rates)),
        "buffers": buffers,
        "orphans": channel.has_orphans,
        "writers": clients(&channel.writers, users),
        "readers": clients(&channel.readers, users),
        "advice": advice,
    })
}

fn buffer(cpu: usize, numbers: &Numbers, rates: &Rates, is_timed: bool) -> Value {
    let mut object = Map::new();
    object.insert("cpu".into(), cpu.into());
    for (name, value) in numbers.named() {
        let is_time = name.starts_with("last_") || name == "oldest_unread";
        if name == "messages" && !is_timed {
            object.insert(name.into(), Value::Null);
        } else {
            object.insert(name.into(), if is_time { time(value) } else { value.into() });
        }
    }
    object.insert("unread_subbufs".into(), numbers.unread_subbufs().into());
    object.insert("last_lost".into(), time(numbers.last_lost()));
    object.insert("rates".into(), of_rates(rates));
    Value::Object(object)
}

/// Rates are rounded to thousandths.
fn of_rates(rates: &Rates) -> Value {
    let rounded = |rate: f64| (rate * 1000.0).round() / 1000.0;
    json!({
        "messages": rates.messages.map(rounded),
        "bytes": rounded(rates.bytes),
        "read_bytes": rounded(rates.read_bytes),
        "subbufs": rounded(rates.subbufs),
        "lost": rounded(rates.lost),
        "overwritten_bytes": rounded(rates.overwritten_bytes),
    })
}

fn clients(clients: &[Client], users: &mut Users) -> Vec<Value> {
    let one = |client: &Client| {
        json!({
            "pid": client.pid,
            "uid": client.uid,
            "user": users.name(client.uid),
            "command": client.command,
            "way": client.way,
            "cpu": client.cpu,
        })
    };
    clients.iter().map(one).collect()
}

/// A time as RFC 3339 has it; null for none.
fn time(nanoseconds: u64) -> Value {
    match nanoseconds {
        0 => Value::Null,
        _ => {
            Timestamp::from_nanosecond(nanoseconds.into()).map_or(Value::Null, |time| time.to_string().into())
        }
    }
}
