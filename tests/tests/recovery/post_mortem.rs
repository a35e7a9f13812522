//! `audience --state DIR`: prints what a killed daemon left, without a daemon, to the byte, and without a change. The
//! files may have any content.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::os::unix::fs::{FileExt, symlink};
use std::path::{Path, PathBuf};
use std::process::Command;

use nix::sys::signal::Signal;
use relay_producer::Channel;
use relayfs_tests::audience::audience;
use relayfs_tests::direct::{is_without_sequences, on_cpu};
use relayfs_tests::numbered::Random;
use relayfs_tests::{Mount, exit_code, program, run, stdout_of, text};

const ARGS: &[&str] = &[
    "--subbuf-size=4096",
    "--n-subbufs=4",
    "--channel=app/ring:overwrite:header=8",
    "--channel=all:global",
    "--channel=none",
];
/// The channels, by number.
const CHANNELS: [&str; 4] = ["cpu", "app/ring", "all", "none"];

/// The state directory of a mount.
fn state_dir(mount: &Mount) -> PathBuf {
    relay::layout::paths::state_dir(mount.point(), nix::unistd::geteuid().as_raw())
}

/// Returns the command `audience --state DIR ARGS`, without the variables of the environment.
fn left(dir: &Path, args: &[&str]) -> Command {
    let mut command = Command::new(program("audience"));
    command.env_remove("RELAYFS").arg("--state").arg(dir).args(args);
    command
}

/// Returns exit status, standard output and standard error.
fn look(dir: &Path, args: &[&str]) -> (i32, Vec<u8>, String) {
    let output = run(&mut left(dir, args));
    (exit_code(output.status), output.stdout, text(&output.stderr))
}

/// Returns a mount whose channels have unread, read and lost data.
fn used() -> Mount {
    let mount = Mount::new(ARGS);
    for n in 0..9 {
        mount.send(0, &[&[b'0' + n; 1000]]);
        mount.send(1, &[&[b'5' + n; 100]]);
        mount.send_to("app/ring", 1, &[&[b'a' + n; 3000]]);
        mount.send_to("all", 0, &[&[b'A' + n; 500]]);
    }
    let mut first = [0; 2500];
    std::io::Read::read_exact(&mut File::open(mount.path("cpu0")).unwrap(), &mut first).unwrap();
    mount.read("app/ring1");
    mount.send_to("app/ring", 1, &[b"the newest"]);
    mount.send_to("app/ring", 0, &[b"before"]);
    fs::write(mount.control("app/ring", "reset"), "1").unwrap();
    mount.send_to("app/ring", 0, &[b"behind"]);
    mount.send_to("app/ring", 1, &[&[b'r'; 4000], &[b'u'; 200]]);
    mount.read("app/ring1");
    mount.send_to("app/ring", 1, &[b"unread"]);
    mount.send(1, &[&[b'x'; 5000]]);
    mount
}

fn kill(mount: &mut Mount) {
    assert_eq!(exit_code(mount.end(Signal::SIGKILL)), 128 + 9);
}

/// Returns all files of a directory, without those of its subdirectories.
fn files(dir: &Path) -> BTreeMap<PathBuf, Vec<u8>> {
    let paths = fs::read_dir(dir).unwrap().map(|entry| entry.unwrap().path());
    paths.filter(|path| path.is_file()).map(|path| (path.clone(), fs::read(path).unwrap())).collect()
}

#[test]
fn state_prints_what_the_dead_daemon_would_have_shown() {
    let mut mount = used();
    let shown = CHANNELS.map(|name| stdout_of(&mut audience(mount.point(), &["--snapshot", "-c", name])));
    assert_eq!(shown[0].len(), 9 * 1000 - 2500 + 9 * 100);
    assert_eq!(
        text(&shown[1]),
        format!("{0}behind{0}{1}{0}{2}unread", "\0".repeat(8), "r".repeat(4000), "u".repeat(200))
    );
    kill(&mut mount);
    let dir = state_dir(&mount);
    let before = files(&dir);
    assert!(before.len() > 9, "{:?}", before.keys());
    for (name, shown) in CHANNELS.iter().zip(&shown) {
        let (code, found, said) = look(&dir, &["-c", name]);
        assert!(found == *shown, "{name}: {} bytes of {}", found.len(), shown.len());
        let lost = match *name {
            "cpu" => {
                "audience: cpu1: 1 message too big: longer than a sub-buffer or than 1 MiB; write shorter messages, \
                 or raise --subbuf-size\n"
            }
            _ => "",
        };
        assert_eq!((code, said.as_str()), (0, lost), "{name}");
    }
    let (_, first, _) = look(&dir, &["--cpu=0"]);
    assert!(first == shown[0][..6500]);
    assert!(files(&dir) == before, "nothing is changed");
    mount.restart(ARGS);
    for (name, shown) in CHANNELS.iter().zip(&shown) {
        let again = stdout_of(&mut audience(mount.point(), &["--snapshot", "-c", name]));
        assert!(again == *shown, "{name}: the next daemon shows the same");
    }
}

/// In overwrite mode: all whole data, read or not, and a line about overwritten data.
#[test]
fn overwritten_ring_prints_whole_messages() {
    let mut mount = Mount::new(ARGS);
    let send = |range: std::ops::Range<u8>| {
        for n in range {
            mount.send_to("app/ring", 0, &[&[b'a' + n; 4000]]);
        }
    };
    send(0..3);
    mount.read("app/ring0");
    send(3..10);
    kill(&mut mount);
    let (code, found, said) = look(&state_dir(&mount), &["-c", "app/ring", "--cpu=0"]);
    let expected: Vec<u8> = (6..10).flat_map(|n| [vec![0; 8], vec![b'a' + n; 4000]].concat()).collect();
    assert!(code == 0 && found == expected, "{code}: {} bytes", found.len());
    let lost = 3 * 4008;
    assert_eq!(said, format!("audience: cpu0: {lost} bytes overwritten before they were read\n"));
}

/// Data that producers write after their daemon's death is printed too.
#[test]
fn state_prints_what_producers_write_after_the_crash() {
    let mut mount = Mount::new(ARGS);
    let channel = Channel::open(mount.point(), "cpu").unwrap();
    mount.send(0, &[b"before "]);
    kill(&mut mount);
    let mut expected = "before ".to_owned();
    if !is_without_sequences() {
        on_cpu(0, || channel.write(b"after")).unwrap();
        expected += "after";
    }
    assert_eq!(text(&look(&state_dir(&mount), &[]).1), expected);
}

/// A running daemon is reported, and not disturbed.
#[test]
fn running_daemon_is_reported() {
    let mut mount = used();
    let pid = mount.daemon().pid();
    let (code, found, said) = look(&state_dir(&mount), &["-c", "all"]);
    assert_eq!((code, found.len(), said.lines().count()), (0, 4500, 1), "{said}");
    assert!(said.contains(&format!("relayfsd (process {pid}) is at work on ")), "{said}");
    assert_eq!(mount.read("all0").len(), 4500);
}

#[test]
fn missing_channel_is_reported_with_existing_ones() {
    let mut mount = used();
    kill(&mut mount);
    let dir = state_dir(&mount);
    let complain = |dir: &Path, args: &[&str]| {
        let (code, found, said) = look(dir, args);
        assert!(code == 1 && found.is_empty() && said.lines().count() == 1, "{code}: {said}");
        said
    };
    let said = complain(&dir, &["-c", "app/log"]);
    assert!(
        said.contains("no channel 'app/log' in ")
            && said.ends_with(" (existing: all, app/ring, cpu, none)\n"),
        "{said}"
    );
    let said = complain(&dir, &["--cpu=77"]);
    assert!(said.contains("has no file for CPU 77, only for 0-"), "{said}");
    assert!(complain(&mount.beside("nothing"), &[]).contains("No such file"));
    let empty = mount.beside("empty");
    fs::create_dir(&empty).unwrap();
    assert!(complain(&empty, &[]).contains("is no state directory"));
}

/// Without the list of channels, or with a damaged one, channels go by their numbers. So they do in a quarantine.
#[test]
fn channels_go_by_number_without_state_file() {
    type Damage = (fn(&Path), &'static str);
    let damages: [Damage; 4] = [
        (|state| fs::remove_file(state).unwrap(), "there is no file 'state'"),
        (|state| fs::write(state, b"\xff\xfe").unwrap(), "UTF-8"),
        (|state| fs::write(state, fs::read_to_string(state).unwrap() + "what\n").unwrap(), ": line "),
        (
            |state| {
                fs::rename(state, state.with_file_name("elsewhere")).unwrap();
                symlink(state.with_file_name("elsewhere"), state).unwrap();
            },
            "symbolic links",
        ),
    ];
    for (damage, why) in damages {
        let mut mount = used();
        kill(&mut mount);
        let dir = state_dir(&mount);
        let (_, expected, _) = look(&dir, &["-c", "all"]);
        damage(&dir.join("state"));
        let numbers: Vec<u32> = (1..50).filter(|id| dir.join(format!("{id}.control")).exists()).collect();
        assert_eq!(numbers.len(), CHANNELS.len());
        let by_number = |dir: &Path| {
            let found = numbers.iter().map(|id| {
                let (code, found, said) = look(dir, &["-c", &id.to_string()]);
                let first = said.lines().next().unwrap_or_default();
                assert!(
                    code == 0 && first.contains(why) && first.ends_with("; channels go by their numbers"),
                    "{said}"
                );
                found
            });
            found.collect::<Vec<_>>()
        };
        let found = by_number(&dir);
        assert!(found.contains(&expected), "{why}");
        let (code, _, said) = look(&dir, &[]);
        let list: Vec<String> = numbers.iter().map(u32::to_string).collect();
        assert!(
            code == 1
                && said.contains(&format!(
                    "no channel 'cpu' in {} (existing: {})",
                    dir.display(),
                    list.join(", ")
                )),
            "{said}"
        );
        mount.restart(ARGS);
        assert!(by_number(&dir.join("quarantine-1")) == found, "{why}: where it was set aside");
        kill(&mut mount);
        fs::remove_dir_all(&dir).unwrap();
    }
}

fn scribble(path: &Path, at: u64, bytes: &[u8]) {
    File::options().write(true).open(path).unwrap().write_all_at(bytes, at).unwrap();
}

/// Damage in a channel's files is reported. The rest is read, and the exit status says that data is missing.
#[test]
fn damage_is_reported_and_the_rest_read() {
    let mut mount = used();
    kill(&mut mount);
    let dir = state_dir(&mount);
    let text_of = fs::read_to_string(dir.join("state")).unwrap();
    let id =
        text_of.lines().find(|line| line.ends_with(" cpu")).unwrap().split(' ').nth(1).unwrap().to_owned();
    let (control, data) = (dir.join(format!("{id}.control")), dir.join(format!("{id}.data0")));
    let (whole_control, whole_data) = (fs::read(&control).unwrap(), fs::read(&data).unwrap());
    let (_, all, _) = look(&dir, &[]);
    let (_, second, _) = look(&dir, &["--cpu=1"]);
    let cut = |path: &Path, len| File::options().write(true).open(path).unwrap().set_len(len).unwrap();
    let check = |what: &str, found: &[u8], why: &str| {
        let (code, printed, said) = look(&dir, &[]);
        assert_eq!(code, 1, "{what}: {said}");
        assert!(said.contains(why), "{what}: {said}");
        assert!(printed == found, "{what}: {} bytes", printed.len());
        fs::write(&control, &whole_control).unwrap();
        let _ = fs::remove_file(&data);
        fs::write(&data, &whole_data).unwrap();
    };
    cut(&data, 100);
    check("a short ring", &second, "it has 100 bytes instead of 16384");
    fs::remove_file(&data).unwrap();
    check("no ring", &second, "No such file");
    fs::remove_file(&data).unwrap();
    fs::create_dir(&data).unwrap();
    assert!(look(&dir, &[]).2.contains("no regular file"));
    fs::remove_dir(&data).unwrap();
    check("no ring", &second, "No such file");
    cut(&control, 50);
    check("no header", b"", "it has 50 bytes");
    cut(&control, 4096);
    check("no blocks", b"", "its parts do not fit it");
    scribble(&control, 0, b"nonsense");
    check("another file", b"", "it is no control file");
    scribble(&control, 8, &[9]);
    check("another layout", b"", "its layout is of another release");
    scribble(&control, 4096, &[0xff; 8]);
    check("a wild writer", &look(&dir, &[]).1.clone(), "its word 'state' says 0xffffffffffffffff");
    let line = text_of.lines().find(|line| line.ends_with(" cpu")).unwrap();
    let other = line.replacen(" 4096 4 0 ", " 8192 4 0 ", 1);
    fs::write(dir.join("state"), text_of.replacen(line, &other, 1)).unwrap();
    check("another geometry", &all, "its geometry is not the channel's, by 'state'");
}

/// With any content of the files, the command ends by itself, and not by a signal.
#[test]
fn random_files_do_no_harm() {
    let mut mount = Mount::new(&["--subbuf-size=512", "--n-subbufs=3", "--channel=ring:overwrite"]);
    for n in 0..20 {
        mount.send(0, &[&[b'0' + n; 100]]);
        mount.send_to("ring", 0, &[&[b'0' + n; 100]]);
    }
    kill(&mut mount);
    let dir = state_dir(&mount);
    let whole = files(&dir);
    let mut random = Random::new(7);
    for round in 0..40 {
        for (path, bytes) in &whole {
            let mut bytes = bytes.clone();
            for _ in 0..random.below(12) {
                // Mostly in headers, blocks and records of the first buffer.
                let end = if random.below(4) == 0 {
                    bytes.len()
                } else {
                    bytes.len().min([88, 4096 + 1024][round % 2])
                };
                let start = if round % 2 == 1 && end > 4096 && random.below(2) == 0 { 4096 } else { 0 };
                let at = start + random.below(end - start);
                bytes[at] = [random.next() as u8, 0, 0xff, 1][random.below(4)];
            }
            if random.below(8) == 0 {
                bytes.truncate(random.below(bytes.len() + 1));
            }
            fs::write(path, bytes).unwrap();
        }
        for args in [&[][..], &["-c", "ring"], &["-c", "1"]] {
            let (code, printed, said) = look(&dir, args);
            assert!(code == 0 || code == 1 && !said.is_empty(), "round {round} {args:?}: {code}: {said}");
            assert!(said.lines().all(|line| line.starts_with("audience: ")), "round {round}: {said}");
            assert!(printed.len() < 1 << 20, "round {round}: {} bytes", printed.len());
        }
    }
}
