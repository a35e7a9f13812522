//! Whole numbers as users write them.

use std::num::{IntErrorKind, ParseIntError};
use std::str::FromStr;

use thiserror::Error;

/// The error for a text that is not a whole number.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
pub enum NumberError {
    /// Not digits alone, or less than the least number.
    #[error("a number from {0} up")]
    Malformed(u8),
    /// The number is larger than any that makes sense.
    #[error("the number is too large")]
    TooLarge,
}

/// Parses a whole number without a sign. Zero is refused if the type has none.
pub fn parse_number<T: FromStr<Err = ParseIntError>>(text: &str) -> Result<T, NumberError> {
    let malformed = || NumberError::Malformed(T::from_str("0").is_err().into());
    if !text.bytes().all(|byte| byte.is_ascii_digit()) {
        return Err(malformed());
    }
    text.parse().map_err(|error: ParseIntError| match error.kind() {
        IntErrorKind::PosOverflow => NumberError::TooLarge,
        _ => malformed(),
    })
}

#[cfg(test)]
mod tests {
    use std::num::NonZero;

    use super::*;

    #[test]
    fn digits_are_numbers_and_other_text_is_refused() {
        assert_eq!((parse_number("0"), parse_number("007")), (Ok(0u32), Ok(7u32)));
        assert_eq!(parse_number::<NonZero<u64>>("3"), Ok(NonZero::new(3).unwrap()));
        for text in ["", "x", "+1", "-1", " 1", "1.5", "0x1", "1K", "é"] {
            assert_eq!(parse_number::<usize>(text), Err(NumberError::Malformed(0)), "{text:?}");
            let error = parse_number::<NonZero<u64>>(text).unwrap_err();
            assert_eq!(error.to_string(), "a number from 1 up", "{text:?}");
        }
        assert_eq!(parse_number::<NonZero<u64>>("0"), Err(NumberError::Malformed(1)));
        assert_eq!(parse_number::<u32>("4294967296"), Err(NumberError::TooLarge));
    }
}
