//! What pods can hand to the TUN device: what leaves goes to the peer's addresses, is no longer than the tunnel takes, and has
//! right checksums if it had.

#![no_main]

use libfuzzer_sys::fuzz_target;
use liquid_fuzz::packet::{Dress, is_right};
use liquid_fuzz::tunnel::{self, MTU, Tunnel};
use liquid_gateway::packet::ip::{Fragment, Ip};
use liquid_gateway::packet::vnet::{LENGTH, Offload};
use std::cell::RefCell;

thread_local! {
    // A handshake for each input would be most of the work.
    static TUNNEL: RefCell<Tunnel> = RefCell::new(Tunnel::new());
}

fuzz_target!(|input: (u8, u16, [u8; LENGTH], Vec<u8>)| {
    let (how, longer, header, mut packet) = input;
    // Longer than the tunnel takes, now and then.
    packet.resize(packet.len() + usize::from(longer % 4096), 7);
    Dress(how).put_on(&mut packet, tunnel::seen());
    let Ok(offload) = Offload::read(&header) else { return };
    let was_right = Ip::parse(&packet).is_ok_and(|ip| is_right(&packet[..ip.length], &ip));
    TUNNEL.with_borrow_mut(|tunnel| {
        let now = tunnel.now;
        let _ = tunnel.gateway().handle_packet(now, offload, &mut packet);
        for sealed in tunnel.opened() {
            if sealed.is_empty() {
                continue; // A keepalive.
            }
            assert!(sealed.len() <= usize::from(MTU), "{} bytes", sealed.len());
            let ip = Ip::parse(&sealed).unwrap_or_else(|error| panic!("{error}: {sealed:02x?}"));
            assert!(tunnel::is_real(ip.destination), "to {}", ip.destination);
            if was_right && offload == Offload::None && ip.fragment == Fragment::Whole {
                assert!(is_right(&sealed[..ip.length], &ip), "its checksum was right");
            }
        }
        while let Some(answer) = tunnel.gateway().poll_answer() {
            let ip = Ip::parse(&answer).expect("answers are packets");
            assert!(is_right(&answer, &ip), "answers have right checksums");
        }
    });
});
