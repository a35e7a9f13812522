//! Numbers and times in few characters.

/// Bytes: `812`, `1.2K`, `64K`, `3.4M`.
pub(crate) fn bytes(n: f64) -> String {
    scaled(n, 1024.0)
}

/// A number: `812`, `1.2k`, `64k`, `3.4M`.
pub(crate) fn number(n: f64) -> String {
    let text = scaled(n, 1000.0);
    text.replace('K', "k")
}

fn scaled(n: f64, unit: f64) -> String {
    let mut n = n.max(0.0);
    for (i, suffix) in ["", "K", "M", "G", "T", "P", "E"].into_iter().enumerate() {
        // What would be rounded to the next unit belongs there.
        if n < unit - 0.5 || suffix == "E" {
            let digits = usize::from(i > 0 && n < 9.95 || i == 0 && n > 0.0 && n < 9.95 && n.fract() != 0.0);
            return format!("{n:.digits$}{suffix}");
        }
        n /= unit;
    }
    String::new()
}

/// A time: `12s`, `3m`, `5h`, `2d`.
pub(crate) fn age(nanoseconds: u64) -> String {
    let seconds = nanoseconds / 1_000_000_000;
    match seconds {
        0 => format!("{}ms", nanoseconds / 1_000_000),
        1..=119 => format!("{seconds}s"),
        120..=7199 => format!("{}m", seconds / 60),
        7200..=172_799 => format!("{}h", seconds / 3600),
        _ => format!("{}d", seconds / 86_400),
    }
}

/// `1 message`, `2 messages`.
pub(crate) fn count(n: u64, what: &str) -> String {
    format!("{n} {what}{}", if n == 1 { "" } else { "s" })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn amounts_are_short() {
        for (n, text) in [
            (0.0, "0"),
            (0.5, "0.5"),
            (7.0, "7"),
            (812.4, "812"),
            (1023.9, "1.0K"),
            (1228.8, "1.2K"),
            (65536.0, "64K"),
            (3_500_000.0, "3.3M"),
        ] {
            assert_eq!(bytes(n), text, "{n}");
        }
        assert_eq!(
            (number(1500.0), number(999.9), number(12.0)),
            ("1.5k".into(), "1.0k".into(), "12".into())
        );
        assert_eq!(
            [0, 12, 119, 120, 7200, 200_000].map(|s| age(s * 1_000_000_000)),
            ["0ms", "12s", "119s", "2m", "2h", "2d"]
        );
        assert_eq!((count(1, "time"), count(2, "time")), ("1 time".into(), "2 times".into()));
    }
}
