//! Ordinary tools on `snapshot/cpuN`, and `audience --snapshot`: the content is the buffer's, the size is true, and
//! nothing is consumed.

use std::fs::{self, File};
use std::io::Read;
use std::path::PathBuf;
use std::process::{Command, Stdio};

use nix::errno::Errno;
use relay_producer::{BatchOptions, Wait};
use relayfs_tests::lines::{Twins, assert_same, shell};
use relayfs_tests::numbered::{Tag, message as message_of, tags};
use relayfs_tests::{Mount, Process, complaint, eventually, exit_code, program, run, stdout_of, text, tool};

/// Returns the path of a snapshot.
fn snapshot(mount: &Mount, channel: &str, cpu: usize) -> PathBuf {
    mount.control(channel, &format!("snapshot/cpu{cpu}"))
}

/// Runs `audience --snapshot ARGS`, which must succeed without messages.
#[track_caller]
fn look(mount: &Mount, args: &[&str]) -> Vec<u8> {
    let mut command = Command::new(program("audience"));
    let output = run(command.env_remove("RELAYFS").arg("-m").arg(mount.point()).arg("--snapshot").args(args));
    assert_eq!((exit_code(output.status), text(&output.stderr)), (0, String::new()));
    output.stdout
}

/// Tools do the same with a snapshot as with an ordinary file of the same content. Afterwards all data is still
/// unread. In both modes.
#[test]
fn tools_get_what_a_buffer_holds_and_consume_nothing() {
    for (name, package) in
        [("busybox", "busybox"), ("less", "less"), ("python3", "python3"), ("bash", "bash")]
    {
        tool(name, package);
    }
    let scripts = [
        "cat $F",
        "cat < $F",
        "busybox cat $F",
        "less $F | cat",
        "grep -n 77 $F",
        "grep -c '' $F",
        "grep -m 3 9 $F",
        "tail -n 20 $F",
        "busybox tail -n 20 $F",
        "tail -c 1000 $F",
        "tail -n +100 $F | head -n 3",
        "tac $F",
        "head -n 20 $F",
        "head -c -100 $F",
        "wc < $F",
        "wc -c < $F",
        "stat -c %s $F",
        "cp $F $OUT; cmp $OUT $COPY; cat $OUT",
        "busybox cp $F $OUT; cat $OUT",
        "cp --sparse=always $F $OUT; cat $OUT",
        "dd if=$F bs=1000 skip=3 count=2",
        "dd if=$F of=$OUT bs=64K; cat $OUT",
        "cmp $F $COPY",
        "sort -r $F",
        "md5sum < $F",
        "split -n 3 $F $OUT.; cat $OUT.*",
        "(head -n 1 > /dev/null; cat) < $F",
        "(read x; echo \"$x\"; cat) < $F",
        "od -c -j 5000 -N 64 $F",
        "python3 -c \"import mmap,os,sys; f = open(os.environ['F'], 'rb'); m = mmap.mmap(f.fileno(), 0, prot=mmap.PROT_READ); \
         print(len(m), m.find(b'77'), m.rfind(b'9')); sys.stdout.buffer.write(m[:])\"",
        "python3 -c \"import os,sys; f = open(os.environ['F'], 'rb'); f.seek(-500, 2); sys.stdout.buffer.write(f.read()); \
         f.seek(100); print(f.read(50))\"",
    ];
    for twins in [Twins::medium(), Twins::overwriting()] {
        let path = snapshot(&twins.mount, "cpu", 0);
        for script in scripts {
            let out = |file: &std::path::Path| {
                let dir = tempfile::tempdir().expect("a temporary directory");
                let mut command = shell(script);
                stdout_of(command.env("F", file).env("COPY", twins.copy()).env("OUT", dir.path().join("out")))
            };
            assert_same(script, &out(&path), &out(twins.copy()));
        }
        assert_same("audience --snapshot", &look(&twins.mount, &[]), &twins.content);
        let stats = twins.mount.stats("cpu");
        assert_eq!((stats["cpu0.read_bytes"], stats["cpu0.consumed"]), (0, 0), "nothing is consumed");
        assert_same("what is unread", &twins.mount.read("cpu0"), &twins.content);
    }
}

/// A pager on an open snapshot sees the data at its open. The size is that of the copy.
#[test]
fn open_snapshot_does_not_change() {
    let mount = Mount::new(&[]);
    mount.send(0, &[b"first\n"]);
    let path = snapshot(&mount, "cpu", 0);
    let size = |file: &File| file.metadata().expect("fstat").len();
    let mut one = File::open(&path).expect("a snapshot");
    mount.send(0, &[b"second\n"]);
    let mut two = File::open(&path).expect("a snapshot");
    assert_eq!((size(&one), size(&two)), (6, 6), "who comes while one is open shares it");
    let read = |file: &mut File| {
        let mut all = String::new();
        file.read_to_string(&mut all).expect("reading a snapshot");
        all
    };
    assert_eq!((read(&mut one).as_str(), read(&mut two).as_str()), ("first\n", "first\n"));
    drop(one);
    drop(two);
    let mut three = File::open(&path).expect("a snapshot");
    assert_eq!((size(&three), read(&mut three).as_str()), (13, "first\nsecond\n"), "the next one is new");
    assert_eq!(text(&mount.read("cpu0")), "first\nsecond\n");
    drop(three);
    assert_eq!(text(&look(&mount, &[])), "", "no-overwrite mode: what was read is none of it");
    assert_eq!(fs::metadata(&path).expect("stat").len(), 0);
}

/// In overwrite mode a snapshot has all whole data, read or not.
#[test]
fn snapshot_in_overwrite_mode_has_read_messages_too() {
    let mount = Mount::new(&["--overwrite", "--subbuf-size", "100", "--n-subbufs", "4"]);
    for n in 0..10 {
        mount.send(0, &[format!("{n:49}\n").as_bytes()]);
    }
    let whole: String = (2..10).map(|n| format!("{n:49}\n")).collect();
    assert_eq!(text(&look(&mount, &["--cpu", "0"])), whole);
    assert_eq!(text(&mount.read("cpu0")), whole);
    assert_eq!(text(&look(&mount, &["--cpu", "0"])), whole, "read, and yet there");
}

/// `audience --snapshot` prints CPU by CPU, of any channel, global ones too.
#[test]
fn audience_prints_all_cpus_or_one() {
    let mount = Mount::new(&["--channel", "app/log", "--channel", "all:global"]);
    for (channel, cpu) in [("app/log", 1), ("app/log", 0), ("all", 1)] {
        mount.send_to(channel, cpu, &[format!("{channel} {cpu}\n").as_bytes()]);
    }
    for _ in 0..2 {
        assert_eq!(text(&look(&mount, &["-c", "app/log"])), "app/log 0\napp/log 1\n");
        assert_eq!(text(&look(&mount, &["-c", "app/log", "--cpu=1"])), "app/log 1\n");
        assert_eq!(text(&look(&mount, &["-c", "all"])), "all 1\n");
    }
    let mut command = Command::new(program("audience"));
    for (args, part) in [
        (&["-c", "nope"][..], "no channel 'nope' in "),
        (&["-c", "all", "--cpu", "1"], "has no file for CPU 1, only for 0"),
    ] {
        let output =
            run(command.env_remove("RELAYFS").arg("-m").arg(mount.point()).arg("--snapshot").args(args));
        let said = complaint("audience", &output);
        assert!(said.contains(part), "{said}");
        command = Command::new(program("audience"));
    }
}

/// While a writer continues, in both modes, each snapshot is whole messages without a gap. In no-overwrite mode a
/// reader then gets the same messages.
#[test]
fn snapshots_of_a_busy_buffer_are_whole_messages() {
    for mode in ["no-overwrite", "overwrite"] {
        let mount = Mount::new(&["--channel", &format!("one:global:subbuf-size=4096:n-subbufs=16:{mode}")]);
        let mut command = Command::new(program("test-producers"));
        command.arg(mount.point()).args(["one", "1", "1", "0", "drop", "2000", "socket"]);
        let _writer = Process::start(command.stdin(Stdio::null()).stdout(Stdio::null()));
        eventually("messages", || mount.stats("one")["cpu0.bytes"] > 16 * 4096 / 2);
        for _ in 0..50 {
            let tags = tags(&look(&mount, &["-c", "one"]));
            assert!(!tags.is_empty(), "{mode}: an empty snapshot of a full buffer");
            assert!(tags.is_sorted_by(|a, b| a.seq < b.seq), "{mode}: out of order: {tags:?}");
        }
        let stats = mount.stats("one");
        assert_eq!((stats["cpu0.read_bytes"], stats["cpu0.read_subbufs"]), (0, 0), "{mode}");
        if mode == "no-overwrite" {
            // The buffer is full from here on.
            eventually("a full buffer", || {
                stats["cpu0.produced"] == 16 || mount.stats("one")["cpu0.dropped"] > 0
            });
            let seen = look(&mount, &["-c", "one"]);
            let read = mount.read("one0");
            assert!(read.starts_with(&seen), "what was seen is what is read");
        }
    }
}

/// A reader gets each message once while other programs open snapshots.
#[test]
fn snapshots_take_nothing_from_a_reader() {
    let mount = Mount::new(&["--channel", "one:global:subbuf-size=4096:n-subbufs=4"]);
    let out = mount.beside("out");
    let mut command = Command::new(program("audience"));
    command.env_remove("RELAYFS").arg("-m").arg(mount.point()).args(["-f", "-c", "one"]);
    let _reader = Process::start(command.stdin(Stdio::null()).stdout(File::create(&out).expect("a file")));
    let channel = mount.channel("one");
    let mut sent = Vec::new();
    for seq in 0..300 {
        let message = message_of(Tag { producer: 1, thread: 1, seq }, 500);
        let options = BatchOptions { cpu: Some(0), wait: Wait::Forever };
        assert_eq!(channel.write_batch([&message[..]], options).expect("writing").written, 1);
        sent.extend(message);
        if seq % 5 == 0 {
            tags(&fs::read(snapshot(&mount, "one", 0)).expect("a snapshot"));
        }
    }
    eventually("all messages", || fs::read(&out).expect("its output").len() >= sent.len());
    assert_same("what was read", &fs::read(&out).expect("its output"), &sent);
}

/// The copy counts against --max-memory: without memory for it, opening is ENOMEM, and all else continues.
#[test]
fn snapshot_without_memory_is_enomem() {
    let args = ["--max-memory", "3M", "--channel", "cpu:global:subbuf-size=512K:n-subbufs=4"];
    let mount = Mount::new(&args);
    let path = snapshot(&mount, "cpu", 0);
    let message = vec![b'x'; 400 << 10];
    mount.send(0, &[&message]);
    assert_eq!(
        File::open(&path).expect("a small one has a place").metadata().expect("fstat").len(),
        400 << 10
    );
    mount.send(0, &[&message, &message, &message]);
    let error = File::open(&path).expect_err("a copy of 1.6M beside a buffer of 2M");
    assert_eq!(error.raw_os_error(), Some(Errno::ENOMEM as i32));
    let mut command = Command::new(program("audience"));
    let output = run(command.env_remove("RELAYFS").arg("-m").arg(mount.point()).arg("--snapshot"));
    let said = complaint("audience", &output);
    let expected = format!(
        "cannot open {}: Cannot allocate memory (os error 12); raise relayfsd --max-memory",
        path.display()
    );
    assert_eq!(said, expected);
    assert_eq!(mount.read("cpu0").len(), 4 * message.len(), "reading does not take it");
    mount.send(0, &[b"again"]);
    assert_eq!(fs::read(&path).expect("there is room again"), b"again");
}

/// The last close frees the memory: more copies than there is memory for, one after the other.
#[test]
fn memory_of_snapshots_is_freed() {
    let mount = Mount::new(&["--max-memory", "4M", "--channel", "cpu:global:subbuf-size=512K:n-subbufs=4"]);
    let message = vec![b'x'; 512 << 10];
    mount.send(0, &[&message[..]; 3]);
    for _ in 0..20 {
        let copy = File::open(snapshot(&mount, "cpu", 0)).expect("a snapshot");
        let other = File::open(snapshot(&mount, "cpu", 0)).expect("the same, shared");
        assert_eq!(copy.metadata().expect("fstat").len(), 3 * (512 << 10));
        drop((copy, other));
    }
}
