//! `consumed/cpuN`: gives back what was read in a map, by COUNT, or by FROM COUNT. Refusals change nothing. Several
//! readers, read() among them, skip no unread sub-buffer. R7 is the kernel's rule.

use std::collections::BTreeMap;
use std::fs::{self, File, OpenOptions};
use std::io::{Read, Write};
use std::os::unix::fs::MetadataExt;
use std::path::PathBuf;
use std::process::Stdio;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;

use nix::errno::Errno;
use nix::sys::signal::Signal;
use relay_producer::{BatchOptions, Wait};
use relayfs_tests::buffer::{Buffer, MIB, READABLE, Shape, runs};
use relayfs_tests::c::Program;
use relayfs_tests::direct::on_cpu;
use relayfs_tests::users::{GROUP, NOBODY, USER, by_user, gid_of, mount_for_all};
use relayfs_tests::{Mount, Process, eventually, exit_code, run, text};

const SMALL: Shape = Shape::new(1000, 4);

fn path(mount: &Mount) -> PathBuf {
    mount.control("cpu", "consumed/cpu0")
}

/// Writes to the file. Returns the errno of a refusal.
fn consume(mount: &Mount, text: &str) -> Result<(), Errno> {
    let mut file = OpenOptions::new().write(true).open(path(mount)).unwrap();
    file.write_all(text.as_bytes()).map_err(|error| Errno::from_raw(error.raw_os_error().unwrap()))
}

/// Returns the number of the next sub-buffer.
fn next(mount: &Mount) -> u64 {
    fs::read_to_string(path(mount)).unwrap().strip_suffix('\n').unwrap().parse().unwrap()
}

/// Returns all state that a refusal could change. Reading `stats` raises the high-water mark, so it comes first.
fn everything(mount: &Mount) -> (BTreeMap<String, u64>, u64, [String; 2]) {
    let stats = mount.stats("cpu");
    let files = ["control", "snapshot/cpu0"];
    (stats, next(mount), files.map(|file| runs(&fs::read(mount.control("cpu", file)).unwrap())))
}

/// Both forms, and the file's text.
#[test]
fn sub_buffers_are_given_back_by_count_and_by_number() {
    for shape in [SMALL, SMALL.over(), SMALL.direct()] {
        let b = Buffer::new(shape);
        let mount = b.mount();
        assert_eq!(next(mount), 0);
        b.write("abcd", 700);
        assert_eq!((next(mount), b.poll()), (0, READABLE));
        assert_eq!(consume(mount, "1\n"), Ok(()));
        assert_eq!(next(mount), 1);
        assert_eq!(consume(mount, "1 2"), Ok(()));
        assert_eq!((next(mount), b.poll().is_empty()), (3, true));
        b.note_delivered(2100);
        assert_eq!(b.produced_consumed(), (3, 3));
        assert_eq!(b.read(MIB), "d*700", "the unfinished one is not given back");
        b.flush();
        assert_eq!(b.poll(), READABLE, "R5: it is finished, and not given back");
        assert_eq!(consume(mount, "3 1"), Ok(()), "one that was read before it was finished");
        assert_eq!((next(mount), b.poll().is_empty()), (4, true));
        b.flush();
        assert_eq!(consume(mount, "1"), Ok(()), "an empty one");
        assert_eq!(next(mount), 5);
        b.audit();
    }
}

/// Unfinished sub-buffers, those of other readers, and malformed commands are refused. Nothing changes.
#[test]
fn refused_commands_change_nothing() {
    for shape in [SMALL, SMALL.over(), Shape::new(8192, 3)] {
        let b = Buffer::new(shape);
        let mount = b.mount();
        b.write("ab", shape.s);
        b.write("c", 10);
        b.read(shape.s + 10);
        let before = everything(mount);
        assert_eq!(before.1, 1, "{shape}");
        for (text, errno) in [
            ("0 1", Errno::ESTALE),
            ("2 1", Errno::ESTALE),
            ("18446744073709551615 1", Errno::ESTALE),
            ("0 99", Errno::ESTALE),
            ("2", Errno::EINVAL),
            ("5", Errno::EINVAL),
            ("1 2", Errno::EINVAL),
            ("18446744073709551615", Errno::EINVAL),
            ("1 18446744073709551615", Errno::EINVAL),
            ("18446744073709551616", Errno::EINVAL),
            ("1 1 1", Errno::EINVAL),
            ("1\n1\n", Errno::EINVAL),
            ("-1", Errno::EINVAL),
            ("+1", Errno::EINVAL),
            ("1,1", Errno::EINVAL),
            ("all", Errno::EINVAL),
            ("\n", Errno::EINVAL),
            (" ", Errno::EINVAL),
            ("1\0", Errno::EINVAL),
            ("\u{661}", Errno::EINVAL), // a digit, elsewhere
        ] {
            assert_eq!(consume(mount, text), Err(errno), "{text:?}");
            assert_eq!(everything(mount), before, "{text:?}");
        }
        for nothing in ["0", "1 0\n"] {
            assert_eq!(consume(mount, nothing), Ok(()));
            assert_eq!(everything(mount), before, "{nothing:?}");
        }
        let long = "1".repeat(MIB);
        assert_eq!(consume(mount, &long), Err(Errno::EINVAL));
        assert_eq!(everything(mount), before);
        assert_eq!(b.read(MIB), format!("b*{} c*10", shape.s - 10));
        b.audit();
    }
}

/// A partly read sub-buffer counts as one, and the next begins at its first byte: the kernel loses as many of its bytes
/// as were read of the first (R7).
#[test]
fn partly_read_sub_buffer_counts_as_one() {
    for shape in [SMALL, SMALL.over()] {
        let b = Buffer::new(shape);
        b.write("abc", 1000);
        assert_eq!(b.read(100), "a*100");
        assert_eq!(consume(b.mount(), "0 1"), Ok(()));
        b.note_delivered(900);
        assert_eq!(b.read(1500), "b*1000 c*500", "R7");
        b.write("d", 1000);
        assert_eq!(consume(b.mount(), "1"), Ok(()));
        b.note_delivered(500);
        assert_eq!(b.read(MIB), "d*1000");
        b.audit();
    }
}

/// In overwrite mode the writer may overwrite first: the next sub-buffer is the oldest whole one.
#[test]
fn overwritten_sub_buffer_needs_no_giving_back() {
    let b = Buffer::new(SMALL.over());
    b.write("a", 1000);
    b.write("b", 1000);
    assert_eq!(b.read(100), "a*100");
    b.write("cdefg", 1000); // d, e, f and the unfinished g are left
    assert_eq!(next(b.mount()), 3);
    let before = everything(b.mount());
    assert_eq!(consume(b.mount(), "0 1"), Err(Errno::ESTALE), "it is gone");
    assert_eq!(consume(b.mount(), "3 4"), Err(Errno::EINVAL), "only three are finished");
    assert_eq!(everything(b.mount()), before);
    assert_eq!(b.read(100), "a*100", "the rest of what a reader has begun is kept for it");
    assert_eq!(consume(b.mount(), "3 1"), Ok(()));
    b.note_delivered(1000);
    assert_eq!(next(b.mount()), 4);
    assert_eq!(b.read(MIB), "e*1000 f*1000 g*1000");
    b.audit();
}

/// A reset discards unread data, and numbers continue.
#[test]
fn numbers_continue_after_reset() {
    for shape in [SMALL, SMALL.over()] {
        let b = Buffer::new(shape);
        b.write("abc", 1000);
        b.reset();
        assert_eq!(next(b.mount()), 2);
        assert_eq!(consume(b.mount(), "0 1"), Err(Errno::ESTALE));
        assert_eq!(consume(b.mount(), "1"), Err(Errno::EINVAL));
        b.write("de", 1000);
        assert_eq!(consume(b.mount(), "1 1"), Err(Errno::ESTALE));
        assert_eq!(consume(b.mount(), "2 1"), Ok(()));
        b.note_delivered(1000);
        assert_eq!(b.read(MIB), "e*1000");
        b.audit();
    }
}

/// Giving back makes room, and wakes a waiting writer.
#[test]
fn giving_back_makes_room_for_waiting_writer() {
    for direct in [false, true] {
        let mount = Mount::new(&["--subbuf-size=1000", "--n-subbufs=2"]);
        let channel = if direct { mount.direct_channel("cpu") } else { mount.channel("cpu") };
        let waiting = thread::spawn(move || {
            on_cpu(0, || {
                let messages = (b'a'..=b'j').map(|letter| [letter; 1000]);
                channel.write_batch(messages, BatchOptions { cpu: Some(0), wait: Wait::Forever }).unwrap()
            })
        });
        for number in 0..8 {
            eventually("the next sub-buffer", || consume(&mount, &format!("{number} 1")).is_ok());
        }
        assert_eq!(waiting.join().unwrap().written, 10);
        assert_eq!(mount.read("cpu0"), [[b'i'; 1000], [b'j'; 1000]].concat());
        assert_eq!(mount.stats("cpu")["cpu0.dropped"], 0);
    }
}

/// A shell truncates the files that it writes to. An open file keeps the text of its open.
#[test]
fn shell_gives_back_by_redirection() {
    let b = Buffer::new(SMALL);
    b.write("abc", 1000);
    let mut opened = File::open(path(b.mount())).unwrap();
    let script = "set -e; read -r next <consumed/cpu0; echo $next 1 >consumed/cpu0; echo 1 >>consumed/cpu0; cat consumed/cpu0
        ! echo 2>/dev/null 0 1 >consumed/cpu0; ! (echo 1 >consumed/cpu7777) 2>/dev/null; ls consumed | head -n 1";
    let output =
        run(relayfs_tests::tool("sh", "dash").args(["-c", script]).current_dir(b.mount().control("cpu", "")));
    assert_eq!(text(&output.stdout), "2\ncpu0\n", "{}", text(&output.stderr));
    let mut said = String::new();
    opened.read_to_string(&mut said).unwrap();
    assert_eq!(said, "0\n");
    b.note_delivered(2000);
    assert_eq!(b.read(MIB), "c*1000");
    b.audit();
}

/// Several clients in C and a reader: each sub-buffer is seen, since a client gives back the number that it has seen.
/// A sub-buffer that a reader has begun may be seen twice.
#[test]
fn concurrent_readers_skip_no_unread_sub_buffer() {
    const MESSAGES: u64 = 200_000;
    let program = Program::compile("consumer");
    for spec in ["subbuf-size=64:n-subbufs=3", "subbuf-size=4096:n-subbufs=4"] {
        let mut mount = Mount::new(&["--channel", &format!("cpu:{spec}")]);
        let clients = (0..2).map(|_| {
            let mut command = program.command();
            let (ring, control) = (mount.control("cpu", "map/cpu0"), mount.control("cpu", "control"));
            let files = [mount.path("cpu0"), ring, control, path(&mount)];
            let mut client =
                Process::start(command.args(files).arg("0").stdout(Stdio::piped()).stderr(Stdio::piped()));
            thread::spawn(move || {
                let mut printed = String::new();
                client.child().stdout.take().unwrap().read_to_string(&mut printed).unwrap();
                let status = client.wait();
                assert_eq!(exit_code(status), 0, "{}", client.stderr());
                printed
            })
        });
        let clients: Vec<_> = clients.collect();
        let is_over = AtomicBool::new(false);
        let mut seen = vec![false; MESSAGES as usize];
        let mut note = |first: u64, last: u64| seen[first as usize..=last as usize].fill(true);
        thread::scope(|scope| {
            let reading = scope.spawn(|| {
                let mut file = File::open(mount.path("cpu0")).unwrap();
                let (mut numbers, mut bytes) = (Vec::new(), [0; 40]);
                while !is_over.load(Ordering::Relaxed) {
                    let len = file.read(&mut bytes).unwrap();
                    assert_eq!(len % 8, 0);
                    numbers.extend(bytes[..len].chunks(8).map(|n| u64::from_le_bytes(n.try_into().unwrap())));
                }
                numbers
            });
            let channel = mount.direct_channel("cpu");
            on_cpu(0, || {
                let options = BatchOptions { cpu: Some(0), wait: Wait::Forever };
                let counts = channel.write_batch((0..MESSAGES).map(u64::to_le_bytes), options).unwrap();
                assert_eq!(counts.written, MESSAGES, "{spec}");
            });
            channel.flush().unwrap();
            eventually("everything given back", || {
                let stats = mount.stats("cpu");
                stats["cpu0.read_bytes"] == stats["cpu0.bytes"]
            });
            is_over.store(true, Ordering::Relaxed);
            let numbers = reading.join().unwrap();
            assert!(!numbers.is_empty() && numbers.is_sorted(), "{spec}");
            numbers.into_iter().for_each(|number| note(number, number));
        });
        mount.daemon().signal(Signal::SIGTERM);
        let mut n_given_back = 0;
        for client in clients {
            for line in client.join().unwrap().lines() {
                let numbers: Vec<u64> = line.split(' ').map(|number| number.parse().unwrap()).collect();
                note(numbers[2], numbers[3]);
                n_given_back += numbers[1];
            }
        }
        assert!(n_given_back > 0, "{spec}");
        let skipped = seen.iter().position(|seen| !seen);
        assert_eq!(skipped, None, "{spec}: no reader has seen this message");
        assert_eq!(exit_code(mount.daemon().wait()), 0);
    }
}

/// Only the owner, and the group if there is one, may read and give back.
#[test]
fn only_users_who_may_read_may_give_back() {
    let files = ["consumed/cpu0", "control", "snapshot/cpu0"];
    let adm = gid_of(GROUP);
    for (args, group_reads) in [(&[][..], false), (&["--group", GROUP], true)] {
        let mount = mount_for_all(args);
        mount.send(0, &[b"hello"]);
        mount.poke("cpu", "flush");
        let shell = |(uid, gid): (u32, u32), line: &str| {
            let mut shell = by_user(uid, gid, "/bin/sh");
            run(shell.args(["-c", line]).current_dir(mount.control("cpu", "")))
        };
        let modes = files.map(|file| fs::metadata(mount.control("cpu", file)).unwrap().mode() & 0o7777);
        assert_eq!(modes, if group_reads { [0o660, 0o440, 0o440] } else { [0o600, 0o400, 0o400] });
        for (user, may) in [((USER, USER), false), ((NOBODY, NOBODY), false), ((USER, adm), group_reads)] {
            for file in files {
                let output = shell(user, &format!("cat {file}"));
                assert_eq!(output.status.success(), may, "{args:?} {user:?} {file}: {output:?}");
                assert!(may || text(&output.stderr).contains("Permission denied"), "{output:?}");
            }
            assert!(shell(user, "ls consumed snapshot").status.success());
            let before = next(&mount);
            let output = shell(user, "echo 0 1 >consumed/cpu0");
            assert_eq!(output.status.success(), may, "{args:?} {user:?}: {output:?}");
            assert_eq!(next(&mount), before + u64::from(may));
        }
    }
}
