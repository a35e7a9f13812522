//! Bad surroundings: logs that block, few descriptors, a state directory that other programs change, and names with
//! control characters.

use std::fs::{self, OpenOptions};
use std::io;
use std::os::unix::fs::OpenOptionsExt;
use std::process::Command;

use nix::fcntl::{FcntlArg, fcntl};
use nix::libc;
use nix::sys::signal::Signal;
use nix::sys::stat::Mode;
use nix::unistd::mkfifo;
use relayfs_tests::background::{Daemon, Place, try_to_start};
use relayfs_tests::lines::shell;
use relayfs_tests::users::where_users_mount;
use relayfs_tests::{complaint, eventually, program, run, stdout_of, text, tool};

/// Less than the log lines that a few hundred requests cause.
const PIPE_SIZE: i32 = 4096;

/// Makes another process read a file many times, without waiting for it: even SIGKILL does not end a read in the
/// daemon.
#[track_caller]
fn assert_served(place: &Place) {
    let script = r#"for i in $(seq 200); do cat "$1/.relay/version" >/dev/null; done"#;
    let mut reader = shell(script).arg("sh").arg(place.point()).spawn().unwrap();
    eventually("all is read", || reader.try_wait().unwrap().is_some());
    assert!(reader.wait().unwrap().success());
}

fn produce(place: &Place, args: &[&str]) -> Command {
    let mut command = Command::new(program("relay-producer"));
    command.arg("-m").arg(place.point()).args(args);
    command
}

#[test]
fn fifo_as_log_file_blocks_no_request() {
    let place = Place::new();
    let fifo = place.beside("fifo");
    mkfifo(&fifo, Mode::S_IRUSR | Mode::S_IWUSR).unwrap();
    let option = format!("--log-file={}", fifo.display());
    let told = complaint("relayfsd", &try_to_start(&mut place.command(&[&option])));
    assert!(told.ends_with("no process reads this FIFO; start its reader first"), "{told}");
    place.assert_clean();

    let reader = OpenOptions::new().read(true).custom_flags(libc::O_NONBLOCK).open(&fifo).unwrap();
    fcntl(&reader, FcntlArg::F_SETPIPE_SZ(PIPE_SIZE)).unwrap();
    let mut daemon = place.start_by(place.command(&[&option]).env("RUST_LOG", "debug"));
    assert_served(&place);
    daemon.signal(Signal::SIGTERM);
    assert_eq!(daemon.wait(), 0);
}

#[test]
fn full_standard_error_blocks_no_request() {
    let place = Place::new();
    let (reader, writer) = io::pipe().unwrap();
    fcntl(&reader, FcntlArg::F_SETPIPE_SZ(PIPE_SIZE)).unwrap();
    let mut daemon = place.command(&["-d"]).stderr(writer).spawn().unwrap();
    eventually("a mount", || place.is_mounted());
    assert_served(&place);
    place.unmount();
    assert!(daemon.wait().unwrap().success());
}

/// From the lowest limit up to the first one with which the daemon starts.
#[test]
fn start_with_few_descriptors_names_the_limit() {
    let place = Place::new();
    for limit in 5..64 {
        let mut command = tool("prlimit", "util-linux");
        command.arg(format!("--nofile={limit}")).arg(program("relayfsd")).arg(place.point());
        let output = try_to_start(&mut command);
        if output.status.success() {
            let mut daemon = Daemon::find(place.point());
            daemon.signal(Signal::SIGTERM);
            assert_eq!(daemon.wait(), 0);
            assert!(limit > 5, "the limit was not kept");
            return;
        }
        let told = complaint("relayfsd", &output);
        assert!(told.contains("raise the limit of open files (ulimit -n"), "{limit}: {told}");
        assert!(!told.contains("names another") && !told.contains("nobody"), "{limit}: {told}");
        place.assert_clean();
    }
    panic!("relayfsd needs more than 64 descriptors");
}

/// A user's daemon unmounts by fusermount3, and starting that takes descriptors too.
#[test]
fn start_of_a_user_with_few_descriptors_leaves_no_mount() {
    let printed = where_users_mount(
        r#"
        for limit in $(seq 5 64); do
            if told=$($nobody sh -c "ulimit -n $limit && exec relayfsd relay" 2>&1); then
                $nobody fusermount3 -u relay
                exit
            fi
            grep -q "$PWD/relay " /proc/mounts && echo "$limit: still mounted: $told"
            case $told in *"Too many open files"*"raise the limit of open files"*) ;; *) echo "$limit: $told" ;; esac
        done
        echo "no limit with which it starts"
        "#,
    );
    assert_eq!(printed, Vec::<String>::new());
}

/// From the least memory with which the program itself starts, up to the first limit with which the daemon does.
#[test]
fn start_with_little_memory_names_the_limit() {
    let place = Place::new();
    let limited = |mebibytes: u32, args: &[&std::ffi::OsStr]| {
        let mut command = tool("prlimit", "util-linux");
        command.arg(format!("--as={}", mebibytes << 20)).arg(program("relayfsd")).args(args);
        try_to_start(&mut command)
    };
    let least = (8..200).step_by(4).find(|limit| limited(*limit, &["--version".as_ref()]).status.success());
    let least = least.expect("a limit with which it prints its version");
    for (n_refused, limit) in (least + 4..400).step_by(4).enumerate() {
        let output = limited(limit, &[place.point().as_os_str()]);
        if output.status.success() {
            let mut daemon = Daemon::find(place.point());
            daemon.signal(Signal::SIGTERM);
            assert_eq!(daemon.wait(), 0);
            assert!(n_refused > 3, "the limit was not kept");
            return;
        }
        let told = complaint("relayfsd", &output);
        // A thread without memory for its stack.
        let is_thread = told.contains("Resource temporarily unavailable");
        assert!(told.contains("memory") || is_thread, "{limit} MiB: {told}");
        place.assert_clean();
    }
    panic!("relayfsd needs more than 400 MiB");
}

/// A channel that a start cannot open or map for want of descriptors or memory may be sound: the next start finds it.
#[test]
fn start_without_memory_or_descriptors_quarantines_nothing() {
    let place = Place::new();
    let mut daemon = place.start(&["--channel=big:subbuf-size=16M:n-subbufs=4:global"]);
    for channel in ["cpu", "big"] {
        stdout_of(&mut produce(&place, &["--cpu=0", "-c", channel, "-n", "unread"]));
    }
    daemon.signal(Signal::SIGTERM);
    assert_eq!(daemon.wait(), 0);

    let descriptors = (6..18).map(|limit| format!("--nofile={limit}"));
    // Less than the buffers of one channel.
    for limit in descriptors.chain(["--as=62914560".to_owned()]) {
        let mut command = tool("prlimit", "util-linux");
        let output = try_to_start(command.args([&limit]).arg(program("relayfsd")).arg(place.point()));
        if output.status.success() {
            let mut daemon = Daemon::find(place.point());
            daemon.signal(Signal::SIGTERM);
            assert_eq!(daemon.wait(), 0);
        }
        let entries = fs::read_dir(place.state_dir()).unwrap().map(|entry| entry.unwrap().file_name());
        let aside = entries.filter(|name| name.to_string_lossy().starts_with("quarantine-")).count();
        assert_eq!(aside, 0, "{limit}: {}", text(&output.stderr));
    }
    let _daemon = place.start(&[]);
    for file in ["cpu0", "big0"] {
        assert_eq!(text(&fs::read(place.path(file)).unwrap()), "unread", "{file}");
    }
}

#[test]
fn advice_never_changes_the_system() {
    let place = Place::new();
    for (dir, reason) in [
        ("/dev/null", "/dev/null is a symbolic link or no directory; --state-dir names another"),
        ("/tmp", "/tmp is writable for others; --state-dir names another"),
    ] {
        let told = complaint("relayfsd", &run(&mut place.command(&["--state-dir", dir])));
        assert!(told.ends_with(reason), "{told}");
    }
}

#[test]
fn removed_state_directory_is_reported() {
    let place = Place::new();
    let log = place.beside("log");
    let mut daemon = place.start(&["--log-file", log.to_str().unwrap()]);
    stdout_of(&mut produce(&place, &["-n", "unread"]));
    fs::remove_dir_all(place.state_dir()).unwrap();

    let told = complaint("relay-producer", &run(&mut produce(&place, &["-c", "new", "--create", "message"])));
    assert!(told.ends_with("the directory was removed while relayfsd used it: restart relayfsd"), "{told}");
    daemon.signal(Signal::SIGTERM);
    daemon.wait();
    let lines = fs::read_to_string(&log).unwrap();
    let lost = "was removed or moved while relayfsd used it, and unread data with it: cpu 6 bytes";
    assert!(lines.contains(lost) && !lines.contains("unread data stays"), "{lines}");
}

#[test]
fn state_directory_without_lock_keeps_unread_data() {
    let place = Place::new();
    let mut daemon = place.start(&[]);
    stdout_of(&mut produce(&place, &["--cpu=0", "-n", "unread"]));
    fs::remove_file(place.state_dir().join("lock")).unwrap();
    daemon.signal(Signal::SIGTERM);
    assert_eq!(daemon.wait(), 0);

    let told = complaint("relayfsd", &try_to_start(&mut place.command(&[])));
    let (_, rest) =
        told.split_once("its file lock was removed; if no relayfsd uses the directory: ").expect(&told);
    let (advice, _) = rest.split_once("; --state-dir").expect(&told);
    stdout_of(&mut shell(advice));
    let _daemon = place.start(&[]);
    assert_eq!(text(&fs::read(place.path("cpu0")).unwrap()), "unread");
}

#[test]
fn names_with_control_characters_stay_on_one_line() {
    let place = Place::named("a\nb\u{1b}[31m");
    let missing = place.path("none");
    for (name, args) in [("relayfsd", &[][..]), ("relay-producer", &["message", "-m"]), ("audience", &["-m"])]
    {
        let output = run(Command::new(program(name)).args(args).arg(&missing));
        let told = complaint(name, &output);
        assert!(told.contains(r"a\nb\u{1b}[31m/none: there is no such"), "{told:?}");
    }
    let told = complaint("relay-producer", &run(&mut produce(&place, &["message"])));
    // A shell that copies the command finds the directory.
    assert!(told.contains(r"/a\nb\x1b[31m'; or name another mount point"), "{told:?}");
}
