//! Formats numbers of bytes for people.

/// Formats a number of bytes: `512 B`, `1.5 KiB`, `230.0 MiB`.
pub(crate) fn amount(bytes: f64) -> String {
    let units = ["KiB", "MiB", "GiB", "TiB"];
    if bytes < 1024.0 {
        return format!("{bytes:.0} B");
    }
    let mut amount = bytes / 1024.0;
    let mut unit = 0;
    while amount >= 1024.0 && unit + 1 < units.len() {
        amount /= 1024.0;
        unit += 1;
    }
    format!("{amount:.1} {}", units[unit])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn amounts_are_short() {
        for (bytes, text) in [
            (0.0, "0 B"),
            (1023.0, "1023 B"),
            (1024.0, "1.0 KiB"),
            (1.5 * 1024.0 * 1024.0, "1.5 MiB"),
            (1e15, "909.5 TiB"),
            (1e18, "909494.7 TiB"),
        ] {
            assert_eq!(amount(bytes), text);
        }
    }
}
