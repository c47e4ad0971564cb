//! Clamping of the TCP maximum segment size (RFC 9293, section 3.7.1), so that no connection depends on path MTU
//! discovery, which firewalls break.

use super::checksum::update;
use super::ip::{Ip, protocol};
use crate::nat::Transport;

const SYN: u8 = 0x02;
const OPTION_END: u8 = 0;
const OPTION_NOP: u8 = 1;
const OPTION_MSS: u8 = 2;
/// Length of an IPv4 and a TCP header without options; what the MSS does not count.
const HEADERS_V4: u16 = 40;
/// The same for IPv6.
const HEADERS_V6: u16 = 60;

/// Lowers the MSS a SYN announces to what packets of `mtu` bytes can carry; returns whether it was larger.
pub fn clamp(packet: &mut [u8], ip: &Ip, mtu: u16, transport: Transport) -> bool {
    if ip.protocol != protocol::TCP || !ip.has_transport() {
        return false;
    }
    let Some(tcp) = packet.get_mut(ip.payload..ip.length) else { return false };
    if tcp.len() < 20 || tcp[13] & SYN == 0 {
        return false;
    }
    let end = (usize::from(tcp[12] >> 4) * 4).min(tcp.len());
    let limit = mtu.saturating_sub(if ip.is_v4() { HEADERS_V4 } else { HEADERS_V6 });
    let mut at = 20;
    while at < end {
        match (tcp[at], tcp.get(at + 1)) {
            (OPTION_END, _) => return false,
            (OPTION_NOP, _) => at += 1,
            (OPTION_MSS, Some(4)) if at + 4 <= end => {
                let announced = u16::from_be_bytes([tcp[at + 2], tcp[at + 3]]);
                return announced > limit && {
                    set(tcp, at + 2, limit, transport);
                    true
                };
            }
            // A length below 2 would never end.
            (_, Some(&length)) if length >= 2 => at += usize::from(length),
            _ => return false,
        }
    }
    false
}

fn set(tcp: &mut [u8], at: usize, value: u16, transport: Transport) {
    // Options may stand at odd offsets: the words that are summed are those around the value.
    let even = at & !1;
    let Some(old) = tcp.get(even..even + 4).and_then(|words| words.first_chunk::<4>()).copied() else {
        return;
    };
    let Some(field) = tcp.get_mut(at..at + 2) else { return };
    field.copy_from_slice(&value.to_be_bytes());
    let Some(new) = tcp.get(even..even + 4).and_then(|words| words.first_chunk::<4>()).copied() else {
        return;
    };
    if transport == Transport::Finished
        && let Some(checksum) = tcp.get_mut(16..).and_then(|rest| rest.first_chunk_mut())
    {
        // A partial checksum covers only the pseudo header.
        update(checksum, &old, &new);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::packet::build::{self, Body, Packet};
    use proptest::prelude::*;

    fn syn(source: &str, destination: &str, options: Vec<u8>) -> Packet {
        let body = Body::Tcp {
            ports: [1, 2],
            sequence: 3,
            acknowledgement: 0,
            flags: SYN,
            options,
            payload: vec![],
        };
        Packet::new(source, destination, body)
    }

    #[test]
    fn a_large_mss_is_lowered_at_any_alignment_and_the_checksum_follows() {
        for (source, destination, mss) in [("10.0.0.1", "10.0.0.2", 1380_u16), ("fd00::1", "fd00::2", 1360)] {
            for options in [vec![2, 4, 5, 180, 1, 1, 1, 0], vec![1, 2, 4, 5, 180, 1, 1, 0]] {
                let at = options.iter().position(|byte| *byte == 2).unwrap();
                let mut expected = options.clone();
                expected[at + 2..at + 4].copy_from_slice(&mss.to_be_bytes());
                let mut bytes = syn(source, destination, options).bytes();
                let ip = Ip::parse(&bytes).unwrap();
                assert!(clamp(&mut bytes, &ip, 1420, Transport::Finished));
                assert_eq!(bytes, syn(source, destination, expected).bytes());
            }
        }
    }

    #[test]
    fn a_small_mss_and_what_is_no_syn_are_left_alone() {
        let before = syn("10.0.0.1", "10.0.0.2", vec![2, 4, 2, 0]).bytes();
        let mut bytes = before.clone();
        let ip = Ip::parse(&bytes).unwrap();
        assert!(!clamp(&mut bytes, &ip, 1420, Transport::Finished));
        assert_eq!(bytes, before);
    }

    proptest! {
        #[test]
        fn any_options_end_and_leave_a_right_checksum(mut options in prop::collection::vec(0u8..8, 0..40)) {
            options.truncate(options.len() & !3);
            let mut bytes = syn("10.0.0.1", "10.0.0.2", options).bytes();
            let ip = Ip::parse(&bytes).unwrap();
            clamp(&mut bytes, &ip, 41, Transport::Finished);
            prop_assert!(build::checksums_are_right(&bytes));
        }
    }
}
