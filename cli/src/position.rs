//! A stored position in words.

use kinestream::Checkpoint;

use crate::time;

/// Returns the position for people. `seek --to` takes its time or its number.
pub(crate) fn shown(position: Option<&Checkpoint>) -> String {
    let Some(position) = position else { return "none".to_owned() };
    match position {
        Checkpoint::TrimHorizon => "trim-horizon".to_owned(),
        Checkpoint::AtTimestamp(time) => format!("from {}", time::shown(*time)),
        Checkpoint::AfterSequenceNumber { sequence_number, sub_sequence_number: None } => {
            format!("after {sequence_number}")
        }
        Checkpoint::AfterSequenceNumber { sequence_number, sub_sequence_number: Some(part) } => {
            format!("after {sequence_number}, part {part}")
        }
        Checkpoint::CaughtUp { after: Some(number), until } => {
            format!("after {number}, caught up at {}", time::short(*until))
        }
        Checkpoint::CaughtUp { after: None, until } => {
            format!("caught up at {}", time::short(*until))
        }
        Checkpoint::ShardEnd => "end of the shard".to_owned(),
        // A later version of the crate may add positions.
        later => later.to_string(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn position_is_shown_in_words() {
        for (text, expected) in [
            ("TRIM_HORIZON", "trim-horizon"),
            ("AT_TIMESTAMP:1767225600005", "from 2026-01-01T00:00:00.005Z"),
            ("AFTER_SEQUENCE_NUMBER:49590338", "after 49590338"),
            ("AFTER_SEQUENCE_NUMBER:49590338:7", "after 49590338, part 7"),
            (
                "CAUGHT_UP:1767225600000:49590338",
                "after 49590338, caught up at 2026-01-01 00:00:00",
            ),
            ("CAUGHT_UP:1767225600000", "caught up at 2026-01-01 00:00:00"),
            ("SHARD_END", "end of the shard"),
        ] {
            let position: Checkpoint = text.parse().expect(text);
            assert_eq!(shown(Some(&position)), expected);
        }
        assert_eq!(shown(None), "none");
    }
}
