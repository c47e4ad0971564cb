//! Why packets are not forwarded.

/// A reason.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Drop {
    /// Not an IP packet that can be forwarded.
    Malformed,
    /// No peer has the destination.
    NoRoute,
    /// Does not fit the tunnel; the sender was told, unless it is told often enough.
    TooBig,
    /// A datagram that is no message of WireGuard.
    NotWireGuard,
    /// For a session that does not exist (any more).
    UnknownSession,
    /// For a session that is over.
    ExpiredSession,
    /// Received before, or far too late.
    Replayed,
    /// Not sealed by the peer.
    Forged,
    /// From an address that is not the peer's.
    ForeignSource,
    /// To an address that is not for peers.
    ForeignDestination,
    /// A handshake message that is not for us.
    BadHandshake,
    /// A handshake of a key that is not a peer's.
    UnknownPeer,
    /// More handshakes than are read.
    HandshakeFlood,
    /// Received by another lane than it is for, and there were too many of these.
    WrongLane,
    /// From or to a gateway, and not of the peer link.
    Control,
    /// It has passed too many routers to be passed on to another peer.
    Expired,
}

impl Drop {
    /// Every reason.
    pub const ALL: [Self; 16] = [
        Self::Malformed,
        Self::NoRoute,
        Self::TooBig,
        Self::NotWireGuard,
        Self::UnknownSession,
        Self::ExpiredSession,
        Self::Replayed,
        Self::Forged,
        Self::ForeignSource,
        Self::ForeignDestination,
        Self::BadHandshake,
        Self::UnknownPeer,
        Self::HandshakeFlood,
        Self::WrongLane,
        Self::Control,
        Self::Expired,
    ];

    /// The reason as a label of a metric.
    #[must_use]
    pub fn label(self) -> &'static str {
        match self {
            Self::Malformed => "malformed",
            Self::NoRoute => "no_route",
            Self::TooBig => "too_big",
            Self::NotWireGuard => "not_wireguard",
            Self::UnknownSession => "unknown_session",
            Self::ExpiredSession => "expired_session",
            Self::Replayed => "replayed",
            Self::Forged => "forged",
            Self::ForeignSource => "foreign_source",
            Self::ForeignDestination => "foreign_destination",
            Self::BadHandshake => "bad_handshake",
            Self::UnknownPeer => "unknown_peer",
            Self::HandshakeFlood => "handshake_flood",
            Self::WrongLane => "wrong_lane",
            Self::Control => "control",
            Self::Expired => "expired",
        }
    }
}

/// How many packets were not forwarded, by reason.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Drops([u64; Drop::ALL.len()]);

impl std::ops::AddAssign for Drops {
    fn add_assign(&mut self, other: Self) {
        self.0.iter_mut().zip(other.0).for_each(|(own, other)| *own += other);
    }
}

impl Drops {
    /// Counts one.
    pub fn count(&mut self, reason: Drop) {
        self.0[reason as usize] += 1;
    }

    /// How many for this reason.
    #[must_use]
    pub fn get(&self, reason: Drop) -> u64 {
        self.0[reason as usize]
    }
}
