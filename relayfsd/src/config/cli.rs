//! Parses the command line, and translates the words of `-o` into long options.
//!
//! Three kinds of callers write options: people (`--subbuf-size 64K`), mount(8) and fstab (`-o rw,subbuf_size=64K`),
//! and FUSE users (`-f -s -o allow_other`). So `-` and `_` are the same in every name. `-o` takes every long option,
//! and the words that all file systems share. `options.rs` has the meaning of the options.

use std::ffi::OsString;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::PathBuf;

use clap::error::ErrorKind;
use clap::{ArgAction, Args, CommandFactory, Parser, Subcommand};
use relay::cli::flush_interval::{FlushInterval, parse_flush_interval};
use relay::cli::size::parse_size;
use relay::layout::state_file::STATE_FILE_MAX;
use relay_stdio::flags::{help, version};

use crate::config::mount_options::{Words, parse_mode, split};
use crate::policy::share_policy::Shared;

/// Default of `--max-connections`.
pub(crate) const CONNECTIONS_MAX_DEFAULT: usize = 4096;

/// Default of `--max-channels`.
const CHANNELS_MAX_DEFAULT: usize = 4096;

/// Largest `--max-channels`: the state file has a line of at most 1 KiB for each channel.
const CHANNELS_MAX_MAX: usize = STATE_FILE_MAX / 1024;

/// Default of `--flush-interval`.
const FLUSH_INTERVAL_DEFAULT: &str = "200ms";

/// Groups of options, in `--help` and in the man page.
const CHANNELS: &str = "Channels";
const LIMITS: &str = "Limits";
const ACCESS: &str = "Access";
const PLACES: &str = "Places";
const RUNNING: &str = "Running";
const OTHER: &str = "Other";

/// Mount relay channels for ordinary processes
///
/// relayfsd mounts a directory with one file for each CPU. Any process writes messages, by the library, by
/// relay-producer or by a file. Readers open the files. Reading consumes: each byte goes to one reader.
///
/// MOUNTPOINT is the directory to mount on. SOURCE is any name, which /proc/mounts then shows as the source.
///
/// relayfsd returns when the file system is usable, and continues in the background. umount(8), or fusermount3 -u, ends
/// it. What is unread then stays for the next start on the mount point, also after a crash.
///
/// Sizes take K, M or G, powers of 1024. Durations are 200ms, 10s, 5m; a number alone is seconds. In every option's name
/// '-' and '_' are the same. Every long option is also a mount option: -o subbuf_size=64K.
#[derive(Debug, Parser)]
#[command(
    name = "relayfsd",
    version,
    override_usage = "relayfsd [OPTIONS] [SOURCE] MOUNTPOINT\n       relayfsd doctor [MOUNTPOINT]",
    args_override_self = true,
    args_conflicts_with_subcommands = true,
    subcommand_negates_reqs = true,
    disable_help_subcommand = true,
    subcommand_help_heading = "Commands",
    disable_help_flag = true,
    disable_version_flag = true,
    args = [help(OTHER), version(OTHER)],
    after_help = "SOURCE is any name, shown in /proc/mounts. Sizes take K, M, G (powers of 1024).\n\
                  In every option's name '-' and '_' are the same.\n\
                  Returns when the file system is usable; umount, or fusermount3 -u, ends it.\n\
                  Unread data then stays for the next start; --discard removes it.\n\
                  Reading consumes: each byte goes to one reader. See relayfsd(8)."
)]
pub(crate) struct Cli {
    /// Set the size of a sub-buffer [default: 256K]
    #[arg(long, value_name = "SIZE", value_parser = parse_size, help_heading = CHANNELS)]
    pub(crate) subbuf_size: Option<u64>,

    /// Set the sub-buffers of each CPU [default: 4]
    #[arg(long, value_name = "COUNT", value_parser = parse_size, help_heading = CHANNELS)]
    pub(crate) n_subbufs: Option<u64>,

    /// When full, give up the oldest messages
    ///
    /// Without it a full buffer drops new messages. The oldest are given up by whole sub-buffers.
    #[arg(long, help_heading = CHANNELS)]
    pub(crate) overwrite: bool,

    /// Begin sub-buffers with zeroes [default: 0]
    #[arg(long, value_name = "SIZE", value_parser = parse_size, help_heading = CHANNELS)]
    pub(crate) header: Option<u64>,

    /// Add a channel, or change "cpu"; repeatable
    ///
    /// The options of a channel are subbuf-size=SIZE, n-subbufs=COUNT, overwrite, header=SIZE, global, timed and raw:
    /// app/log:timed:subbuf-size=64K:n-subbufs=8:overwrite. What is left out is as for all channels. A global channel
    /// has one buffer for all CPUs. A timed channel stamps each message, see relay(7). The default channel is cpu.
    #[arg(long, value_name = "NAME[:OPT...]", action = ArgAction::Append, help_heading = CHANNELS)]
    pub(crate) channel: Vec<String>,

    /// Create a channel when a producer names it
    ///
    /// Without it a channel that does not exist is made by mkdir(1) in .relay/channels, by a producer that asks for it,
    /// as relay-producer --create does, or by --channel. With it every producer that opens a channel to write makes it,
    /// with the daemon's geometry, within its user's limits. Readers never make a channel.
    #[arg(long, help_heading = CHANNELS)]
    pub(crate) create_on_write: bool,

    /// Delay of poll(), or never
    ///
    /// While a process sleeps in poll(2), data waits this long at most for its sub-buffer to be finished. With never
    /// poll reports full sub-buffers alone, as the kernel's relay does.
    #[arg(long, value_name = "DURATION", default_value = FLUSH_INTERVAL_DEFAULT, value_parser = parse_flush_interval,
          help_heading = CHANNELS)]
    pub(crate) flush_interval: FlushInterval,

    /// Limit the memory of all channels [default: 1/4]
    ///
    /// The default is a quarter of the smallest of the machine's memory, the limit of the daemon's control group, and
    /// the free space of the state directory.
    #[arg(long, value_name = "SIZE", value_parser = parse_size, help_heading = LIMITS)]
    pub(crate) max_memory: Option<u64>,

    /// Limit the channels
    #[arg(long, value_name = "COUNT", default_value_t = CHANNELS_MAX_DEFAULT, value_parser = channels_max,
          help_heading = LIMITS)]
    pub(crate) max_channels: usize,

    /// Limit the producers
    #[arg(long, value_name = "COUNT", default_value_t = CONNECTIONS_MAX_DEFAULT, value_parser = connections_max,
          help_heading = LIMITS)]
    pub(crate) max_connections: usize,

    /// Let this group read the files and send
    #[arg(long, value_name = "NAME", help_heading = ACCESS)]
    pub(crate) group: Option<String>,

    /// Let this group see status and metrics
    ///
    /// It may read status, stats and metrics, and can consume nothing.
    #[arg(long, value_name = "NAME", help_heading = ACCESS)]
    pub(crate) stats_group: Option<String>,

    /// Set the socket's mode [default: 0600]
    ///
    /// 0666 lets any user send. With --group the default is 0660. The same mode says which users may make a channel by
    /// mkdir(1).
    #[arg(long, value_name = "OCTAL", value_parser = parse_mode, help_heading = ACCESS)]
    pub(crate) socket_mode: Option<u32>,

    /// Users that get the buffers
    ///
    /// Says which users get the buffers, to write them directly: never, owner, group or all. Sharing means trusting:
    /// such a process can damage what others wrote to the channel. never: none; owner: root and the daemon's user;
    /// group: these, and processes that have the group of --group; all: every user that may connect. Others send by
    /// the socket.
    #[arg(long, value_name = "USERS", default_value = "group", hide_possible_values = true, help_heading = ACCESS)]
    pub(crate) shared: Shared,

    /// Create the socket here
    ///
    /// By default it is /run/relayfs/NAME/socket, and for a user the same below $XDG_RUNTIME_DIR. NAME is the mount
    /// point as systemd-escape --path writes it.
    #[arg(long, value_name = "PATH", help_heading = PLACES)]
    pub(crate) socket: Option<PathBuf>,

    /// Keep the buffers here, on a tmpfs
    ///
    /// By default that is /dev/shm/relayfs-UID/NAME.
    #[arg(long, value_name = "DIR", help_heading = PLACES)]
    pub(crate) state_dir: Option<PathBuf>,

    /// Log here in the background [default: syslog]
    ///
    /// The file is made with mode 0640 if need be. SIGHUP opens it again. The variable RUST_LOG says how much is logged.
    #[arg(long, value_name = "FILE", help_heading = PLACES)]
    pub(crate) log_file: Option<PathBuf>,

    /// At the end, keep every channel
    ///
    /// The next start on the mount point then has all channels and counts. Without --keep and --discard the channels stay
    /// that have unread data or a live producer.
    #[arg(long, overrides_with = "discard", help_heading = RUNNING)]
    pub(crate) keep: bool,

    /// At the end, remove every channel
    ///
    /// That includes unread data.
    #[arg(long, overrides_with = "keep", help_heading = RUNNING)]
    pub(crate) discard: bool,

    /// Stay, and log to standard error
    #[arg(short, long, help_heading = RUNNING)]
    pub(crate) foreground: bool,

    /// Log everything; implies -f
    #[arg(short, long, help_heading = RUNNING)]
    pub(crate) debug: bool,

    /// Serve files with one thread
    #[arg(short, long, help_heading = RUNNING)]
    pub(crate) single_thread: bool,

    /// Say what was mounted, where and how large
    #[arg(short, long, help_heading = RUNNING)]
    pub(crate) verbose: bool,

    /// Set mount options: NAME[=VALUE],...
    ///
    /// Any long option is one, and those that all file systems share: ro, rw, noexec, noatime, allow_other, uid=, gid=,
    /// mode=, fsname=, context= and so on.
    #[arg(short = 'o', value_name = "OPTION,...", action = ArgAction::Append, help_heading = RUNNING)]
    mount_options: Vec<String>,

    /// Perhaps a source, then the mount point. The usage explains them.
    #[arg(value_name = "MOUNTPOINT", required = true, num_args = 1..=2, hide = true)]
    pub(crate) operands: Vec<PathBuf>,

    #[command(subcommand)]
    pub(crate) action: Option<Action>,
}

/// What relayfsd does besides mounting.
#[derive(Debug, Subcommand)]
pub(crate) enum Action {
    /// Check this machine for what relayfsd needs
    ///
    /// For each thing it says whether it works, what it costs if not, and the command that mends it. It changes nothing,
    /// mounts nothing, and consumes nothing. Run it as the user that mounts.
    Doctor(Doctor),
}

/// The options of `relayfsd doctor`.
#[derive(Clone, Debug, PartialEq, Eq, Args)]
pub(crate) struct Doctor {
    /// Look at this state directory
    ///
    /// By default that is /dev/shm/relayfs-UID/NAME, as for the daemon.
    #[arg(long, value_name = "DIR", help_heading = PLACES)]
    pub(crate) state_dir: Option<PathBuf>,

    /// Mount point [$RELAYFS or /mnt/relay]
    #[arg(value_name = "MOUNTPOINT", help_heading = PLACES)]
    pub(crate) mount_point: Option<PathBuf>,
}

fn channels_max(text: &str) -> Result<usize, String> {
    match text.parse() {
        Ok(count) if (1..=CHANNELS_MAX_MAX).contains(&count) => Ok(count),
        _ => Err(format!("a number from 1 to {CHANNELS_MAX_MAX}")),
    }
}

fn connections_max(text: &str) -> Result<usize, String> {
    match text.parse() {
        Ok(count) if count > 0 => Ok(count),
        _ => Err("a number from 1 up".to_owned()),
    }
}

/// Reads a command line. `sloppy`: unknown words of `-o` are ignored.
///
/// Words of `-o` are taken first, so options of the command line override them.
pub(crate) fn parse(
    args: impl IntoIterator<Item = OsString>,
    sloppy: bool,
) -> Result<(Cli, Words), clap::Error> {
    let mut args: Vec<OsString> = args.into_iter().collect();
    let end = args.iter().position(|arg| arg == "--").unwrap_or(args.len());
    args[..end].iter_mut().for_each(dash_names);

    let cli = Cli::try_parse_from(&args)?;
    let mut words = Words::default();
    let mut long_options = Vec::new();
    for word in cli.mount_options.iter().flat_map(|list| split(list)) {
        let (key, value) = match word.split_once('=') {
            Some((key, value)) => (key, Some(value)),
            None => (word, None),
        };
        if words.take(key, value).map_err(|message| usage_error(format!("-o {word}: {message}")))? {
            continue;
        }
        let name = key.replace('_', "-");
        if !is_long_option(&name) {
            if sloppy {
                continue;
            }
            return Err(usage_error(format!("unknown mount option '{word}' in -o")));
        }
        long_options.push(value.map_or(format!("--{name}"), |value| format!("--{name}={value}")).into());
    }
    if long_options.is_empty() {
        return Ok((cli, words));
    }
    args.splice(1..1, long_options);
    Ok((Cli::try_parse_from(&args)?, words))
}

/// Makes a usage error in clap's form, exit status 2.
pub(crate) fn usage_error(message: String) -> clap::Error {
    Cli::command().error(ErrorKind::ValueValidation, message)
}

/// Changes `--n_subbufs=4` to `--n-subbufs=4`. Values and other arguments stay unchanged.
fn dash_names(arg: &mut OsString) {
    if arg.as_bytes().starts_with(b"--") {
        let mut bytes = std::mem::take(arg).into_vec();
        for b in bytes.iter_mut().take_while(|b| **b != b'=').filter(|b| **b == b'_') {
            *b = b'-';
        }
        *arg = OsString::from_vec(bytes);
    }
}

fn is_long_option(name: &str) -> bool {
    let asks_only = ["help", "version"].contains(&name);
    !asks_only && Cli::command().get_arguments().any(|arg| arg.get_long() == Some(name))
}

#[cfg(test)]
mod tests {
    use nix::mount::MsFlags;

    use super::*;

    fn parse(line: &str) -> Result<(Cli, Words), clap::Error> {
        super::parse(line.split_whitespace().map(OsString::from), false)
    }

    fn message(line: &str) -> String {
        let error = parse(line).unwrap_err();
        assert_eq!(error.exit_code(), 2, "{line}");
        error.to_string()
    }

    #[test]
    fn dashes_and_underscores_are_the_same() {
        for line in [
            "relayfsd --n-subbufs=8 --subbuf_size 64K /mnt",
            "relayfsd /mnt --n_subbufs 8 --subbuf-size=64k",
            "relayfsd /mnt -o n_subbufs=8,subbuf-size=64K",
            "relayfsd /mnt -osubbuf_size=64K -o n-subbufs=8",
        ] {
            let (cli, _) = parse(line).unwrap();
            assert_eq!((cli.n_subbufs, cli.subbuf_size), (Some(8), Some(65536)), "{line}");
        }
        let (cli, _) = parse("relayfsd --log_file=/a_b --channel a_b:n_subbufs=2 -- --odd_name").unwrap();
        assert_eq!(cli.log_file.unwrap().to_str(), Some("/a_b"));
        assert_eq!(cli.channel, ["a_b:n_subbufs=2"]);
        assert_eq!(cli.operands[0].to_str(), Some("--odd_name"));
    }

    #[test]
    fn options_that_mount_passes_are_accepted() {
        let line = "relayfsd relayfs /mnt/relay -o rw,nofail,_netdev,user=me,noauto,x-systemd.automount,dev,suid,\
                    group,comment=hi,relatime,channel=app/log:overwrite,channel=b,overwrite,debug,socket_mode=0666";
        let (cli, words) = parse(line).unwrap();
        assert_eq!(cli.operands, ["relayfs", "/mnt/relay"].map(PathBuf::from));
        assert_eq!(cli.channel, ["app/log:overwrite", "b"]);
        assert!(cli.overwrite && cli.debug && !cli.foreground);
        assert_eq!(cli.socket_mode, Some(0o666));
        assert_eq!(cli.group, None);
        assert_eq!(words, Words::default());
    }

    #[test]
    fn words_of_fuse_and_of_mount_are_collected() {
        let (_, words) =
            parse("relayfsd /mnt -o ro,noexec,noatime,exec,allow_other,default_permissions,auto_unmount,uid=5,gid=6,mode=0440,fsname=x=y")
                .unwrap();
        let flags = MsFlags::MS_NOSUID | MsFlags::MS_NODEV | MsFlags::MS_RDONLY | MsFlags::MS_NOATIME;
        assert_eq!(words.flags, flags);
        assert!(words.allow_other && words.auto_unmount);
        assert_eq!((words.uid, words.gid, words.mode), (Some(5), Some(6), Some(0o440)));
        assert_eq!(words.fsname.as_deref(), Some("x=y"));
    }

    #[test]
    fn command_line_overrides_mount_options() {
        let (cli, _) = parse("relayfsd --n-subbufs 2 --group adm /mnt -o n_subbufs=8,group=daemon").unwrap();
        assert_eq!((cli.n_subbufs, cli.group.as_deref()), (Some(2), Some("adm")));
    }

    #[test]
    fn unknown_words_are_ignored_if_sloppy() {
        let line = "relayfsd /mnt -o rw,nonsense=1,n_subbufs=8";
        let (cli, _) = super::parse(line.split(' ').map(OsString::from), true).unwrap();
        assert_eq!(cli.n_subbufs, Some(8));
    }

    #[test]
    fn unknown_words_are_refused_by_name() {
        for (line, part) in [
            ("relayfsd /mnt -o rw,nonsense", "'nonsense'"),
            ("relayfsd /mnt -o nonsense=1", "'nonsense=1'"),
            ("relayfsd /mnt -o ro=1", "'ro=1'"),
            ("relayfsd /mnt -o help", "'help'"),
            ("relayfsd /mnt -o allow_root", "allow_other"),
            ("relayfsd /mnt -o subtype=other", "fuse.relayfsd"),
            ("relayfsd /mnt -o overwrite=1", "--overwrite"),
            ("relayfsd /mnt -o n_subbufs", "--n-subbufs"),
            ("relayfsd /mnt -o uid=me", "'me' is not a number"),
            ("relayfsd /mnt --what", "--what"),
            ("relayfsd", "MOUNTPOINT"),
            ("relayfsd a b c", "'c'"),
        ] {
            assert!(message(line).contains(part), "{line}: {}", message(line));
        }
    }
}
