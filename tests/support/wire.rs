//! Draws the wire format of the `GetRecords` calls of a scenario, and changes the server's CBOR
//! while the scenario runs.
//!
//! A separate generator draws both, so that the scenarios of existing seeds stay the same. Half of
//! the seeds read by JSON: the client demands it, or the server never speaks CBOR.
//!
//! # Altered values
//!
//! No altered record may be delivered. A consumer compares one CBOR response with the JSON response
//! to the same call, and relies on CBOR from then on: it cannot notice a server that begins to alter
//! values later. So a server begins only while no running consumer can have passed that check:
//! - at the beginning, or after the last consumer has ended and before the next one starts;
//! - if, since the oldest running consumer started, the server has either altered values or not
//!   spoken CBOR.
//!
//! It may end at any time. A check during the change compares an altered response, or a correct
//! one.
//!
//! The check covers the altered record only if the JSON response still holds it. In a scenario
//! where records leave retention before they are read, the repeated response may lack the first
//! records, so such a scenario alters nothing ([`without_altering`]).

use fastrand::Rng;
use kinestream::WireFormat;
use kinestream::testing::CborSupport;

use crate::seeds::pick;

/// Mixed with the seed for this generator.
const WIRE: u64 = 0x0043_424f_5221;

/// The lengths of responses above which a server cuts them: from a length that no response has, up
/// to that of kinesalite.
const LENGTHS: [usize; 6] = [10, 100, 200, 300, 1000, 16 << 10];

/// The wire format of the consumers of a scenario, and the server's CBOR.
#[derive(Debug)]
pub(crate) struct Wire {
    rng: Rng,
    pub(crate) format: WireFormat,
    pub(crate) support: CborSupport,
    /// The percentage of steps in which the support changes.
    chance: u8,
    /// True if a running consumer may have passed the check.
    may_be_checked: bool,
}

impl Wire {
    pub(crate) fn new(seed: u64) -> Self {
        let mut rng = Rng::with_seed(seed ^ WIRE);
        let (format, support, chance) = match rng.u8(..4) {
            0 => (WireFormat::Json, any(&mut rng), 0),
            1 => {
                let support = pick(&mut rng, &[CborSupport::None, CborSupport::Rejected]);
                (WireFormat::Auto, support, 0)
            }
            _ => (WireFormat::Auto, any(&mut rng), pick(&mut rng, &[0, 0, 5, 15, 40])),
        };
        let may_be_checked = passes_check(support);
        Self { rng, format, support, chance, may_be_checked }
    }

    /// Returns the support if it changes in this step.
    pub(crate) fn change(&mut self) -> Option<CborSupport> {
        if self.rng.u8(..100) >= self.chance {
            return None;
        }
        let support = any(&mut self.rng);
        if support == CborSupport::Altered && self.may_be_checked {
            return None;
        }
        self.may_be_checked |= passes_check(support);
        self.support = support;
        Some(support)
    }

    /// Returns the support if it changes before the next consumer starts, while no other runs.
    #[allow(dead_code, reason = "the workers of a fleet overlap")]
    pub(crate) fn change_between(&mut self) -> Option<CborSupport> {
        let changes = self.chance > 0 && self.rng.bool();
        if changes {
            self.support = any(&mut self.rng);
        }
        self.may_be_checked = passes_check(self.support);
        changes.then_some(self.support)
    }
}

fn any(rng: &mut Rng) -> CborSupport {
    match rng.u8(..9) {
        0..=2 => CborSupport::Amazon,
        3 => CborSupport::Seconds,
        4 => CborSupport::Text,
        5 => CborSupport::Altered,
        6 => CborSupport::None,
        7 => CborSupport::Rejected,
        _ => CborSupport::CutShort(pick(rng, &LENGTHS)),
    }
}

/// Returns true if a consumer may rely on CBOR after a check. A response of less than the length of
/// [`CborSupport::CutShort`] is correct.
fn passes_check(support: CborSupport) -> bool {
    !matches!(support, CborSupport::None | CborSupport::Rejected | CborSupport::Altered)
}

/// Returns the support for a scenario in which the check may not cover an altered record.
#[allow(dead_code, reason = "records of a fleet do not leave retention")]
pub(crate) fn without_altering(support: CborSupport) -> CborSupport {
    if support == CborSupport::Altered { CborSupport::Amazon } else { support }
}
