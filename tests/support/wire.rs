//! Draws the wire format of the `GetRecords` calls of a scenario, and changes the server's CBOR
//! while the scenario runs.
//!
//! A separate generator draws both, so that the rest of a scenario is the same. In odd seeds, the
//! client demands JSON: rare scenarios of earlier seeds stay as they were. In a half of the others,
//! the client demands JSON, or the server never serves a call in CBOR.
//!
//! # Altered values
//!
//! No altered record may be delivered. A consumer compares one CBOR response with the JSON response
//! to the same call, and relies on CBOR from then on: it cannot notice a server that begins to alter
//! values later. So a server begins only while no running consumer can have passed that check:
//! - at the beginning, or after the last consumer has ended and before the next one starts;
//! - if, since the oldest running consumer started, the server has either altered values or served
//!   no call in CBOR.
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

/// The changes of the server's CBOR, each with the percentage of steps in which it changes.
#[derive(Debug, Clone, Copy)]
enum Changes {
    Random(u8),
    /// The server speaks CBOR, and is replaced once by one that does not, or that fails each call
    /// in CBOR. A consumer that relies on CBOR cannot distinguish its answers from an outage.
    Stops(u8),
}

/// No change.
const NEVER: Changes = Changes::Random(0);

/// The wire format of the consumers of a scenario, and the server's CBOR.
#[derive(Debug)]
pub(crate) struct Wire {
    rng: Rng,
    pub(crate) format: WireFormat,
    pub(crate) support: CborSupport,
    changes: Changes,
    /// True if a running consumer may have passed the check.
    may_be_checked: bool,
}

impl Wire {
    pub(crate) fn new(seed: u64) -> Self {
        let mut rng = Rng::with_seed(seed ^ WIRE);
        let (format, support, changes) = match rng.u8(..8) {
            _ if seed % 2 == 1 => (WireFormat::Json, any(&mut rng), NEVER),
            0 | 1 => (WireFormat::Json, any(&mut rng), NEVER),
            2 | 3 => {
                let without = [CborSupport::None, CborSupport::Rejected, CborSupport::Failing];
                let support = pick(&mut rng, &without);
                (WireFormat::Auto, support, NEVER)
            }
            4 => {
                let spoken = [CborSupport::Amazon, CborSupport::Seconds, CborSupport::Text];
                let changes = Changes::Stops(pick(&mut rng, &[3, 10]));
                (WireFormat::Auto, pick(&mut rng, &spoken), changes)
            }
            _ => {
                let changes = Changes::Random(pick(&mut rng, &[0, 0, 5, 15, 40]));
                (WireFormat::Auto, any(&mut rng), changes)
            }
        };
        let may_be_checked = passes_check(support);
        Self { rng, format, support, changes, may_be_checked }
    }

    /// Returns the support if it changes in this step.
    pub(crate) fn change(&mut self) -> Option<CborSupport> {
        let chance = self.rng.u8(..100);
        let support = match self.changes {
            Changes::Random(most) if chance < most => any(&mut self.rng),
            Changes::Stops(most) if chance < most => {
                self.changes = NEVER;
                pick(&mut self.rng, &[CborSupport::None, CborSupport::Failing])
            }
            _ => return None,
        };
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
        let changes = matches!(self.changes, Changes::Random(1..)) && self.rng.bool();
        if changes {
            self.support = any(&mut self.rng);
        }
        self.may_be_checked = passes_check(self.support);
        changes.then_some(self.support)
    }
}

fn any(rng: &mut Rng) -> CborSupport {
    match rng.u8(..9) {
        0 | 1 => CborSupport::Amazon,
        2 => CborSupport::Failing,
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
    use CborSupport::{Amazon, CutShort, Seconds, Text};
    matches!(support, Amazon | Seconds | Text | CutShort(_))
}

/// Returns the support for a scenario in which the check may not cover an altered record.
#[allow(dead_code, reason = "records of a fleet do not leave retention")]
pub(crate) fn without_altering(support: CborSupport) -> CborSupport {
    if support == CborSupport::Altered { CborSupport::Amazon } else { support }
}
