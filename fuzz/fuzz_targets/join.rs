//! What people paste and other clusters join with: texts, certificate requests, proofs.

#![no_main]

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use libfuzzer_sys::fuzz_target;
use liquid_link::ca::{check_proof, check_request};
use liquid_link::digest::{hex, sha256};
use liquid_link::introduction::Introduction;
use liquid_link::token::JoinToken;

fuzz_target!(|input: (u8, Vec<u8>)| {
    let (what, bytes) = input;
    match what % 5 {
        0 => drop(check_request(&bytes)),
        1 => drop(check_proof(&bytes, &bytes, "token", &bytes)),
        2 => {
            if let Ok(text) = str::from_utf8(&bytes) {
                drop(JoinToken::parse(text, 0));
                drop(Introduction::parse(text));
            }
        }
        // As if the contents had come over whole: what is in them is somebody else's all the same.
        3 => drop(JoinToken::parse(&text("liquid1", &bytes), 0)),
        _ => drop(Introduction::parse(&text("liquid-cluster1", &bytes))),
    }
});

fn text(kind: &str, json: &[u8]) -> String {
    format!("{kind}.{}.{}", URL_SAFE_NO_PAD.encode(json), hex(&sha256(json)[..4]))
}
