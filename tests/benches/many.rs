//! What a thousand connections, channels and pollers cost the daemon: memory of its own and time, of each.

use std::fs::{self, File};
use std::time::Instant;

use nix::sys::epoll::{Epoll, EpollCreateFlags, EpollEvent, EpollFlags};
use nix::sys::resource::{Resource, getrlimit, setrlimit};
use relay::wire::frame::OPEN_CREATE;
use relayfs_tests::Mount;
use relayfs_tests::peer::Peer;

const MANY: usize = 1000;

fn main() {
    let (_, hard) = getrlimit(Resource::RLIMIT_NOFILE).expect("the limit of open files");
    setrlimit(Resource::RLIMIT_NOFILE, hard, hard).expect("more open files");
    let mut mount = Mount::new(&[]);
    let epoll = Epoll::new(EpollCreateFlags::EPOLL_CLOEXEC).expect("an epoll");
    println!("\n== {MANY} of each: time and the daemon's own memory (RssAnon)\n");
    println!("{:14} {:>10} {:>12}", "", "ms", "KiB");
    println!("{:14} {:>10} {:>12}", "at first", "", own_memory(&mut mount));
    let peers = measure(&mut mount, "connections", |mount, _| Peer::hello(mount));
    measure(&mut mount, "channels", |_, i| peers[i].open(&format!("many/n{i}-"), OPEN_CREATE));
    let files = measure(&mut mount, "open files", |mount, i| {
        File::open(mount.path(&format!("many/n{i}-0"))).expect("a buffer's file")
    });
    measure(&mut mount, "pollers", |_, i| {
        epoll.add(&files[i], EpollEvent::new(EpollFlags::EPOLLIN, i as u64)).expect("a poller");
    });
    let begun = Instant::now();
    drop((files, peers));
    while fs::read_dir(mount.path(""))
        .expect("the root")
        .any(|entry| entry.expect("an entry").file_name() == "many")
    {
        std::thread::yield_now();
    }
    println!(
        "{:14} {:>10.1} {:>12}",
        "all gone",
        begun.elapsed().as_secs_f64() * 1e3,
        own_memory(&mut mount)
    );
}

fn measure<T>(mount: &mut Mount, what: &str, each: impl Fn(&Mount, usize) -> T) -> Vec<T> {
    let begun = Instant::now();
    let all = (0..MANY).map(|i| each(mount, i)).collect();
    let elapsed = begun.elapsed();
    println!("{what:14} {:>10.1} {:>12}", elapsed.as_secs_f64() * 1e3, own_memory(mount));
    all
}

/// In KiB.
fn own_memory(mount: &mut Mount) -> String {
    let status = fs::read_to_string(format!("/proc/{}/status", mount.daemon().pid())).expect("its status");
    let line = status.lines().find_map(|line| line.strip_prefix("RssAnon:")).expect("Linux says");
    line.trim().trim_end_matches(" kB").to_owned()
}
