//! Sizes as users write them: `64K`, `1M`, `2G`; powers of 1024.

use thiserror::Error;

/// The error for a text that is not a size.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum SizeError {
    /// Not digits followed by at most one of K, M, G.
    #[error("'{0}' is not a size: digits, then at most one of K, M, G (powers of 1024)")]
    Malformed(String),
    /// The value exceeds 64 bits.
    #[error("'{0}' is too large")]
    TooLarge(String),
}

/// Parses a size in bytes: digits, then at most one of `K`, `M`, `G` in either case.
pub fn parse_size(text: &str) -> Result<u64, SizeError> {
    let malformed = || SizeError::Malformed(text.to_owned());
    let (digits, unit) = match text.as_bytes().last().ok_or_else(malformed)? {
        b'K' | b'k' => (&text[..text.len() - 1], 1 << 10),
        b'M' | b'm' => (&text[..text.len() - 1], 1 << 20),
        b'G' | b'g' => (&text[..text.len() - 1], 1 << 30),
        _ => (text, 1),
    };
    if digits.is_empty() || !digits.bytes().all(|b| b.is_ascii_digit()) {
        return Err(malformed());
    }
    let too_large = || SizeError::TooLarge(text.to_owned());
    digits.parse::<u64>().map_err(|_| too_large())?.checked_mul(unit).ok_or_else(too_large)
}

/// Writes a size for [`parse_size`], with the largest unit that divides it.
pub fn format_size(bytes: u64) -> String {
    for (shift, unit) in [(30, 'G'), (20, 'M'), (10, 'K')] {
        if bytes != 0 && bytes.trailing_zeros() >= shift {
            return format!("{}{unit}", bytes >> shift);
        }
    }
    bytes.to_string()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn units_are_powers_of_1024() {
        for (text, bytes) in [("0", 0), ("17", 17), ("64K", 65536), ("1m", 1 << 20), ("3G", 3 << 30)] {
            assert_eq!(parse_size(text), Ok(bytes), "{text}");
        }
    }

    #[test]
    fn malformed_size_is_refused() {
        for text in ["", "K", "1KB", "-1", "+1", "1.5M", " 1", "1 K", "0x10", "é"] {
            assert!(matches!(parse_size(text), Err(SizeError::Malformed(_))), "{text}");
        }
        for text in ["18446744073709551616", "18446744073709551615K"] {
            assert!(matches!(parse_size(text), Err(SizeError::TooLarge(_))), "{text}");
        }
    }

    #[test]
    fn formatted_size_is_parsed() {
        for bytes in [0, 1, 1023, 1024, 1025, 262_144, 1 << 20, 5 << 30, u64::MAX] {
            assert_eq!(parse_size(&format_size(bytes)), Ok(bytes));
        }
    }
}
