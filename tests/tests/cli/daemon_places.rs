//! Places where a daemon starts: over another daemon's channels, on paths that its mount would cover, without /proc,
//! and with options for SELinux.

use std::fs;
use std::process::Command;

use nix::sys::signal::Signal;
use relayfs_tests::background::Place;
use relayfs_tests::{Mount, complaint, is_mounted, private_shell, program, programs, run, stdout_of, text};

/// A channel with unread data keeps its geometry, whatever the next command line asks.
#[test]
fn verbose_daemon_prints_geometry_of_existing_channel() {
    let mut mount = Mount::new(&["--subbuf-size=64K", "--channel=other:n-subbufs=3"]);
    mount.send(0, &[b"unread"]);
    mount.end(Signal::SIGKILL);
    mount.restart(&["-v", "--subbuf-size=8K", "--channel=other:n-subbufs=5"]);
    mount.end(Signal::SIGTERM);
    let said = mount.daemon().stderr();
    let line = said.lines().find(|line| line.contains("mounted on")).expect("a line of -v");
    assert!(line.contains("cpu:subbuf-size=64K:n-subbufs=4"), "{line}");
    assert!(line.contains("other:subbuf-size=8K:n-subbufs=5"), "{line}");
}

/// Neither the daemon nor its clients could reach these paths under the mount.
#[test]
fn places_that_the_mount_would_cover_are_refused() {
    let place = Place::new();
    let link = place.beside("link");
    std::os::unix::fs::symlink(place.point(), &link).unwrap();
    for dir in [place.point().to_owned(), link] {
        for option in ["--socket", "--state-dir", "--log-file"] {
            for below in ["name", "a/b/name"] {
                let path = dir.join(below);
                let output = run(&mut place.command(&[&format!("{option}={}", path.display())]));
                let told = complaint("relayfsd", &output);
                let wanted = format!("{option} {}: it would be below the mount point", path.display());
                assert!(told.contains(&wanted), "{told}");
                assert_eq!(fs::read_dir(place.point()).unwrap().count(), 0, "{option}");
                place.assert_clean();
            }
        }
    }
    // A path beside it whose name begins in the same way is accepted.
    let beside = place.beside("relay-socket");
    let mut daemon = place.start(&["--socket", beside.to_str().unwrap()]);
    assert!(fs::symlink_metadata(&beside).is_ok());
    daemon.signal(Signal::SIGTERM);
    assert_eq!(daemon.wait(), 0);
}

/// A mount there would hide channels, and keep the outer mount busy.
#[test]
fn mount_point_inside_a_relayfs_is_refused() {
    let mount = Mount::new(&["--channel=app/log"]);
    for inside in ["app", ".relay", ".relay/channels/cpu/snapshot"] {
        let point = mount.path(inside);
        let told = complaint("relayfsd", &run(Command::new(program("relayfsd")).arg(&point)));
        let outer = format!("it is inside of the relayfs that is mounted on {}", mount.point().display());
        assert!(told.contains(&point.display().to_string()) && told.contains(&outer), "{told}");
        let found = run(Command::new(program("relayfsd")).arg("doctor").arg(&point));
        assert!(text(&found.stdout).contains("inside of the relayfs"), "{found:?}");
    }
    mount.send(0, &[b"as before"]);
    assert_eq!(mount.read("cpu0"), b"as before");
}

#[test]
fn programs_say_that_proc_is_missing() {
    let script = r#"
        export PATH="$1:$PATH"; cd "$(mktemp -d)"; mkdir relay; while umount -l /proc 2>/dev/null; do :; done
        for program in "relayfsd relay" "relayfsd -f relay" "audience -m relay" "audience --follow -m relay" \
            "audience record -m relay -o out"; do
            timeout 60 $program 2>&1 || :
        done
        dir=$PWD; cd /; rm -r "$dir"
    "#;
    let said = text(&stdout_of(private_shell(script).arg(programs())));
    let lines: Vec<&str> = said.lines().collect();
    assert_eq!(lines.len(), 5, "{said}");
    for line in lines {
        assert!(line.ends_with("/proc is not mounted: mount -t proc proc /proc"), "{line}");
    }
}

/// A container hides the host's directories by its own. The kernel still lists what is mounted below them.
#[test]
fn mount_that_another_one_hides_is_not_in_the_way() {
    let script = r#"
        export PATH="$1:$PATH"; cd /; unset RELAYFS
        cover() { for dir in /mnt /run /dev/shm; do mount -t tmpfs tmpfs $dir; done; mkdir /mnt/relay; }
        # The first one is hidden, and then the second.
        cover; relayfsd /mnt/relay; echo first | relay-producer
        cover; relayfsd /mnt/relay; echo second | relay-producer; relayfsd doctor | grep -c "is mounted there"
        cat /mnt/relay/cpu*
        umount /mnt/relay; umount -l /mnt /run /dev/shm # which the daemon may still use
        cat /mnt/relay/cpu*
        umount /mnt/relay
    "#;
    let said = text(&stdout_of(private_shell(script).arg(programs())));
    assert_eq!(said, "1\nsecond\nfirst\n");
}

/// The options are the kernel's. As mount(8) does it, they are passed on only if it has SELinux.
#[test]
fn contexts_of_selinux_are_accepted() {
    for options in [
        "context=system_u:object_r:tmp_t:s0",
        "context=\"system_u:object_r:tmp_t:s0:c1,c2\",n_subbufs=8",
        "fscontext=system_u:object_r:tmpfs_t:s0,n_subbufs=8",
    ] {
        let mount = Mount::new(&["-o", options]);
        assert!(is_mounted(mount.point()));
        let n_subbufs = fs::read_to_string(mount.control("cpu", "n_subbufs")).unwrap();
        let expected = if options.contains("n_subbufs") { "8" } else { "4" };
        assert_eq!(n_subbufs.trim(), expected, "{options}");
    }
    let place = Place::new();
    let told = complaint("relayfsd", &run(&mut place.command(&["-o", "context"])));
    assert!(told.contains("'context'"), "{told}");
}
