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

/// Amounts by resource name.
pub type Amounts = BTreeMap<String, Milli>;

/// Reads a quantity; fractions of a thousandth are rounded up, as Kubernetes does.
///
/// # Errors
/// If the text is no quantity.
pub fn parse(quantity: &Quantity) -> Result<Milli, InvalidQuantity> {
    parse_text(&quantity.0).ok_or_else(|| InvalidQuantity(quantity.0.clone()))
}

fn parse_text(text: &str) -> Option<Milli> {
    let digits_end = text.find(|c: char| !matches!(c, '0'..='9' | '.' | '+' | '-')).unwrap_or(text.len());
    let (number, suffix) = text.split_at(digits_end);
    // Scale of the suffix in thousandths, as numerator and denominator.
    let (scale, divisor): (i128, i128) = match suffix {
        "n" => (1, 1_000_000),
        "u" => (1, 1_000),
        "m" => (1, 1),
        "" => (1_000, 1),
        "k" => (1_000_000, 1),
        "M" => (1_000_000_000, 1),
        "G" => (1_000_000_000_000, 1),
        "T" => (1_000_000_000_000_000, 1),
        "P" => (1_000_000_000_000_000_000, 1),
        "E" => (1_000_000_000_000_000_000_000, 1),
        "Ki" => (1_000 << 10, 1),
        "Mi" => (1_000 << 20, 1),
        "Gi" => (1_000 << 30, 1),
        "Ti" => (1_000 << 40, 1),
        "Pi" => (1_000 << 50, 1),
        "Ei" => (1_000 << 60, 1),
        exponent => {
            let power: i32 = exponent.strip_prefix(['e', 'E'])?.parse().ok()?;
            if !(-18..=18).contains(&power) {
                return None;
            }
            let ten = 10_i128.pow(power.unsigned_abs());
            if power >= 0 { (1_000 * ten, 1) } else { (1_000, ten) }
        }
    };
    let (negative, number) = match number.strip_prefix('-') {
        Some(rest) => (true, rest),
        None => (false, number.strip_prefix('+').unwrap_or(number)),
    };
    let (whole, fraction) = number.split_once('.').unwrap_or((number, ""));
    let digits = format!("{whole}{fraction}");
    if !digits.bytes().all(|digit| digit.is_ascii_digit()) || whole.len() > 19 || fraction.len() > 9 {
        return None;
    }
    let digits: i128 = digits.parse().ok()?;
    let divisor = divisor.checked_mul(10_i128.pow(u32::try_from(fraction.len()).ok()?))?;
    let scaled = digits.checked_mul(scale)?;
    let rounded = scaled.checked_add(divisor - 1)?.checked_div(divisor)?;
    Some(if negative { -rounded } else { rounded })
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
        ] {
            assert_eq!(milli(text), Some(expected), "{text}");
        }
    }

    #[test]
    fn other_texts_are_refused() {
        for bad in ["", "m", "1x", "1.2.3", "--1", "1e99", "99999999999999999999", "Gi", "1 Gi"] {
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
