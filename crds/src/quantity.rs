//! Amounts of resources: Kubernetes quantities as exact numbers.

use k8s_openapi::apimachinery::pkg::api::resource::Quantity;
use std::collections::BTreeMap;
use thiserror::Error;

/// A text that is no quantity.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
#[error("{0:?} is no quantity; examples are 500m, 2, 1.5Gi")]
pub struct InvalidQuantity(pub String);

/// An amount in thousandths of its unit (millicores, thousandths of a byte): exact for every amount the
/// scheduler counts, and far from overflow (a quettabyte is 10^33 of them).
pub type Milli = i128;

/// The largest amount, which stands for all that are larger: a hundred thousand of them can be added up.
pub const MAX: Milli = 1_000_000_000_000_000_000_000_000_000_000_000;

/// Digits of [`MAX`].
const MAX_DIGITS: i64 = 34;

/// Digits of a fraction with a binary suffix that count; what comes after rounds up. As thousandths of the largest of these
/// suffixes they fit a [`Milli`], and are a few bytes of it.
const BINARY_FRACTION: usize = 17;

/// Amounts by resource name.
pub type Amounts = BTreeMap<String, Milli>;

/// Reads a quantity, each that Kubernetes accepts: with any number of digits, and spaces around it. Fractions of a thousandth
/// are rounded up, as Kubernetes does; what is larger than [`MAX`] is [`MAX`].
///
/// # Errors
/// If the text is no quantity.
pub fn parse(quantity: &Quantity) -> Result<Milli, InvalidQuantity> {
    parse_text(&quantity.0).ok_or_else(|| InvalidQuantity(quantity.0.clone()))
}

/// What a suffix multiplies by.
enum Scale {
    Decimal(i64),
    Binary(u32),
}

fn parse_text(text: &str) -> Option<Milli> {
    let text = text.trim();
    let digits_end = text.find(|c: char| !matches!(c, '0'..='9' | '.' | '+' | '-')).unwrap_or(text.len());
    let (number, suffix) = text.split_at(digits_end);
    let scale = match suffix {
        "n" => Scale::Decimal(-9),
        "u" => Scale::Decimal(-6),
        "m" => Scale::Decimal(-3),
        "" => Scale::Decimal(0),
        "k" => Scale::Decimal(3),
        "M" => Scale::Decimal(6),
        "G" => Scale::Decimal(9),
        "T" => Scale::Decimal(12),
        "P" => Scale::Decimal(15),
        "E" => Scale::Decimal(18),
        "Ki" => Scale::Binary(10),
        "Mi" => Scale::Binary(20),
        "Gi" => Scale::Binary(30),
        "Ti" => Scale::Binary(40),
        "Pi" => Scale::Binary(50),
        "Ei" => Scale::Binary(60),
        exponent => Scale::Decimal(exponent.strip_prefix(['e', 'E'])?.parse::<i32>().ok()?.into()),
    };
    let (negative, number) = match number.strip_prefix('-') {
        Some(rest) => (true, rest),
        None => (false, number.strip_prefix('+').unwrap_or(number)),
    };
    let (whole, fraction) = number.split_once('.').unwrap_or((number, ""));
    let mut digits = whole.bytes().chain(fraction.bytes());
    if whole.len() + fraction.len() == 0 || !digits.all(|digit| digit.is_ascii_digit()) {
        return None;
    }
    let (whole, fraction) = (whole.trim_start_matches('0'), fraction.trim_end_matches('0'));
    let amount = match scale {
        Scale::Decimal(power) => decimal(whole, fraction, power + 3),
        Scale::Binary(shift) => binary(whole, fraction, shift),
    };
    // What does not fit is too large.
    let amount = amount.unwrap_or(MAX).min(MAX);
    Some(if negative { -amount } else { amount })
}

/// `whole.fraction` times ten to `power`, rounded up; `None` if that is more than fits.
fn decimal(whole: &str, fraction: &str, power: i64) -> Option<Milli> {
    let digits = format!("{whole}{fraction}");
    let digits = digits.trim_start_matches('0');
    if digits.is_empty() {
        return Some(0);
    }
    // How many of the digits come before the point.
    let before = i64::try_from(digits.len()).ok()? + power - i64::try_from(fraction.len()).ok()?;
    if before > MAX_DIGITS {
        return None;
    }
    let before = usize::try_from(before).unwrap_or(0);
    let kept = digits.get(..before).unwrap_or(digits);
    let rest = digits.get(before..).unwrap_or_default();
    let amount: Milli = if kept.is_empty() { 0 } else { kept.parse().ok()? };
    let amount = amount.checked_mul(ten_to(before - kept.len())?)?;
    amount.checked_add(Milli::from(rest.bytes().any(|digit| digit != b'0')))
}

/// `whole.fraction` times two to `shift`, in thousandths, rounded up; `None` if that is more than fits.
fn binary(whole: &str, fraction: &str, shift: u32) -> Option<Milli> {
    let unit = 1000 << shift;
    let whole: Milli = if whole.is_empty() { 0 } else { whole.parse().ok()? };
    let kept = fraction.get(..BINARY_FRACTION).unwrap_or(fraction);
    let parts: Milli = if kept.is_empty() { 0 } else { kept.parse().ok()? };
    let parts = parts + Milli::from(kept.len() < fraction.len());
    let divisor = ten_to(kept.len())?;
    let fraction = parts.checked_mul(unit)?.checked_add(divisor - 1)?.checked_div(divisor)?;
    whole.checked_mul(unit)?.checked_add(fraction)
}

fn ten_to(power: usize) -> Option<Milli> {
    10_i128.checked_pow(u32::try_from(power).ok()?)
}

/// Reads all of them; what is no quantity is left out.
pub fn amounts(quantities: &BTreeMap<String, Quantity>) -> Amounts {
    let read = |(name, quantity): (&String, &Quantity)| Some((name.clone(), parse(quantity).ok()?));
    quantities.iter().filter_map(read).collect()
}

/// Writes all of them.
pub fn quantities(amounts: &Amounts) -> BTreeMap<String, Quantity> {
    amounts.iter().map(|(name, amount)| (name.clone(), format(*amount))).collect()
}

/// Writes an amount as people and Kubernetes like to read it: bytes in the largest binary unit that is exact.
pub fn format(amount: Milli) -> Quantity {
    if amount % 1000 != 0 {
        return Quantity(format!("{amount}m"));
    }
    let units = amount / 1000;
    for (suffix, shift) in [("Ti", 40), ("Gi", 30), ("Mi", 20), ("Ki", 10)] {
        if units != 0 && units % (1 << shift) == 0 {
            return Quantity(format!("{}{suffix}", units >> shift));
        }
    }
    Quantity(units.to_string())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn milli(text: &str) -> Option<Milli> {
        parse_text(text)
    }

    #[test]
    fn suffixes_are_read_exactly() {
        for (text, expected) in [
            ("0", 0),
            ("2", 2_000),
            ("500m", 500),
            ("0.5", 500),
            (".5", 500),
            ("1.5Gi", 1_610_612_736_000),
            ("64Mi", 67_108_864_000),
            ("1k", 1_000_000),
            ("1e3", 1_000_000),
            ("5E-1", 500),
            ("1E", 1_000_000_000_000_000_000_000),
            ("-1", -1_000),
            ("100n", 1),
            ("1u", 1),
            // All of these are quantities to Kubernetes.
            ("0000000000000000000101Gi", 101 * (1000 << 30)),
            ("100.0000000000Ti", 100 * (1000 << 40)),
            ("000000000000000000000000000000000000000000", 0),
            (" 1Gi ", 1000 << 30),
            ("1.0000000000000000000000000000000000001", 1_001),
            ("0.00000000000000000000000000000000000001Ki", 1),
            ("0.0000000000000000000000000000000000000001e40", 1_000),
            ("1e-40", 1),
            ("1.", 1_000),
            ("99999999999999999999", 99_999_999_999_999_999_999_000),
            ("1e19", 10_000_000_000_000_000_000_000),
            ("0.99999999999999999999Ei", 1_152_921_504_606_846_976_000),
            ("1e99", MAX),
            ("-9999999999999999999999999999999999999999999Ei", -MAX),
        ] {
            assert_eq!(milli(text), Some(expected), "{text}");
        }
    }

    #[test]
    fn other_texts_are_refused() {
        for bad in ["", "m", "1x", "1.2.3", "--1", "+-1", "1e", "1e4294967296", "Gi", ".", "1 Gi", "1K"] {
            assert_eq!(milli(bad), None, "{bad}");
        }
    }

    #[test]
    fn amounts_are_written_in_the_largest_exact_unit() {
        for text in ["500m", "2", "64Mi", "3Gi", "1536Mi", "1023"] {
            assert_eq!(format(milli(text).unwrap()).0, text);
        }
        assert_eq!(format(0).0, "0");
    }
}
