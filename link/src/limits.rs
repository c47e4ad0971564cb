//! Bounds of the peer link, each with its reason.

use std::time::Duration;

/// Port of the link endpoint inside the cluster.
pub const LINK_PORT: u16 = 7443;

/// Largest message: etcd refuses objects above 1.5 MiB, and the rest of a frame is names and digests.
pub const MAX_MESSAGE: usize = 2 * 1024 * 1024;

/// Data chunk of logs, exec and port-forward: four fill the default HTTP/2 frame window, and a slow reader
/// pins no more than [`STREAM_WINDOW`] of them.
pub const CHUNK: usize = 16 * 1024;

/// HTTP/2 window of one stream: 1 MiB carries 160 Mbit/s at 50 ms of round trip.
pub const STREAM_WINDOW: u32 = 1 << 20;

/// HTTP/2 window of the connection: eight busy streams. This bounds the memory one peer can pin.
pub const CONNECTION_WINDOW: u32 = 8 << 20;

/// Open streams per connection. Each `kubectl logs -f`, exec or port-forward is one.
pub const MAX_STREAMS: u32 = 1024;

/// Connections with a client certificate: two per peer (controller and kubelet) leave room for 500 peers.
pub const MAX_CONNECTIONS: usize = 1024;

/// Connections without a certificate at one time; they may only join, so strangers cannot crowd out peers.
pub const MAX_GUESTS: usize = 16;

/// TLS handshakes at one time, of peers and strangers.
pub const MAX_HANDSHAKES: usize = 256;

/// Connections of one peer: two, and those that were lost and are not noticed yet, of a link that breaks every few seconds.
pub const MAX_CONNECTIONS_PER_PEER: usize = 16;

/// Largest message that is read whole before it is known who sent it. With the streams of all guests it bounds what
/// strangers can pin: 256 MiB, for 30 s.
pub const MAX_UNARY: usize = 16 * 1024;

/// A connection without a certificate is closed after this time: a join takes milliseconds.
pub const GUEST_LIFETIME: Duration = Duration::from_secs(30);

/// Time for the TLS handshake.
pub const HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(10);

/// How long an endpoint is tried alone before the next one is tried as well: one behind which there is no way (a family of
/// addresses that the networks between do not carry) keeps nobody waiting for long, and one that is far away is not called twice.
pub const HEAD_START: Duration = Duration::from_secs(1);

/// Time for connecting to one endpoint: one lost packet is made up for. Whoever translates addresses on the way goes on to send
/// what is repeated to an end that is no more; what is begun anew finds the one that took its place.
pub const CONNECT_TIMEOUT: Duration = Duration::from_secs(3);

/// Life of a peer's client certificate. It is renewed after two thirds, so either cluster may be away for 56 hours at
/// any time; a peering that ends is refused at once, whatever its certificate says.
pub const PEER_CERTIFICATE_LIFE: Duration = Duration::from_secs(7 * 24 * 3600);

/// Life of the link endpoint's own certificate; it is only kept in memory and replaced after two thirds.
pub const SERVER_CERTIFICATE_LIFE: Duration = Duration::from_secs(30 * 24 * 3600);

/// Certificates are valid from this long before they are issued, for peers whose clocks run behind.
pub const CLOCK_SKEW: Duration = Duration::from_secs(300);
