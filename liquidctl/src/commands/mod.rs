//! One file per command.

pub(crate) mod accept;
pub(crate) mod install;
pub(crate) mod introduce;
pub(crate) mod invite;
pub(crate) mod offload;
pub(crate) mod peer;
pub(crate) mod status;
pub(crate) mod uninstall;
pub(crate) mod unoffload;
pub(crate) mod unpeer;

use std::time::Duration;

/// Reads a time span: a number with s, m, h or d.
fn duration(text: &str) -> Result<Duration, String> {
    let bad = || format!("{text:?} is no time span; examples are 30s, 5m, 24h, 7d");
    let digits = text.find(|c: char| !c.is_ascii_digit()).ok_or_else(bad)?;
    let (number, unit) = text.split_at(digits);
    let number: u64 = number.parse().map_err(|_| bad())?;
    let seconds = match unit {
        "s" => 1,
        "m" => 60,
        "h" => 3600,
        "d" => 24 * 3600,
        _ => return Err(bad()),
    };
    let span = number.checked_mul(seconds).filter(|seconds| *seconds > 0).ok_or_else(bad)?;
    Ok(Duration::from_secs(span))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn time_spans_need_a_unit() {
        assert_eq!(duration("90s"), Ok(Duration::from_secs(90)));
        assert_eq!(duration("2d"), Ok(Duration::from_secs(172_800)));
        for bad in ["", "5", "m", "0s", "-1s", "1w", "99999999999999999999d"] {
            assert!(duration(bad).is_err(), "{bad}");
        }
    }
}
