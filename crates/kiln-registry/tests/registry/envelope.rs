//! Properties of what is signed: the bytes mean one payload of one type, and no other envelope passes for a signed one.

use kiln_core::Digest;
use kiln_io::signing::SigningKey;
use kiln_registry::{
    Trust, TrustedKey, Unproven,
    proof::envelope::{Envelope, pre_authentication_encoding},
};
use proptest::prelude::*;

/// Reads the encoding back, as nobody does but to show that it can be read in one way only.
fn decoded(bytes: &[u8]) -> Option<(Vec<u8>, Vec<u8>)> {
    fn part(bytes: &[u8]) -> Option<(&[u8], &[u8])> {
        let end = bytes.iter().position(|byte| *byte == b' ')?;
        let length: usize = std::str::from_utf8(&bytes[..end]).ok()?.parse().ok()?;
        let rest = &bytes[end + 1..];
        Some((rest.get(..length)?, rest.get(length..)?))
    }
    let (kind, rest) = part(bytes.strip_prefix(b"DSSEv1 ")?)?;
    let (payload, rest) = part(rest.strip_prefix(b" ")?)?;
    rest.is_empty().then(|| (kind.to_vec(), payload.to_vec()))
}

fn trusted(key: &SigningKey) -> Trust {
    let public = key.public();
    Trust::of(vec![TrustedKey {
        id: public.id(),
        name: "ada".to_owned(),
        public: public.to_pem().unwrap(),
        since: 0,
        builders: Vec::new(),
        revoked: None,
    }])
}

proptest! {
    #[test]
    fn what_is_signed_can_be_read_in_one_way_only(kind in "\\PC{0,40}", payload in prop::collection::vec(any::<u8>(), 0..300)) {
        let encoded = pre_authentication_encoding(&kind, &payload);
        prop_assert_eq!(decoded(&encoded), Some((kind.into_bytes(), payload)));
    }

    #[test]
    fn a_signed_payload_comes_back_and_an_envelope_with_any_other_byte_does_not(
        kind in "[a-z/+.]{1,20}",
        payload in prop::collection::vec(any::<u8>(), 1..200),
        place in any::<prop::sample::Index>(),
        mask in 1_u8..,
    ) {
        let key = SigningKey::generate().unwrap();
        let trust = trusted(&key);
        let envelope = Envelope::sign(&kind, &payload, &key).unwrap();
        prop_assert_eq!(trust.open(&envelope).map(|(opened, key)| (opened, key.id)), Ok((payload, key.public().id())));
        let mut bytes = serde_json::to_vec(&envelope).unwrap();
        let place = place.index(bytes.len());
        bytes[place] ^= mask;
        // What still reads as an envelope differs in a hint, or is refused.
        if let Ok(other) = Envelope::parse(&bytes)
            && (other.payload(), other.payload_type()) != (envelope.payload(), envelope.payload_type())
        {
            prop_assert!(trust.open(&other).is_err());
        }
    }

    #[test]
    fn no_bytes_make_the_reader_panic(bytes in prop::collection::vec(any::<u8>(), 0..500)) {
        let _ = Envelope::parse(&bytes).map(|envelope| Trust::default().open(&envelope).is_ok());
    }
}

#[test]
fn the_hint_of_a_trusted_key_does_not_make_a_signature_of_it() {
    let (mine, other) = (SigningKey::generate().unwrap(), SigningKey::generate().unwrap());
    let envelope = Envelope::sign("t", b"payload", &other).unwrap();
    let text = serde_json::to_string(&envelope).unwrap().replace(&other.public().id().hex(), &mine.public().id().hex());
    let forged = Envelope::parse(text.as_bytes()).unwrap();
    assert_eq!(trusted(&mine).open(&forged).unwrap_err(), Unproven::Altered { name: "ada".to_owned() });
    // And without a hint a signature is found by trying.
    let text = serde_json::to_string(&envelope).unwrap().replace(&other.public().id().hex(), "");
    assert!(trusted(&other).open(&Envelope::parse(text.as_bytes()).unwrap()).is_ok());
    assert_ne!(Digest::of(b"payload"), mine.public().id());
}
