//! The unmodified classic reader: `audience --exec` makes its mount(2) and umount(2) know the type relayfs.

use std::fs;
use std::os::unix::fs::PermissionsExt;

use relayfs_tests::classic::Classic;
use relayfs_tests::users::where_users_mount;
use relayfs_tests::{program, tool};

/// Without a daemon, the reader mounts and unmounts.
#[test]
fn reader_without_daemon_mounts_and_unmounts() {
    let classic = Classic::readers();
    let printed = classic.run(
        r#"
        for reader in audience-classic audience-printed; do
            $reader; echo "alone: $?"
            audience --exec $reader; echo "$?, $(mounted)"
        done
        until_true no_daemons
        find /dev/shm /run -name "*relay*"
        "#,
    );
    let expected = "mount: No such device\nalone: 1\n0, not mounted\n\
                    mount() failed: No such device\nalone: 1\n0, not mounted\n";
    assert_eq!(printed, expected);
}

/// With a daemon, the reader reads and leaves the daemon alone. Its output is compared byte for byte. puts() adds a
/// newline to each 256 bytes.
#[test]
fn classic_reader_uses_and_leaves_a_running_daemon() {
    let classic = Classic::readers();
    let printed = classic.run(
        r#"
        relayfsd /mnt/relay
        long=$(printf '%0300d' 7)
        for reader in audience-classic audience-printed; do
            relay-producer --cpu 0 "Hello world"
            relay-producer --cpu 1 "$long" "to cpu 1"
            audience --exec $reader; echo "$?, $(mounted)"
        done
        relay-producer --cpu 0 "still there"; cat relay/cpu0
        "#,
    );
    let (first, second) = ("0".repeat(256), "0".repeat(43) + "7");
    let read = format!("Hello world\n\n{first}\n{second}\nto cpu 1\n\n0, mounted\n");
    assert_eq!(printed, format!("{read}{read}still there\n"));
}

/// umount of a path by a process whose mount was EBUSY is EINVAL and changes nothing. A process unmounts its own
/// mount, by any name of the path.
#[test]
fn process_unmounts_only_its_own_mount() {
    let classic = Classic::readers();
    let printed = classic.run(
        r#"
        ln -s relay link
        try() { echo "- $(mounted)"; audience --exec mounts "$@"; }
        try mount relayfs /mnt/relay - umount /mnt/relay umount /mnt/relay
        try mount relayfs link/. - mount relayfs /mnt//relay/ - umount relay
        try mount relayfs relay - open relay/cpu0 umount relay close umount relay
        try mount relayfs relay - open relay/cpu0 detach link/ mount relayfs relay - umount relay
        try mount relayfs relay - fork umount relay
        try mount relayfs relay - system 'umount relay; relayfsd relay' umount relay
        try mount relayfs relay - umount relay/ umount link umount /mnt/relay chdir / umount mnt/relay
        try umount relay
        try ignore-children mount relayfs relay - umount relay
        echo "- $(mounted)"
        "#,
    );
    let busy = "Device or resource busy";
    let refused = "Invalid argument";
    let expected = format!(
        "- not mounted\nmount /mnt/relay: ok\numount /mnt/relay: ok\numount /mnt/relay: {refused}\n\
         - not mounted\nmount link/.: ok\nmount /mnt//relay/: {busy}\numount relay: ok\n\
         - not mounted\nmount relay: ok\nopen relay/cpu0: ok\numount relay: {busy}\numount relay: ok\n\
         - not mounted\nmount relay: ok\nopen relay/cpu0: ok\ndetach link/: ok\nmount relay: ok\numount relay: ok\n\
         - not mounted\nmount relay: ok\numount relay: ok\n\
         - not mounted\nmount relay: ok\numount relay: {refused}\n\
         - mounted\nmount relay: {busy}\numount relay/: {refused}\numount link: {refused}\numount /mnt/relay: {refused}\n\
         chdir /: ok\numount mnt/relay: {refused}\n\
         - mounted\numount relay: ok\n\
         - not mounted\nmount relay: ok\numount relay: ok\n\
         - not mounted\n"
    );
    assert_eq!(printed, expected);
}

/// All other calls are passed on. Options and flags reach relayfsd.
#[test]
fn other_calls_are_passed_on_and_options_reach_daemon() {
    let classic = Classic::readers();
    let printed = classic.run(
        r#"
        mkdir other
        audience --exec mounts mount tmpfs other size=64K umount other umount other bind relayfs relay - \
            null relayfs mount relayfsx relay -
        audience --exec mounts mount relayfs relay n_subbufs=8,subbuf_size=8K \
            system 'sed -n "s/rw,//; s/ro,.*/ro/; /mnt.relay/p" /proc/mounts; cat relay/.relay/channels/cpu/n_subbufs' \
            umount relay
        "#,
    );
    let expected = "mount other: ok\numount other: ok\numount other: Invalid argument\n\
                    bind relay: No such file or directory\nnull relayfs: Bad address\nnull umount: Bad address\n\
                    mount relay: No such device\n\
                    mount relay: ok\nsome-source /mnt/relay fuse.relayfsd ro\n8\numount relay: ok\n";
    assert_eq!(printed, expected);
}

/// A dead mount of relayfsd is replaced.
#[test]
fn dead_mount_is_replaced() {
    let classic = Classic::readers();
    let printed = classic.run(
        r#"
        relayfsd -f relay & daemon=$!
        until_true test -e relay/.relay/version
        kill -9 $daemon; wait $daemon 2>/dev/null
        cat relay/cpu0; mounted
        audience --exec audience-classic; echo $?; mounted
        "#,
    );
    assert!(printed.ends_with("not connected\nmounted\n0\nnot mounted\n"), "{printed}");
}

/// Of many that mount at the same time, one mounts. The others get EBUSY.
#[test]
fn one_of_many_concurrent_readers_mounts() {
    let classic = Classic::readers();
    let printed = classic.run(
        r#"
        for round in 1 2 3; do
            for i in 1 2 3 4 5 6; do audience --exec mounts mount relayfs relay - & done; wait
            umount relay
        done | sort | uniq -c | sed 's/ *//'
        "#,
    );
    assert_eq!(printed, "15 mount relay: Device or resource busy\n3 mount relay: ok\n");
}

/// Also for a user: that user's mount on /mnt/relay, and root's.
#[test]
fn other_users_do_the_same_as_root() {
    let classic = Classic::readers();
    let script = r#"
        mount -t tmpfs tmpfs /mnt; mkdir /mnt/relay; chown 65534 /mnt/relay; cd /; PATH=PROGRAMS:$PATH
        unset RELAYFS
        mounted() { grep -q " /mnt/relay " /proc/self/mountinfo && echo mounted || echo "not mounted"; }
        $nobody audience --exec audience-classic; echo "$?, $(mounted)"
        $nobody audience --exec mounts mount relayfs /mnt/relay - open /mnt/relay/cpu0 umount /mnt/relay close \
            umount /mnt/relay
        mounted
        $nobody relayfsd /mnt/relay; $nobody relay-producer --cpu 0 hello
        $nobody audience --exec audience-classic; echo "$?, $(mounted)"
        $nobody fusermount3 -u /mnt/relay
        relayfsd /mnt/relay
        $nobody audience --exec audience-classic; echo "$?, $(mounted)"
        umount /mnt/relay; chown 0 /mnt/relay
        $nobody audience --exec audience-classic; echo $?
    "#;
    let lines = where_users_mount(&script.replace("PROGRAMS", classic.path().to_str().expect("ASCII")));
    let refused = "fusermount3: user has no write access to mountpoint /mnt/relay";
    let expected = [
        "0, not mounted",
        "mount /mnt/relay: ok",
        "open /mnt/relay/cpu0: ok",
        "relayfs: cannot unmount /mnt/relay: fusermount3: failed to unmount /mnt/relay: Device or resource busy",
        "umount /mnt/relay: Device or resource busy",
        "umount /mnt/relay: ok",
        "not mounted",
        "hello",
        "",
        "0, mounted",
        "/mnt/relay/cpu0: Permission denied",
        "1, mounted",
        &format!("relayfs: cannot mount /mnt/relay: cannot mount on /mnt/relay: {refused}"),
        "mount: Input/output error",
        "1",
    ];
    assert_eq!(lines, expected);
}

/// The running daemon has inherited the reader's standard error, which may be full: no caller waits for it.
#[test]
fn inherited_standard_error_of_daemon_blocks_no_caller() {
    let classic = Classic::readers();
    let printed = classic.run(
        r#"
        mkdir bin; cp "$2/audience" "$2/librelayfs_preload.so" bin
        printf '#!/bin/sh\ntail -f /dev/null &\nexec %s "$@"\n' "$2/relayfsd" >bin/relayfsd
        chmod +x bin/relayfsd
        timeout 30 bin/audience --exec mounts mount relayfs relay - umount relay; echo $?
        timeout 30 bin/audience -m relay 2>&1; echo "$?, $(mounted)"
        printf '#!/bin/sh\nhead -c 200000 /dev/zero | tr "\\0" x >&2\nexit 1\n' >bin/relayfsd
        timeout 30 bin/audience --exec mounts mount relayfs relay - 2>said; echo "$?, $(head -c 50 said)"
        timeout 30 bin/audience -m relay 2>said; echo "$?, $(head -c 50 said)"
        "#,
    );
    let expected = [
        "mount relay: ok\numount relay: ok\n0\naudience: nothing was mounted on /mnt/relay: it is mounted for this reading\n",
        "0, not mounted\nmount relay: Input/output error\n0, ",
        "relayfs: cannot mount /mnt/relay: xxxxxxxxxxxxxxxx\n",
        "1, audience: /mnt/relay is not mounted (-m names anot\n",
    ];
    assert_eq!(printed, expected.concat());
}

/// The program's exit status and signals are its own. All words after --exec belong to the program.
#[test]
fn exec_replaces_audience_by_the_program() {
    let classic = Classic::readers();
    let printed = classic.run(
        r#"
        audience --exec sh -c 'echo "$@"; exit 7' sh -f --exec -- --help; echo $?
        audience --exec=sh -c 'kill -TERM $$'; echo $?
        echo "from stdin" | audience --exec cat
        sh -c 'echo $$; exec audience --exec sh -c "echo \$\$"' | uniq | wc -l
        LD_PRELOAD=libm.so.6 audience --exec sh -c 'echo "${LD_PRELOAD##*/}"'
        RELAYFSD=/my/own audience --exec sh -c 'echo $RELAYFSD'
        "#,
    );
    let expected = "-f --exec -- --help\n7\nTerminated\n143\nfrom stdin\n1\n\
                    librelayfs_preload.so:libm.so.6\n/my/own\n";
    assert_eq!(printed, expected);
}

/// Each bad input has a clear line, and an errno for the program.
#[test]
fn bad_input_is_one_clear_line() {
    let classic = Classic::readers();
    let printed = classic.run(
        r#"
        audience --exec nonesuch; echo $?
        audience --exec /mnt; echo $?
        audience --exec; echo $?
        audience -f --exec true; echo $?
        mkdir bin 'b n'; cp "$2/audience" bin; cp "$2/audience" "$2/librelayfs_preload.so" 'b n'
        bin/audience --exec true; echo $?
        'b n/audience' --exec true; echo $?
        mkdir -p lib/relayfs; cp "$2/librelayfs_preload.so" lib/relayfs; bin/audience --exec true; echo $?
        PATH=/usr/bin:/bin bin/audience --exec "$1/audience-classic"; echo $?
        RELAYFSD=/mnt/none audience --exec audience-classic; echo $?
        : >file
        audience --exec mounts mount relayfs none - mount relayfs file - mount relayfs file/x - mount relayfs '' - \
            mount relayfs relay nonsense umount relay
        mount -t tmpfs tmpfs relay
        audience --exec audience-classic; echo "$?, $(mounted)"
        "#,
    );
    let usage = "; try --help\n2\n";
    let expected = format!(
        "audience: cannot run 'nonesuch': No such file or directory (os error 2)\n127\n\
         audience: cannot run '/mnt': Permission denied (os error 13)\n126\n\
         audience: a value is required for '--exec <PROGRAM [ARG]...>' but none was supplied{usage}\
         audience: the argument '--exec <PROGRAM [ARG]...>' cannot be used with one or more of the other specified \
         arguments{usage}\
         audience: the library librelayfs_preload.so is missing: it belongs into /mnt/bin or /mnt/bin/../lib/relayfs\n1\n\
         audience: LD_PRELOAD cannot name /mnt/b n/librelayfs_preload.so: a colon or a space separates names there\n1\n\
         0\n\
         relayfs: cannot mount /mnt/relay: there is no relayfsd in PATH; RELAYFSD=/path/to/relayfsd says where it is\n\
         mount: No such device\n1\n\
         relayfs: cannot mount /mnt/relay: cannot run /mnt/none: No such file or directory (os error 2)\n\
         mount: No such device\n1\n\
         mount none: No such file or directory\nmount file: Not a directory\nmount file/x: Not a directory\n\
         mount : No such file or directory\n\
         relayfs: cannot mount /mnt/relay: unknown mount option 'nonsense' in -o; try --help\n\
         mount relay: Invalid argument\numount relay: Invalid argument\n\
         relayfs: cannot mount /mnt/relay: mount point /mnt/relay is busy: tmpfs from tmpfs is mounted there; umount it, \
         or choose another directory\n\
         mount: Input/output error\n1, mounted\n"
    );
    assert_eq!(printed, expected);
}

/// The library has these three functions for the program, and no name that could conflict with the program's.
#[test]
fn library_defines_no_other_names() {
    let library = program("librelayfs_preload.so");
    let mode = fs::metadata(&library).expect("the library").permissions().mode();
    assert_eq!(mode & 0o444, 0o444, "who runs a program reads it");
    let mut nm = tool("nm", "binutils");
    let names = relayfs_tests::stdout_of(
        nm.args(["--dynamic", "--defined-only", "--format=just-symbols"]).arg(&library),
    );
    assert_eq!(relayfs_tests::text(&names), "mount\numount\numount2\n");
}
