//! Netlink messages: writing attributes, and reading them.
//!
//! Only the few attributes that matter here are looked at, so that objects of others, with attributes of newer kernels,
//! can never make a listing unreadable.

use netlink_packet_core::{NLA_F_NESTED, NlasIterator};
use std::net::IpAddr;

/// Length of `struct nlmsghdr`.
pub(super) const HEADER: usize = 16;

/// A message being written. Errors of length cannot happen: nothing here comes near 64 KiB, except sets of addresses, whose
/// writer bounds them.
#[derive(Debug)]
pub(super) struct Message {
    buffer: Vec<u8>,
}

impl Message {
    /// A message of a kind; `header` is the structure its family begins with.
    pub(super) fn new(kind: u16, flags: u16, header: &[u8]) -> Self {
        let mut buffer = vec![0; HEADER];
        buffer[4..6].copy_from_slice(&kind.to_ne_bytes());
        buffer[6..8].copy_from_slice(&flags.to_ne_bytes());
        buffer.extend_from_slice(header);
        Self { buffer }
    }

    /// Adds an attribute.
    pub(super) fn put(&mut self, kind: u16, value: &[u8]) -> &mut Self {
        let start = self.begin(kind);
        self.buffer.extend_from_slice(value);
        self.end(start);
        self
    }

    /// Adds a number in the byte order of this machine, as routing messages have it.
    pub(super) fn put_u32(&mut self, kind: u16, value: u32) -> &mut Self {
        self.put(kind, &value.to_ne_bytes())
    }

    /// Adds a number in network byte order, as nftables has it.
    pub(super) fn put_be32(&mut self, kind: u16, value: u32) -> &mut Self {
        self.put(kind, &value.to_be_bytes())
    }

    /// Adds a text that ends with a zero byte.
    pub(super) fn put_text(&mut self, kind: u16, text: &str) -> &mut Self {
        self.put(kind, &[text.as_bytes(), &[0]].concat())
    }

    /// Adds an address.
    pub(super) fn put_address(&mut self, kind: u16, address: IpAddr) -> &mut Self {
        match address {
            IpAddr::V4(address) => self.put(kind, &address.octets()),
            IpAddr::V6(address) => self.put(kind, &address.octets()),
        }
    }

    /// Adds an attribute made of attributes.
    pub(super) fn nest(&mut self, kind: u16, inner: impl FnOnce(&mut Self)) -> &mut Self {
        let start = self.begin(kind | NLA_F_NESTED);
        inner(self);
        self.end(start);
        self
    }

    /// Adds bytes that are no attribute.
    pub(super) fn raw(&mut self, bytes: &[u8]) -> &mut Self {
        self.buffer.extend_from_slice(bytes);
        self
    }

    /// Where the next attribute begins; give it to [`Message::patch_length`].
    pub(super) fn position(&self) -> usize {
        self.buffer.len()
    }

    /// Writes how many bytes have been added since `start` to `start`.
    pub(super) fn patch_length(&mut self, start: usize) {
        let length = u16::try_from(self.buffer.len() - start).unwrap_or(u16::MAX);
        self.buffer[start..start + 2].copy_from_slice(&length.to_ne_bytes());
    }

    fn begin(&mut self, kind: u16) -> usize {
        let start = self.buffer.len();
        self.buffer.extend_from_slice(&[0; 2]);
        self.buffer.extend_from_slice(&kind.to_ne_bytes());
        start
    }

    fn end(&mut self, start: usize) {
        self.patch_length(start);
        self.buffer.resize(self.buffer.len().next_multiple_of(4), 0);
    }

    /// The bytes to send.
    pub(super) fn finish(mut self, sequence: u32, flags: u16) -> Vec<u8> {
        let length = u32::try_from(self.buffer.len()).unwrap_or(u32::MAX);
        self.buffer[..4].copy_from_slice(&length.to_ne_bytes());
        let flags = u16::from_ne_bytes([self.buffer[6], self.buffer[7]]) | flags;
        self.buffer[6..8].copy_from_slice(&flags.to_ne_bytes());
        self.buffer[8..12].copy_from_slice(&sequence.to_ne_bytes());
        self.buffer
    }
}

/// A message of the kernel.
#[derive(Debug, Clone)]
pub(super) struct Reply {
    /// Its kind.
    pub(super) kind: u16,
    /// Its flags.
    pub(super) flags: u16,
    /// The request it answers.
    pub(super) sequence: u32,
    /// What follows the header.
    pub(super) payload: Vec<u8>,
}

impl Reply {
    /// The messages in a datagram. One that is cut short ends the reading.
    pub(super) fn all(mut datagram: &[u8]) -> Vec<Self> {
        let mut replies = Vec::new();
        while datagram.len() >= HEADER {
            let length = usize::try_from(number(datagram)).unwrap_or(usize::MAX);
            if length < HEADER || length > datagram.len() {
                break;
            }
            replies.push(Self {
                kind: short(&datagram[4..]),
                flags: short(&datagram[6..]),
                sequence: number(&datagram[8..]),
                payload: datagram[HEADER..length].to_vec(),
            });
            datagram = datagram.get(length.next_multiple_of(4)..).unwrap_or_default();
        }
        replies
    }

    /// The structure the message begins with, if it is whole.
    pub(super) fn header(&self, length: usize) -> Option<&[u8]> {
        self.payload.get(..length)
    }

    /// The attributes after that structure.
    pub(super) fn attributes(&self, header: usize) -> Attributes<'_> {
        Attributes(self.payload.get(header.next_multiple_of(4)..).unwrap_or_default())
    }
}

/// Attributes to be read.
#[derive(Debug, Clone, Copy)]
pub(super) struct Attributes<'a>(pub(super) &'a [u8]);

impl<'a> Attributes<'a> {
    /// Kind and value of each, up to the first that is damaged.
    pub(super) fn iter(self) -> impl Iterator<Item = (u16, &'a [u8])> {
        NlasIterator::new(self.0).map_while(Result::ok).filter_map(|attribute| {
            // The iterator checks the length; its own accessor would borrow from the buffer on this stack.
            let length = attribute.value_length();
            let kind = attribute.kind();
            let value: &'a [u8] = attribute.into_inner();
            Some((kind, value.get(4..4 + length)?))
        })
    }

    /// The value of the first of a kind.
    pub(super) fn get(self, kind: u16) -> Option<&'a [u8]> {
        self.iter().find(|(found, _)| *found == kind).map(|(_, value)| value)
    }

    /// The attributes within the first of a kind.
    pub(super) fn inner(self, kind: u16) -> Self {
        Self(self.get(kind).unwrap_or_default())
    }

    /// A number in the byte order of this machine.
    pub(super) fn u32(self, kind: u16) -> Option<u32> {
        self.get(kind).filter(|value| value.len() == 4).map(number)
    }

    /// A number in network byte order.
    pub(super) fn be32(self, kind: u16) -> Option<u32> {
        self.u32(kind).map(u32::from_be)
    }

    /// A text, without the zero byte at its end.
    pub(super) fn text(self, kind: u16) -> Option<String> {
        self.get(kind).map(text)
    }

    /// An address of either family.
    pub(super) fn address(self, kind: u16) -> Option<IpAddr> {
        self.get(kind).and_then(address)
    }
}

/// An address in as many bytes as its family has.
pub(super) fn address(bytes: &[u8]) -> Option<IpAddr> {
    let v4 = || <[u8; 4]>::try_from(bytes).ok().map(IpAddr::from);
    let v6 = || <[u8; 16]>::try_from(bytes).ok().map(IpAddr::from);
    v4().or_else(v6)
}

/// A text, up to its zero byte.
pub(super) fn text(bytes: &[u8]) -> String {
    let end = bytes.iter().position(|byte| *byte == 0).unwrap_or(bytes.len());
    String::from_utf8_lossy(&bytes[..end]).into_owned()
}

/// The first four bytes in the byte order of this machine; zero if there are fewer.
pub(super) fn number(bytes: &[u8]) -> u32 {
    bytes.first_chunk().map_or(0, |bytes| u32::from_ne_bytes(*bytes))
}

/// The first two bytes, likewise.
pub(super) fn short(bytes: &[u8]) -> u16 {
    bytes.first_chunk().map_or(0, |bytes| u16::from_ne_bytes(*bytes))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_written_is_read_back() {
        let mut message = Message::new(7, 1, &[9, 9, 9, 9]);
        message.put_text(1, "ab").nest(2, |inner| {
            inner.put_be32(3, 5).put_address(4, "10.0.0.1".parse().unwrap());
        });
        let bytes = message.finish(3, 4);
        let replies = Reply::all(&bytes);
        assert_eq!(replies.len(), 1);
        let (reply, attributes) = (&replies[0], replies[0].attributes(4));
        assert_eq!((reply.kind, reply.flags, reply.sequence), (7, 5, 3));
        assert_eq!(reply.header(4), Some([9; 4].as_slice()));
        assert_eq!(attributes.text(1).as_deref(), Some("ab"));
        assert_eq!(attributes.inner(2).be32(3), Some(5));
        assert_eq!(attributes.inner(2).address(4), Some("10.0.0.1".parse().unwrap()));
        assert!(attributes.get(3).is_none());
    }

    #[test]
    fn arbitrary_bytes_are_survived() {
        use proptest::prelude::*;
        proptest!(|(bytes in proptest::collection::vec(any::<u8>(), 0..200))| {
            for reply in Reply::all(&bytes) {
                for (_, value) in reply.attributes(4).iter() {
                    let _ = Attributes(value).iter().count();
                }
            }
            let _ = Attributes(&bytes).iter().count();
        });
    }
}
