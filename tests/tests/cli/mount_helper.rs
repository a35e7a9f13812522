//! `mount -t relayfs`: relayfsd as /sbin/mount.relayfs, called by the mount(8) of the system.

use std::path::Path;

use relayfs_tests::pages::Page;
use relayfs_tests::{is_mounted, private_shell, program, run, text, tool};

/// Runs a script with the helper in /sbin and /mnt/relay as an empty directory. Returns the printed lines.
#[track_caller]
fn where_mount_finds_us(script: &str) -> Vec<String> {
    tool("mount", "mount");
    let setup = r#"
        mount -t tmpfs tmpfs /mnt; mkdir /mnt/relay /mnt/sbin; cd /mnt
        cp -a /sbin/. sbin; ln -s "$1" sbin/mount.relayfs; mount --bind sbin "$(realpath /sbin)"
        mounts() { sed -n '/ .mnt.relay /s/,nosuid.*//p' /proc/mounts; }
        control() { cat "/mnt/relay/.relay/channels/cpu/$1"; }
        set +e; exec 2>&1
    "#;
    let output = run(private_shell(&format!("{setup}\n{script}")).arg(program("relayfsd")));
    assert!(output.status.success(), "{output:?}");
    text(&output.stdout).lines().map(str::to_owned).collect()
}

#[test]
fn mount_knows_the_type_relayfs() {
    let lines = where_mount_finds_us(
        r#"
        mount -t relayfs none /mnt/relay; echo $?; mounts; control n_subbufs
        umount /mnt/relay; echo $?; mounts
        mount -v -r -n -t relayfs my-source relay -o n_subbufs=7,noatime,nofail; echo $?; mounts; control n_subbufs
        umount relay
        echo "none /mnt/relay relayfs defaults,x-systemd.automount,subbuf_size=8K 0 0" >fstab
        mount -T fstab /mnt/relay; echo $?; mounts; control subbuf_size
        mount -T fstab -a; echo $?; mounts
        umount relay
        "#,
    );
    let said = "relayfsd: mounted on /mnt/relay, socket /run/relayfs/mnt-relay/socket, ";
    let expected = [
        &["0", "none /mnt/relay fuse.relayfsd rw", "4", "0"][..],
        &[said, "0", "my-source /mnt/relay fuse.relayfsd ro", "7"],
        &["0", "none /mnt/relay fuse.relayfsd rw", "8192", "0", "none /mnt/relay fuse.relayfsd rw"],
    ]
    .concat();
    let lines: Vec<&str> =
        lines.iter().map(|line| if line.starts_with(said) { said } else { line }).collect();
    assert_eq!(lines, expected);
}

/// Both lines for fstab in `docs/running.md` mount, each at a boot of the machine.
#[test]
fn documented_lines_of_fstab_mount() {
    tool("mount.fuse3", "fuse3");
    let page = Page::open("running.md");
    let entries: Vec<&str> = page.text().split('`').filter(|text| text.ends_with(" 0 0")).collect();
    assert_eq!(entries.len(), 2, "{entries:?}");
    // The second type looks for relayfsd in PATH.
    let lines = where_mount_finds_us(&format!(
        "mount -t tmpfs tmpfs /usr/local/bin; cp \"$1\" /usr/local/bin/relayfsd
        for entry in '{}' '{}'; do
            echo \"$entry\" >fstab; mount -T fstab -a; echo $?; mounts; echo kept >/mnt/relay/.relay/channels/cpu/msg
            umount /mnt/relay; mount -T fstab -a; cat /mnt/relay/cpu*; umount /mnt/relay
        done",
        entries[0], entries[1]
    ));
    let of =
        |source: &str| ["0".to_owned(), format!("{source} /mnt/relay fuse.relayfsd rw"), "kept".to_owned()];
    let told = |line: &String| !line.starts_with("relayfsd: ");
    let lines: Vec<String> = lines.into_iter().filter(told).collect();
    assert_eq!(lines, [of("none"), of("relayfs")].concat());
}

/// mount(8)'s `-f` means fake, and `-s` means sloppy. They are not relayfsd's `-f` and `-s`.
#[test]
fn fake_mounts_nothing_and_sloppy_lets_pass() {
    let lines = where_mount_finds_us(
        r#"
        mount -f -t relayfs none relay; echo $?; mounts
        mount -f -t relayfs -o nonsense none relay; echo $?
        mount -s -t relayfs -o nonsense,n_subbufs=5 none relay; echo $?; mounts; control n_subbufs
        umount relay
        "#,
    );
    let refused = "relayfsd: unknown mount option 'nonsense' in -o; try --help";
    assert_eq!(lines, ["0", refused, "1", "0", "none /mnt/relay fuse.relayfsd rw", "5"]);
}

/// mount(8) expects exit status 1 for wrong usage, and 32 for a failed mount.
#[test]
fn failures_have_the_exit_status_that_mount_expects() {
    let lines = where_mount_finds_us(
        r#"
        mount -t relayfs none none; echo $?
        /sbin/mount.relayfs none relay -z; echo $?
        /sbin/mount.relayfs none relay -o; echo $?
        /sbin/mount.relayfs none; echo $?
        /sbin/mount.relayfs none relay -N /mnt/none; echo $?
        mount -t relayfs none relay; mount -t relayfs none relay; echo $?
        umount relay
        /sbin/mount.relayfs none none -o foreground; echo $?
        "#,
    );
    let helpers = "; see EXTERNAL HELPERS in mount(8)";
    let missing =
        "relayfsd: mount point /mnt/none: there is no such directory; create it: mkdir -p /mnt/none";
    let expected = [
        missing,
        "32",
        &format!("relayfsd: unknown option -z{helpers}"),
        "1",
        &format!("relayfsd: -o needs a value{helpers}"),
        "1",
        // A single operand is the mount point, as for relayfsd.
        missing,
        "32",
        "relayfsd: cannot enter the mount namespace /mnt/none: No such file or directory (os error 2)",
        "32",
        "relayfsd: /mnt/relay is already mounted, and its relayfsd is alive; umount it first",
        "32",
        missing,
        "32",
    ];
    assert_eq!(lines, expected);
}

/// `-N` mounts in another mount namespace.
#[test]
fn mount_in_another_namespace_works() {
    // A process that enters a namespace leaves its chroot: it is in that namespace's root.
    assert!(is_mounted(Path::new("/")), "mount -N leaves a chroot: run this test outside of one");
    let lines = where_mount_finds_us(
        r#"
        mkfifo there end
        unshare --mount --propagation unchanged sh -c 'echo $$ >there; read x <end' &
        read other <there
        mount -N $other -t relayfs none /mnt/relay; echo $?
        mounts; echo "there: $(grep -c 'none /mnt/relay fuse.relayfsd' /proc/$other/mounts)"
        umount -N $other /mnt/relay; echo $?
        echo >end; wait
        "#,
    );
    assert_eq!(lines, ["0", "there: 1", "0"]);
}
