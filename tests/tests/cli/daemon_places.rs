//! Where a daemon starts: over another one's channels, on places that its own mount would cover, without /proc, and with the words
//! of SELinux in its mount options.

use std::fs;

use nix::sys::signal::Signal;
use relayfs_tests::background::Place;
use relayfs_tests::{Mount, complaint, is_mounted, private_shell, programs, run, stdout_of, text};

/// A channel that still has unread data keeps its geometry, whatever the next command line names.
#[test]
fn verbose_daemon_tells_the_geometry_that_a_channel_has() {
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

/// Neither the daemon nor its clients could reach them once it has mounted.
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
    // Beside it, with a name that begins in the same way, is another place.
    let beside = place.beside("relay-socket");
    let mut daemon = place.start(&["--socket", beside.to_str().unwrap()]);
    assert!(fs::symlink_metadata(&beside).is_ok());
    daemon.signal(Signal::SIGTERM);
    assert_eq!(daemon.wait(), 0);
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

/// They are the kernel's words, given on where it has SELinux, and left out where it has not, as mount(8) does it.
#[test]
fn contexts_of_selinux_are_taken() {
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
