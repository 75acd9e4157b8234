use proptest::prelude::*;

use super::choice::{COARSE_TRIALS, Phase};
use super::*;

const ANSWERED: Repeated = Repeated::Succeeded(Comparison::Inconclusive);
const OUTAGE: CborAnswer = CborAnswer::Foreign { is_server_error: true };
const OTHER_FORMAT: CborAnswer = CborAnswer::Foreign { is_server_error: false };
const FAILED: CborAnswer = CborAnswer::Failed { is_server_error: false };
const INTERNAL_FAILURE: CborAnswer = CborAnswer::Failed { is_server_error: true };
/// The failures after the check that an outage may explain.
const SUSPECTS: [CborAnswer; 4] =
    [OUTAGE, INTERNAL_FAILURE, CborAnswer::Broken, CborAnswer::Missing];

/// The reader of one shard.
#[derive(Default)]
struct Reader {
    wire: WireChoice,
    failures: ShardFailures,
}

/// Makes a call. Returns the reason if it settles on JSON. Each repeated call has this outcome.
fn call(
    reader: &mut Reader,
    answer: CborAnswer,
    repeated: Repeated,
) -> (Option<Reaction>, Option<FallbackReason>) {
    let Some(mut call) = reader.wire.begin(&mut reader.failures) else { return (None, None) };
    let reaction = call.answered(answer);
    let reason = match reaction {
        Reaction::Use(reason) => reason,
        Reaction::Repeat(cause) => call.repeated(cause, repeated),
    };
    (Some(reaction), reason)
}

/// Makes calls until one is made by CBOR.
fn next_cbor_call(
    reader: &mut Reader,
    answer: CborAnswer,
    repeated: Repeated,
) -> (Option<Reaction>, Option<FallbackReason>) {
    let mut calls = std::iter::repeat_with(|| call(reader, answer, repeated)).take(2000);
    calls.find(|outcome| *outcome != by_json()).expect("another call in CBOR")
}

/// Begins a call of another shard, without failures.
fn begin(wire: &WireChoice) -> Option<CborCall<'_>> {
    wire.begin(Box::leak(Box::default()))
}

fn by_json() -> (Option<Reaction>, Option<FallbackReason>) {
    (None, None)
}

fn used() -> (Option<Reaction>, Option<FallbackReason>) {
    (Some(Reaction::Use(None)), None)
}

fn repeated(
    cause: RepeatCause,
    reason: Option<FallbackReason>,
) -> (Option<Reaction>, Option<FallbackReason>) {
    (Some(Reaction::Repeat(cause)), reason)
}

fn phase(wire: &WireChoice) -> Phase {
    wire.0.lock().phase
}

fn checked() -> Reader {
    let mut reader = Reader::default();
    call(&mut reader, CborAnswer::Records, Repeated::Succeeded(Comparison::Equal));
    assert_eq!(phase(&reader.wire), Phase::Checked);
    reader
}

#[test]
fn json_option_makes_no_call_in_cbor() {
    let wire = WireChoice::new(WireFormat::Json);
    assert!(begin(&wire).is_none());
}

#[test]
fn equal_records_check_cbor() {
    let mut reader = Reader::default();
    let outcome = call(&mut reader, CborAnswer::Records, Repeated::Succeeded(Comparison::Equal));
    assert_eq!(outcome, repeated(RepeatCause::Check, None));
    let (first, second) = (begin(&reader.wire), begin(&reader.wire));
    for mut call in [first, second].into_iter().flatten() {
        assert!(!call.is_trial());
        assert_eq!(call.answered(CborAnswer::Records), Reaction::Use(None));
    }
    assert_eq!(phase(&reader.wire), Phase::Checked);
}

#[test]
fn records_that_arrived_at_whole_seconds_check_cbor_in_three_trials() {
    let seconds = Repeated::Succeeded(Comparison::EqualSeconds);
    let mut reader = Reader::default();
    for _ in 0..2 {
        call(&mut reader, CborAnswer::Records, seconds);
        assert_eq!(phase(&reader.wire), Phase::Untried);
    }
    call(&mut reader, CborAnswer::Records, seconds);
    assert_eq!(phase(&reader.wire), Phase::Checked);
}

#[test]
fn different_records_settle_on_json() {
    let mut reader = Reader::default();
    let outcome =
        call(&mut reader, CborAnswer::Records, Repeated::Succeeded(Comparison::Different));
    assert_eq!(outcome, repeated(RepeatCause::Check, Some(FallbackReason::Different)));
    assert!(begin(&reader.wire).is_none());
}

#[test]
fn one_call_at_a_time_tries_cbor() {
    let wire = WireChoice::new(WireFormat::Auto);
    let trial = begin(&wire).unwrap();
    assert!(trial.is_trial());
    assert!(begin(&wire).is_none(), "another call is made by JSON");
    drop(trial);
    assert!(begin(&wire).is_some_and(|call| call.is_trial()), "a dropped trial is returned");
}

#[test]
fn trial_that_waits_for_its_repeated_call_is_not_given_to_another_call() {
    let wire = WireChoice::new(WireFormat::Auto);
    let mut trial = begin(&wire).unwrap();
    assert_eq!(trial.answered(CborAnswer::Records), Reaction::Repeat(RepeatCause::Check));
    assert!(begin(&wire).is_none());
    drop(trial);
    assert!(begin(&wire).is_some());
}

#[test]
fn ended_trial_returns_no_trial_of_another_call() {
    let wire = WireChoice::new(WireFormat::Auto);
    let mut first = begin(&wire).unwrap();
    assert_eq!(first.answered(CborAnswer::Empty), Reaction::Use(None));
    let second = begin(&wire);
    assert!(second.is_some());
    drop(first);
    assert!(begin(&wire).is_none(), "the second trial is in progress");
}

#[test]
fn cbor_without_records_ends_the_trial_without_result() {
    let mut reader = Reader::default();
    for answer in [CborAnswer::Empty, CborAnswer::Throttled, CborAnswer::Rejected] {
        assert_eq!(call(&mut reader, answer, ANSWERED), used());
        assert_eq!(phase(&reader.wire), Phase::Untried);
    }
    assert_eq!(reader.wire.0.lock().failed_trials, 0);
}

#[test]
fn failed_trials_in_a_row_end_with_an_empty_response() {
    let mut reader = Reader::default();
    for _ in 0..2 {
        for answer in [FAILED, CborAnswer::Throttled, INTERNAL_FAILURE] {
            assert_eq!(next_cbor_call(&mut reader, answer, ANSWERED), used());
        }
        assert_eq!(reader.wire.0.lock().failed_trials, 2, "a returned trial does not count");
        assert_eq!(call(&mut reader, FAILED, ANSWERED), by_json());
        assert_eq!(call(&mut reader, CborAnswer::Empty, ANSWERED), used());
        assert_eq!(reader.wire.0.lock().failed_trials, 0);
    }
}

#[test]
fn foreign_answer_before_cbor_settles_only_if_json_succeeds() {
    let mut reader = Reader::default();
    let outcome = next_cbor_call(&mut reader, OTHER_FORMAT, Repeated::Failed);
    assert_eq!(outcome, repeated(RepeatCause::Foreign, None));
    let outcome = next_cbor_call(&mut reader, OTHER_FORMAT, ANSWERED);
    assert_eq!(outcome, repeated(RepeatCause::Foreign, Some(FallbackReason::Unsupported)));
    assert!(begin(&reader.wire).is_none());
}

#[test]
fn foreign_5xx_before_cbor_settles_if_json_succeeds_twice_in_a_row() {
    let mut reader = Reader::default();
    for outcome in [ANSWERED, Repeated::Failed, ANSWERED] {
        assert_eq!(
            next_cbor_call(&mut reader, OUTAGE, outcome),
            repeated(RepeatCause::Outage, None)
        );
    }
    let outcome = next_cbor_call(&mut reader, OUTAGE, ANSWERED);
    assert_eq!(outcome, repeated(RepeatCause::Outage, Some(FallbackReason::Unsupported)));
    assert!(begin(&reader.wire).is_none());
}

#[test]
fn complete_json_answer_settles_without_another_call() {
    for mut reader in [Reader::default(), checked()] {
        let reason = Some(FallbackReason::Unsupported);
        let outcome = call(&mut reader, CborAnswer::Json, ANSWERED);
        assert_eq!(outcome, (Some(Reaction::Use(reason)), reason));
        assert!(begin(&reader.wire).is_none());
    }
}

#[test]
fn unreadable_or_refused_cbor_settles_whatever_json_answers() {
    let cases = [
        (CborAnswer::Unreadable, RepeatCause::Unreadable, FallbackReason::Unreadable),
        (CborAnswer::Refused, RepeatCause::Refused, FallbackReason::Unsupported),
    ];
    for (answer, cause, reason) in cases {
        for outcome in [Repeated::Failed, ANSWERED] {
            for mut reader in [Reader::default(), checked()] {
                assert_eq!(call(&mut reader, answer, outcome), repeated(cause, Some(reason)));
                assert!(begin(&reader.wire).is_none());
            }
        }
    }
}

#[test]
fn foreign_answer_other_than_5xx_after_cbor_settles_if_json_succeeds_three_times_in_a_row() {
    let mut reader = checked();
    for outcome in [ANSWERED, ANSWERED, Repeated::Failed, ANSWERED, ANSWERED] {
        assert_eq!(
            next_cbor_call(&mut reader, OTHER_FORMAT, outcome),
            repeated(RepeatCause::Foreign, None)
        );
    }
    assert_eq!(next_cbor_call(&mut reader, CborAnswer::Records, ANSWERED), used());
    for _ in 0..2 {
        assert_eq!(
            next_cbor_call(&mut reader, OTHER_FORMAT, ANSWERED),
            repeated(RepeatCause::Foreign, None)
        );
    }
    assert_eq!(phase(&reader.wire), Phase::Checked);
    let outcome = next_cbor_call(&mut reader, OTHER_FORMAT, ANSWERED);
    assert_eq!(outcome, repeated(RepeatCause::Foreign, Some(FallbackReason::Unsupported)));
}

#[test]
fn outage_keeps_cbor() {
    for suspect in SUSPECTS {
        let mut reader = checked();
        for end in [CborAnswer::Empty, CborAnswer::Records, FAILED] {
            for _ in 0..3 {
                assert_eq!(call(&mut reader, suspect, ANSWERED), used());
            }
            assert_eq!(call(&mut reader, end, ANSWERED), used());
        }
        for _ in 0..3 {
            call(&mut reader, suspect, ANSWERED);
        }
        for _ in 0..100 {
            let outcome = call(&mut reader, suspect, Repeated::Failed);
            assert_eq!(outcome, repeated(RepeatCause::Outage, None));
        }
        assert_eq!(phase(&reader.wire), Phase::Checked);
    }
}

#[test]
fn server_whose_cbor_ends_is_read_by_json() {
    for shift in 0..SUSPECTS.len() {
        let mut suspects = SUSPECTS.into_iter().cycle().skip(shift);
        let mut reader = checked();
        for suspect in suspects.by_ref().take(3) {
            assert_eq!(next_cbor_call(&mut reader, suspect, ANSWERED), used());
            for neither in [CborAnswer::Rejected, CborAnswer::Panicked] {
                assert_eq!(next_cbor_call(&mut reader, neither, ANSWERED), used());
            }
        }
        for suspect in suspects.by_ref().take(2) {
            assert_eq!(
                next_cbor_call(&mut reader, suspect, ANSWERED),
                repeated(RepeatCause::Outage, None)
            );
        }
        let last = repeated(RepeatCause::Outage, Some(FallbackReason::Unsupported));
        assert_eq!(next_cbor_call(&mut reader, suspects.next().unwrap(), ANSWERED), last);
        assert!(begin(&reader.wire).is_none());
    }
}

#[test]
fn throttled_call_restarts_no_count_of_its_shard() {
    let mut other = checked();
    let mut reader = Reader { wire: other.wire.clone(), ..Reader::default() };
    for _ in 0..3 {
        assert_eq!(call(&mut reader, OUTAGE, ANSWERED), used());
        assert_eq!(call(&mut reader, CborAnswer::Throttled, ANSWERED), used());
    }
    for repeats in 0..3 {
        call(&mut other, CborAnswer::Records, ANSWERED);
        let outcome = call(&mut reader, OUTAGE, Repeated::Hindered);
        assert_eq!(outcome, repeated(RepeatCause::Outage, None));
        let outcome = call(&mut reader, OUTAGE, ANSWERED);
        assert_eq!(outcome, repeated(RepeatCause::Outage, None));
        for _ in 0..(1 << repeats) - 1 {
            assert_eq!(call(&mut reader, OUTAGE, ANSWERED), by_json());
        }
    }
    assert_eq!(phase(&reader.wire), Phase::Checked);
}

#[test]
fn failure_by_json_restarts_the_count_of_contradictions() {
    let mut reader = checked();
    for _ in 0..3 {
        next_cbor_call(&mut reader, OUTAGE, ANSWERED);
    }
    for outcome in [ANSWERED, ANSWERED, Repeated::Failed, ANSWERED, ANSWERED] {
        assert_eq!(
            next_cbor_call(&mut reader, OUTAGE, outcome),
            repeated(RepeatCause::Outage, None)
        );
    }
    assert_eq!(phase(&reader.wire), Phase::Checked);
}

/// Returns a shard whose next failure is repeated by JSON.
fn failing(wire: &WireChoice) -> Reader {
    let mut reader = Reader { wire: wire.clone(), ..Reader::default() };
    for _ in 0..3 {
        assert_eq!(call(&mut reader, OUTAGE, ANSWERED), used());
    }
    reader
}

/// Begins calls of many shards at once, all of which fail and are repeated.
fn concurrent_failures<'a>(shards: impl Iterator<Item = &'a mut Reader>) -> Vec<CborCall<'a>> {
    let calls = shards.map(|shard| shard.wire.begin(&mut shard.failures).unwrap());
    let mut calls: Vec<_> = calls.collect();
    for call in &mut calls {
        assert_eq!(call.answered(OUTAGE), Reaction::Repeat(RepeatCause::Outage));
    }
    calls
}

#[test]
fn shards_that_recover_at_once_are_one_contradiction() {
    let wire = checked().wire;
    let mut shards: Vec<_> = (0..100).map(|_| failing(&wire)).collect();
    for call in concurrent_failures(shards.iter_mut()) {
        assert_eq!(call.repeated(RepeatCause::Outage, ANSWERED), None);
    }
    assert_eq!(phase(&wire), Phase::Checked);
    assert_eq!(wire.0.lock().contradictions, 1);
}

#[test]
fn call_that_began_before_the_last_contradiction_does_not_count() {
    let wire = checked().wire;
    let mut shards: Vec<_> = (0..100).map(|_| failing(&wire)).collect();
    let mut calls = concurrent_failures(shards.iter_mut());
    let last = calls.pop().unwrap();
    for call in calls {
        assert_eq!(call.repeated(RepeatCause::Outage, ANSWERED), None);
    }
    let outcome = call(&mut failing(&wire), OUTAGE, ANSWERED);
    assert_eq!(outcome, repeated(RepeatCause::Outage, None));
    assert_eq!(last.repeated(RepeatCause::Outage, ANSWERED), None);
    assert_eq!(wire.0.lock().contradictions, 2);
    let outcome = call(&mut failing(&wire), OUTAGE, ANSWERED);
    assert_eq!(outcome, repeated(RepeatCause::Outage, Some(FallbackReason::Unsupported)));
}

#[test]
fn shard_whose_cbor_calls_alone_fail_is_read_by_json() {
    for suspect in SUSPECTS {
        let mut other = checked();
        let mut reader = Reader { wire: other.wire.clone(), ..Reader::default() };
        let mut tries = 0;
        for number in 0..1000 {
            assert_eq!(call(&mut other, CborAnswer::Records, ANSWERED), used());
            let outcome = call(&mut reader, suspect, ANSWERED);
            if number < 3 {
                assert_eq!(outcome, used(), "a failure to retry");
            } else if outcome != by_json() {
                assert_eq!(outcome, repeated(RepeatCause::Outage, None));
                tries += 1;
            }
        }
        assert_eq!(tries, 10, "the 10th try is followed by 511 calls by JSON");
        while call(&mut reader, CborAnswer::Empty, ANSWERED) == by_json() {}
        assert_eq!(call(&mut reader, suspect, ANSWERED), used(), "the count begins again");
        assert_eq!(phase(&other.wire), Phase::Checked);
    }
}

#[test]
fn client_with_a_protocol_of_its_own_keeps_it_without_an_event() {
    let mut reader = Reader::default();
    assert_eq!(call(&mut reader, CborAnswer::OtherProtocol, ANSWERED), used());
    assert!(begin(&reader.wire).is_none());
}

#[test]
fn failed_trials_become_rare() {
    use CborAnswer::{Broken, Missing, Panicked};
    for answer in [Missing, Broken, Panicked, FAILED, INTERNAL_FAILURE] {
        let mut reader = Reader::default();
        let mut by_json = Vec::new();
        for _ in 0..13 {
            let mut calls = 0;
            while call(&mut reader, answer, ANSWERED).0.is_none() {
                calls += 1;
            }
            by_json.push(calls);
        }
        assert_eq!(by_json, [0, 0, 1, 3, 7, 15, 31, 63, 127, 255, 511, 1023, 1023]);
    }
}

#[test]
fn only_the_first_of_concurrent_calls_settles() {
    let wire = checked().wire;
    let (mut first, mut second) = (begin(&wire).unwrap(), begin(&wire).unwrap());
    assert_eq!(first.answered(CborAnswer::Unreadable), Reaction::Repeat(RepeatCause::Unreadable));
    assert_eq!(second.answered(CborAnswer::Refused), Reaction::Repeat(RepeatCause::Refused));
    let reason = second.repeated(RepeatCause::Refused, Repeated::Failed);
    assert_eq!(reason, Some(FallbackReason::Unsupported));
    assert_eq!(first.repeated(RepeatCause::Unreadable, ANSWERED), None);
}

#[derive(Debug, Clone, Copy)]
enum Step {
    Begin,
    Drop(usize),
    Answer(usize, CborAnswer),
    Repeat(usize, Repeated),
}

fn step() -> impl Strategy<Value = Step> {
    use CborAnswer::{
        Broken, Empty, Json, Missing, Panicked, Records, Refused, Rejected, Throttled, Unreadable,
    };
    let answers = vec![
        Missing,
        Records,
        Records,
        Empty,
        Broken,
        Rejected,
        Panicked,
        Throttled,
        FAILED,
        INTERNAL_FAILURE,
        Refused,
        Unreadable,
        Json,
        OUTAGE,
        OUTAGE,
        OTHER_FORMAT,
    ];
    let outcomes = vec![
        Repeated::Failed,
        Repeated::Hindered,
        ANSWERED,
        Repeated::Succeeded(Comparison::EqualSeconds),
        Repeated::Succeeded(Comparison::Equal),
        Repeated::Succeeded(Comparison::Different),
    ];
    prop_oneof![
        3 => Just(Step::Begin),
        1 => (0..4_usize).prop_map(Step::Drop),
        4 => (0..4_usize, prop::sample::select(answers)).prop_map(|(at, answer)| Step::Answer(at, answer)),
        3 => (0..4_usize, prop::sample::select(outcomes)).prop_map(|(at, outcome)| Step::Repeat(at, outcome)),
    ]
}

proptest! {
    /// Calls of several shards, in any order.
    #[test]
    fn unchecked_records_are_never_used_and_the_choice_settles_once(
        steps in prop::collection::vec(step(), 0..200),
    ) {
        let wire = WireChoice::new(WireFormat::Auto);
        // The calls that wait for an answer, and those that wait for a repeated one.
        let (mut sent, mut again): (Vec<CborCall>, Vec<(CborCall, RepeatCause)>) = Default::default();
        let (mut is_checked, mut coarse, mut settled) = (false, 0, 0);
        for step in steps {
            match step {
                Step::Begin => {
                    if let Some(call) = begin(&wire) {
                        prop_assert_eq!(settled, 0, "no CBOR after JSON is settled");
                        prop_assert_eq!(call.is_trial(), !is_checked);
                        sent.push(call);
                    }
                }
                Step::Drop(at) if at < sent.len() => drop(sent.swap_remove(at)),
                Step::Drop(_) => drop(again.pop()),
                Step::Answer(at, answer) if at < sent.len() => {
                    let mut call = sent.swap_remove(at);
                    match call.answered(answer) {
                        Reaction::Repeat(cause) => again.push((call, cause)),
                        Reaction::Use(reason) => {
                            settled += usize::from(reason.is_some());
                            let delivers = answer == CborAnswer::Records;
                            prop_assert!(is_checked || !delivers, "unchecked records");
                        }
                    }
                }
                Step::Repeat(at, outcome) if at < again.len() => {
                    let (call, cause) = again.swap_remove(at);
                    settled += usize::from(call.repeated(cause, outcome).is_some());
                    if cause == RepeatCause::Check {
                        coarse += u32::from(outcome == Repeated::Succeeded(Comparison::EqualSeconds));
                        is_checked |= coarse == COARSE_TRIALS
                            || outcome == Repeated::Succeeded(Comparison::Equal);
                    }
                }
                Step::Answer(..) | Step::Repeat(..) => {}
            }
            let trials = sent.iter().chain(again.iter().map(|(call, _)| call));
            prop_assert!(trials.filter(|call| call.is_trial()).count() <= 1);
            prop_assert!(settled <= 1);
            prop_assert_eq!(settled == 1, phase(&wire) == Phase::Json);
        }
    }
}
