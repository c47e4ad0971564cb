//! What the two ends of a kubelet stream have to say to each other about an upgraded connection.

/// Headers of a request that belong to the upgrade; credentials and all others stay behind.
pub const UPGRADE_HEADERS: [&str; 7] = [
    "connection",
    "upgrade",
    "x-stream-protocol-version",
    "sec-websocket-key",
    "sec-websocket-version",
    "sec-websocket-protocol",
    "sec-websocket-extensions",
];
