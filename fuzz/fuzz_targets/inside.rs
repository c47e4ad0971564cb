//! What a peer can seal, whose keys are right: only packets from its own addresses to those of this cluster come out.

#![no_main]

use libfuzzer_sys::arbitrary::Unstructured;
use libfuzzer_sys::fuzz_target;
use liquid_fuzz::packet::{Dress, is_right};
use liquid_fuzz::tunnel::{self, Tunnel};
use liquid_gateway::packet::ip::Ip;
use liquid_gateway::packet::segment::Segments;
use liquid_gateway::packet::vnet::Offload;
use std::cell::RefCell;

/// Packets of one batch.
const MAX_PACKETS: usize = 40;

thread_local! {
    // A handshake for each input would be most of the work.
    static TUNNEL: RefCell<Tunnel> = RefCell::new(Tunnel::new());
}

fuzz_target!(|input: &[u8]| {
    TUNNEL.with_borrow_mut(|tunnel| {
        let mut input = Unstructured::new(input);
        let mut all_right = true;
        let mut packet = Vec::new();
        for _ in 0..MAX_PACKETS {
            let (Ok(how), Ok(repeated), Ok(length)) =
                (input.arbitrary::<u8>(), input.arbitrary::<bool>(), input.int_in_range(0..=200_usize))
            else {
                break;
            };
            // A packet like the last one but for what follows its start: only such are joined.
            let keep = if repeated { packet.len().min(40) } else { 0 };
            packet.resize(length.max(keep), 0);
            if input.fill_buffer(&mut packet[keep..]).is_err() {
                break;
            }
            Dress(how).put_on(&mut packet, tunnel::hosts());
            all_right &= Ip::parse(&packet).is_ok_and(|ip| is_right(&packet, &ip));
            tunnel.seal(&packet);
        }
        for (header, packet) in tunnel.deliver() {
            let ip = Ip::parse(&packet).expect("only packets are passed on");
            assert!(tunnel::is_view(ip.source), "from {}", ip.source);
            assert!(tunnel::is_real(ip.destination), "to {}", ip.destination);
            match Offload::read(&header).expect("a header the kernel knows") {
                Offload::Segments { protocol, size } => {
                    let segments = Segments::new(&packet, &ip, protocol, size).expect("it can be cut again");
                    for number in 0..segments.count() {
                        let mut segment = vec![0; segments.length(number)];
                        segments.write(number, &mut segment);
                        let ip = Ip::parse(&segment).expect("a segment is a packet");
                        assert!(is_right(&segment, &ip), "a joined packet was not right");
                    }
                }
                Offload::None => {
                    let packet = &packet[..ip.length];
                    assert!(!all_right || is_right(packet, &ip), "its checksum was right");
                }
                Offload::Checksum { .. } => panic!("nothing is left for the kernel to sum"),
            }
        }
    });
});
