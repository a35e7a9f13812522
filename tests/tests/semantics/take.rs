//! `take/cpuN`: an ordinary file of true size with the unread data. The data is consumed when the file has been read
//! to its end and closed, and not otherwise.

use std::fs::{self, File, OpenOptions};
use std::io::{Read, Seek, SeekFrom};
use std::os::fd::AsRawFd;
use std::os::unix::fs::{FileExt, MetadataExt, OpenOptionsExt};
use std::process::Command;
use std::thread;

use nix::errno::Errno;
use nix::fcntl::{SpliceFFlags, splice};
use nix::unistd::pipe;
use relay_producer::{BatchOptions, Wait};
use relayfs_tests::lines::{Twins, assert_same};
use relayfs_tests::take::{cat, read_bytes, run_on_take, take_of};
use relayfs_tests::users::where_users_mount;
use relayfs_tests::{Mount, eventually, exit_code, program, run, stdout_of, text, tool};

/// Returns a small buffer whose unfinished sub-buffer has data too.
fn small(more: &[&str]) -> Mount {
    Mount::new(&[&["--subbuf-size", "100", "--n-subbufs", "4"], more].concat())
}

/// Writes messages of 50 bytes each, of one letter.
fn write(mount: &Mount, letters: &str) -> Vec<u8> {
    let messages: Vec<Vec<u8>> = letters.bytes().map(|letter| vec![letter; 50]).collect();
    let messages: Vec<&[u8]> = messages.iter().map(Vec::as_slice).collect();
    assert_eq!(mount.send(0, &messages).written, letters.len() as u64);
    messages.concat()
}

/// Reads the file whole.
fn take(mount: &Mount) -> Vec<u8> {
    fs::read(take_of(mount, "cpu", 0)).expect("take/cpu0")
}

#[test]
fn reading_all_and_closing_consumes_the_copy() {
    for mode in [&[][..], &["--overwrite"]] {
        let mount = small(mode);
        let path = take_of(&mount, "cpu", 0);
        assert_eq!((path.metadata().unwrap().len(), take(&mount)), (0, Vec::new()));
        let content = write(&mount, "abcde");
        assert_eq!(path.metadata().unwrap().len(), 250);
        let mut file = File::open(&path).unwrap();
        let status = file.metadata().unwrap();
        assert_eq!((status.len(), status.mode() & 0o7777, status.blocks()), (250, 0o400, 1));
        let mut got = Vec::new();
        file.read_to_end(&mut got).unwrap();
        assert_eq!((got.as_slice(), read_bytes(&mount)), (content.as_slice(), 0), "still open");
        drop(file);
        assert_eq!(read_bytes(&mount), 250);
        let mut stat = tool("stat", "coreutils");
        assert_eq!(stdout_of(stat.args(["-c", "%s"]).arg(&path)), b"0\n");
        assert_eq!(mount.read("cpu0"), b"");
        let content = write(&mount, "fg");
        assert_eq!((take(&mount), read_bytes(&mount)), (content, 350));
    }
}

#[test]
fn reading_a_part_consumes_nothing() {
    let mount = small(&[]);
    let content = write(&mount, "abcde");
    let mut file = File::open(take_of(&mount, "cpu", 0)).unwrap();
    let mut part = [0; 249];
    file.read_exact(&mut part).unwrap();
    drop(file);
    let file = File::open(take_of(&mount, "cpu", 0)).unwrap();
    file.read_exact_at(&mut part, 1).unwrap();
    drop(file);
    assert_eq!((read_bytes(&mount), mount.read("cpu0")), (0, content));
}

#[test]
fn blocks_in_any_order_consume_the_copy() {
    let mount = small(&[]);
    let content = write(&mount, "abcde");
    let mut file = File::open(take_of(&mount, "cpu", 0)).unwrap();
    let mut got = vec![0; 250];
    for at in [200, 0, 150, 100, 50] {
        file.seek(SeekFrom::Start(at)).unwrap();
        file.read_exact(&mut got[at as usize..][..50]).unwrap();
        assert_eq!(read_bytes(&mount), 0);
    }
    drop(file);
    assert_eq!((got, read_bytes(&mount)), (content, 250));
}

/// Data written after the copy stays, and is in the next copy.
#[test]
fn data_written_after_the_copy_is_not_consumed() {
    for mode in [&[][..], &["--overwrite"]] {
        let mount = small(mode);
        let content = write(&mount, "ab");
        let mut file = File::open(take_of(&mount, "cpu", 0)).unwrap();
        let later = write(&mount, "cde");
        let mut got = Vec::new();
        file.read_to_end(&mut got).unwrap();
        assert_eq!((got.as_slice(), file.metadata().unwrap().len()), (content.as_slice(), 100));
        drop(file);
        assert_eq!(read_bytes(&mount), 100);
        assert_eq!((take(&mount), read_bytes(&mount)), (later, 250));
    }
}

/// A close consumes what other readers have left of it. If they have read a part, no other program gets that copy.
#[test]
fn data_that_others_read_is_not_consumed_again() {
    let mount = small(&[]);
    let content = write(&mount, "abcd");
    let mut file = File::open(take_of(&mount, "cpu", 0)).unwrap();
    let mut part = [0; 70];
    File::open(mount.path("cpu0")).unwrap().read_exact(&mut part).unwrap();
    let mut other = File::open(take_of(&mount, "cpu", 0)).unwrap();
    assert_eq!((file.metadata().unwrap().len(), other.metadata().unwrap().len()), (200, 130));
    let mut got = Vec::new();
    file.read_to_end(&mut got).unwrap();
    drop(file);
    assert_eq!((got.as_slice(), read_bytes(&mount)), (content.as_slice(), 200));
    got.clear();
    other.read_to_end(&mut got).unwrap();
    drop(other);
    assert_eq!((got.as_slice(), read_bytes(&mount)), (&content[70..], 200), "it is consumed already");
    mount.poke("cpu", "reset");
    let content = write(&mount, "e");
    assert_eq!((take(&mount), read_bytes(&mount)), (content, 250));
}

#[test]
fn reset_leaves_nothing_to_consume() {
    let mount = small(&[]);
    write(&mount, "abcde");
    let mut file = File::open(take_of(&mount, "cpu", 0)).unwrap();
    mount.poke("cpu", "reset");
    let content = write(&mount, "f");
    assert_eq!(file.read_to_end(&mut Vec::new()).unwrap(), 250);
    drop(file);
    assert_eq!(mount.stats("cpu")["cpu0.read_bytes"], 0);
    assert_eq!(mount.read("cpu0"), content);
}

/// In overwrite mode a copy has the unread data that is still there. A snapshot has read data as well.
#[test]
fn overwriting_buffer_gives_whole_unread_messages() {
    let mount = small(&["--overwrite"]);
    let content = write(&mount, "abcdefghijklmnop");
    let path = take_of(&mount, "cpu", 0);
    assert_eq!(path.metadata().unwrap().len(), 400);
    assert_same("what is whole", &take(&mount), &content[400..]);
    let stats = mount.stats("cpu");
    assert_eq!((stats["cpu0.read_bytes"], stats["cpu0.overwritten_bytes"]), (400, 400));
    assert_eq!(
        (take(&mount).len(), fs::read(mount.control("cpu", "snapshot/cpu0")).unwrap().len()),
        (0, 400)
    );
    // The data that the writer takes while the copy is open counts as read.
    let content = write(&mount, "qrst");
    let mut file = File::open(&path).unwrap();
    write(&mount, "uvwxyzabcdef");
    let mut got = Vec::new();
    file.read_to_end(&mut got).unwrap();
    drop(file);
    assert_same("a copy", &got, &content);
    assert_eq!(mount.stats("cpu")["cpu0.read_bytes"], 600);
    assert_eq!(take(&mount).len(), 400);
    let stats = mount.stats("cpu");
    assert_eq!(stats["cpu0.bytes"], stats["cpu0.read_bytes"] + stats["cpu0.overwritten_bytes"]);
}

/// Reported losses are those before the data of a reader. A consumed take counts as a read, and no other take does.
#[test]
fn losses_before_a_consumed_take_are_reported_once() {
    let mount = small(&[]);
    let content = write(&mount, "abcdefgh");
    assert_eq!(mount.send(0, &[&[b'i'; 50]]).dropped, 1);
    let noted = || mount.stats("cpu")["cpu0.old_dropped"];
    let mut part = [0; 50];
    File::open(take_of(&mount, "cpu", 0)).unwrap().read_exact(&mut part).unwrap();
    assert_eq!(noted(), 0, "nothing was consumed");
    assert_eq!((take(&mount), noted()), (content, 1));
    let read = run(Command::new(program("audience")).arg("-m").arg(mount.point()));
    assert_eq!((text(&read.stdout), text(&read.stderr)), (String::new(), String::new()));
}

/// A consumed take makes room for a waiting batch.
#[test]
fn consuming_makes_room_for_a_waiting_producer() {
    let mount = small(&[]);
    let content = write(&mount, "abcdefgh");
    thread::scope(|scope| {
        let waiting = scope.spawn(|| {
            let options = BatchOptions { cpu: Some(0), wait: Wait::Forever };
            mount.channel("cpu").write_batch([[b'i'; 50]], options).expect("a batch").written
        });
        assert_same("take", &stdout_of(&mut cat(&mount)), &content);
        assert_eq!(waiting.join().unwrap(), 1);
    });
    assert_eq!(take(&mount), [b'i'; 50]);
}

/// A program with the open file sees it unchanged, and can open it again by its descriptor. Once it is consumed, the
/// name means the next copy.
#[test]
fn held_descriptor_keeps_its_copy() {
    let mount = small(&[]);
    let content = write(&mount, "abc");
    let path = take_of(&mount, "cpu", 0);
    let mut held = File::open(&path).unwrap();
    assert_same("cat", &stdout_of(&mut cat(&mount)), &content);
    assert_eq!(read_bytes(&mount), 150);
    let later = write(&mount, "d");
    let (old, new) = (held.metadata().unwrap(), path.metadata().unwrap());
    assert_eq!((old.len(), new.len()), (150, 50));
    assert_ne!(old.ino(), new.ino());
    let mut got = Vec::new();
    held.read_to_end(&mut got).unwrap();
    assert_same("the descriptor", &got, &content);
    let again = fs::read(format!("/proc/self/fd/{}", held.as_raw_fd())).unwrap();
    assert_same("opened again", &again, &content);
    drop(held);
    assert_eq!(read_bytes(&mount), 150, "only once");
    assert_eq!((take(&mount), read_bytes(&mount)), (later, 200));
}

/// A program that calls stat(2) on the file that it has copied finds it unchanged, until it opens the name again:
/// rclone throws its copy away otherwise. Other programs see the next copy.
#[test]
fn consumer_finds_size_and_time_unchanged() {
    let mount = small(&[]);
    write(&mount, "abc");
    let path = take_of(&mount, "cpu", 0);
    let of = |status: fs::Metadata| (status.len(), status.modified().unwrap());
    let mut file = File::open(&path).unwrap();
    let before = of(file.metadata().unwrap());
    file.read_to_end(&mut Vec::new()).unwrap();
    drop(file);
    write(&mount, "d");
    assert_eq!((of(path.metadata().unwrap()), read_bytes(&mount)), (before, 150));
    assert_eq!(thread::scope(|scope| scope.spawn(|| of(path.metadata().unwrap())).join().unwrap()), before);
    let mut stat = tool("stat", "coreutils");
    assert_eq!(stdout_of(stat.args(["-c", "%s"]).arg(&path)), b"50\n");
    let next = File::open(&path).unwrap();
    assert_eq!((next.metadata().unwrap().len(), path.metadata().unwrap().len()), (50, 50));
}

/// Several open files share a copy. The bytes that each has got count separately.
#[test]
fn halves_by_two_open_files_consume_nothing() {
    let mount = small(&[]);
    let content = write(&mount, "abcd");
    let path = take_of(&mount, "cpu", 0);
    let files = [0, 100].map(|at| (File::open(&path).unwrap(), at));
    write(&mount, "e");
    for (file, at) in &files {
        let mut half = [0; 100];
        file.read_exact_at(&mut half, *at).unwrap();
        assert_eq!((half.as_slice(), file.metadata().unwrap().len()), (&content[*at as usize..][..100], 200));
    }
    drop(files);
    assert_eq!((read_bytes(&mount), take(&mount).len()), (0, 250));
}

/// A shell holds the file by a duplicate: it has closed the descriptor that it opened.
#[test]
fn held_descriptor_is_read_again_and_consumed_once() {
    let mount = small(&[]);
    let content = write(&mount, "abcd");
    let script = "
        exec 3<take/cpu0
        printf e >msg
        cat take/cpu0 >/dev/null & cat /proc/$$/fd/3 >/dev/null; wait
        head -c 7 take/cpu0 >/dev/null
        cat /proc/$$/fd/3; cat <&3 >/dev/null";
    let output = run(tool("sh", "dash").args(["-ec", script]).current_dir(mount.control("cpu", "")));
    assert_eq!((exit_code(output.status), text(&output.stderr)), (0, String::new()));
    assert_same("the held copy", &output.stdout, &content);
    assert_eq!(mount.read("cpu0"), b"");
}

/// The bytes of all processes that share an open file count together.
#[test]
fn processes_that_share_an_open_file_read_it_together() {
    let twins = Twins::medium();
    let output = run_on_take(&twins, "(head -n 7; cat) < $F > $OUT; cmp $OUT $COPY");
    assert!(output.status.success(), "{output:?}");
    assert_eq!(read_bytes(&twins.mount), twins.content.len() as u64);
}

/// Mappings have the true length, cannot be written, and consume nothing.
#[test]
fn mapping_shows_the_copy_and_consumes_nothing() {
    let twins = Twins::medium();
    let script = "
import mmap, os, sys
for flags in mmap.MAP_SHARED, mmap.MAP_PRIVATE:
    with open(sys.argv[1], 'rb') as f, mmap.mmap(f.fileno(), 0, flags=flags, prot=mmap.PROT_READ) as m:
        sys.stdout.buffer.write(m[:])
try: os.open(sys.argv[1], os.O_RDWR)
except PermissionError: sys.stdout.buffer.write(b'refused')
";
    let mut python = tool("python3", "python3");
    let got = stdout_of(python.args(["-c", script]).arg(take_of(&twins.mount, "cpu", 0)));
    assert_same("mmap", &got, &[&twins.content[..], &twins.content, b"refused"].concat());
    assert_eq!(read_bytes(&twins.mount), 0);
    assert_same("after it", &twins.mount.read("cpu0"), &twins.content);
}

/// The daemon would not see reads through the page cache. So they are refused, and programs fall back.
#[test]
fn page_cache_fills_are_refused() {
    let mount = small(&[]);
    let content = write(&mount, "abc");
    let path = take_of(&mount, "cpu", 0);
    let file = File::open(&path).unwrap();
    let (_reader, writer) = pipe().unwrap();
    let spliced = splice(&file, None, writer, None, 100, SpliceFFlags::empty());
    assert_eq!(spliced, Err(Errno::EINVAL));
    drop(file);
    let direct = OpenOptions::new().read(true).custom_flags(libc::O_DIRECT).open(&path).unwrap();
    let (reader, writer) = pipe().unwrap();
    assert_eq!(splice(&direct, None, &writer, None, 1000, SpliceFFlags::empty()), Ok(150));
    drop((direct, writer));
    let mut got = Vec::new();
    File::from(reader).read_to_end(&mut got).unwrap();
    assert_eq!((got, read_bytes(&mount)), (content, 150));
}

/// A copy counts against `--max-memory`, and is freed with the last close.
#[test]
fn memory_is_limited_and_given_back() {
    let mount = Mount::new(&[
        "--subbuf-size=64K",
        "--n-subbufs=4",
        "--channel=a:global",
        "--channel=b:global",
        "--max-memory=1280K",
    ]);
    for channel in ["a", "b"] {
        let messages = [&[b'x'; 60_000][..]; 3];
        assert_eq!(mount.send_to(channel, 0, &messages).written, 3);
    }
    let limit = |path: &str| fs::read_to_string(mount.path(path)).unwrap();
    for _ in 0..20 {
        let first = File::open(take_of(&mount, "a", 0));
        let Ok(first) = first else { panic!("{}: {first:?}", limit(".relay/stats")) };
        assert_eq!(first.metadata().unwrap().len(), 180_000);
        let second = File::open(take_of(&mount, "b", 0)).map(drop);
        assert_eq!(second.unwrap_err().raw_os_error(), Some(libc::ENOMEM), "{}", limit(".relay/stats"));
    }
    // The daemon learns of the last close a moment later.
    eventually("the memory of the first", || File::open(take_of(&mount, "b", 0)).is_ok());
    let mut command = tool("cat", "coreutils");
    assert_eq!(stdout_of(command.arg(take_of(&mount, "b", 0))).len(), 180_000);
}

/// Without passthrough, which needs root, reads are the same, and a shared mapping is refused.
#[test]
fn copy_on_users_mount_is_read_and_not_mapped() {
    tool("python3", "python3");
    let said = where_users_mount(
        r#"
        $nobody relayfsd relay || exit 1
        seq 10000 | $nobody relay-producer -m relay --cpu 0 --chunk 1000
        F=relay/.relay/channels/cpu/take/cpu0
        $nobody "$(PATH=/usr/bin:/bin command -v python3)" -c "
import errno, mmap, sys
f = open('$F', 'rb')
try: mmap.mmap(f.fileno(), 0, prot=mmap.PROT_READ)
except OSError as error: print(errno.errorcode[error.errno])"
        $nobody grep read_bytes relay/.relay/channels/cpu/stats | head -n 1
        $nobody cat $F | cksum; seq 10000 | cksum
        $nobody grep read_bytes relay/.relay/channels/cpu/stats | head -n 1
        $nobody fusermount3 -u relay
        "#,
    );
    assert_eq!(said[0], "ENODEV", "{said:?}");
    assert_eq!(
        (said[1].as_str(), said[4].as_str()),
        ("cpu0.read_bytes 0", "cpu0.read_bytes 48894"),
        "{said:?}"
    );
    assert_eq!(said[2], said[3], "{said:?}");
}

/// While a writer continues, takes one after another have each byte once.
#[test]
fn takes_of_a_busy_buffer_have_every_byte_once() {
    let mount = Mount::new(&["--subbuf-size", "4096", "--n-subbufs", "8"]);
    let content = thread::scope(|scope| {
        let writing = scope.spawn(|| relayfs_tests::lines::send_lines(&mount, 0..20_000));
        let mut got = Vec::new();
        loop {
            let is_last = writing.is_finished();
            let mut command = cat(&mount);
            let output = relayfs_tests::run(&mut command);
            assert_eq!((exit_code(output.status), text(&output.stderr)), (0, String::new()));
            got.extend(output.stdout);
            if is_last {
                break;
            }
        }
        let content = writing.join().unwrap();
        assert_same("takes", &got, &content);
        content
    });
    assert_eq!(read_bytes(&mount), content.len() as u64);
}
