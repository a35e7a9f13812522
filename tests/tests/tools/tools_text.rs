//! The control files below `.relay`, used from shells and by programs that read or write a file.

use std::fs::{self, File, OpenOptions, Permissions};
use std::io::{ErrorKind, Read, Seek, Write};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Command, Output};

use nix::errno::Errno;
use nix::unistd::geteuid;
use relayfs_tests::lines::{assert_same, shell};
use relayfs_tests::{Mount, complaint, run, stdout_of, text, tool};

/// Shells people have.
const SHELLS: [&str; 4] = ["sh", "dash", "bash", "busybox sh"];
/// A user without rights.
const NOBODY: u32 = 65534;

#[track_caller]
fn all_installed() {
    for (name, package) in
        [("busybox", "busybox"), ("dash", "dash"), ("bash", "bash"), ("python3", "python3")]
    {
        tool(name, package);
    }
}

/// Returns a mount with two channels: `cpu`, and `one` of a single buffer, so that all messages keep their order.
#[track_caller]
fn mount() -> Mount {
    Mount::new(&["--subbuf-size", "64", "--n-subbufs", "4", "--channel", "one:global:subbuf-size=4096"])
}

/// Returns a count of channel `one`.
#[track_caller]
fn count(mount: &Mount, name: &str) -> u64 {
    mount.stats("one")[&format!("total.{name}")]
}

/// Writes once, and returns the errno if that fails.
#[track_caller]
fn write_once(path: &Path, bytes: &[u8]) -> Result<usize, Errno> {
    let mut file = OpenOptions::new().write(true).open(path).expect("opening a control file");
    file.write(bytes).map_err(|error| Errno::from_raw(error.raw_os_error().expect("an errno")))
}

/// Runs a script in one of the shells, with `$F` set.
fn in_shell(shell: &str, script: &str, path: &Path) -> Output {
    let mut words = shell.split(' ');
    let mut command = tool("timeout", "coreutils");
    command.arg("60").args(&mut words).args(["-c", script]).env("F", path);
    run(&mut command)
}

/// A text is the same for all programs, and as long as its size says.
#[test]
fn texts_are_the_same_whatever_reads_them() {
    all_installed();
    let mount = mount();
    mount.send(0, &[b"a message", b"and another"]);
    let channel = ["stats", "subbuf_size", "n_subbufs", "mode", "dropped"];
    let channel = channel.map(|file| mount.control("cpu", file));
    for path in channel.into_iter().chain([mount.path(".relay/version"), mount.path(".relay/stats")]) {
        let content = fs::read(&path).unwrap();
        assert!(content.ends_with(b"\n"), "{}: {:?}", path.display(), text(&content));
        assert_eq!(fs::metadata(&path).unwrap().len(), content.len() as u64, "{}: size", path.display());
        let scripts = [
            "cat $F",
            "cat < $F",
            "busybox cat $F",
            "busybox cat $F | cat",
            "dd bs=1 if=$F",
            "dd bs=4M if=$F",
            "busybox dd bs=7 if=$F",
            "head -c 1000000 $F",
            "tail -c +1 $F",
            "tail -n 1000000 $F",
            "(head -n 1; cat) < $F",
            "(read x; echo \"$x\"; cat) < $F",
            "while read -r x; do echo \"$x\"; done < $F",
            "busybox sh -c 'while read -r x; do echo \"$x\"; done' < $F",
            "grep '' $F",
            "cp $F $OUT; cat $OUT",
            "busybox cp $F $OUT; cat $OUT",
            "tac $F | tac",
            "python3 -c \"import os; print(open(os.environ['F']).read(), end='')\"",
        ];
        for script in scripts {
            let out = tempfile::tempdir().unwrap();
            let got = stdout_of(shell(script).env("F", &path).env("OUT", out.path().join("out")));
            assert_same(&format!("{script} of {}", path.display()), &got, &content);
        }
    }
}

/// The content of the texts.
#[test]
fn texts_tell_the_geometry() {
    let mount = mount();
    let texts = [
        ("cpu", "subbuf_size", "64\n"),
        ("cpu", "n_subbufs", "4\n"),
        ("cpu", "mode", "no-overwrite\n"),
        ("cpu", "dropped", "0\n"),
        ("one", "subbuf_size", "4096\n"),
    ];
    for (channel, file, says) in texts {
        assert_eq!(fs::read_to_string(mount.control(channel, file)).unwrap(), says, "{channel} {file}");
    }
    let counts = mount.send(0, &[&[b'x'; 40][..]; 7]);
    assert_eq!((counts.written, counts.dropped), (4, 3));
    assert_eq!(fs::read_to_string(mount.control("cpu", "dropped")).unwrap(), "3\n");
}

/// A text stays as it was at its open: no reader gets half of an old one and half of a new one.
#[test]
fn text_does_not_change_while_it_is_read() {
    let mount = mount();
    let mut file = File::open(mount.control("cpu", "stats")).unwrap();
    let old = fs::read(mount.control("cpu", "stats")).unwrap();
    let mut got = vec![0; 50];
    file.read_exact(&mut got).unwrap();
    assert_eq!(mount.send(0, &[&b"more messages, more digits"[..]; 4]).written, 4);
    file.read_to_end(&mut got).unwrap();
    assert_same("stats", &got, &old);
    file.rewind().unwrap();
    let mut again = Vec::new();
    file.read_to_end(&mut again).unwrap();
    assert_same("stats, from its start", &again, &old);
    assert_ne!(fs::read(mount.control("cpu", "stats")).unwrap(), old);
}

/// `msg`: one write(2) is one message, from any shell, whether it truncates or appends.
#[test]
fn write_to_msg_is_a_message() {
    all_installed();
    let mount = mount();
    let msg = mount.control("one", "msg");
    let scripts = [
        ("echo 'from a shell' > $F", "from a shell\n", 1),
        ("echo 'from a shell' >> $F", "from a shell\n", 1),
        ("printf 'no newline' > $F", "no newline", 1),
        ("printf 'two\\nlines\\n' > $F", "two\nlines\n", 1),
        (": > $F", "", 0),
        ("printf '' >> $F", "", 0),
        ("{ echo first; echo second; } > $F", "first\nsecond\n", 2),
        ("echo piped | cat > $F", "piped\n", 1),
        ("echo teed | tee $F", "teed\n", 1),
        ("echo appended | tee -a $F", "appended\n", 1),
        ("echo copied > $OUT; cp $OUT $F", "copied\n", 1),
        ("echo copied > $OUT; cat $OUT > $F", "copied\n", 1),
        ("echo copied > $OUT; busybox cat $OUT > $F", "copied\n", 1),
        ("printf 'in blocks' | dd bs=1 of=$F", "in blocks", 9),
        ("printf 'in one block' | dd bs=4M of=$F", "in one block", 1),
        ("printf 'no truncation' | dd conv=notrunc of=$F", "no truncation", 1),
        ("python3 -c \"import os; open(os.environ['F'], 'w').write('from python')\"", "from python", 1),
        ("python3 -c \"import os; open(os.environ['F'], 'a').write('appended')\"", "appended", 1),
    ];
    for name in SHELLS {
        for (script, message, n) in scripts {
            let before = count(&mount, "written");
            let script = format!("OUT={}; {script}", mount.beside("out").display());
            let output = in_shell(name, &script, &msg);
            assert!(output.status.success(), "{name}: {script}: {}", text(&output.stderr));
            assert_eq!(text(&mount.read("one0")), message, "{name}: {script}");
            // bash writes each line separately.
            let n = if name == "bash" && message.starts_with("two\n") { 2 } else { n };
            assert_eq!(count(&mount, "written") - before, n, "{name}: {script}: messages");
        }
    }
}

/// In a channel with a buffer for each CPU, `msg` writes to the buffer of its writer's CPU.
#[test]
fn message_from_msg_is_in_its_writers_buffer() {
    let mount = mount();
    for (cpu, expected) in [(0, "0000000000"), (1, "1111111111")] {
        for _ in 0..10 {
            let mut command = tool("taskset", "util-linux");
            let script = format!("echo -n {cpu} >.relay/channels/cpu/msg");
            stdout_of(command.args(["-c", &cpu.to_string(), "sh", "-c", &script]).current_dir(mount.point()));
        }
        assert_eq!(text(&mount.read(&format!("cpu{cpu}"))), expected);
    }
}

/// A message to a full buffer is ENOSPC and counted, and nothing is written. A read makes room again.
#[test]
fn message_to_full_buffer_is_enospc() {
    all_installed();
    let mount = Mount::new(&["--channel", "one:global:subbuf-size=64:n-subbufs=2"]);
    let msg = mount.control("one", "msg");
    let message = [b'x'; 40];
    assert_eq!(write_once(&msg, &message), Ok(40));
    assert_eq!(write_once(&msg, &message), Ok(40));
    assert_eq!(write_once(&msg, &message), Err(Errno::ENOSPC));
    for name in SHELLS {
        let output = in_shell(name, "echo 'one more message that finds no place' > $F", &msg);
        assert!(!output.status.success(), "{name} did not notice");
        assert_ne!(text(&output.stderr), "", "{name} said nothing");
    }
    assert_eq!((count(&mount, "written"), count(&mount, "dropped")), (2, 5));
    assert_eq!(mount.read("one0"), [b'x'; 80]);
    assert_eq!(write_once(&msg, &message), Ok(40));
    assert_eq!(mount.read("one0"), message);
}

/// A message that is longer than a sub-buffer is EMSGSIZE, and counted.
#[test]
fn message_longer_than_sub_buffer_is_emsgsize() {
    let mount = mount();
    let msg = mount.control("one", "msg");
    assert_eq!(write_once(&msg, &[b'x'; 4096]), Ok(4096));
    assert_eq!(write_once(&msg, &[b'x'; 4097]), Err(Errno::EMSGSIZE));
    assert_eq!((count(&mount, "written"), count(&mount, "too_big")), (1, 1));
    assert_eq!(mount.read("one0"), [b'x'; 4096]);
}

/// The kernel cuts long writes into requests, depending on the writer's memory. Still a write(2) is one message,
/// whole or refused.
#[test]
fn long_message_is_whole_or_refused() {
    let mount = Mount::new(&["--channel", "one:global:subbuf-size=2M"]);
    let script = "
import errno, mmap, os, sys
fd = os.open(sys.argv[1], os.O_WRONLY)
memory = mmap.mmap(-1, 4 << 20)
for start in [0, 100, 4095]:
    for count in [65537, 500000, 2**20 - 8192, 2**20 - 4096, 2**20 - 4095, 2**20 - 50, 2**20 - 1, 2**20, 2**20 + 5000, 3 << 20]:
        try:
            written = os.write(fd, memoryview(memory)[start:start + count])
        except OSError as e:
            assert e.errno == errno.EMSGSIZE, e
            written = 0
        stats = dict(line.split() for line in open(sys.argv[2]))
        print(start, count, written, int(stats['total.written']), len(open(sys.argv[3]).read()))
";
    let mut python = tool("python3", "python3");
    python.args(["-c", script]).arg(mount.control("one", "msg")).arg(mount.control("one", "stats"));
    let table = text(&stdout_of(python.arg(mount.path("one0"))));
    let mut messages = 0;
    for line in table.lines() {
        let numbers: Vec<usize> = line.split(' ').map(|number| number.parse().unwrap()).collect();
        let [start, count, written, messages_now, read] = numbers[..] else { panic!("{line}") };
        let fits = count <= (1 << 20) - 4096;
        let expected = if fits { (count, messages + 1, count) } else { (0, messages, 0) };
        assert_eq!((written, messages_now, read), expected, "{count} bytes from {start} in a page");
        messages = messages_now;
    }
    assert!(messages > 0, "{table}");
}

/// `flush` and `reset` take `1`, with or without a newline, and nothing else.
#[test]
fn flush_and_reset_take_a_one() {
    all_installed();
    for file in ["flush", "reset"] {
        let mount = mount();
        let path = mount.control("one", file);
        for refused in ["0", "", "\n", "2", "11", "01", " 1", "1 ", "1\n\n", "\n1", "1\0", "yes", "1 1", "-1"]
        {
            assert_eq!(mount.send_to("one", 0, &[b"kept"]).written, 1);
            // The kernel does not even pass on an empty write.
            let says = if refused.is_empty() { Ok(0) } else { Err(Errno::EINVAL) };
            assert_eq!(write_once(&path, refused.as_bytes()), says, "{refused:?} to {file}");
            assert_eq!(count(&mount, "produced"), 0, "{refused:?} to {file} flushes nothing");
            assert_eq!(text(&mount.read("one0")), "kept", "{refused:?} to {file} resets nothing");
        }
        for name in SHELLS {
            let output = in_shell(name, "echo 0 > $F", &path);
            assert!(!output.status.success(), "{name} did not notice");
            assert_ne!(text(&output.stderr), "", "{name} said nothing");
        }
        let one = ["echo 1 > $F", "echo 1 >> $F", "printf 1 > $F", "echo 1 | tee $F", "echo 1 | dd of=$F"];
        for (name, script) in SHELLS.into_iter().flat_map(|name| one.map(|script| (name, script))) {
            mount.send_to("one", 0, &[b"a message"]);
            let produced = count(&mount, "produced");
            let output = in_shell(name, script, &path);
            assert!(output.status.success(), "{name}: {script}: {}", text(&output.stderr));
            if file == "flush" {
                assert_eq!(count(&mount, "produced"), produced + 1, "{name}: {script}");
                assert_eq!(text(&mount.read("one0")), "a message", "{name}: {script}");
            } else {
                assert_eq!(text(&mount.read("one0")), "", "{name}: {script}");
            }
        }
    }
}

/// The owner, root here, may open a file against its mode: the daemon refuses the operation.
#[test]
fn file_refuses_the_owner_the_wrong_direction() {
    assert!(geteuid().is_root(), "this test takes root, who may open everything");
    let mount = mount();
    mount.send(0, &[b"unread"]);
    for file in ["msg", "flush", "reset"] {
        assert_eq!(fs::read(mount.control("cpu", file)).unwrap(), b"", "reading {file}");
    }
    let texts =
        ["stats", "subbuf_size", "n_subbufs", "mode", "dropped"].map(|file| mount.control("cpu", file));
    let read_only =
        texts.into_iter().chain([".relay/version", ".relay/stats", "cpu0"].map(|path| mount.path(path)));
    for path in read_only {
        let content = fs::read(&path).ok().filter(|_| !path.ends_with("cpu0"));
        assert_eq!(write_once(&path, b"1\n"), Err(Errno::EINVAL), "writing to {}", path.display());
        for script in ["echo 1 > $F", "echo 1 >> $F"] {
            let output = in_shell("bash", script, &path);
            let said = text(&output.stderr);
            assert!(said.contains("Invalid argument"), "{script}, {}: {said}", path.display());
        }
        let output = in_shell("sh", ": > $F; truncate -s 0 $F", &path);
        assert!(!output.status.success(), "truncating {}", path.display());
        if let Some(content) = content {
            assert_same("after it", &fs::read(&path).unwrap(), &content);
        }
    }
    mount.send(0, &[b"again"]);
    assert_eq!(text(&mount.read("cpu0")), "again");
}

/// All other users may see the names and the geometry, and no more.
#[test]
fn plain_user_sees_names_and_geometry() {
    assert!(geteuid().is_root(), "this test needs root, to run as another user");
    let mount = mount();
    fs::set_permissions(mount.beside(""), Permissions::from_mode(0o755)).unwrap();
    mount.send(0, &[b"unread"]);
    let as_nobody = |command: &mut Command| run(command.uid(NOBODY).gid(NOBODY));
    let ls = as_nobody(tool("ls", "coreutils").arg("-lR").arg(mount.point()));
    assert!(ls.status.success(), "{}", text(&ls.stderr));
    let geometry = ["subbuf_size", "n_subbufs", "mode"].map(|file| mount.control("cpu", file));
    for path in geometry.into_iter().chain([mount.path(".relay/version")]) {
        let output = as_nobody(tool("cat", "coreutils").arg(&path));
        assert_same(&path.display().to_string(), &output.stdout, &fs::read(&path).unwrap());
        assert!(output.status.success(), "{}", text(&output.stderr));
    }
    let control = ["stats", "dropped", "msg", "flush", "reset"].map(|file| mount.control("cpu", file));
    for path in control.into_iter().chain([mount.path(".relay/stats"), mount.path("cpu0")]) {
        let said = complaint("cat", &as_nobody(tool("cat", "coreutils").arg(&path)));
        assert!(said.ends_with("Permission denied"), "{said}");
    }
    let all = ["stats", "dropped", "msg", "flush", "reset", "mode"].map(|file| mount.control("cpu", file));
    for path in all.into_iter().chain([mount.path("cpu0"), mount.path("new")]) {
        let output = as_nobody(shell("echo 1 >> $F").env("F", &path));
        assert!(!output.status.success(), "writing to {}", path.display());
        assert!(text(&output.stderr).contains("Permission denied"), "{}", text(&output.stderr));
    }
    assert_eq!(mount.stats("cpu")["total.produced"], 0);
    assert_eq!(text(&mount.read("cpu0")), "unread");
}

/// Programs that walk the whole tree end. Programs that read it find its data.
#[test]
fn programs_that_walk_the_tree_end() {
    all_installed();
    let walks = [
        ("grep -r 'a message' $F", "a message"),
        ("grep -R 'a message' $F || [ $? = 2 ]", "a message"), // it cannot open the socket
        ("busybox grep -r 'a message' $F || [ $? = 2 ]", "a message"),
        ("find $F -type f -exec cat {} +", "a message"),
        ("tar -C $F -cf - . | tar -xOf -", "a message"),
        // The first of the two that cp reads has the message.
        ("cp -r $F $OUT; cat $OUT/cpu0 $OUT/.relay/channels/cpu/take/cpu0", "a message"),
        ("du -a $F", "cpu0"),
        ("ls -lRA $F", "subbuf_size"),
        ("df $F", "relayfs"),
        ("stat -f $F", "fuse"),
        ("rm -rf $F/* $F/.relay || cat $F/cpu0", "a message"),
        ("mv $F/cpu0 $OUT || cat $OUT", "a message"),
    ];
    for (walk, finds) in walks {
        let mount = mount();
        mount.send(0, &[b"this is a message\n"]);
        let out = stdout_of(shell(walk).env("F", mount.point()).env("OUT", mount.beside("out")));
        assert!(text(&out).contains(finds), "{walk}: {}", text(&out));
        assert!(
            mount.path("cpu0").is_file() && mount.control("cpu", "msg").is_file(),
            "{walk} removed something"
        );
    }
}

/// No entry can be created, and each name is listed.
#[test]
fn unlisted_names_do_not_exist() {
    let mount = mount();
    for name in
        ["new", ".relay/new", ".relay/channels/new", ".relay/channels/cpu/new", "cpu", "cpu00", "cpu9999"]
    {
        let kind = |error: std::io::Error| error.kind();
        assert_eq!(File::open(mount.path(name)).map_err(kind).err(), Some(ErrorKind::NotFound), "{name}");
        assert_eq!(
            fs::write(mount.path(name), "x").map_err(kind),
            Err(ErrorKind::PermissionDenied),
            "{name}"
        );
    }
}
