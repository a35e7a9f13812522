//! What readers of `take/cpuN` got before they died: a reader that a signal kills consumes nothing, however it is done;
//! one that ends by itself has closed its files.

use nix::sys::signal::Signal;
use relayfs_tests::lines::{Twins, assert_same};
use relayfs_tests::take::{Reader, cat, read_bytes, run_on_take, take_of};
use relayfs_tests::{exit_code, stdout_of, tool};

/// Threads that live as long as the process.
const THREADS: &str = "
for i in range(10): threading.Thread(target=threading.Event().wait, daemon=True).start()
";

/// Nothing was consumed, and the next program gets all.
#[track_caller]
fn assert_all_is_there(twins: &Twins, what: &str) {
    assert_eq!(read_bytes(&twins.mount), 0, "{what}");
    assert_same(what, &stdout_of(&mut cat(&twins.mount)), &twins.content);
    assert_eq!(read_bytes(&twins.mount), twins.content.len() as u64, "{what}");
}

#[test]
fn a_reader_killed_by_any_signal_consumes_nothing() {
    let signals = [
        Signal::SIGKILL,
        Signal::SIGTERM,
        Signal::SIGINT,
        Signal::SIGHUP,
        Signal::SIGPIPE,
        Signal::SIGSEGV,
        Signal::SIGALRM,
    ];
    for threads in ["", THREADS] {
        for signal in signals {
            let twins = Twins::small();
            let mut reader = Reader::start(&take_of(&twins.mount, "cpu", 0), threads);
            reader.process().signal(signal);
            assert_eq!(exit_code(reader.process().wait()), 128 + signal as i32);
            assert_all_is_there(&twins, &format!("{signal} {threads}"));
        }
    }
}

#[test]
fn a_reader_that_crashes_consumes_nothing() {
    let twins = Twins::small();
    let mut reader = Reader::start(&take_of(&twins.mount, "cpu", 0), "");
    reader.tell("os.abort()");
    assert_eq!(exit_code(reader.process().wait()), 128 + Signal::SIGABRT as i32);
    assert_all_is_there(&twins, "abort");
}

/// Exit without close(2), whatever the status; also where other threads are ended by it.
#[test]
fn a_reader_that_exits_has_closed_the_file() {
    for threads in ["", THREADS] {
        for end in ["os._exit(0)", "os._exit(3)", "f.close(); os.kill(os.getpid(), 9)"] {
            let twins = Twins::small();
            let mut reader = Reader::start(&take_of(&twins.mount, "cpu", 0), threads);
            assert_eq!(read_bytes(&twins.mount), 0, "not yet");
            reader.tell(end);
            reader.process().wait();
            assert_eq!(read_bytes(&twins.mount), twins.content.len() as u64, "{end} {threads}");
        }
    }
}

/// Only the process that has read counts: not a child that has inherited the descriptor, and closes it.
#[test]
fn what_a_child_closes_is_not_closed_by_its_parent() {
    let twins = Twins::small();
    let mut reader = Reader::start(&take_of(&twins.mount, "cpu", 0), "");
    reader.tell("os.fork() or os._exit(0); os.wait(); os.kill(os.getpid(), 9)");
    assert_eq!(exit_code(reader.process().wait()), 128 + Signal::SIGKILL as i32);
    assert_all_is_there(&twins, "a child");
}

/// What a killed process got does not count, also where another one that shares its open file reads the rest and closes it.
#[test]
fn of_two_that_share_an_open_file_the_killed_one_does_not_count() {
    let twins = Twins::small();
    let child = "
if os.fork() == 0:
    f.read(1000)
    os.kill(os.getpid(), signal.SIGKILL)
os.wait()
";
    let mut reader = Reader::start(&take_of(&twins.mount, "cpu", 0), child);
    reader.tell("f.close()");
    assert_eq!(exit_code(reader.process().wait()), 0);
    assert_all_is_there(&twins, "two processes");
}

/// In a pipeline whose end goes away.
#[test]
fn a_pipeline_that_breaks_consumes_nothing() {
    let twins = Twins::medium();
    tool("zstd", "zstd");
    for script in ["cat < $F | head -c 10", "zstd -qc < $F | head -c 10"] {
        let output = run_on_take(&twins, script);
        assert_eq!((output.stdout.len(), output.status.success()), (10, true), "{script}: {output:?}");
        assert_eq!(read_bytes(&twins.mount), 0, "{script}");
    }
    assert_all_is_there(&twins, "pipelines");
}
