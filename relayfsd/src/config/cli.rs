//! Parses the command line, and translates the words of `-o` into long options.
//!
//! Three kinds of callers write options: people (`--subbuf-size 64K`), mount(8) and fstab (`-o rw,subbuf_size=64K`),
//! and FUSE users (`-f -s -o allow_other`). So `-` and `_` are the same in every name. `-o` takes every long option,
//! and the words that all file systems share. `options.rs` has the meaning of the options.

use std::ffi::OsString;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::PathBuf;
use std::time::Duration;

use clap::error::ErrorKind;
use clap::{ArgAction, CommandFactory, Parser};
use relay::cli::duration::parse_duration;
use relay::cli::size::parse_size;
use relay::layout::state_file::STATE_FILE_MAX;

use crate::config::mount_options::{Words, parse_mode, split};
use crate::policy::share_policy::Shared;

/// Default of `--max-connections`.
const CONNECTIONS_MAX_DEFAULT: usize = 4096;

/// Default of `--max-channels`.
const CHANNELS_MAX_DEFAULT: usize = 4096;

/// Largest `--max-channels`: the state file has a line of at most 1 KiB for each channel.
const CHANNELS_MAX_MAX: usize = STATE_FILE_MAX / 1024;

/// Default of `--flush-interval`.
const FLUSH_INTERVAL_DEFAULT: &str = "200ms";

/// The `--flush-interval` that switches the flushes off.
const NEVER: &str = "never";

/// Shortest `--flush-interval`.
const FLUSH_INTERVAL_MIN: Duration = Duration::from_millis(1);

/// Relay channels for ordinary processes: any process writes messages, readers open one file per CPU.
#[derive(Debug, Parser)]
#[command(
    name = "relayfsd",
    version,
    override_usage = "relayfsd [OPTIONS] [SOURCE] MOUNTPOINT",
    args_override_self = true,
    after_help = "Sizes take K, M or G (powers of 1024). In every option's name '-' and '_' are the same.\n\
                  Returns when the file system is usable; umount (or fusermount3 -u) ends the daemon.\n\
                  Unread data then stays for the next start on the mount point; --discard removes it.\n\
                  Reading consumes: each byte goes to one reader."
)]
pub(crate) struct Cli {
    /// Set the size of a sub-buffer in bytes [default: 256K]
    #[arg(long, value_name = "SIZE", value_parser = parse_size)]
    pub(crate) subbuf_size: Option<u64>,

    /// Set the number of sub-buffers in each CPU's buffer [default: 4]
    #[arg(long, value_name = "COUNT", value_parser = parse_size)]
    pub(crate) n_subbufs: Option<u64>,

    /// When full, give up the oldest sub-buffer instead of dropping new messages
    #[arg(long)]
    pub(crate) overwrite: bool,

    /// Reserve zeroed bytes at the start of each sub-buffer [default: 0]
    #[arg(long, value_name = "SIZE", value_parser = parse_size)]
    pub(crate) header: Option<u64>,

    /// Add a channel, or set the geometry of the default channel, "cpu"; repeatable.
    /// Example: app/log:subbuf-size=64K:n-subbufs=8:overwrite:global:header=16
    #[arg(long, value_name = "NAME[:OPTION...]", action = ArgAction::Append)]
    pub(crate) channel: Vec<String>,

    /// Let poll() report data that has waited this long; "never": full sub-buffers
    #[arg(long, value_name = "DURATION", default_value = FLUSH_INTERVAL_DEFAULT, value_parser = flush_interval)]
    pub(crate) flush_interval: FlushInterval,

    /// Limit the memory of all channels [default: a quarter of the machine's or cgroup's]
    #[arg(long, value_name = "SIZE", value_parser = parse_size)]
    pub(crate) max_memory: Option<u64>,

    /// Limit the number of channels
    #[arg(long, value_name = "COUNT", default_value_t = CHANNELS_MAX_DEFAULT, value_parser = channels_max)]
    pub(crate) max_channels: usize,

    /// Limit the number of connected producers
    #[arg(long, value_name = "COUNT", default_value_t = CONNECTIONS_MAX_DEFAULT, value_parser = connections_max)]
    pub(crate) max_connections: usize,

    /// Let this group read the files and send messages
    #[arg(long, value_name = "NAME")]
    pub(crate) group: Option<String>,

    /// Set the socket's permissions; 0666 lets any user send [default: 0600, with --group 0660]
    #[arg(long, value_name = "OCTAL", value_parser = parse_mode)]
    pub(crate) socket_mode: Option<u32>,

    /// Let these users write the buffers by shared memory: never, owner, group or all
    #[arg(long, value_name = "WHO", default_value = "group", hide_possible_values = true)]
    pub(crate) shared: Shared,

    /// Create the socket here [default: /run/relayfs/NAME/socket, for users below $XDG_RUNTIME_DIR]
    #[arg(long, value_name = "PATH")]
    pub(crate) socket: Option<PathBuf>,

    /// Keep the buffers here, on a tmpfs [default: /dev/shm/relayfs-UID/NAME]
    #[arg(long, value_name = "DIR")]
    pub(crate) state_dir: Option<PathBuf>,

    /// At the end, keep every channel for the next start, also those without unread data
    #[arg(long, overrides_with = "discard")]
    pub(crate) keep: bool,

    /// At the end, remove every channel, also those with unread data
    #[arg(long, overrides_with = "keep")]
    pub(crate) discard: bool,

    /// Log to this file when in the background [default: syslog]; SIGHUP reopens it
    #[arg(long, value_name = "FILE")]
    pub(crate) log_file: Option<PathBuf>,

    /// Stay in the foreground and log to standard error
    #[arg(short, long)]
    pub(crate) foreground: bool,

    /// Log everything; implies -f
    #[arg(short, long)]
    pub(crate) debug: bool,

    /// Serve file operations with a single thread
    #[arg(short, long)]
    pub(crate) single_thread: bool,

    /// Say what was mounted, where and how large
    #[arg(short, long)]
    pub(crate) verbose: bool,

    /// Set mount options: any long option as NAME[=VALUE], and those all file systems share
    #[arg(short = 'o', value_name = "OPTION[,OPTION...]", action = ArgAction::Append)]
    mount_options: Vec<String>,

    /// Any name as the source in /proc/mounts, then the directory to mount on
    #[arg(value_name = "MOUNTPOINT", required = true, num_args = 1..=2)]
    pub(crate) operands: Vec<PathBuf>,
}

/// `--flush-interval`; `None` is never.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct FlushInterval(pub(crate) Option<Duration>);

fn flush_interval(text: &str) -> Result<FlushInterval, String> {
    if text == NEVER {
        return Ok(FlushInterval(None));
    }
    let interval = parse_duration(text).map_err(|error| format!("{error}; or {NEVER}"))?;
    if interval < FLUSH_INTERVAL_MIN {
        return Err(format!("at least {FLUSH_INTERVAL_MIN:?}, or {NEVER}"));
    }
    Ok(FlushInterval(Some(interval)))
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
    Cli::command().get_arguments().any(|arg| arg.get_long() == Some(name))
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
