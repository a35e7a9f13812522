//! Which producers get the buffers, and which reason the others get. Daemons and producers here may run restartable
//! sequences even if the tests may not, except where that is the subject.

use std::process::Command;

use relayfs_tests::direct::{WHY_NO_SEQUENCES, with_sequences, without_sequences};
use relayfs_tests::users::{
    GROUP, NOBODY, USER, by_user, gid_of, open_to_all, program_for_all, where_users_mount,
};
use relayfs_tests::{Mount, complaint, program, run, text, tool};

const NEVER: &str = "relayfsd runs with --shared=never";
const GLOBAL: &str = "a global channel is written by the daemon alone";
const ASKED_FOR: &str = "it was asked for";

fn mount(args: &[&str]) -> Mount {
    Mount::prepared(args, with_sequences)
}

fn producer(mount: &Mount) -> Command {
    let mut command = Command::new(program("relay-producer"));
    with_sequences(&mut command).env_remove("RELAYFS").arg("-m").arg(mount.point());
    command
}

/// Returns the transport that `relay-producer -v` prints after it has written a message.
#[track_caller]
fn transport(mount: &Mount, channel: &str, mut command: Command) -> String {
    let output = run(command.args(["-v", "-c", channel, "--cpu=0", "-n", "message"]));
    let said = text(&output.stderr);
    assert!(output.status.success() && said.lines().count() == 1, "{said}");
    assert_eq!(mount.read(&format!("{channel}0")), b"message", "{said}");
    said.trim_end().split_once("; transport: ").expect("a transport").1.to_owned()
}

/// `-v` prints the reason for the socket. With `--transport=shared` the reason is an error, and nothing is written.
#[test]
fn verbose_prints_transport_and_reason() {
    let channels = ["--channel=all:global"];
    let never = ["--channel=all:global", "--shared=never"];
    let (mount, closed) = (mount(&channels), mount(&never));
    let without = Mount::prepared(&channels, without_sequences);
    let no_sequences = "relayfsd has no restartable sequences here (rseq(2), x86-64 or aarch64)";
    assert_eq!(transport(&mount, "cpu", producer(&mount)), "shared");
    let mut asking = producer(&mount);
    asking.arg("--transport=socket");
    assert_eq!(transport(&mount, "cpu", asking), format!("socket ({ASKED_FOR})"));

    let incapable = |mount: &Mount| {
        let mut command = producer(mount);
        without_sequences(&mut command);
        command
    };
    type Start<'a> = &'a dyn Fn(&Mount) -> Command;
    let cases: [(&Mount, &str, Start<'_>, &str); 6] = [
        (&closed, "cpu", &producer, NEVER),
        (&closed, "all", &producer, GLOBAL),
        (&mount, "all", &producer, GLOBAL),
        (&mount, "cpu", &incapable, WHY_NO_SEQUENCES),
        (&without, "cpu", &producer, no_sequences),
        (&without, "cpu", &incapable, WHY_NO_SEQUENCES),
    ];
    for (mount, channel, start, why) in cases {
        assert_eq!(transport(mount, channel, start(mount)), format!("socket ({why})"));
        let before = mount.stats(channel);
        let output = run(start(mount).args(["-c", channel, "--transport=shared", "message"]));
        let told = complaint("relay-producer", &output);
        assert_eq!(
            (told, output.status.code()),
            (
                format!(
                    "cannot write shared buffers: {why}; transport 'auto' or 'socket' works without them"
                ),
                Some(1)
            )
        );
        assert_eq!(mount.stats(channel), before, "nothing is written");
    }
    // A transport that is not available is an error only if the user asks for no other.
    assert_eq!(transport(&mount, "cpu", producer(&mount)), "shared");
}

/// "`--shared=never|owner|group|all`": for root's daemon, by the peer's user and group.
#[test]
fn option_shared_decides_which_users_are_trusted() {
    let member = (USER, gid_of(GROUP));
    let (root, stranger) = ((0, 0), (NOBODY, NOBODY));
    let never = |_| NEVER.to_owned();
    let not_owner =
        |uid| format!("uid {uid} is not relayfsd's user (--shared=group or --shared=all admit others)");
    let not_member = |uid| {
        format!("uid {uid} is neither relayfsd's user nor of its --group (--shared=all admits every user)")
    };
    let group = ["--group", GROUP];
    type Refusal<'a> = Option<&'a dyn Fn(u32) -> String>;
    let cases: [(&[&str], [Refusal<'_>; 3]); 5] = [
        // Root, a member of the group, another user.
        (&["--shared=never"], [Some(&never); 3]),
        (&["--shared=owner"], [None, Some(&not_owner), Some(&not_owner)]),
        (&["--shared=group"], [None, None, Some(&not_member)]),
        (&[], [None, None, Some(&not_member)]),
        (&["-o", "shared=all"], [None, None, None]),
    ];
    for (args, refusals) in cases {
        let mount = mount(&[&["--socket-mode=0666"], &group[..], args].concat());
        open_to_all(&mount);
        for ((uid, gid), refusal) in [root, member, stranger].into_iter().zip(refusals) {
            let mut command = by_user(uid, gid, program_for_all("relay-producer"));
            with_sequences(&mut command).env_remove("RELAYFS").arg("-m").arg(mount.point());
            let expected = refusal.map_or("shared".to_owned(), |why| format!("socket ({})", why(uid)));
            assert_eq!(transport(&mount, "cpu", command), expected, "{args:?}: uid {uid}, gid {gid}");
        }
    }
    // Without a group, no user is a member, not even of root's group.
    let mount = mount(&["--socket-mode=0666"]);
    open_to_all(&mount);
    let mut command = by_user(NOBODY, 0, program_for_all("relay-producer"));
    with_sequences(&mut command).arg("-m").arg(mount.point());
    assert_eq!(transport(&mount, "cpu", command), format!("socket ({})", not_member(NOBODY)));
}

/// A process is also a member by its supplementary groups, whatever the system's list of groups says. A user's daemon
/// trusts that user and root, and others by option.
#[test]
fn daemon_of_user_trusts_that_user_and_root() {
    tool("setpriv", "util-linux");
    let lines = where_users_mount(
        r#"
        unset GLIBC_TUNABLES
        cp /etc/group groups; echo "relaytest:x:54321:daemon" >>groups; mount --bind groups /etc/group
        echo user_allow_other >fuse.conf
        listed="setpriv --reuid=daemon --regid=daemon --init-groups"
        stranger="setpriv --reuid=1000 --regid=1000 --clear-groups"
        unlisted="setpriv --reuid=1000 --regid=1000 --groups=relaytest"
        of_many="setpriv --reuid=1000 --regid=1000 --groups=relaytest,$(seq -s, 60000 60200)"
        left="setpriv --reuid=daemon --regid=daemon --clear-groups"
        say() { "$@" -m relay -v x 2>&1 | sed 's/.*; transport: //'; }
        mkdir run; chown 65534 run
        for shared in owner group all; do
            echo "$shared"
            # The socket is root's: the user nobody may not give files away.
            relayfsd --group relaytest --socket-mode 0666 --shared $shared relay
            say relay-producer; say $listed relay-producer; say $stranger relay-producer
            say $unlisted relay-producer; say $of_many relay-producer; say $left relay-producer
            umount relay
            $nobody relayfsd -o allow_other --socket "$PWD/run/socket" --socket-mode 0666 --shared $shared relay
            say relay-producer; say $nobody relay-producer; say $stranger relay-producer
            $nobody fusermount3 -u relay
        done
        "#,
    );
    let not_owner = |uid| {
        format!("socket (uid {uid} is not relayfsd's user (--shared=group or --shared=all admit others))")
    };
    let not_member = |uid| {
        format!(
            "socket (uid {uid} is neither relayfsd's user nor of its --group (--shared=all admits every user))"
        )
    };
    let shared = || "shared".to_owned();
    // Root, the listed user, a stranger, one of the group, one of many groups, and the listed user without its groups;
    // of a user's daemon root, that user and a stranger.
    let roots = [
        [
            "owner".to_owned(),
            shared(),
            not_owner(1),
            not_owner(1000),
            not_owner(1000),
            not_owner(1000),
            not_owner(1),
        ],
        ["group".to_owned(), shared(), shared(), not_member(1000), shared(), shared(), not_member(1)],
        ["all".to_owned(), shared(), shared(), shared(), shared(), shared(), shared()],
    ];
    let users = [
        [shared(), shared(), not_owner(1000)],
        [shared(), shared(), not_member(1000)],
        [shared(), shared(), shared()],
    ];
    let expected: Vec<String> =
        roots.into_iter().zip(users).flat_map(|(roots, users)| roots.into_iter().chain(users)).collect();
    assert_eq!(lines, expected);
}
