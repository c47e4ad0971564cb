//! What a gateway that relays the peer link says to a caller it cannot connect.
//!
//! It passes bytes on unread, so the one language it shares with the caller is that of TLS: a fatal alert in place of the
//! server's first message. The codes are of those no implementation of TLS uses.

use std::fmt;

/// Port of the relay in a gateway's pod, for the processes of its own cluster.
pub const RELAY_PORT: u16 = 7444;

/// Length of the record that carries an alert.
pub const ALERT_LENGTH: usize = 7;

/// Why a connection is not relayed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Refusal {
    /// Somebody calls for whom the gateway does not relay.
    NotAllowed,
    /// The gateway has no tunnel to the cluster that is asked for.
    NoTunnel,
    /// The gateway of that cluster does not answer through the tunnel.
    Silent,
    /// The gateway of that cluster does not reach its link endpoint.
    NoLink,
    /// The gateway of that cluster does not know who calls.
    Stranger,
    /// There are as many connections as there may be.
    TooMany,
}

impl Refusal {
    const ALL: [Self; 6] =
        [Self::NotAllowed, Self::NoTunnel, Self::Silent, Self::NoLink, Self::Stranger, Self::TooMany];

    /// The code of the alert.
    #[must_use]
    pub fn code(self) -> u8 {
        match self {
            Self::NotAllowed => 224,
            Self::NoTunnel => 225,
            Self::Silent => 226,
            Self::NoLink => 227,
            Self::Stranger => 228,
            Self::TooMany => 229,
        }
    }

    /// The refusal with this code; none if the alert is one of TLS itself.
    #[must_use]
    pub fn of_code(code: u8) -> Option<Self> {
        Self::ALL.into_iter().find(|refusal| refusal.code() == code)
    }

    /// The record to send: a fatal alert (RFC 8446, sections 5.1 and 6).
    #[must_use]
    pub fn alert(self) -> [u8; ALERT_LENGTH] {
        [21, 3, 3, 0, 2, 2, self.code()]
    }
}

impl fmt::Display for Refusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::NotAllowed => {
                "the gateway relays for this cluster's own pods only, and does not know this one (yet)"
            }
            Self::NoTunnel => "the gateway has no tunnel to the peer",
            Self::Silent => "the peer's gateway does not answer through the tunnel",
            Self::NoLink => "the peer's gateway does not reach its liquid-controller",
            Self::Stranger => "the peer's gateway does not know who calls (any more)",
            Self::TooMany => "the gateway relays as many connections as it may",
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_refusal_has_a_code_of_its_own_that_is_none_of_tls() {
        for refusal in Refusal::ALL {
            assert_eq!(Refusal::of_code(refusal.code()), Some(refusal));
            assert!(refusal.code() > 120, "{refusal:?}");
        }
        assert_eq!(Refusal::of_code(40), None);
    }
}
