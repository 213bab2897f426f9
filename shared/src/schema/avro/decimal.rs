//! The logical type decimal: digits as JSON shows them, to an unscaled whole number and back.

use num_bigint::{BigInt, Sign};

/// Beyond any precision in use; what is longer is not looked at.
const LONGEST: usize = 1024;

/// The unscaled number of a JSON number's text; none if it has more digits than the schema allows, before or behind the
/// point. Nothing is rounded.
pub(super) fn unscaled(text: &str, precision: usize, scale: usize) -> Option<BigInt> {
    let (negative, text) = text.strip_prefix('-').map_or((false, text), |rest| (true, rest));
    let (mantissa, exponent) = text.split_once(['e', 'E']).unwrap_or((text, "0"));
    let (whole, fraction) = mantissa.split_once('.').unwrap_or((mantissa, ""));
    let mut all = whole.bytes().chain(fraction.bytes());
    if whole.is_empty() || text.len() > LONGEST || !all.all(|digit| digit.is_ascii_digit()) {
        return None;
    }
    let exponent: i32 = exponent.parse().ok()?;
    let mut digits = format!("{whole}{fraction}").trim_start_matches('0').to_owned();
    if digits.is_empty() {
        return Some(BigInt::ZERO);
    }
    let zeros = i64::from(exponent) - i64::try_from(fraction.len()).ok()? + i64::try_from(scale).ok()?;
    if zeros < 0 {
        let kept = digits.len().checked_sub(usize::try_from(-zeros).ok()?)?;
        if digits.bytes().skip(kept).any(|digit| digit != b'0') {
            return None;
        }
        digits.truncate(kept);
    } else {
        let zeros = usize::try_from(zeros).ok().filter(|zeros| *zeros <= precision)?;
        digits.push_str(&"0".repeat(zeros));
    }
    if digits.len() > precision {
        return None;
    }
    let number: BigInt = digits.parse().ok()?;
    Some(if negative { -number } else { number })
}

/// As many bytes as a fixed has; none if it has too few.
pub(super) fn to_fixed(number: &BigInt, size: usize) -> Option<Vec<u8>> {
    let bytes = number.to_signed_bytes_be();
    let filler = if number.sign() == Sign::Minus { 0xff } else { 0 };
    let mut out = vec![filler; size.checked_sub(bytes.len())?];
    out.extend(bytes);
    Some(out)
}

/// A JSON number with all digits of the scale.
pub(super) fn text(bytes: &[u8], scale: usize) -> Option<String> {
    if bytes.len() > LONGEST || scale > LONGEST {
        return None;
    }
    let number = BigInt::from_signed_bytes_be(bytes);
    let sign = if number.sign() == Sign::Minus { "-" } else { "" };
    let digits = format!("{:0>width$}", number.magnitude().to_string(), width = scale + 1);
    let (whole, fraction) = digits.split_at(digits.len() - scale);
    let point = if scale == 0 { "" } else { "." };
    Some(format!("{sign}{whole}{point}{fraction}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn digits_are_kept_or_refused() {
        for (sent, precision, scale, written) in [
            ("12.5", 4, 2, Some("12.50")),
            ("-0.01", 4, 2, Some("-0.01")),
            ("1e1", 4, 2, Some("10.00")),
            ("1250E-2", 4, 2, Some("12.50")),
            ("12.500", 4, 2, Some("12.50")),
            ("0e999999999", 4, 2, Some("0.00")),
            ("12345678901234567890.123456789", 30, 9, Some("12345678901234567890.123456789")),
            ("7", 4, 0, Some("7")),
            ("12.345", 9, 2, None),
            ("123.4", 4, 2, None),
            ("1e999999999", 4, 2, None),
            ("1e-999999999", 4, 2, None),
            ("", 4, 2, None),
            ("abc", 4, 2, None),
            ("--1", 4, 2, None),
            ("1e", 4, 2, None),
        ] {
            let number = unscaled(sent, precision, scale);
            let shown = number.map(|number| text(&number.to_signed_bytes_be(), scale).expect("short"));
            assert_eq!(shown.as_deref(), written, "{sent}");
        }
    }

    #[test]
    fn a_fixed_is_filled_by_its_sign() {
        assert_eq!(to_fixed(&BigInt::from(-2), 3), Some(vec![0xff, 0xff, 0xfe]));
        assert_eq!(to_fixed(&BigInt::from(200), 2), Some(vec![0, 200]));
        assert_eq!(to_fixed(&BigInt::from(200), 1), None);
    }
}
