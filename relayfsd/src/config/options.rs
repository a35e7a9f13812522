//! The daemon's options: the command line, checked and with defaults filled in.

use std::ffi::OsString;
use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use nix::mount::MsFlags;
use nix::unistd::{Group, getegid, geteuid};
use relay::layout::channel_name::DEFAULT_CHANNEL;
use relay::{ChannelName, GeometrySpec, Mode};

use crate::config::cli::{self, Action, Cli, Doctor};
use crate::config::mount_options::Words;
use crate::policy::share_policy::Sharing;

/// Number of threads that serve file operations, unless `-s` asks for one.
const FUSE_THREADS: usize = 2;
/// Source shown in /proc/mounts, if none is named.
const FSNAME_DEFAULT: &str = "relayfs";

/// All options. Paths are absolute, since a daemon's working directory is `/`.
#[derive(Debug)]
pub(crate) struct Options {
    /// The mount point as named; `mount::resolve` follows its links.
    pub(crate) mount_point: PathBuf,
    /// Default geometry of channels.
    pub(crate) general: GeometrySpec,
    /// Whether every producer that opens a channel to write creates it.
    pub(crate) create_on_write: bool,
    /// The channels to open at the start, the default first, each with `general` filled in.
    pub(crate) channels: Vec<(ChannelName, GeometrySpec)>,
    /// Longest time that data waits in an unfinished sub-buffer while a process polls.
    pub(crate) flush_interval: Option<Duration>,
    /// Memory limit of all channels together, in bytes.
    pub(crate) memory_max: Option<u64>,
    /// Most channels at once.
    pub(crate) channels_max: usize,
    /// Most connections at once.
    pub(crate) connections_max: usize,
    /// The socket's path, if it was named.
    pub(crate) socket: Option<PathBuf>,
    /// Permission bits of the socket.
    pub(crate) socket_mode: u32,
    /// Group of the socket, if it is not the daemon's own.
    pub(crate) socket_gid: Option<u32>,
    /// Which users may write the buffers directly.
    pub(crate) sharing: Sharing,
    /// The state directory, if it was named.
    pub(crate) state_dir: Option<PathBuf>,
    /// Which channels stay for the next start after a clean end.
    pub(crate) keep: Keep,
    /// The log file in the background, in place of syslog.
    pub(crate) log_file: Option<PathBuf>,
    pub(crate) foreground: bool,
    pub(crate) debug: bool,
    pub(crate) verbose: bool,
    /// Owner, group and modes of the files.
    pub(crate) access: Access,
    /// Options for mounting and serving.
    pub(crate) mount: MountOptions,
}

/// What a command line asks for.
#[derive(Debug)]
pub(crate) enum Request {
    /// Mount, and serve.
    Serve(Box<Options>),
    /// Check the machine.
    Doctor(Doctor),
}

/// Which channels stay for the next daemon after a clean end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Keep {
    /// `--discard`: none.
    Nothing,
    /// The channels with unread data, and those that a live producer has mapped.
    Unread,
    /// `--keep`: every channel, also the empty ones, with their counters.
    All,
}

/// Owner, group and modes of the files.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Access {
    /// Owner of all files and directories.
    pub(crate) uid: u32,
    /// Group of all files and directories.
    pub(crate) gid: u32,
    /// `--group`: the group may read, send and give back.
    ///
    /// It reads `cpuN`, its snapshots and `stats`, writes `msg`, and gives sub-buffers back.
    pub(crate) group_reads: bool,
    /// Permission bits of `cpuN`, if `-o mode=` sets them.
    pub(crate) mode: Option<u32>,
    /// Write bits, besides the owner's, of the directories in which mkdir(2) makes channels.
    ///
    /// Those that may send may also create channels, by the socket. So these are the bits of the socket.
    pub(crate) makers: u32,
    /// `--stats-group`: the group that may read `status`, `stats` and `metrics`.
    pub(crate) stats_gid: Option<u32>,
}

/// Options for mounting, and for serving requests.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct MountOptions {
    /// Whether to admit other users. By default, FUSE admits only the mounting user.
    pub(crate) allow_other: bool,
    /// Whether fusermount3 waits for the daemon's death, and unmounts then.
    pub(crate) auto_unmount: bool,
    /// Number of threads that serve file operations.
    pub(crate) threads: usize,
    /// Source shown in /proc/mounts.
    pub(crate) fsname: String,
    /// nosuid, nodev, and those of ro, noexec, noatime that the options name.
    pub(crate) flags: MsFlags,
    /// SELinux's words.
    pub(crate) contexts: Vec<String>,
}

impl Access {
    /// Returns the permission bits of the files of buffers.
    pub(crate) fn buffer_mode(&self) -> u32 {
        self.mode.unwrap_or(if self.group_reads { 0o440 } else { 0o400 })
    }
}

impl Request {
    /// Reads a command line, program name included. `sloppy`: unknown mount options are ignored.
    ///
    /// Errors know how to print themselves, and their exit status. `--help` and `--version` are such errors, too.
    pub(crate) fn parse(
        args: impl IntoIterator<Item = OsString>,
        sloppy: bool,
    ) -> Result<Request, clap::Error> {
        let (cli, words) = cli::parse(args, sloppy)?;
        match cli.action {
            Some(Action::Doctor(doctor)) => Ok(Request::Doctor(doctor)),
            None => Options::new(cli, words, geteuid().is_root())
                .map(|options| Request::Serve(Box::new(options)))
                .map_err(cli::usage_error),
        }
    }
}

impl Options {
    fn new(cli: Cli, words: Words, by_root: bool) -> Result<Options, String> {
        let general = GeometrySpec {
            subbuf_size: cli.subbuf_size,
            n_subbufs: cli.n_subbufs,
            header: cli.header,
            mode: cli.overwrite.then_some(Mode::Overwrite),
            global: None,
            timed: None,
        };
        general.build().map_err(|error| error.to_string())?;
        if words.gid.is_some() && cli.group.is_some() {
            return Err("--group and -o gid= exclude each other".into());
        }
        let group_id =
            |option, name: &Option<String>| name.as_deref().map(|name| group_id(option, name)).transpose();
        let group = group_id("--group", &cli.group)?;
        let stats_gid = group_id("--stats-group", &cli.stats_group)?;
        // Root mounts for all users, another user only for that user. A group must enter the mount to read there.
        let allow_other = by_root || words.allow_other || group.is_some() || stats_gid.is_some();
        if words.auto_unmount && !allow_other {
            return Err("-o auto_unmount needs -o allow_other".into());
        }
        let (mount_point, source) = match cli.operands.as_slice() {
            [source, mount_point] => (mount_point, Some(source.to_string_lossy().into_owned())),
            [mount_point] => (mount_point, None),
            _ => return Err("one mount point is needed".into()),
        };
        let socket_mode = cli.socket_mode.unwrap_or(if group.is_some() { 0o660 } else { 0o600 });
        let access = Access {
            uid: words.uid.unwrap_or_else(|| geteuid().as_raw()),
            gid: group.or(words.gid).unwrap_or_else(|| getegid().as_raw()),
            group_reads: group.is_some(),
            mode: words.mode,
            makers: socket_mode & 0o022,
            stats_gid,
        };
        Ok(Options {
            mount_point: absolute(mount_point)?,
            channels: channels(&cli.channel, &general)?,
            general,
            create_on_write: cli.create_on_write,
            flush_interval: cli.flush_interval.0,
            memory_max: cli.max_memory,
            channels_max: cli.max_channels,
            connections_max: cli.max_connections,
            socket: cli.socket.as_deref().map(absolute).transpose()?,
            socket_mode,
            socket_gid: group,
            sharing: Sharing {
                with: cli.shared,
                gid: group,
                owner: (access.uid, access.gid),
                mode: access.buffer_mode(),
            },
            state_dir: cli.state_dir.as_deref().map(absolute).transpose()?,
            keep: match (cli.keep, cli.discard) {
                (true, _) => Keep::All,
                (_, true) => Keep::Nothing,
                _ => Keep::Unread,
            },
            log_file: cli.log_file.as_deref().map(absolute).transpose()?,
            foreground: cli.foreground || cli.debug,
            debug: cli.debug,
            verbose: cli.verbose,
            access,
            mount: MountOptions {
                allow_other,
                auto_unmount: words.auto_unmount,
                threads: if cli.single_thread { 1 } else { FUSE_THREADS },
                fsname: words.fsname.or(source).unwrap_or_else(|| FSNAME_DEFAULT.to_owned()),
                flags: words.flags,
                contexts: words.contexts,
            },
        })
    }
}

/// Returns the channels to open: the default channel, and those that `--channel` names.
fn channels(args: &[String], general: &GeometrySpec) -> Result<Vec<(ChannelName, GeometrySpec)>, String> {
    let mut channels: Vec<(ChannelName, GeometrySpec)> = Vec::new();
    for arg in args {
        let fail = |reason: &dyn std::fmt::Display| format!("--channel {arg}: {reason}");
        let (name, spec) = arg.split_once(':').unwrap_or((arg, ""));
        let name: ChannelName = name.parse().map_err(|error| fail(&error))?;
        let spec = spec.parse::<GeometrySpec>().map_err(|error| fail(&error))?.or(general);
        spec.build().map_err(|error| fail(&error))?;
        for (other, _) in &channels {
            check_together(&name, other).map_err(|reason| fail(&reason))?;
        }
        channels.push((name, spec));
    }
    let default: ChannelName =
        DEFAULT_CHANNEL.parse().map_err(|error: relay::NameError| error.to_string())?;
    match channels.iter().position(|(name, _)| *name == default) {
        Some(index) => channels[..=index].rotate_right(1),
        None => {
            for (name, _) in &channels {
                check_together(name, &default).map_err(|reason| format!("--channel {name}: {reason}"))?;
            }
            channels.insert(0, (default, *general));
        }
    }
    Ok(channels)
}

fn check_together(name: &ChannelName, other: &ChannelName) -> Result<(), String> {
    if name == other {
        Err("this channel is given twice".into())
    } else {
        name.conflict_with(other).map_or(Ok(()), Err)
    }
}

/// Returns the number of a group that an option gives by name or number.
fn group_id(option: &str, group: &str) -> Result<u32, String> {
    if let Ok(gid) = group.parse() {
        return Ok(gid);
    }
    match Group::from_name(group) {
        Ok(Some(group)) => Ok(group.gid.as_raw()),
        Ok(None) => Err(format!("{option} {group}: no such group")),
        Err(errno) => Err(format!("{option} {group}: {}", errno.desc())),
    }
}

fn absolute(path: &Path) -> Result<PathBuf, String> {
    std::path::absolute(path).map_err(|error: io::Error| format!("'{}': {error}", path.display()))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn options(line: &str, by_root: bool) -> Result<Options, String> {
        let (cli, words) =
            cli::parse(line.split_whitespace().map(OsString::from), false).map_err(|e| e.to_string())?;
        Options::new(cli, words, by_root)
    }

    fn geometries(options: &Options) -> Vec<String> {
        let one = |(name, spec): &(ChannelName, GeometrySpec)| format!("{name}:{}", spec.build().unwrap());
        options.channels.iter().map(one).collect()
    }

    #[test]
    fn mount_point_alone_is_enough() {
        let options = options("relayfsd /mnt/relay", true).unwrap();
        assert_eq!(options.mount_point, Path::new("/mnt/relay"));
        assert_eq!(geometries(&options), ["cpu:subbuf-size=256K:n-subbufs=4"]);
        assert_eq!((options.connections_max, options.channels_max), (4096, 4096));
        assert_eq!((options.socket_mode, options.socket_gid), (0o600, None));
        assert_eq!((options.mount.threads, options.mount.fsname.as_str()), (2, "relayfs"));
        assert!(!options.foreground && options.memory_max.is_none() && options.socket.is_none());
    }

    #[test]
    fn channels_inherit_the_general_options() {
        let line = "relayfsd --overwrite --n-subbufs 2 /m --channel a:n-subbufs=3 --channel cpu:no_overwrite";
        let options = options(line, true).unwrap();
        assert_eq!(
            geometries(&options),
            ["cpu:subbuf-size=256K:n-subbufs=2", "a:subbuf-size=256K:n-subbufs=3:overwrite"]
        );
        assert_eq!(options.general.n_subbufs, Some(2));
    }

    #[test]
    fn wrong_channels_and_values_are_refused_by_name() {
        for (args, part) in [
            ("--channel a --channel a", "--channel a: this channel is given twice"),
            (
                "--channel a --channel b --channel a1:overwrite",
                "a1:overwrite: a1 is the file of CPU 1 of channel a; choose a name",
            ),
            ("--channel cpu7", "--channel cpu7: cpu7 is the file of CPU 7 of channel cpu"),
            ("--channel cpu --channel cpu:header=1", "given twice"),
            ("--channel .a", "--channel .a: '.a' is not a channel name"),
            ("--channel a:n-subbufs=0", "--channel a:n-subbufs=0: n-subbufs 0 is out of range"),
            ("--channel a:size=1", "unknown channel option 'size=1'"),
            ("--subbuf-size 0", "subbuf-size 0 is out of range"),
            ("--subbuf-size 16 --header 16", "leaves no room"),
            ("--n-subbufs many", "'many' is not a size"),
            ("--max-memory 99999999999G", "too large"),
            ("--socket-mode rw", "'rw' is not a mode"),
            ("--group no-such-group-here", "--group no-such-group-here: no such group"),
            ("--group 0 -o gid=1", "exclude each other"),
            ("--stats-group no-such-group-here", "--stats-group no-such-group-here: no such group"),
        ] {
            let error = options(&format!("relayfsd /mnt {args}"), true).unwrap_err();
            assert!(error.contains(part), "{args}: {error}");
        }
    }

    #[test]
    fn root_mounts_for_all_users_and_a_user_for_itself() {
        let mount = |line, by_root| options(line, by_root).unwrap().mount;
        let root = mount("relayfsd /mnt", true);
        assert!(root.allow_other);
        let user = mount("relayfsd /mnt", false);
        assert!(!user.allow_other);
        let open = mount("relayfsd /mnt -o allow_other", false);
        assert!(open.allow_other);
        assert!(options("relayfsd /mnt -o auto_unmount", false).is_err());
        assert!(options("relayfsd /mnt -o auto_unmount", true).unwrap().mount.auto_unmount);
    }

    #[test]
    fn group_option_admits_a_group() {
        let options = options("relayfsd src /mnt --group 0 -o uid=7,mode=0444 -s -d", false).unwrap();
        let access =
            Access { uid: 7, gid: 0, group_reads: true, mode: Some(0o444), makers: 0o020, stats_gid: None };
        assert_eq!(options.access, access);
        assert_eq!((options.socket_mode, options.socket_gid), (0o660, Some(0)));
        assert_eq!((options.mount.threads, options.mount.fsname.as_str()), (1, "src"));
        assert!(options.foreground && options.mount.allow_other);
    }

    #[test]
    fn stats_group_enters_the_mount_and_reads_no_messages() {
        let options = options("relayfsd /mnt --stats_group 5", false).unwrap();
        assert_eq!((options.access.stats_gid, options.access.group_reads), (Some(5), false));
        assert_eq!((options.access.buffer_mode(), options.socket_mode), (0o400, 0o600));
        assert!(options.mount.allow_other);
    }
}
