//! A CPU that goes offline and comes back. The test takes turns with tests that need the CPU.

use std::fs;
use std::io::{self, Write as _};
use std::path::PathBuf;

use nix::sys::signal::Signal;
use relay_producer::BatchOptions;
use relayfs_tests::cpus::{self, Alone};
use relayfs_tests::{Mount, eventually, exit_code};

use crate::turn;

/// A CPU that is offline until this is dropped.
struct Offline {
    switch: PathBuf,
    _alone: Alone,
}

impl Offline {
    fn new(cpu: usize) -> io::Result<Offline> {
        let switch = PathBuf::from(format!("/sys/devices/system/cpu/cpu{cpu}/online"));
        let offline = Offline { switch, _alone: cpus::alone()? };
        fs::write(&offline.switch, "0")?;
        Ok(offline)
    }
}

impl Drop for Offline {
    fn drop(&mut self) {
        // The kernel may have no switch for this CPU.
        let _ = fs::write(&self.switch, "1");
    }
}

/// Returns the CPUs that the writer of CPU 1 may run on, as the kernel lists them.
fn writers_cpus(mount: &mut Mount) -> String {
    let tasks = fs::read_dir(format!("/proc/{}/task", mount.daemon().pid())).unwrap();
    let statuses = tasks.map(|task| fs::read_to_string(task.unwrap().path().join("status")).unwrap());
    let status = statuses.into_iter().find(|status| status.starts_with("Name:\twriter1\n")).unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix("Cpus_allowed_list:"));
    line.unwrap().trim().to_owned()
}

/// Messages for an offline CPU are refused and counted. Its earlier data can be read, and the other CPUs continue.
/// When it is online again, its writer returns to it.
#[test]
fn offline_cpu_refuses_messages_until_it_is_back() {
    let _turn = turn();
    let mut mount = Mount::new(&[]);
    let send = |message: &[u8], cpu| {
        let options = BatchOptions { cpu: Some(cpu), ..BatchOptions::default() };
        // Over the socket, because the daemon's writers are the subject.
        let channel = mount.channel("cpu");
        channel.write_batch(&[message], options).map_err(|error| error.to_string())
    };
    let before = mount.path("cpu1").exists().then(|| send(b"before ", 1).unwrap());
    let offline = match before.map(|_| Offline::new(1)) {
        Some(Ok(offline)) => offline,
        impossible => {
            // Written past the capture of output, so that a reader sees that this was not tested.
            let why =
                impossible.map_or("there is only one".into(), |result| result.err().unwrap().to_string());
            let _ = writeln!(io::stderr(), "not tested: CPU 1 cannot be taken offline here: {why}");
            return;
        }
    };
    let refused = send(b"lost", 1).unwrap_err();
    assert!(refused.starts_with("CPU 1 is offline or not allowed to the daemon"), "{refused}");
    assert_eq!(send(b"elsewhere", 0).unwrap().written, 1);
    assert_eq!(mount.read("cpu0"), b"elsewhere");
    let mut part = [0; 3];
    io::Read::read_exact(&mut fs::File::open(mount.path("cpu1")).unwrap(), &mut part).unwrap();
    assert_eq!(&part, b"bef");

    drop(offline);
    eventually("the CPU", || send(b"after", 1).is_ok());
    assert_eq!(writers_cpus(&mut mount), "1");
    assert_eq!(mount.read("cpu1"), b"ore after");
    let stats = mount.stats("cpu");
    assert!(stats["cpu1.dropped"] >= 1 && stats["cpu0.dropped"] == 0, "{stats:?}");
    assert_eq!(exit_code(mount.end(Signal::SIGTERM)), 0);
    assert_eq!(mount.daemon().stderr(), "");
}
