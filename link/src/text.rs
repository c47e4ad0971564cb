//! Data that people carry from one cluster to another as one line of text, `KIND.<payload>.<check>`: the payload is
//! base64url of JSON, the check the first four bytes of its SHA-256, so that a cut or mistyped text is told from a wrong
//! one.

use crate::digest::{decode_hex, hex, sha256};
use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use serde::Serialize;
use serde::de::DeserializeOwned;

const CHECK_BYTES: usize = 4;
/// Longest text read: 16 endpoints of 261 characters, or 8 gateways with 8 addresses each, most of which are short.
const MAX_LENGTH: usize = 16 * 1024;

/// Why a text is not what was asked for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum NoText {
    /// It begins otherwise.
    Other,
    /// It was cut or mistyped.
    Damaged,
    /// It holds something else.
    Contents(String),
}

/// The text of `data`.
pub(crate) fn write(kind: &str, data: &impl Serialize) -> serde_json::Result<String> {
    let json = serde_json::to_vec(data)?;
    let check = hex(&sha256(&json)[..CHECK_BYTES]);
    Ok(format!("{kind}.{}.{check}", URL_SAFE_NO_PAD.encode(json)))
}

/// What the text holds.
pub(crate) fn read<T: DeserializeOwned>(kind: &str, text: &str) -> Result<T, NoText> {
    let text = text.trim();
    let rest = text.strip_prefix(kind).and_then(|rest| rest.strip_prefix('.')).ok_or(NoText::Other)?;
    if text.len() > MAX_LENGTH {
        return Err(NoText::Damaged);
    }
    let (payload, check) = rest.split_once('.').ok_or(NoText::Damaged)?;
    let json = URL_SAFE_NO_PAD.decode(payload).map_err(|_| NoText::Damaged)?;
    let mut expected = [0; CHECK_BYTES];
    decode_hex(check, &mut expected).ok_or(NoText::Damaged)?;
    if sha256(&json)[..CHECK_BYTES] != expected {
        return Err(NoText::Damaged);
    }
    serde_json::from_slice(&json).map_err(|error| NoText::Contents(error.to_string()))
}
