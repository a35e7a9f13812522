//! `audience top` in a real terminal, tmux's.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Instant;

use nix::sys::signal::Signal;
use relayfs_tests::stopped::Stopped;
use relayfs_tests::{
    DEADLINE, Mount, complaint, eventually, panicking_audience, program, run, stdout_of, text, tool,
};

/// A terminal of 80 columns and 24 lines, with a shell in it.
struct Terminal {
    socket: PathBuf,
}

impl Terminal {
    #[track_caller]
    fn new(mount: &Mount) -> Terminal {
        let terminal = Terminal { socket: mount.beside("tmux") };
        let dir = mount.beside("work");
        fs::create_dir(&dir).unwrap();
        let mut command =
            terminal.tmux(&["-f", "/dev/null", "new-session", "-d", "-x", "80", "-y", "24", "-c"]);
        command.arg(dir).arg("PS1='ready> ' exec sh -i");
        stdout_of(command.env_remove("TMUX").env("LC_ALL", "C.UTF-8").env("TERM", "xterm"));
        terminal.shows("ready>");
        terminal
    }

    fn tmux(&self, args: &[&str]) -> Command {
        let mut command = tool("tmux", "tmux");
        command.arg("-S").arg(&self.socket).args(args).stdin(Stdio::null());
        command
    }

    fn screen(&self) -> String {
        text(&stdout_of(&mut self.tmux(&["capture-pane", "-p"])))
    }

    /// What tmux says of its pane.
    fn format(&self, of: &str) -> String {
        text(&stdout_of(&mut self.tmux(&["display", "-p", of]))).trim().to_owned()
    }

    #[track_caller]
    fn shows(&self, part: &str) -> String {
        let mut screen = String::new();
        let end = Instant::now() + DEADLINE;
        while !screen.contains(part) {
            assert!(Instant::now() < end, "{part:?} is not on the screen:\n{screen}");
            screen = self.screen();
        }
        screen
    }

    /// Presses keys, by tmux's names.
    fn press(&self, key: &str) {
        stdout_of(&mut self.tmux(&["send-keys", key]));
    }

    #[track_caller]
    fn runs(&self, line: &str) {
        stdout_of(&mut self.tmux(&["send-keys", "-l", line]));
        self.press("Enter");
    }

    #[track_caller]
    fn starts_top(&self, mount: &Mount) {
        self.starts(&program("audience"), mount);
        self.shows("Enter: open");
    }

    fn starts(&self, program: &Path, mount: &Mount) {
        self.runs(&format!(
            "clear; {} top --interval 100ms -m {}",
            program.display(),
            mount.point().display()
        ));
    }

    /// Checks that the shell has its terminal back as it was: the first screen, lines, echo and cursor.
    #[track_caller]
    fn is_restored(&self, status: &str) {
        eventually("the first screen", || self.format("#{alternate_on}") == "0");
        // Until then the program may read what is typed.
        eventually("the shell", || self.format("#{pane_current_command}") == "sh");
        self.runs("echo ended $?");
        self.shows(&format!("ended {status}"));
        self.runs("stty -a | grep -o '.icanon'");
        self.shows(" icanon");
        assert_eq!(self.format("#{cursor_flag}"), "1", "the cursor");
        self.runs("echo do''ne");
        self.shows("done");
    }
}

impl Drop for Terminal {
    fn drop(&mut self) {
        let _ = self.tmux(&["kill-server"]).output();
    }
}

/// What was on the terminal before is still there when the user scrolls back.
#[test]
fn status_that_is_printed_again_clears_the_screen_alone() {
    let mount = Mount::new(&[]);
    let terminal = Terminal::new(&mount);
    terminal.runs("clear; seq 100; echo do''ne");
    terminal.shows("done");
    let scrolled = |terminal: &Terminal| terminal.format("#{history_size}").parse::<u32>().unwrap();
    let before = scrolled(&terminal);
    assert!(before > 50, "{before}");
    terminal.runs(&format!(
        "{} status --watch --interval 20ms -m {}",
        program("audience").display(),
        mount.point().display()
    ));
    terminal.shows("readers: none");
    eventually("the screen to be cleared", || !terminal.screen().contains("--watch"));
    terminal.press("C-c");
    terminal.is_restored("0");
    assert!(scrolled(&terminal) >= before, "{}", terminal.screen());
}

#[test]
fn channels_are_shown_opened_followed_and_acted_on() {
    let mount = Mount::new(&["--channel=app/log:timed", "--subbuf-size=4K", "--n-subbufs=2"]);
    let terminal = Terminal::new(&mount);
    mount.send(0, &[&[b'x'; 4000], &[b'x'; 4000], &[b'x'; 4000]]);
    terminal.starts_top(&mount);
    let screen = terminal.shows("app/log");
    assert!(
        screen.contains("channel") && screen.contains("2 channels") && screen.contains("########"),
        "{screen}"
    );
    assert!(screen.lines().all(|line| line.chars().count() <= 80), "{screen}");
    terminal.press("s");
    terminal.shows("sort (messages)");
    terminal.press("S");
    terminal.shows(", reversed)");
    terminal.press("Home");
    terminal.press("Enter");
    terminal.shows("Esc: back");
    terminal.press("Escape");
    terminal.shows("Enter: open");
    terminal.press("S");
    terminal.press("Home");
    terminal.press("Enter");
    terminal.shows("app/log: no-overwrite timed, 2 x 4.0K");
    terminal.press("f");
    fs::write(mount.control("app/log", "msg"), "seen \x1b[31mred").unwrap();
    terminal.shows(" seen ");
    assert_eq!(mount.stats("app/log")["total.read_bytes"], 0, "nothing is consumed");
    terminal.press("F");
    terminal.shows("flush: done");
    assert!(mount.stats("app/log")["total.produced"] > 0);
    terminal.press("w");
    let saved = terminal.shows("saved ");
    let name = saved.split(" in ").last().and_then(|rest| rest.split_whitespace().next()).unwrap();
    assert!(fs::read_to_string(mount.beside("work").join(name)).unwrap().contains("seen "), "{saved}");
    terminal.press("R");
    terminal.shows("reset app/log: forget what is unread");
    terminal.press("n");
    terminal.shows("Esc: back");
    assert_eq!(mount.stats("app/log")["total.discarded_bytes"], 0);
    terminal.press("R");
    terminal.shows("reset app/log");
    terminal.press("y");
    terminal.shows("reset: done");
    assert!(mount.stats("app/log")["total.discarded_bytes"] > 0);
    terminal.press("q");
    terminal.is_restored("0");
}

#[test]
fn terminal_is_restored_however_it_ends() {
    let mount = Mount::new(&[]);
    let terminal = Terminal::new(&mount);
    // The numbers that a shell gives for the signals.
    for (signal, status) in [("HUP", "129"), ("INT", "130"), ("QUIT", "131"), ("TERM", "143")] {
        terminal.starts_top(&mount);
        let mut kill = tool("pkill", "procps");
        stdout_of(kill.args([&format!("-{signal}"), "-P", &terminal.format("#{pane_pid}"), "audience"]));
        terminal.is_restored(status);
    }
    terminal.starts_top(&mount);
    terminal.press("C-c");
    terminal.is_restored("0");
}

/// Each thread panics once: the one that draws, that which reads keys, and that which asks the mount.
#[test]
fn terminal_is_restored_after_a_panic() {
    let mount = Mount::new(&[]);
    let terminal = Terminal::new(&mount);
    for place in ["drawing:3", "keys", "asking:2"] {
        terminal.runs(&format!("export AUDIENCE_PANIC_AT={place}"));
        terminal.starts(&panicking_audience(), &mount);
        if place == "keys" {
            terminal.shows("Enter: open");
            terminal.press("j");
        }
        terminal.shows("a panic for a test");
        terminal.is_restored("101");
        terminal.runs("clear");
    }
}

/// A daemon that stands still holds up neither the keys nor the screen.
#[test]
fn stopped_daemon_is_reported_and_keys_work() {
    let mut mount = Mount::new(&[]);
    let terminal = Terminal::new(&mount);
    terminal.starts_top(&mount);
    let stopped = Stopped::new(mount.daemon().pid());
    terminal.shows("no answer from relayfsd for ");
    terminal.press("Enter");
    terminal.shows("writers: none");
    terminal.press("F");
    terminal.press("Escape");
    drop(stopped);
    // The answer comes behind the key that left the channel, and gives its place back by itself.
    terminal.shows("flush: done");
    terminal.shows("Enter: open");
    let stopped = Stopped::new(mount.daemon().pid());
    terminal.shows("no answer from relayfsd for ");
    terminal.press("q");
    eventually("the first screen", || terminal.format("#{alternate_on}") == "0");
    // The kernel ends no process with a request that the daemon has taken and not answered.
    drop(stopped);
    terminal.is_restored("0");
}

/// Whatever the size, it draws what fits and can be left.
#[test]
fn small_terminals_are_drawn_on() {
    let mount = Mount::new(&["--channel=app/log:timed", "--subbuf-size=64", "--n-subbufs=2"]);
    mount.send(0, &[&[b'x'; 60], &[b'x'; 60], &[b'x'; 60]]);
    let terminal = Terminal::new(&mount);
    for (columns, lines) in [(200, 60), (40, 12), (20, 5), (3, 2), (1, 1)] {
        terminal.starts_top(&mount);
        let (columns, lines) = (columns.to_string(), lines.to_string());
        let mut resize = terminal.tmux(&["resize-window", "-x", &columns, "-y", &lines]);
        stdout_of(&mut resize);
        for key in ["Enter", "f", "Down", "End", "R", "n", "Escape", "s", "End", "Enter"] {
            terminal.press(key);
        }
        stdout_of(&mut terminal.tmux(&["resize-window", "-x", "80", "-y", "24"]));
        terminal.shows("Esc: back");
        terminal.press("q");
        terminal.is_restored("0");
    }
}

/// A key that comes together with another size of the terminal does what it does otherwise.
#[test]
fn keys_count_while_the_terminal_is_resized() {
    let mount = Mount::new(&[]);
    let terminal = Terminal::new(&mount);
    terminal.starts_top(&mount);
    for round in 0..40 {
        for (key, shown) in [("Enter", "Esc: back"), ("Left", "Enter: open")] {
            let columns = (80 + round % 2).to_string();
            let lines = if key == "Enter" { "24" } else { "25" };
            let resize = ["resize-window", "-x", &columns, "-y", lines];
            stdout_of(&mut terminal.tmux(&[&resize[..], &[";", "send-keys", key]].concat()));
            terminal.shows(shown);
        }
    }
    terminal.press("q");
    terminal.is_restored("0");
}

/// The shell gets its terminal back for a while, and the view continues after `fg`.
#[test]
fn it_stops_and_continues() {
    let mount = Mount::new(&[]);
    let terminal = Terminal::new(&mount);
    terminal.runs(&format!("{} top -m {}", program("audience").display(), mount.point().display()));
    terminal.shows("Enter: open");
    terminal.press("C-z");
    terminal.shows("ready>");
    terminal.runs("echo do''ne");
    terminal.shows("done");
    terminal.runs("fg");
    terminal.shows("Enter: open");
    terminal.press("q");
    terminal.shows("ready>");
}

/// A daemon that ends is reported, and the next one is shown.
#[test]
fn next_daemon_is_shown() {
    let mut mount = Mount::new(&[]);
    let terminal = Terminal::new(&mount);
    terminal.starts_top(&mount);
    mount.end(Signal::SIGTERM);
    terminal.shows("no relayfs is mounted there");
    mount.restart(&["--channel=later/log"]);
    terminal.shows("later/log");
    terminal.press("q");
    terminal.is_restored("0");
}

#[test]
fn it_takes_a_terminal() {
    let mount = Mount::new(&[]);
    let output = run(Command::new(program("audience")).args(["top", "-m"]).arg(mount.point()));
    let said = complaint("audience", &output);
    assert_eq!(said, "audience top needs a terminal; audience status --watch prints to any output");
}
