//! A program closes the descriptor that is a reader's bell, and opens a file under its number.
//!
//! The test takes turns with others: no other thread may open a file in between, or have a reader.

use std::fs::{self, File};
use std::os::fd::{AsRawFd, RawFd};
use std::time::Duration;

use audience::{ReadError, Reader};
use nix::unistd::close;
use relayfs_tests::Mount;

use crate::turn;

/// Returns the descriptors of this process whose link contains `part`.
fn leading_to(part: &str) -> Vec<RawFd> {
    let entries = fs::read_dir("/proc/self/fd").expect("our descriptors").flatten();
    let leads = |fd: &RawFd| {
        fs::read_link(format!("/proc/self/fd/{fd}")).is_ok_and(|to| to.to_string_lossy().contains(part))
    };
    entries.filter_map(|entry| entry.file_name().to_str()?.parse().ok()).filter(leads).collect()
}

/// A reader of mappings reads nothing from the file that has its bell's number.
#[test]
fn reader_without_bell_reads_nothing_from_the_file_with_its_number() {
    let _turn = turn();
    let mount = Mount::new(&["--channel=rd:subbuf-size=4K:n-subbufs=8"]);
    let mut reader = Reader::open(mount.point(), "rd").expect("a reader");
    // The only timers of this process are readers' bells.
    let bells = leading_to("[timerfd]");
    let [bell] = bells[..] else { panic!("one bell: {bells:?}") };
    let path = mount.beside("own");
    fs::write(&path, "the program's own").expect("a file");
    let file = File::options().read(true).write(true).open(&path).expect("a file");
    close(bell).expect("a descriptor of the reader's");
    let own = rustix::io::fcntl_dupfd_cloexec(&file, bell).expect("its number");
    assert_eq!(own.as_raw_fd(), bell);

    let deadline = Some(std::time::Instant::now() + Duration::from_secs(60));
    assert!(matches!(reader.wait(deadline), Err(ReadError::Gone)));
    let position = nix::unistd::lseek(&own, 0, nix::unistd::Whence::SeekCur);
    assert_eq!(position, Ok(0), "it has read from the program's file");
    assert!(reader.reopen().expect("the daemon is there"), "the same buffers");
    mount.send_to("rd", 0, &[&[b'x'; 4096], b"more"]);
    assert!(reader.wait(deadline).expect("waiting"), "it has a bell again");
    assert_eq!(reader.next_finished(0).expect("a sub-buffer").len(), 4096);
    reader.release(0).expect("giving back");
    drop(reader);
    let still = nix::sys::stat::fstat(&own).expect("the program's file is open");
    assert_eq!(still.st_size, "the program's own".len() as i64);
    assert_eq!(leading_to("[timerfd]"), [], "and the bell is closed");
}
