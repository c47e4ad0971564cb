//! What anybody on the internet can send to a gateway: it comes to nothing, and is not answered with more than was sent.

#![no_main]

use libfuzzer_sys::arbitrary::Unstructured;
use libfuzzer_sys::fuzz_target;
use liquid_fuzz::tunnel;
use liquid_gateway::wireguard::message::{COOKIE_REPLY, INITIATION, RESPONSE};
use std::net::SocketAddr;
use std::time::{Duration, Instant};

/// Datagrams of one input.
const MAX_DATAGRAMS: usize = 64;

fuzz_target!(|input: &[u8]| {
    let mut input = Unstructured::new(input);
    let mut now = Instant::now();
    let mut gateway = tunnel::gateway(now);
    let recipient = tunnel::recipient();
    for _ in 0..MAX_DATAGRAMS {
        let Ok(kind) = input.arbitrary::<u8>() else { break };
        let length = match kind % 6 {
            0 => INITIATION,
            1 => RESPONSE,
            2 => COOKIE_REPLY,
            _ => input.int_in_range(0..=300).unwrap_or(0),
        };
        let mut datagram = vec![0; length];
        if input.fill_buffer(&mut datagram).is_err() {
            break;
        }
        if let Some(first) = datagram.first_chunk_mut::<4>()
            && kind % 6 < 5
        {
            *first = [1 + kind % 6 % 4, 0, 0, 0];
        }
        // The first MAC only needs the public key of the gateway: whoever knows it gets further.
        if kind & 0x80 != 0 && matches!(length, INITIATION | RESPONSE) {
            recipient.sign(&mut datagram, None);
        }
        let from = SocketAddr::from(([198, 51, 100, kind >> 4 & 3], 1000));
        now += Duration::from_millis(u64::from(kind >> 3 & 1) * 500);
        gateway.handle_datagrams(now, from, &mut datagram, 0..length, length);
        assert_eq!(gateway.poll_deliveries(&mut datagram).deliveries(), 0, "it has no keys");
        gateway.clear_deliveries();
        let mut answered = 0;
        while let Some(answer) = gateway.poll_transmit() {
            assert_eq!(answer.to, from, "others are left alone");
            answered += answer.contents.len();
        }
        gateway.clear_transmits();
        assert!(answered <= length, "{answered} bytes for {length}");
    }
});
