//! Readers of `take/cpuN` that die: a reader that a signal kills consumes nothing, however it is killed. A reader
//! that exits has closed its files.

use nix::sys::signal::Signal;
use relayfs_tests::lines::{Twins, assert_same};
use relayfs_tests::take::{Reader, cat, read_bytes, run_on_take, take_of};
use relayfs_tests::{exit_code, stdout_of, tool};

/// Threads that live as long as the process.
const THREADS: &str = "
for i in range(10): threading.Thread(target=threading.Event().wait, daemon=True).start()
";

/// Checks that nothing was consumed, and the next program gets all data.
#[track_caller]
fn assert_all_is_there(twins: &Twins, what: &str) {
    assert_eq!(read_bytes(&twins.mount), 0, "{what}");
    assert_same(what, &stdout_of(&mut cat(&twins.mount)), &twins.content);
    assert_eq!(read_bytes(&twins.mount), twins.content.len() as u64, "{what}");
}

#[test]
fn reader_killed_by_any_signal_consumes_nothing() {
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
fn reader_that_crashes_consumes_nothing() {
    let twins = Twins::small();
    let mut reader = Reader::start(&take_of(&twins.mount, "cpu", 0), "");
    reader.tell("os.abort()");
    assert_eq!(exit_code(reader.process().wait()), 128 + Signal::SIGABRT as i32);
    assert_all_is_there(&twins, "abort");
}

/// Exit without close(2), with any status, even if that ends other threads.
#[test]
fn reader_that_exits_consumes_the_copy() {
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

/// Only the process that has read counts, not a child that has inherited the descriptor and closes it.
#[test]
fn close_by_child_does_not_count_for_parent() {
    let twins = Twins::small();
    let mut reader = Reader::start(&take_of(&twins.mount, "cpu", 0), "");
    reader.tell("os.fork() or os._exit(0); os.wait(); os.kill(os.getpid(), 9)");
    assert_eq!(exit_code(reader.process().wait()), 128 + Signal::SIGKILL as i32);
    assert_all_is_there(&twins, "a child");
}

/// The bytes of a killed process do not count, even if another process with its open file reads the rest and closes
/// it.
#[test]
fn killed_process_does_not_count_beside_another_with_its_file() {
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

/// A pipeline whose last program ends.
#[test]
fn broken_pipeline_consumes_nothing() {
    let twins = Twins::medium();
    tool("zstd", "zstd");
    for script in ["cat < $F | head -c 10", "zstd -qc < $F | head -c 10"] {
        let output = run_on_take(&twins, script);
        assert_eq!((output.stdout.len(), output.status.success()), (10, true), "{script}: {output:?}");
        assert_eq!(read_bytes(&twins.mount), 0, "{script}");
    }
    assert_all_is_there(&twins, "pipelines");
}
