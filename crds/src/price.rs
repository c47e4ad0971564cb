//! What something costs, declared by who lends it. Liquid compares and shows prices; it meters and bills nothing.

use crate::quantity::{Amounts, Milli};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::fmt;

/// Prices in a currency, per hour and unit.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct Price {
    /// Currency, or another unit of account that both sides know (EUR, credits).
    #[schemars(length(min = 1, max = 16), regex(pattern = r"^[A-Za-z][A-Za-z0-9-]*$"))]
    pub currency: String,
    /// Price of one unit for an hour, by resource name: of a core of cpu, of a GiB of memory or storage, of one of
    /// anything else. Decimal numbers with at most six places. What is not named costs nothing.
    #[schemars(extend(
        "maxProperties" = 32,
        "additionalProperties" = { "type": "string", "maxLength": 20, "pattern": r"^[0-9]{1,9}(\.[0-9]{1,6})?$" },
    ))]
    pub per_hour: BTreeMap<String, String>,
}

/// A price in millionths of the currency.
pub type Micro = i128;

/// The first resource that costs more than somebody will pay.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TooExpensive {
    /// What is asked.
    pub asked: String,
    /// What would be paid at most.
    pub maximum: String,
}

impl fmt::Display for TooExpensive {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} is asked, {} is the maximum", self.asked, self.maximum)
    }
}

impl Price {
    /// Whether all of it can be read.
    #[must_use]
    pub fn is_valid(&self) -> bool {
        let currency = &self.currency;
        (1..=16).contains(&currency.len())
            && currency.starts_with(|c: char| c.is_ascii_alphabetic())
            && currency.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-')
            && self.per_hour.len() <= 32
            && self.per_hour.values().all(|text| micro(text).is_some())
    }

    /// Whether nothing costs anything.
    #[must_use]
    pub fn is_free(&self) -> bool {
        self.per_hour.values().all(|text| micro(text) == Some(0))
    }

    /// What `amounts` cost in an hour, rounded up. A price that cannot be read counts as the highest there is.
    #[must_use]
    pub fn hourly(&self, amounts: &Amounts) -> Micro {
        let costs = self.per_hour.iter().filter_map(|(resource, text)| {
            let amount = amounts.get(resource).copied().filter(|amount| *amount > 0)?;
            let unit = unit(resource);
            let cost = micro(text).and_then(|price| amount.checked_mul(price)?.checked_add(unit - 1));
            Some(cost.map_or(Micro::MAX, |cost| cost / unit))
        });
        costs.fold(0, Micro::saturating_add)
    }

    /// Whether no unit costs more than in `maximum`; what is not named there must cost nothing.
    ///
    /// # Errors
    /// The first that costs more, or everything if the currency is another one.
    pub fn within(&self, maximum: &Price) -> Result<(), TooExpensive> {
        for (resource, text) in &self.per_hour {
            let (Some(asked), most) = (micro(text), maximum.per_hour.get(resource)) else {
                return Err(TooExpensive { asked: format!("{resource}: {text}"), maximum: "0".to_owned() });
            };
            let most = most.map_or("0", String::as_str);
            let payable = if self.currency == maximum.currency { micro(most).unwrap_or(0) } else { 0 };
            if asked > payable {
                let show = |text: &str, price: &Price| format!("{resource}: {text} {}/h", price.currency);
                return Err(TooExpensive { asked: show(text, self), maximum: show(most, maximum) });
            }
        }
        Ok(())
    }
}

/// An amount of money as people read it: at least two places, and no more than it has.
#[must_use]
pub fn show(amount: Micro) -> String {
    let text = format!("{}.{:06}", amount / 1_000_000, amount % 1_000_000);
    let least = text.len() - 4;
    let end = text.trim_end_matches('0').len().max(least);
    text[..end].to_owned()
}

/// Thousandths of the unit of `resource` that one price is for.
fn unit(resource: &str) -> Milli {
    let bytes =
        matches!(resource, "memory" | "storage" | "ephemeral-storage") || resource.starts_with("hugepages-");
    if bytes { 1000 << 30 } else { 1000 }
}

/// Reads a decimal number, in millionths.
fn micro(text: &str) -> Option<Micro> {
    let (whole, fraction) = text.split_once('.').unwrap_or((text, "0"));
    let digits = |part: &str, most: usize| {
        (1..=most).contains(&part.len()) && part.bytes().all(|digit| digit.is_ascii_digit())
    };
    if !digits(whole, 9) || !digits(fraction, 6) {
        return None;
    }
    format!("{whole}{fraction:0<6}").parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn price(currency: &str, per_hour: &[(&str, &str)]) -> Price {
        let per_hour = per_hour.iter().map(|(name, text)| ((*name).to_owned(), (*text).to_owned())).collect();
        Price { currency: currency.to_owned(), per_hour }
    }

    #[test]
    fn an_hour_costs_what_its_units_cost() {
        let price = price("EUR", &[("cpu", "0.03"), ("memory", "0.004"), ("example.org/gpu", "1.5")]);
        let amounts = Amounts::from([
            ("cpu".to_owned(), 2500),
            ("memory".to_owned(), 8 * (1000 << 30)),
            ("pods".to_owned(), 110_000),
            ("example.org/gpu".to_owned(), 2000),
        ]);
        assert_eq!(show(price.hourly(&amounts)), "3.107");
        assert_eq!(price.hourly(&Amounts::from([("memory".to_owned(), 1)])), 1, "rounded up");
        assert_eq!(show(1_500_000), "1.50");
        assert_eq!(show(0), "0.00");
    }

    #[test]
    fn no_unit_may_cost_more_than_the_maximum() {
        let maximum = price("EUR", &[("cpu", "0.03"), ("memory", "0.01")]);
        assert!(price("EUR", &[("cpu", "0.030"), ("memory", "0")]).within(&maximum).is_ok());
        assert!(price("USD", &[("cpu", "0")]).within(&maximum).is_ok(), "nothing is nothing in any currency");
        for dear in [
            price("EUR", &[("cpu", "0.030001")]),
            price("EUR", &[("pods", "0.000001")]),
            price("USD", &[("cpu", "0.01")]),
            price("EUR", &[("cpu", "cheap")]),
        ] {
            assert!(dear.within(&maximum).is_err(), "{dear:?}");
        }
        let told = price("EUR", &[("cpu", "0.05")]).within(&maximum).unwrap_err().to_string();
        assert_eq!(told, "cpu: 0.05 EUR/h is asked, cpu: 0.03 EUR/h is the maximum");
    }

    #[test]
    fn what_is_no_price_is_not_taken_for_one() {
        for bad in ["", "-1", "1.", ".5", "1e3", "1.0000001", "1234567890", "1,5"] {
            assert!(!price("EUR", &[("cpu", bad)]).is_valid(), "{bad}");
        }
        assert!(!price("€", &[]).is_valid() && !price("", &[]).is_valid());
        assert!(price("credits-2", &[("cpu", "000000001.000001")]).is_valid());
    }
}
