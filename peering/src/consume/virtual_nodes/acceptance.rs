//! Which offers are accepted. Pure.

use liquid_crds::{Acceptance, Approval, Offer};

/// What the provider has answered to the request of a virtual node.
#[derive(Debug, Clone, PartialEq)]
pub(super) enum Answer {
    /// It offers this.
    Offer(Box<Offer>),
    /// It offers nothing: reason, and message for people.
    Declined(String, String),
}

/// What becomes of an answer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Verdict {
    /// Whether there is an offer, and it is accepted.
    pub(super) accepted: bool,
    /// CamelCase, for programs.
    pub(super) reason: String,
    /// A sentence for people.
    pub(super) message: String,
}

/// Judges what the provider has answered. `approved` are the terms somebody has approved for this virtual node.
pub(super) fn judge(policy: &Acceptance, approved: Option<&str>, answer: &Answer) -> Verdict {
    let offer = match answer {
        Answer::Offer(offer) => offer,
        Answer::Declined(reason, message) => {
            return Verdict { accepted: false, reason: reason.clone(), message: message.clone() };
        }
    };
    let verdict =
        |accepted, reason: &str, message: String| Verdict { accepted, reason: reason.to_owned(), message };
    // An offer without terms is one that nobody can name.
    if !offer.terms.is_empty() && approved == Some(offer.terms.as_str()) {
        return verdict(true, "Approved", "somebody has approved the offer".to_owned());
    }
    let how = "approve it with `liquidctl accept`";
    if policy.approval == Approval::Manual {
        return verdict(
            false,
            "ApprovalNeeded",
            format!("offers of this peer are approved one by one: {how}"),
        );
    }
    let Some(price) = offer.price.as_ref().filter(|price| !(price.is_valid() && price.is_free())) else {
        return verdict(true, "Accepted", "the offer costs nothing".to_owned());
    };
    if !price.is_valid() {
        return verdict(
            false,
            "TooExpensive",
            format!("the price cannot be read: {how}, if it is known otherwise"),
        );
    }
    match &policy.maximum_price {
        None => verdict(
            false,
            "ApprovalNeeded",
            format!(
                "the offer costs something, and spec.consume.acceptance.maximumPrice of the Peer is not set: {how}"
            ),
        ),
        Some(maximum) => match price.within(maximum) {
            Ok(()) => verdict(true, "Accepted", "the offer costs no more than the maximum".to_owned()),
            Err(dear) => verdict(false, "TooExpensive", format!("{dear}: raise the maximum, or {how}")),
        },
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use liquid_crds::Price;
    use proptest::prelude::*;

    fn price(currency: &str, cpu: &str) -> Price {
        Price { currency: currency.to_owned(), per_hour: [("cpu".to_owned(), cpu.to_owned())].into() }
    }

    fn offer(terms: &str, price: Option<Price>) -> Answer {
        Answer::Offer(Box::new(Offer { terms: terms.to_owned(), price, ..Offer::default() }))
    }

    fn automatic(maximum_price: Option<Price>) -> Acceptance {
        Acceptance { approval: Approval::Automatic, maximum_price }
    }

    #[test]
    fn what_costs_nothing_is_accepted_and_what_costs_something_only_as_agreed() {
        let reason = |policy: &Acceptance, answer: &Answer| judge(policy, None, answer).reason;
        let dear = offer("t", Some(price("EUR", "0.05")));
        let limited = automatic(Some(price("EUR", "0.04")));
        assert_eq!(reason(&automatic(None), &offer("t", None)), "Accepted");
        assert_eq!(reason(&automatic(None), &offer("t", Some(price("EUR", "0")))), "Accepted");
        assert_eq!(reason(&automatic(None), &dear), "ApprovalNeeded", "nobody has agreed to any price");
        assert_eq!(reason(&limited, &dear), "TooExpensive");
        assert_eq!(reason(&limited, &offer("t", Some(price("USD", "0.01")))), "TooExpensive");
        assert_eq!(reason(&limited, &offer("t", Some(price("EUR", "0.04")))), "Accepted");
        assert_eq!(reason(&limited, &offer("t", Some(price("EUR", "cheap")))), "TooExpensive");
        let manual = Acceptance { approval: Approval::Manual, maximum_price: None };
        assert_eq!(reason(&manual, &offer("t", None)), "ApprovalNeeded");
        let declined = Answer::Declined("NoSuchNode".to_owned(), "why".to_owned());
        assert_eq!(reason(&manual, &declined), "NoSuchNode");
    }

    #[test]
    fn an_approval_is_for_the_terms_it_names() {
        let manual = Acceptance { approval: Approval::Manual, maximum_price: None };
        let dear = offer("t2", Some(price("EUR", "9")));
        assert!(judge(&manual, Some("t2"), &dear).accepted);
        assert!(judge(&automatic(None), Some("t2"), &dear).accepted);
        assert!(!judge(&manual, Some("t1"), &dear).accepted);
        assert!(!judge(&manual, Some(""), &offer("", None)).accepted, "no terms, no approval");
    }

    proptest! {
        /// Money is spent only where somebody has approved these terms, or named a maximum that covers every unit.
        #[test]
        fn no_money_is_spent_that_nobody_agreed_to(
            manual in any::<bool>(),
            asked in prop::option::of((0..3_u32, "(EUR|USD)")),
            maximum in prop::option::of((0..3_u32, "(EUR|USD)")),
            approved in prop::option::of("[ab]"),
        ) {
            let of = |(cents, currency): &(u32, String)| price(currency, &format!("0.0{cents}"));
            let policy = Acceptance {
                approval: if manual { Approval::Manual } else { Approval::Automatic },
                maximum_price: maximum.as_ref().map(of),
            };
            let found = judge(&policy, approved.as_deref(), &offer("a", asked.as_ref().map(of)));
            let agreed = approved.as_deref() == Some("a");
            let covered = match (&asked, &maximum) {
                (None, _) | (Some((0, _)), _) => true,
                (Some((asked, currency)), Some((most, same))) => asked <= most && currency == same,
                (Some(_), None) => false,
            };
            prop_assert_eq!(found.accepted, agreed || (!manual && covered));
        }
    }
}
