//! Draws the state on a terminal of 80 columns and 24 lines or more.

use ratatui::Frame;
use ratatui::layout::{Constraint, Layout, Rect};
use ratatui::style::{Color, Modifier, Style};
use ratatui::text::{Line, Span};
use ratatui::widgets::{Paragraph, Row, Table, TableState, Wrap};
use relay::cli::one_line::one_line;

use super::state::{State, fill, lost};
use crate::monitor::advice::advice;
use crate::monitor::amounts::{age, bytes, count, number};
use crate::monitor::look::{ChannelLook, Client, Numbers};
use crate::monitor::rates::Rates;
use crate::monitor::users::Users;

/// Cells of the bar of a buffer.
const BAR: usize = 8;
/// Columns before the last minute: name, rates, bar, losses, processes, and the gaps.
const COLUMNS: [u16; 8] = [16, 7, 7, 7, BAR as u16, 6, 3, 3];
/// Most lines of a channel's CPUs above its text. More are reached by the arrows.
const CPUS_MAX: u16 = 12;
/// Most lines about losses, one for each CPU.
const LOSSES_MAX: usize = 4;

/// Draws all of it.
pub(super) fn draw(frame: &mut Frame<'_>, state: &mut State) {
    let [head, middle, foot] =
        Layout::vertical([Constraint::Length(1), Constraint::Min(1), Constraint::Length(1)])
            .areas(frame.area());
    frame.render_widget(Paragraph::new(summary(state)).style(Modifier::BOLD), head);
    frame.render_widget(Paragraph::new(bottom(state)), foot);
    match state.open_channel().filter(|_| state.is_open).cloned() {
        Some(channel) => draw_channel(frame, state, &channel, middle),
        None if state.is_open => frame.render_widget(Paragraph::new("this channel has gone; Esc"), middle),
        None => draw_list(frame, state, middle),
    }
}

fn summary(state: &State) -> String {
    let look = &state.look;
    // What a narrow terminal cuts off first is last.
    format!(
        "{}  up {}  {}  {}  memory {} of {}  relayfsd {}",
        state.mount.display(),
        age(look.uptime()),
        count(look.channels.len() as u64, "channel"),
        count(look.connections, "connection"),
        bytes(look.memory_bytes as f64),
        bytes(look.memory_max_bytes as f64),
        look.version,
    )
}

fn bottom(state: &State) -> Line<'static> {
    let name = state.chosen.clone().unwrap_or_default();
    if state.asks {
        let asked = format!("reset {name}: forget what is unread on all CPUs? y: yes, other keys: no");
        return Line::styled(asked, Style::new().fg(Color::Yellow));
    }
    if let Some(message) = state.failed.as_deref().or(state.message()) {
        return Line::styled(one_line(message).into_owned(), Style::new().fg(Color::Yellow));
    }
    let order = if state.reversed { ", reversed" } else { "" };
    let keys = match state.is_open {
        true => "Esc: back  f: text  F: flush  R: reset  w: save a snapshot  q: quit".to_owned(),
        false => format!("Enter: open  s: sort ({}{order})  S: reverse  q: quit", state.sort.name()),
    };
    Line::styled(keys, Modifier::DIM)
}

/// Returns the titles of a table, and its columns' widths for a terminal of `width`.
fn columns(first: String, width: u16) -> (Row<'static>, Vec<Constraint>, usize) {
    let others = ["msg/s", "bytes/s", "read/s", "full", "lost", "W", "R", "last minute"];
    let titles = [first].into_iter().chain(others.map(str::to_owned));
    let used: u16 = COLUMNS.iter().sum::<u16>() + COLUMNS.len() as u16;
    let last = width.saturating_sub(used);
    let widths = COLUMNS.iter().copied().chain([last]).map(Constraint::Length).collect();
    (Row::new(titles).style(Modifier::UNDERLINED), widths, last.into())
}

fn bar(part: f64) -> Span<'static> {
    let filled = ((part * BAR as f64).ceil() as usize).min(BAR);
    let color = match part {
        part if part >= 1.0 => Color::Red,
        part if part >= 0.5 => Color::Yellow,
        _ => Color::Green,
    };
    Span::styled(format!("{}{}", "#".repeat(filled), ".".repeat(BAR - filled)), Style::new().fg(color))
}

fn row<'a>(
    name: String,
    rates: &Rates,
    part: f64,
    lost: u64,
    (writers, readers): (String, String),
    minute: String,
) -> Row<'a> {
    let lost_style = if lost > 0 { Style::new().fg(Color::Red) } else { Style::new() };
    Row::new([
        Line::from(name),
        Line::from(rates.messages.map_or("-".to_owned(), number)).right_aligned(),
        Line::from(bytes(rates.bytes)).right_aligned(),
        Line::from(bytes(rates.read_bytes)).right_aligned(),
        Line::from(bar(part)),
        Line::styled(number(lost as f64), lost_style).right_aligned(),
        Line::from(writers).right_aligned(),
        Line::from(readers).right_aligned(),
        Line::from(minute),
    ])
}

fn draw_list(frame: &mut Frame<'_>, state: &State, area: Rect) {
    let (titles, widths, last) = columns("channel".to_owned(), area.width);
    let rows = state.sorted().into_iter().map(|channel| {
        let mark = if channel.broken.is_some() { "! " } else { "" };
        let uses = (channel.writers.len().to_string(), channel.readers.len().to_string());
        let minute = state.history.line(&channel.name, None, last);
        row(
            format!("{mark}{}", channel.name),
            &state.sum(channel),
            fill(channel),
            lost(channel),
            uses,
            minute,
        )
    });
    let table = Table::new(rows, widths).header(titles).row_highlight_style(Modifier::REVERSED);
    let mut chosen = TableState::new().with_selected(Some(state.place()));
    frame.render_stateful_widget(table, area, &mut chosen);
}

fn draw_channel(frame: &mut Frame<'_>, state: &mut State, channel: &ChannelLook, area: Rect) {
    let none = Vec::new();
    let rates = state.rates.get(&channel.name).unwrap_or(&none);
    let mut about = vec![Line::styled(
        format!(
            "{}: {}, {} x {}",
            channel.name,
            channel.mode(),
            channel.n_subbufs,
            bytes(channel.subbuf_size as f64)
        ),
        Modifier::BOLD,
    )];
    for advice in advice(channel, rates, state.look.memory_max_bytes) {
        about.push(Line::styled(one_line(&advice).into_owned(), Style::new().fg(Color::Yellow)));
    }
    let mut lost: Vec<Line<'_>> = channel
        .buffers
        .iter()
        .enumerate()
        .filter_map(|(cpu, numbers)| losses(channel, cpu, numbers))
        .collect();
    if lost.len() > LOSSES_MAX {
        let more = format!("lost also on {} more CPUs", lost.len() - LOSSES_MAX + 1);
        lost.truncate(LOSSES_MAX - 1);
        lost.push(Line::styled(more, Style::new().fg(Color::Red)));
    }
    about.extend(lost);
    about.push(clients("writers", &channel.writers, &mut state.users));
    about.push(clients("readers", &channel.readers, &mut state.users));
    let about_len: usize = about.iter().map(|line| lines_of(line.width(), area.width.into())).sum();
    let about = Paragraph::new(about).wrap(Wrap { trim: false });
    let n_cpus = channel.buffers.len();
    let cpus_len = u16::try_from(n_cpus + 1).unwrap_or(u16::MAX);
    let [about_area, cpus_area, text_area] = Layout::vertical([
        Constraint::Length(u16::try_from(about_len).unwrap_or(u16::MAX).min(area.height / 2)),
        Constraint::Max(if state.text.is_some() { cpus_len.min(CPUS_MAX) } else { cpus_len }),
        Constraint::Min(0),
    ])
    .areas(area);
    frame.render_widget(about, about_area);
    let n_shown = usize::from(cpus_area.height.saturating_sub(1)).min(n_cpus);
    state.first_cpu = state.first_cpu.min(n_cpus - n_shown);
    let first = state.first_cpu;
    let which = match n_shown {
        n if n == 0 || n == n_cpus => String::new(),
        n => format!("{first}-{} of {n_cpus}", first + n - 1),
    };
    let (titles, widths, last) = columns(which, area.width);
    let zero = Rates::default();
    let shown = channel.buffers.iter().enumerate().skip(first).take(n_shown);
    let rows = shown.map(|(cpu, numbers)| {
        let part = if channel.n_subbufs == 0 {
            0.0
        } else {
            (numbers.unread_subbufs() as f64 / channel.n_subbufs as f64).min(1.0)
        };
        let readers = channel.readers.iter().filter(|reader| reader.cpu.is_none_or(|of| of == cpu)).count();
        let rates = state.rates.get(&channel.name).and_then(|rates| rates.get(cpu)).unwrap_or(&zero);
        let minute = state.history.line(&channel.name, Some(cpu), last);
        row(format!("cpu{cpu}"), rates, part, numbers.lost(), (String::new(), readers.to_string()), minute)
    });
    frame.render_widget(Table::new(rows, widths).header(titles), cpus_area);
    if let Some(text) = &state.text {
        let room = usize::from(text_area.height);
        let skipped = text.len().saturating_sub(room);
        let lines: Vec<Line<'_>> = text[skipped..].iter().map(|line| Line::from(line.as_str())).collect();
        frame.render_widget(Paragraph::new(lines), text_area);
    }
}

/// Returns the lines that a text takes at most when it is wrapped between words.
fn lines_of(text: usize, width: usize) -> usize {
    if text <= width { 1 } else { text.div_ceil(width.saturating_sub(width / 8).max(1)) }
}

/// Says what a buffer lost, by cause, if anything.
fn losses(channel: &ChannelLook, cpu: usize, numbers: &Numbers) -> Option<Line<'static>> {
    let Numbers { dropped, too_big, contended, overwritten_bytes, .. } = *numbers;
    if numbers.lost() == 0 && overwritten_bytes == 0 {
        return None;
    }
    let parts = [(dropped, "dropped"), (too_big, "too big"), (contended, "interrupted")];
    let mut parts: Vec<String> =
        parts.iter().filter(|(n, _)| *n > 0).map(|(n, what)| format!("{n} {what}")).collect();
    if overwritten_bytes > 0 {
        parts.push(format!("{} overwritten", bytes(overwritten_bytes as f64)));
    }
    let ago = age(channel.time.saturating_sub(numbers.last_lost()));
    Some(Line::styled(
        format!("lost on cpu{cpu}: {}, last {ago} ago", parts.join(", ")),
        Style::new().fg(Color::Red),
    ))
}

fn clients(what: &str, clients: &[Client], users: &mut Users) -> Line<'static> {
    let name = |client: &Client| {
        let command = client.command.as_deref().unwrap_or("?").to_owned();
        format!("{}[{}] {} {}", one_line(&command), client.pid, users.name(client.uid), client.way)
    };
    let mut names: Vec<String> = clients.iter().map(name).collect();
    names.dedup();
    let names = if names.is_empty() { "none".to_owned() } else { names.join(", ") };
    Line::from(format!("{what}: {names}"))
}
