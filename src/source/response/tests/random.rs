//! Random responses, in random forms.

use proptest::prelude::*;

use super::body::{self, Choices, choices};
use super::*;

fn cbor_body(response: &OwnedResponse, choices: &mut Choices) -> Vec<u8> {
    let mut encoded = Vec::new();
    let node = body::node(response, choices);
    body::cbor(&node, choices, &mut encoded);
    encoded
}

fn json_body(response: &OwnedResponse, choices: &mut Choices) -> String {
    let mut encoded = String::new();
    let node = body::node(response, choices);
    body::json(&node, choices, &mut encoded);
    encoded
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(1_000))]

    #[test]
    fn every_form_decodes_to_the_response(
        response in body::response(),
        mut choices in choices(true),
    ) {
        let mut others = choices.clone();
        let cbor = cbor_body(&response, &mut choices);
        prop_assert_eq!(from_cbor(cbor), Ok(response.clone()));
        let json = json_body(&response, &mut others);
        prop_assert_eq!(from_json(json), Ok(response));
    }

    #[test]
    fn changed_body_is_decoded_within_its_buffer_or_refused(
        response in body::response(),
        mut choices in choices(true),
        changes in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..6),
    ) {
        let mut others = choices.clone();
        let mut cbor = cbor_body(&response, &mut choices);
        let mut json = json_body(&response, &mut others).into_bytes();
        for (place, byte) in changes {
            let at = place.index(cbor.len());
            cbor[at] = byte;
            let at = place.index(json.len());
            json[at] = byte;
        }
        // The ranges and texts are checked by the conversion.
        let _ = (from_cbor(&cbor[..]), from_json(&json[..]), ErrorBody::from_cbor(&cbor));
    }

    #[test]
    fn arbitrary_bytes_are_decoded_within_their_buffer_or_refused(
        bytes in prop::collection::vec(any::<u8>(), 0..200),
    ) {
        let _ = (from_cbor(&bytes[..]), from_json(&bytes[..]), ErrorBody::from_cbor(&bytes));
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(100))]

    #[test]
    fn each_prefix_of_a_body_is_refused(
        response in body::response(),
        mut choices in choices(true),
    ) {
        let mut others = choices.clone();
        let cbor = cbor_body(&response, &mut choices);
        for end in 0..cbor.len() {
            prop_assert!(from_cbor(&cbor[..end]).is_err(), "{} of {} bytes", end, cbor.len());
        }
        let json = json_body(&response, &mut others);
        for end in 0..json.trim_end().len() {
            prop_assert!(from_json(&json.as_bytes()[..end]).is_err(), "{} bytes of {}", end, json);
        }
    }
}
