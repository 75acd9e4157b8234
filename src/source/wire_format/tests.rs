use proptest::prelude::*;

use super::*;

const ANSWERED: Repeated = Repeated::Succeeded(Comparison::Inconclusive);
const OUTAGE: CborAnswer = CborAnswer::Foreign { is_server_error: true };
const OTHER_FORMAT: CborAnswer = CborAnswer::Foreign { is_server_error: false };

/// Makes a call. Returns the reason if it settles on JSON. Each repeated call has this outcome.
fn call(
    wire: &WireChoice,
    answer: CborAnswer,
    repeated: Repeated,
) -> (Option<Reaction>, Option<FallbackReason>) {
    let Some(mut call) = wire.begin() else { return (None, None) };
    let reaction = call.answered(answer);
    let reason = match reaction {
        Reaction::Use(reason) => reason,
        Reaction::Repeat(cause) => call.repeated(cause, repeated),
    };
    (Some(reaction), reason)
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

fn checked() -> WireChoice {
    let wire = WireChoice::new(WireFormat::Auto);
    call(&wire, CborAnswer::Records, Repeated::Succeeded(Comparison::Equal));
    assert_eq!(phase(&wire), Phase::Checked);
    wire
}

#[test]
fn json_option_makes_no_call_in_cbor() {
    let wire = WireChoice::new(WireFormat::Json);
    assert!(wire.begin().is_none());
}

#[test]
fn equal_records_check_cbor() {
    let wire = WireChoice::new(WireFormat::Auto);
    let outcome = call(&wire, CborAnswer::Records, Repeated::Succeeded(Comparison::Equal));
    assert_eq!(outcome, repeated(RepeatCause::Check, None));
    let (first, second) = (wire.begin(), wire.begin());
    for mut call in [first, second].into_iter().flatten() {
        assert!(!call.is_trial());
        assert_eq!(call.answered(CborAnswer::Records), Reaction::Use(None));
    }
    assert_eq!(phase(&wire), Phase::Checked);
}

#[test]
fn different_records_settle_on_json() {
    let wire = WireChoice::new(WireFormat::Auto);
    let outcome = call(&wire, CborAnswer::Records, Repeated::Succeeded(Comparison::Different));
    assert_eq!(outcome, repeated(RepeatCause::Check, Some(FallbackReason::Different)));
    assert!(wire.begin().is_none());
}

#[test]
fn one_call_at_a_time_tries_cbor() {
    let wire = WireChoice::new(WireFormat::Auto);
    let trial = wire.begin().unwrap();
    assert!(trial.is_trial());
    assert!(wire.begin().is_none(), "another call is made by JSON");
    drop(trial);
    assert!(wire.begin().is_some_and(|call| call.is_trial()), "a dropped trial is returned");
}

#[test]
fn trial_that_waits_for_its_repeated_call_is_not_given_to_another_call() {
    let wire = WireChoice::new(WireFormat::Auto);
    let mut trial = wire.begin().unwrap();
    assert_eq!(trial.answered(CborAnswer::Records), Reaction::Repeat(RepeatCause::Check));
    assert!(wire.begin().is_none());
    drop(trial);
    assert!(wire.begin().is_some());
}

#[test]
fn ended_trial_gives_back_no_trial_of_another_call() {
    let wire = WireChoice::new(WireFormat::Auto);
    let mut first = wire.begin().unwrap();
    assert_eq!(first.answered(CborAnswer::Empty), Reaction::Use(None));
    let second = wire.begin();
    assert!(second.is_some());
    drop(first);
    assert!(wire.begin().is_none(), "the second trial is in progress");
}

#[test]
fn cbor_without_records_ends_the_trial_without_result() {
    let wire = WireChoice::new(WireFormat::Auto);
    for answer in [CborAnswer::Empty, CborAnswer::Failed, CborAnswer::Empty] {
        assert_eq!(call(&wire, answer, ANSWERED), used());
        assert_eq!(phase(&wire), Phase::Untried);
    }
    assert_eq!(wire.0.lock().fruitless, 0);
}

#[test]
fn foreign_answer_before_cbor_settles_only_if_json_succeeds() {
    for answer in [OUTAGE, OTHER_FORMAT] {
        let wire = WireChoice::new(WireFormat::Auto);
        let outcome = call(&wire, answer, Repeated::Failed);
        assert_eq!(outcome, repeated(RepeatCause::Foreign, None));
        let outcome = call(&wire, answer, ANSWERED);
        assert_eq!(outcome, repeated(RepeatCause::Foreign, Some(FallbackReason::NotSpoken)));
        assert!(wire.begin().is_none());
    }
}

#[test]
fn complete_json_answer_settles_without_another_call() {
    for wire in [WireChoice::new(WireFormat::Auto), checked()] {
        let reason = Some(FallbackReason::NotSpoken);
        let outcome = call(&wire, CborAnswer::Json, ANSWERED);
        assert_eq!(outcome, (Some(Reaction::Use(reason)), reason));
        assert!(wire.begin().is_none());
    }
}

#[test]
fn unreadable_or_refused_cbor_settles_whatever_json_answers() {
    let cases = [
        (CborAnswer::Unreadable, RepeatCause::Unreadable, FallbackReason::Unreadable),
        (CborAnswer::Refused, RepeatCause::Refused, FallbackReason::NotSpoken),
    ];
    for (answer, cause, reason) in cases {
        for outcome in [Repeated::Failed, ANSWERED] {
            for wire in [WireChoice::new(WireFormat::Auto), checked()] {
                assert_eq!(call(&wire, answer, outcome), repeated(cause, Some(reason)));
                assert!(wire.begin().is_none());
            }
        }
    }
}

#[test]
fn foreign_answer_other_than_5xx_after_cbor_settles_if_json_succeeds() {
    let wire = checked();
    let outcome = call(&wire, OTHER_FORMAT, Repeated::Failed);
    assert_eq!(outcome, repeated(RepeatCause::Foreign, None));
    assert_eq!(phase(&wire), Phase::Checked);
    let outcome = call(&wire, OTHER_FORMAT, ANSWERED);
    assert_eq!(outcome, repeated(RepeatCause::Foreign, Some(FallbackReason::NotSpoken)));
}

#[test]
fn outage_of_front_end_keeps_cbor() {
    let wire = checked();
    for _ in 0..100 {
        for _ in 0..3 {
            assert_eq!(call(&wire, OUTAGE, ANSWERED), used());
        }
        assert_eq!(call(&wire, CborAnswer::Empty, ANSWERED), used());
    }
    for _ in 0..3 {
        call(&wire, OUTAGE, ANSWERED);
    }
    for _ in 0..100 {
        let outcome = call(&wire, OUTAGE, Repeated::Failed);
        assert_eq!(outcome, repeated(RepeatCause::Outage, None));
    }
    assert_eq!(phase(&wire), Phase::Checked);
}

#[test]
fn server_that_stops_to_speak_cbor_is_read_by_json() {
    let wire = checked();
    for _ in 0..3 {
        assert_eq!(call(&wire, OUTAGE, ANSWERED), used());
    }
    for _ in 0..2 {
        assert_eq!(call(&wire, OUTAGE, ANSWERED), repeated(RepeatCause::Outage, None));
    }
    let last = repeated(RepeatCause::Outage, Some(FallbackReason::NotSpoken));
    assert_eq!(call(&wire, OUTAGE, ANSWERED), last);
    assert!(wire.begin().is_none());
}

#[test]
fn failure_by_json_restarts_the_count_of_contradictions() {
    let wire = checked();
    for _ in 0..3 {
        call(&wire, OUTAGE, ANSWERED);
    }
    for outcome in [ANSWERED, ANSWERED, Repeated::Failed, ANSWERED, ANSWERED] {
        assert_eq!(call(&wire, OUTAGE, outcome), repeated(RepeatCause::Outage, None));
    }
    assert_eq!(phase(&wire), Phase::Checked);
}

#[test]
fn client_with_a_protocol_of_its_own_keeps_it_without_an_event() {
    let wire = WireChoice::new(WireFormat::Auto);
    assert_eq!(call(&wire, CborAnswer::OtherProtocol, ANSWERED), used());
    assert!(wire.begin().is_none());
}

#[test]
fn trials_without_result_become_rare() {
    let wire = WireChoice::new(WireFormat::Auto);
    let mut by_json = Vec::new();
    for _ in 0..13 {
        let mut calls = 0;
        while call(&wire, CborAnswer::Missing, ANSWERED).0.is_none() {
            calls += 1;
        }
        by_json.push(calls);
    }
    assert_eq!(by_json, [0, 0, 1, 3, 7, 15, 31, 63, 127, 255, 511, 1023, 1023]);
}

#[test]
fn only_the_first_of_concurrent_calls_settles() {
    let wire = checked();
    let (mut first, mut second) = (wire.begin().unwrap(), wire.begin().unwrap());
    assert_eq!(first.answered(CborAnswer::Unreadable), Reaction::Repeat(RepeatCause::Unreadable));
    assert_eq!(second.answered(CborAnswer::Refused), Reaction::Repeat(RepeatCause::Refused));
    let reason = second.repeated(RepeatCause::Refused, Repeated::Failed);
    assert_eq!(reason, Some(FallbackReason::NotSpoken));
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
    use CborAnswer::{Empty, Failed, Json, Missing, Records, Refused, Unreadable};
    let answers = vec![
        Missing,
        Records,
        Records,
        Empty,
        Failed,
        Refused,
        Unreadable,
        Json,
        OUTAGE,
        OUTAGE,
        OTHER_FORMAT,
    ];
    let outcomes = vec![
        Repeated::Failed,
        ANSWERED,
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
        let (mut is_checked, mut settled) = (false, 0);
        for step in steps {
            match step {
                Step::Begin => {
                    if let Some(call) = wire.begin() {
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
                    is_checked |= cause == RepeatCause::Check
                        && outcome == Repeated::Succeeded(Comparison::Equal);
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
