//! Prefix NAT on packets of any shape: the address is the new one, checksums are as right as they were, nothing else changes.

#![no_main]

use libfuzzer_sys::fuzz_target;
use liquid_fuzz::packet::{Dress, is_right};
use liquid_fuzz::tunnel;
use liquid_gateway::nat::{End, Quoted, Transport, rewrite, rewrite_quoted};
use liquid_gateway::packet::ip::Ip;
use std::net::IpAddr;

fn end_of(ip: &Ip, end: End) -> IpAddr {
    match end {
        End::Source => ip.source,
        End::Destination => ip.destination,
    }
}

fuzz_target!(|input: (u8, [u8; 16], Vec<u8>)| {
    let (how, new, mut packet) = input;
    Dress(how).put_on(&mut packet, tunnel::seen());
    let Ok(ip) = Ip::parse(&packet) else { return };
    packet.truncate(ip.length);
    let [a, b, c, d, ..] = new;
    let new = if ip.is_v4() { IpAddr::from([a, b, c, d]) } else { IpAddr::from(new) };
    let was_right = is_right(&packet, &ip);

    for (end, other) in [(End::Source, End::Destination), (End::Destination, End::Source)] {
        let mut changed = packet.clone();
        rewrite(&mut changed, &ip, end, new, Transport::Finished);
        let after = Ip::parse(&changed).expect("it is a packet as before");
        assert_eq!(end_of(&after, end), new);
        assert_eq!(end_of(&after, other), end_of(&ip, other));
        assert_eq!((after.payload, after.length, after.fragment), (ip.payload, ip.length, ip.fragment));
        if was_right {
            assert!(is_right(&changed, &after), "checksums are wrong");
            rewrite(&mut changed, &after, end, end_of(&ip, end), Transport::Finished);
            assert_eq!(changed, packet, "there and back is something else");
        }
    }

    if let Some(quoted) = Quoted::find(&packet, &ip) {
        let mut changed = packet.clone();
        rewrite_quoted(&mut changed, &ip, &quoted, End::Source, new, Transport::Finished);
        assert_eq!(Ip::parse(&changed), Ok(ip), "the outer packet has nothing to do with it");
        let again = Quoted::find(&changed, &ip).expect("it quotes as before");
        if new.is_ipv4() == quoted.ip.is_v4() && packet.len() >= quoted.offset + quoted.ip.payload {
            assert_eq!(again.ip.source, new);
        }
        if was_right {
            assert!(is_right(&changed, &ip), "the checksum of the error is wrong");
        }
    }
});
