//! What keys do.

use ratatui::crossterm::event::{KeyCode, KeyEvent, KeyEventKind, KeyModifiers};

use super::asking::Ask;
use super::state::State;

/// Lines of a page.
const PAGE: isize = 10;

/// What comes after a key.
#[derive(Debug)]
pub(super) enum Next {
    Stay,
    Ask(Ask),
    Quit,
    /// The user wants the shell for a while.
    Suspend,
}

/// Does what a key says.
pub(super) fn press(state: &mut State, key: KeyEvent) -> Next {
    if key.kind == KeyEventKind::Release {
        return Next::Stay;
    }
    if key.modifiers.contains(KeyModifiers::CONTROL) {
        return match key.code {
            KeyCode::Char('c') => Next::Quit,
            KeyCode::Char('z') => Next::Suspend,
            _ => Next::Stay,
        };
    }
    state.forget_message();
    if std::mem::take(&mut state.asks) {
        let is_yes = key.code == KeyCode::Char('y');
        return state.write("reset").filter(|_| is_yes).map_or(Next::Stay, Next::Ask);
    }
    let ask = match key.code {
        KeyCode::Char('q') => return Next::Quit,
        _ if state.is_open => in_channel(state, key.code),
        code => {
            in_list(state, code);
            None
        }
    };
    ask.map_or(Next::Stay, Next::Ask)
}

fn in_list(state: &mut State, code: KeyCode) {
    match code {
        KeyCode::Up | KeyCode::Char('k') => state.choose(-1),
        KeyCode::Down | KeyCode::Char('j') => state.choose(1),
        KeyCode::PageUp => state.choose(-PAGE),
        KeyCode::PageDown => state.choose(PAGE),
        KeyCode::Home => state.choose(isize::MIN),
        KeyCode::End => state.choose(isize::MAX),
        KeyCode::Char('s') => state.sort_next(),
        KeyCode::Char('S') => state.reversed = !state.reversed,
        KeyCode::Enter | KeyCode::Right => state.is_open = state.open_channel().is_some(),
        _ => {}
    }
}

fn in_channel(state: &mut State, code: KeyCode) -> Option<Ask> {
    match code {
        KeyCode::Esc | KeyCode::Left | KeyCode::Backspace => state.close(),
        KeyCode::Up | KeyCode::Char('k') => state.scroll(-1),
        KeyCode::Down | KeyCode::Char('j') => state.scroll(1),
        KeyCode::PageUp => state.scroll(-PAGE),
        KeyCode::PageDown => state.scroll(PAGE),
        KeyCode::Home => state.scroll(isize::MIN),
        KeyCode::End => state.scroll(isize::MAX),
        KeyCode::Char('f') if state.text.is_some() => state.text = None,
        KeyCode::Char('f') => {
            state.text = Some(Vec::new());
            return state.next_look();
        }
        KeyCode::Char('F') => return state.write("flush"),
        KeyCode::Char('R') => state.asks = state.open_channel().is_some(),
        KeyCode::Char('w') => {
            return state.open_channel().cloned().map(|channel| Ask::Save(Box::new(channel)));
        }
        _ => {}
    }
    None
}
