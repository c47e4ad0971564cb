//! For whom a connection is: the name in the first message of TLS, which is read and passed on as it is.

use liquid_crds::ClusterId;
use rustls::server::Acceptor;

/// Longest first message: those of the link have some 300 bytes, and a record has 16 KiB at most.
const MAX_HELLO: usize = 16 * 1024;

/// What the bytes so far are.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Progress {
    /// The beginning of a first message.
    More,
    /// A first message, for the link endpoint of this cluster.
    For(ClusterId),
    /// Something else.
    Other,
}

/// A first message, of which more and more is known.
#[derive(Default)]
pub(super) struct Hello {
    acceptor: Acceptor,
    bytes: Vec<u8>,
}

impl Hello {
    /// Takes the next bytes. After anything but [`Progress::More`] there is nothing more to take.
    pub(super) fn take(&mut self, mut bytes: &[u8]) -> Progress {
        self.bytes.extend(bytes);
        if self.bytes.len() > MAX_HELLO {
            return Progress::Other;
        }
        while !bytes.is_empty() {
            match self.acceptor.read_tls(&mut bytes) {
                Ok(0) | Err(_) => return Progress::Other,
                Ok(_) => {}
            }
            match self.acceptor.accept() {
                Ok(None) => {}
                Ok(Some(accepted)) => {
                    let name = accepted.client_hello().server_name().and_then(ClusterId::of_link_name);
                    return name.map_or(Progress::Other, Progress::For);
                }
                Err(_) => return Progress::Other,
            }
        }
        Progress::More
    }

    /// All bytes that were taken.
    pub(super) fn into_bytes(self) -> Vec<u8> {
        self.bytes
    }
}

/// The first message for a server of this name.
#[cfg(test)]
pub(super) fn hello(name: &str) -> Vec<u8> {
    use rustls::{ClientConfig, ClientConnection, RootCertStore};
    let config = ClientConfig::builder_with_provider(liquid_runtime::tls::provider())
        .with_protocol_versions(&[&rustls::version::TLS13])
        .unwrap()
        .with_root_certificates(RootCertStore::empty())
        .with_no_client_auth();
    let name = rustls_pki_types::ServerName::try_from(name.to_owned()).unwrap();
    let mut client = ClientConnection::new(std::sync::Arc::new(config), name).unwrap();
    let mut bytes = Vec::new();
    client.write_tls(&mut bytes).unwrap();
    bytes
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const ID: &str = "3f2c0a44-8c1e-4a8e-9d55-0123456789ab";

    fn link() -> Vec<u8> {
        hello(&format!("{ID}.link.liquid.mesh"))
    }

    /// Feeds pieces that end at `cuts`, and returns what it all is.
    fn fed(bytes: &[u8], cuts: &[usize]) -> Progress {
        let mut hello = Hello::default();
        let mut cuts: Vec<usize> = cuts.iter().map(|cut| cut % (bytes.len() + 1)).collect();
        cuts.extend([0, bytes.len()]);
        cuts.sort_unstable();
        for pair in cuts.windows(2) {
            match hello.take(&bytes[pair[0]..pair[1]]) {
                Progress::More => {}
                settled => return settled,
            }
        }
        assert_eq!(hello.into_bytes(), bytes, "they are passed on as they came");
        Progress::More
    }

    #[test]
    fn the_name_of_a_link_endpoint_says_for_whom_it_is() {
        assert_eq!(fed(&link(), &[]), Progress::For(ID.parse().unwrap()));
    }

    #[test]
    fn what_is_for_somebody_else_goes_nowhere() {
        for name in ["example.org", "milan.link.liquid.mesh", "10.0.0.1"] {
            assert_eq!(fed(&hello(name), &[]), Progress::Other, "{name}");
        }
        assert_eq!(fed(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n", &[]), Progress::Other);
        assert_eq!(
            fed(&[22, 3, 1, 64, 0].iter().copied().chain([0; 20_000]).collect::<Vec<_>>(), &[]),
            Progress::Other
        );
    }

    proptest! {
        #[test]
        fn it_does_not_matter_in_which_pieces_it_comes(cuts in prop::collection::vec(any::<usize>(), 0..20)) {
            prop_assert_eq!(fed(&link(), &cuts), Progress::For(ID.parse().unwrap()));
        }

        #[test]
        fn a_part_is_never_taken_for_the_whole(end in 0usize..200) {
            let link = link();
            prop_assert_eq!(fed(&link[..end.min(link.len() - 1)], &[]), Progress::More);
        }

        #[test]
        fn arbitrary_bytes_lead_nowhere(bytes in prop::collection::vec(any::<u8>(), 0..600), cuts in prop::collection::vec(any::<usize>(), 0..5)) {
            prop_assert!(!matches!(fed(&bytes, &cuts), Progress::For(_)));
        }

        #[test]
        fn a_changed_byte_leads_to_the_same_cluster_or_to_one_that_is_named(at in any::<usize>(), to in any::<u8>()) {
            let mut bytes = link();
            let at = at % bytes.len();
            bytes[at] = to;
            if let Progress::For(id) = fed(&bytes, &[]) {
                // Names do not differ by case.
                let text = String::from_utf8_lossy(&bytes).to_lowercase();
                prop_assert!(text.contains(&id.link_name()));
            }
        }
    }
}
