//! Numbers as decimal digits, without the machinery of `fmt`.

/// All pairs of digits.
const PAIRS: [[u8; 2]; 100] = {
    let mut pairs = [[0; 2]; 100];
    let mut i = 0;
    while i < 100 {
        pairs[i] = [b'0' + (i / 10) as u8, b'0' + (i % 10) as u8];
        i += 1;
    }
    pairs
};

/// Returns a number below 100 as two digits; of a larger one, the last two.
#[inline]
pub(super) fn pair(number: u32) -> [u8; 2] {
    PAIRS[(number % 100) as usize]
}

/// Returns a number below a million as six digits; of a larger one, the last six.
#[inline]
pub(super) fn six(number: u32) -> [u8; 6] {
    let [a, b] = pair(number / 10_000);
    let [c, d] = pair(number / 100);
    let [e, f] = pair(number);
    [a, b, c, d, e, f]
}

/// Returns a number below 1,000,000,000 as nine digits; of a larger one, the last nine.
#[inline]
pub(super) fn nine(number: u32) -> [u8; 9] {
    let [a, b, c, d, e, f] = six(number);
    let [g, h] = pair(number / 1_000_000);
    let [_, i] = pair(number / 100_000_000);
    [i, g, h, a, b, c, d, e, f]
}

/// Appends a number.
#[inline]
pub(in crate::trace) fn push(mut number: u64, out: &mut Vec<u8>) {
    let mut digits = [0; 20];
    let mut at = digits.len();
    while number >= 100 {
        at -= 2;
        digits[at..at + 2].copy_from_slice(&PAIRS[(number % 100) as usize]);
        number /= 100;
    }
    let last = PAIRS[number as usize];
    at -= 1;
    digits[at] = last[1];
    if number >= 10 {
        at -= 1;
        digits[at] = last[0];
    }
    out.extend_from_slice(&digits[at..]);
}

/// Appends a number with a sign, if it is negative.
pub(in crate::trace) fn push_signed(number: i64, out: &mut Vec<u8>) {
    if number < 0 {
        out.push(b'-');
    }
    push(number.unsigned_abs(), out);
}

/// Appends bytes as hexadecimal digits.
pub(in crate::trace) fn push_hex(bytes: &[u8], out: &mut Vec<u8>) {
    const DIGITS: &[u8; 16] = b"0123456789abcdef";
    let digit = |nibble: u8| DIGITS[usize::from(nibble & 15)];
    out.extend(bytes.iter().flat_map(|byte| [digit(byte >> 4), digit(*byte)]));
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn text(push: impl Fn(&mut Vec<u8>)) -> String {
        let mut out = b"x".to_vec();
        push(&mut out);
        String::from_utf8(out).unwrap()
    }

    #[test]
    fn numbers_are_padded() {
        assert_eq!((&pair(7), &six(1234)), (b"07", b"001234"));
        assert_eq!((&nine(1_234_567), &nine(987_654_321)), (b"001234567", b"987654321"));
        assert_eq!((&pair(307), &six(9_001_234)), (b"07", b"001234"));
        assert_eq!(text(|out| push_hex(&[0, 0xaf], out)), "x00af");
    }

    proptest! {
        #[test]
        fn any_number_is_as_fmt_writes_it(number: u64, bits in 0u32..64) {
            for number in [number, number >> bits, u64::MAX, 0] {
                prop_assert_eq!(text(|out| push(number, out)), format!("x{number}"));
                let signed = number.cast_signed();
                prop_assert_eq!(text(|out| push_signed(signed, out)), format!("x{signed}"));
            }
        }
    }
}
