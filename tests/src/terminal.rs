//! Runs programs on a terminal of their own, from Python.

/// Defines `on_terminal(words)`, which returns a process's number and its terminal.
///
/// By default a terminal at Ctrl-C forgets output that is still to be read, and shows `^C` at some later moment. This
/// one does neither.
pub const ON_TERMINAL: &str = "
import os, pty, signal, sys, termios
def on_terminal(words):
    pid, terminal = pty.fork()
    if pid == 0:
        # The tests' starter may ignore them.
        for number in signal.SIGHUP, signal.SIGINT, signal.SIGQUIT: signal.signal(number, signal.SIG_DFL)
        attributes = termios.tcgetattr(0)
        attributes[3] = attributes[3] & ~termios.ECHO | termios.NOFLSH
        termios.tcsetattr(0, termios.TCSANOW, attributes)
        os.execvp(words[0], words)
    return pid, terminal
";
