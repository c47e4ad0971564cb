//! Introductions: what the administrator of a cluster hands to that of a provider whose gateways cannot be called, so that
//! they call instead. It holds nothing secret, and lets nobody in.

use crate::gateways;
use crate::text::{self, NoText};
use liquid_crds::{ClusterId, ClusterName, PeerGateway};
use serde::{Deserialize, Serialize};
use std::fmt;
use thiserror::Error;

const KIND: &str = "liquid-cluster1";

/// Why a text is no usable introduction.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum IntroductionError {
    /// It is something else.
    #[error(
        "this is no introduction: one starts with \"{KIND}.\" (make one with `liquidctl introduce` in the cluster that wants to borrow)"
    )]
    NotAnIntroduction,
    /// It was cut or mistyped.
    #[error(
        "the introduction is damaged (cut or mistyped): copy the whole line that `liquidctl introduce` printed"
    )]
    Damaged,
    /// It was made by another version.
    #[error("the introduction has contents this version does not understand: {0}")]
    Contents(String),
}

/// Which cluster wants to join, and where its gateways are.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Introduction {
    /// Name of the cluster.
    #[serde(rename = "n")]
    pub cluster_name: ClusterName,
    /// Identity of the cluster.
    #[serde(rename = "c")]
    pub cluster_id: ClusterId,
    /// Its gateways.
    #[serde(rename = "g")]
    pub gateways: Vec<PeerGateway>,
}

impl Introduction {
    /// Reads an introduction.
    ///
    /// # Errors
    /// If it is none, damaged, or from another version.
    pub fn parse(text: &str) -> Result<Self, IntroductionError> {
        let read: Self = text::read(KIND, text).map_err(|why| match why {
            NoText::Other => IntroductionError::NotAnIntroduction,
            NoText::Damaged => IntroductionError::Damaged,
            NoText::Contents(what) => IntroductionError::Contents(what),
        })?;
        gateways::check(&read.gateways).map_err(|error| IntroductionError::Contents(error.to_string()))?;
        if read.gateways.is_empty() {
            return Err(IntroductionError::Contents("it names no gateway".to_owned()));
        }
        Ok(read)
    }
}

impl fmt::Display for Introduction {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&text::write(KIND, self).map_err(|_| fmt::Error)?)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use base64::Engine as _;
    use base64::engine::general_purpose::STANDARD;
    use proptest::prelude::*;

    fn introduction() -> Introduction {
        Introduction {
            cluster_name: "turin".parse().unwrap(),
            cluster_id: "3f2c0a44-8c1e-4a8e-9d55-0123456789ab".parse().unwrap(),
            gateways: vec![PeerGateway {
                name: Some("liquid-gateway-0".to_owned()),
                public_key: STANDARD.encode([7; gateways::KEY]),
                endpoints: vec!["192.0.2.1:31820".to_owned()],
                probes: true,
            }],
        }
    }

    #[test]
    fn an_introduction_survives_the_trip_as_text() {
        assert_eq!(Introduction::parse(&format!(" {}\n", introduction())), Ok(introduction()));
    }

    #[test]
    fn what_cannot_be_called_is_no_introduction() {
        let parse = |introduction: Introduction| Introduction::parse(&introduction.to_string());
        assert!(parse(Introduction { gateways: Vec::new(), ..introduction() }).is_err());
        let keyless =
            PeerGateway { name: None, public_key: "short".to_owned(), endpoints: Vec::new(), probes: true };
        assert!(parse(Introduction { gateways: vec![keyless], ..introduction() }).is_err());
        assert_eq!(Introduction::parse("liquid1.x.y"), Err(IntroductionError::NotAnIntroduction));
        let text = introduction().to_string();
        assert_eq!(Introduction::parse(&text[..text.len() - 1]), Err(IntroductionError::Damaged));
    }

    proptest! {
        #[test]
        fn arbitrary_text_never_panics(text in "\\PC{0,200}") {
            let _ = Introduction::parse(&text);
            let _ = Introduction::parse(&format!("{KIND}.{text}"));
        }
    }
}
