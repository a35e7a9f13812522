//! The daemon's command line, the lists of `-o` in it, and the small languages in those.

use std::ffi::OsString;
use std::os::unix::ffi::OsStringExt;
use std::time::Duration;

use relay::cli::duration::parse_duration;
use relay::cli::size::{format_size, parse_size};
use relay::{Geometry, GeometrySpec};

use crate::config::mount_options::parse_mode;
use crate::config::options::Request;

/// The first byte says what the rest is: texts of the small languages, channels, a list for `-o`, or a whole command line.
/// They are one in a line.
pub fn options(data: &[u8]) {
    let Some((kind, rest)) = data.split_first() else { return };
    let lines = || rest.split(|&b| b == b'\n').take(16);
    let args: Vec<Vec<u8>> = match kind % 4 {
        0 => return lines().for_each(|line| small(&String::from_utf8_lossy(line))),
        1 => lines().flat_map(|line| [b"--channel".to_vec(), line.to_vec()]).collect(),
        2 => lines().flat_map(|line| [b"-o".to_vec(), line.to_vec()]).collect(),
        _ => return command_line(lines().map(<[u8]>::to_vec).collect()),
    };
    command_line([vec![b"/mnt".to_vec()], args].concat());
}

fn small(text: &str) {
    if let Ok(size) = parse_size(text) {
        assert_eq!(parse_size(&format_size(size)), Ok(size));
    }
    if let Ok(duration) = parse_duration(text) {
        assert!(duration <= Duration::MAX);
    }
    assert!(parse_mode(text).is_ok_and(|mode| mode <= 0o777) || parse_mode(text).is_err());
    match text.parse::<GeometrySpec>().and_then(GeometrySpec::build) {
        Ok(geometry) => is_sound(&geometry),
        Err(error) => assert!(!error.to_string().is_empty()),
    }
}

fn is_sound(geometry: &Geometry) {
    assert!(
        (1..=64 << 20).contains(&geometry.subbuf_size()) && (1..=1 << 16).contains(&geometry.n_subbufs())
    );
    assert!(geometry.header() < geometry.subbuf_size() && geometry.buffer_size() <= 1 << 34);
    let shown = geometry.to_string();
    assert_eq!(shown.parse::<GeometrySpec>().and_then(GeometrySpec::build).as_ref(), Ok(geometry), "{shown}");
}

fn command_line(args: Vec<Vec<u8>>) {
    let args = [vec![b"relayfsd".to_vec()], args].concat();
    let options = match Request::parse(args.into_iter().map(OsString::from_vec), false) {
        Ok(Request::Serve(options)) => options,
        Ok(Request::Doctor(_)) => return,
        Err(error) => {
            let said = error.to_string();
            assert!(!error.use_stderr() || !relay::cli::usage_error::of_usage(&said).is_empty());
            return;
        }
    };
    assert!(options.mount_point.is_absolute());
    assert!(
        options
            .socket
            .iter()
            .chain(&options.state_dir)
            .chain(&options.log_file)
            .all(|path| path.is_absolute())
    );
    assert!(options.socket_mode <= 0o777 && options.access.buffer_mode() <= 0o777);
    assert!(options.flush_interval.is_none_or(|interval| interval >= Duration::from_millis(1)));
    assert!(options.mount.threads > 0);
    assert_eq!(options.channels[0].0.as_str(), "cpu");
    for (i, (name, spec)) in options.channels.iter().enumerate() {
        is_sound(&spec.build().expect("a checked geometry"));
        let mut others = options.channels[..i].iter();
        assert!(others.all(|(other, _)| other != name && !other.conflicts_with(name)));
    }
}
