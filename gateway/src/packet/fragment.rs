//! Fragmentation of IPv4 packets whose senders allow it (RFC 791, section 3.2).

use super::checksum::Sum;
use super::ip::{IPV4_HEADER, Ip};

/// The fragments of an IPv4 packet.
#[derive(Debug, Clone, Copy)]
pub struct Fragments<'a> {
    packet: &'a [u8],
    header: usize,
    /// Payload bytes per fragment, a multiple of 8.
    step: usize,
    count: usize,
}

impl<'a> Fragments<'a> {
    /// Cuts `packet` into fragments of at most `mtu` bytes; `None` if that cannot be.
    ///
    /// Packets with IP options are not cut: which options go into later fragments differs by option, and hosts do
    /// not send any.
    #[must_use]
    pub fn new(packet: &'a [u8], ip: &Ip, mtu: usize) -> Option<Self> {
        let step = mtu.checked_sub(IPV4_HEADER)? & !7;
        if !ip.is_v4() || ip.payload != IPV4_HEADER || step == 0 {
            return None;
        }
        let packet = packet.get(..ip.length)?;
        let count = (packet.len() - ip.payload).div_ceil(step);
        Some(Self { packet, header: ip.payload, step, count })
    }

    /// How many there are.
    #[must_use]
    pub fn count(&self) -> usize {
        self.count
    }

    fn payload(&self, index: usize) -> &'a [u8] {
        let start = self.header + index * self.step;
        &self.packet[start..(start + self.step).min(self.packet.len())]
    }

    /// Length of a fragment.
    #[must_use]
    pub fn length(&self, index: usize) -> usize {
        self.header + self.payload(index).len()
    }

    /// Writes a fragment to the start of `out`, which is at least as long as it.
    pub fn write(&self, index: usize, out: &mut [u8]) {
        let payload = self.payload(index);
        let length = self.header + payload.len();
        out[..self.header].copy_from_slice(&self.packet[..self.header]);
        out[self.header..length].copy_from_slice(payload);
        let field = u16::from_be_bytes([self.packet[6], self.packet[7]]);
        let more = field & 0x2000 != 0 || index + 1 < self.count;
        let units = u16::try_from(index * self.step / 8).unwrap_or(u16::MAX);
        let offset = (field & 0x1fff).saturating_add(units) & 0x1fff;
        let length = u16::try_from(length).unwrap_or(u16::MAX);
        out[2..4].copy_from_slice(&length.to_be_bytes());
        out[6..8].copy_from_slice(&(offset | if more { 0x2000 } else { 0 }).to_be_bytes());
        out[10..12].fill(0);
        let sum = Sum::of(&out[..self.header]).checksum();
        out[10..12].copy_from_slice(&sum);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::packet::build::{Body, Packet};
    use crate::packet::ip::Fragment;

    #[test]
    fn fragments_fit_and_put_together_are_the_packet() {
        let payload: Vec<u8> = (0..4000u32).map(|byte| (byte % 251) as u8).collect();
        let body = Body::Udp { ports: [1, 2], checksum: true, payload };
        let mut packet = Packet::new("10.0.0.1", "10.0.0.2", body);
        packet.dont_fragment = false;
        let bytes = packet.bytes();
        let fragments = Fragments::new(&bytes, &Ip::parse(&bytes).unwrap(), 1300).unwrap();
        let mut whole = vec![0; 0];
        for index in 0..fragments.count() {
            let mut out = vec![0; fragments.length(index)];
            fragments.write(index, &mut out);
            let ip = Ip::parse(&out).unwrap();
            assert!(out.len() <= 1300 && Sum::of(&out[..20]).checksum() == [0, 0]);
            assert_eq!(ip.fragment, if index == 0 { Fragment::First } else { Fragment::Later });
            let offset = usize::from(u16::from_be_bytes([out[6], out[7]]) & 0x1fff) * 8;
            assert_eq!(offset, whole.len());
            let last = u16::from_be_bytes([out[6], out[7]]) & 0x2000 == 0;
            assert_eq!(last, index + 1 == fragments.count());
            whole.extend(&out[20..]);
        }
        assert_eq!(whole, bytes[20..]);
    }
}
