use proptest::prelude::*;

use super::*;

const DEADLINE_US: i64 = 300_000_000;

fn at(us: i64) -> Now {
    Now { us, jitter_permille: 500, is_taken_over: false }
}

fn refused(reason: &str) -> Outcome {
    Outcome::Refused { reason: reason.to_owned(), detail: "because".to_owned() }
}

fn unanswered() -> Outcome {
    Outcome::Unanswered { error: "away".to_owned() }
}

/// The undos that are needed, in the order in which they are done.
fn undos(saga: &Saga) -> Vec<Step> {
    Step::ALL.into_iter().rev().filter(|step| saga.undo(*step).is_some()).collect()
}

#[test]
fn three_steps_complete_an_order() {
    let mut saga = Saga::start(0);
    for (step, state) in [(Step::Reserve, State::InventoryReserved), (Step::Pay, State::PaymentProcessing), (Step::Confirm, State::Completed)] {
        assert_eq!(saga.next(1, DEADLINE_US), Next::Call(step, Direction::Do));
        saga.note(step, Direction::Do, Outcome::Done, at(1));
        assert_eq!(saga.state, state);
    }
    assert_eq!(saga.next(1, DEADLINE_US), Next::Nothing);
}

#[test]
fn what_is_refused_undoes_what_was_done_before_it_and_not_itself() {
    for (refused_at, needed) in [(0, vec![]), (1, vec![Step::Reserve]), (2, vec![Step::Pay, Step::Reserve])] {
        let mut saga = Saga::start(0);
        for step in &Step::ALL[..refused_at] {
            saga.note(*step, Direction::Do, Outcome::Done, at(1));
        }
        saga.note(Step::ALL[refused_at], Direction::Do, refused("OUT_OF_STOCK"), at(2));
        assert_eq!(undos(&saga), needed, "refused at {refused_at}");
        assert_eq!((saga.cause, saga.reason.as_str(), saga.detail.as_str()), (Some(Cause::StepFailed), "OUT_OF_STOCK", "because"));
        for step in needed {
            assert_eq!(saga.next(2, DEADLINE_US), Next::Call(step, Direction::Undo));
            saga.note(step, Direction::Undo, Outcome::Done, at(3));
        }
        assert_eq!(saga.state, State::Compensated);
    }
}

#[test]
fn a_step_without_an_answer_is_tried_three_times_with_growing_pauses_and_then_undone() {
    let mut saga = Saga::start(0);
    for (now, next) in [(0, 1_000_000), (1_000_000, 3_000_000)] {
        saga.note(Step::Reserve, Direction::Do, unanswered(), at(now));
        assert_eq!(saga.next(now, DEADLINE_US), Next::Wait(next));
        assert_eq!(saga.next(next, DEADLINE_US), Next::Call(Step::Reserve, Direction::Do));
    }
    saga.note(Step::Reserve, Direction::Do, unanswered(), at(3_000_000));
    assert_eq!((saga.state, saga.reason.as_str(), undos(&saga)), (State::Compensating, UNAVAILABLE, vec![Step::Reserve]));
    assert_eq!(saga.step(Step::Reserve).attempts, 3);
    // A tenth more or less is left to chance.
    for (jitter_permille, pause) in [(0, 900_000), (1000, 1_100_000)] {
        let mut saga = Saga::start(0);
        saga.note(Step::Reserve, Direction::Do, unanswered(), Now { us: 0, jitter_permille, is_taken_over: false });
        assert_eq!(saga.next(0, DEADLINE_US), Next::Wait(pause));
    }
}

#[test]
fn what_is_refused_after_an_attempt_that_nobody_knows_of_is_undone_too() {
    let refuse = |saga: &mut Saga, is_taken_over| saga.note(Step::Pay, Direction::Do, refused("INVALID_ARGUMENT"), Now { is_taken_over, ..at(1) });
    for (before, is_taken_over, needed) in [
        (None, false, vec![Step::Reserve]),
        (None, true, vec![Step::Pay, Step::Reserve]),
        (Some(Outcome::Pending), false, vec![Step::Pay, Step::Reserve]),
        (Some(unanswered()), false, vec![Step::Pay, Step::Reserve]),
    ] {
        let mut saga = Saga::start(0);
        saga.note(Step::Reserve, Direction::Do, Outcome::Done, at(0));
        before.into_iter().for_each(|outcome| saga.note(Step::Pay, Direction::Do, outcome, at(0)));
        refuse(&mut saga, is_taken_over);
        assert_eq!((undos(&saga), saga.reason.as_str()), (needed, "INVALID_ARGUMENT"));
    }
    // A callee knows of an undo that this saga does not: everything is undone.
    let mut saga = Saga::start(0);
    saga.note(Step::Reserve, Direction::Do, refused(SAGA_CANCELLED), at(0));
    assert_eq!(undos(&saga), [Step::Confirm, Step::Pay]);
}

#[test]
fn what_nobody_was_asked_is_no_attempt() {
    let mut saga = Saga::start(0);
    for second in 0..100 {
        saga.note(Step::Reserve, Direction::Do, Outcome::NotAsked { error: "calls pause".to_owned() }, at(second * 1_000_000));
        assert_eq!(saga.next(second * 1_000_000, DEADLINE_US), Next::Wait((second + 1) * 1_000_000));
    }
    assert_eq!((saga.state, saga.step(Step::Reserve).attempts, saga.step(Step::Reserve).last_error.as_str()), (State::Started, 0, "calls pause"));
}

#[test]
fn a_payment_that_nobody_knows_of_is_asked_for_until_the_time_is_over() {
    let mut saga = Saga::start(0);
    saga.note(Step::Reserve, Direction::Do, Outcome::Done, at(0));
    let (mut now, mut asked) = (0, 0);
    loop {
        match saga.next(now, DEADLINE_US) {
            Next::Call(Step::Pay, Direction::Do) => {
                asked += 1;
                saga.note(Step::Pay, Direction::Do, Outcome::Pending, at(now));
            }
            Next::Wait(until) => {
                assert!(until > now && until - now <= 5_500_000 && until <= DEADLINE_US);
                now = until;
            }
            Next::TimeOut => break,
            other => panic!("{other:?}"),
        }
    }
    assert_eq!((now, saga.state), (DEADLINE_US, State::PaymentProcessing));
    assert!(asked > 50, "{asked}");
    saga.time_out(now);
    assert_eq!((saga.cause, undos(&saga)), (Some(Cause::TimedOut), vec![Step::Confirm, Step::Pay, Step::Reserve]));
    saga.note(Step::Confirm, Direction::Undo, Outcome::Done, at(now));
    // Also past that time: until the money is back, or never was taken.
    for minute in 1..100 {
        saga.note(Step::Pay, Direction::Undo, Outcome::Pending, at(now + minute * 60_000_000));
        assert_eq!(saga.state, State::Compensating);
    }
}

#[test]
fn an_undo_that_is_refused_three_times_has_failed_and_one_without_an_answer_never_has() {
    let mut saga = Saga::start(0);
    saga.note(Step::Reserve, Direction::Do, Outcome::Done, at(0));
    saga.note(Step::Pay, Direction::Do, Outcome::Done, at(0));
    saga.note(Step::Confirm, Direction::Do, refused("RESERVATION_EXPIRED"), at(0));
    for _ in 0..20 {
        saga.note(Step::Pay, Direction::Undo, unanswered(), at(0));
        assert_eq!(saga.state, State::Compensating);
    }
    assert_eq!(saga.next(0, DEADLINE_US), Next::Wait(60_000_000), "the longest pause");
    for attempt in 1..=3 {
        assert_eq!(saga.state, State::Compensating, "before attempt {attempt}");
        saga.note(Step::Pay, Direction::Undo, refused("INSUFFICIENT_FUNDS"), at(0));
    }
    assert_eq!((saga.state, saga.reason.as_str()), (State::Failed, "INSUFFICIENT_FUNDS"));
    assert_eq!(saga.next(i64::MAX / 2, DEADLINE_US), Next::Nothing, "nobody goes on by himself");
    assert!(saga.retry());
    assert_eq!(saga.next(0, DEADLINE_US), Next::Call(Step::Pay, Direction::Undo));
    saga.note(Step::Pay, Direction::Undo, Outcome::Done, at(1));
    saga.note(Step::Reserve, Direction::Undo, Outcome::Done, at(1));
    assert_eq!(saga.state, State::Compensated);
    assert!(!saga.retry() && !saga.give_up(2) && !saga.cancel(2), "it has ended");
}

#[test]
fn a_cancelled_order_is_undone_from_wherever_it_is() {
    for done in 0..=3 {
        let mut saga = Saga::start(0);
        for step in &Step::ALL[..done] {
            saga.note(*step, Direction::Do, Outcome::Done, at(0));
        }
        assert!(saga.cancel(1));
        // The step that had begun may have been done.
        let begun = (done + 1).min(3);
        assert_eq!(undos(&saga), Step::ALL[..begun].iter().rev().copied().collect::<Vec<_>>(), "after {done}");
        assert!(!saga.cancel(2), "once");
        assert_eq!(saga.cause, Some(Cause::Cancelled));
    }
}

/// What those who are asked have done, each as its contract says: everything is idempotent, an undo may come first, and then what it undoes is refused.
#[derive(Debug, Default, Clone)]
struct World {
    reserved: bool,
    confirmed: bool,
    reservation_undone: bool,
    captured: bool,
    /// The provider has it and does not answer yet.
    payment_waits: bool,
    payment_undone: bool,
    charges: u32,
}

impl World {
    fn call(&mut self, step: Step, direction: Direction, refuses: bool, is_slow: bool) -> Outcome {
        match (step, direction) {
            (Step::Reserve, Direction::Do) if self.reservation_undone => refused("SAGA_CANCELLED"),
            (Step::Reserve, Direction::Do) if refuses && !self.reserved => refused("OUT_OF_STOCK"),
            (Step::Reserve, Direction::Do) => {
                self.reserved = true;
                Outcome::Done
            }
            (Step::Pay, Direction::Do) if self.payment_undone => refused("SAGA_CANCELLED"),
            (Step::Pay, Direction::Do) if self.captured => Outcome::Done,
            (Step::Pay, Direction::Do) if is_slow => {
                self.payment_waits = true;
                Outcome::Pending
            }
            (Step::Pay, Direction::Do) if refuses => {
                self.payment_waits = false;
                refused("INSUFFICIENT_FUNDS")
            }
            (Step::Pay, Direction::Do) => {
                (self.captured, self.payment_waits) = (true, false);
                self.charges += 1;
                Outcome::Done
            }
            (Step::Confirm, Direction::Do) if self.confirmed => Outcome::Done,
            (Step::Confirm, Direction::Do) if self.reservation_undone || !self.reserved || refuses => refused("RESERVATION_EXPIRED"),
            (Step::Confirm, Direction::Do) => {
                self.confirmed = true;
                Outcome::Done
            }
            (Step::Reserve, Direction::Undo) if self.confirmed => refused("RESERVATION_CONFIRMED"),
            (Step::Reserve | Step::Confirm, Direction::Undo) => {
                (self.reserved, self.confirmed, self.reservation_undone) = (false, false, true);
                Outcome::Done
            }
            (Step::Pay, Direction::Undo) => {
                self.payment_undone = true;
                if self.payment_waits && is_slow {
                    return Outcome::Pending;
                }
                if self.captured && refuses {
                    return refused("INSUFFICIENT_FUNDS");
                }
                (self.captured, self.payment_waits) = (false, false);
                Outcome::Done
            }
        }
    }
}

/// What goes wrong with one call, or beside it.
#[derive(Debug, Clone, Copy)]
enum Fault {
    None,
    Refuses,
    Slow,
    /// It was done, and the answer is lost.
    LosesAnswer,
    /// Nobody was asked.
    Away,
    /// Nobody was asked, and that was known before.
    NotAsked,
    /// It was done, and the process is killed before it has written that down.
    Killed,
    /// It is under way still when the next call is made, and done after that.
    ComesLate,
    /// It is refused whatever was done before: the rules have changed.
    RefusedByNewRules,
    /// Another process had been asked for the same before: it was done twice.
    Repeated,
    Cancel,
    GiveUp,
    Retry,
    TimeOut,
}

fn fault() -> impl Strategy<Value = Fault> {
    prop_oneof![
        6 => Just(Fault::None),
        2 => Just(Fault::Refuses),
        2 => Just(Fault::Slow),
        2 => Just(Fault::LosesAnswer),
        2 => Just(Fault::Away),
        1 => Just(Fault::NotAsked),
        2 => Just(Fault::Killed),
        2 => Just(Fault::ComesLate),
        1 => Just(Fault::RefusedByNewRules),
        1 => Just(Fault::Repeated),
        1 => Just(Fault::Cancel),
        1 => Just(Fault::GiveUp),
        1 => Just(Fault::Retry),
        1 => Just(Fault::TimeOut),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(4_000))]

    /// Whatever goes wrong, and whenever: where it ends, money and pieces are where the saga says.
    #[test]
    fn it_ends_as_the_world_is(faults in prop::collection::vec(fault(), 0..25)) {
        let (mut saga, mut world, mut now) = (Saga::start(0), World::default(), 0_i64);
        let mut faults = faults.into_iter();
        let (mut under_way, mut is_taken_over) = (None, false);
        for round in 0..200 {
            let fault = faults.next().unwrap_or(Fault::None);
            match fault {
                Fault::Cancel => { saga.cancel(now); }
                Fault::GiveUp => { saga.give_up(now); }
                Fault::Retry => { saga.retry(); }
                Fault::TimeOut => now = now.max(DEADLINE_US),
                _ => {}
            }
            match saga.next(now, DEADLINE_US) {
                Next::Nothing => {
                    if faults.len() == 0 { break; }
                }
                Next::Wait(until) => {
                    prop_assert!(until > now);
                    now = until;
                }
                Next::TimeOut => saga.time_out(now),
                Next::Call(step, direction) => {
                    let (refuses, is_slow) = (matches!(fault, Fault::Refuses), matches!(fault, Fault::Slow));
                    let outcome = match fault {
                        Fault::Away => unanswered(),
                        Fault::NotAsked => Outcome::NotAsked { error: "away".to_owned() },
                        Fault::LosesAnswer => { world.call(step, direction, false, false); unanswered() }
                        Fault::Killed => { world.call(step, direction, false, false); is_taken_over = true; continue; }
                        Fault::ComesLate => { under_way = Some((step, direction)); saga.note(step, direction, unanswered(), Now { is_taken_over, ..at(now) }); continue; }
                        Fault::RefusedByNewRules if direction == Direction::Do => refused("INVALID_ARGUMENT"),
                        Fault::Repeated => { world.call(step, direction, false, false); world.call(step, direction, false, false) }
                        _ => world.call(step, direction, refuses, is_slow),
                    };
                    saga.note(step, direction, outcome, Now { is_taken_over, ..at(now) });
                    if let Some((step, direction)) = under_way.take() {
                        world.call(step, direction, false, false);
                    }
                }
            }
            prop_assert!(round < 199, "it goes on for ever: {saga:?}");
        }
        if let Some((step, direction)) = under_way {
            world.call(step, direction, false, false);
        }
        prop_assert!(world.charges <= 1, "charged twice");
        match saga.state {
            State::Completed => prop_assert!(world.confirmed && world.captured, "{saga:?} {world:?}"),
            State::Compensated => {
                prop_assert!(!world.reserved && !world.confirmed && !world.captured && !world.payment_waits, "{saga:?} {world:?}");
            }
            State::Failed => {
                let failed = saga.undos.iter().flatten().find(|undo| undo.state == StepState::Failed);
                prop_assert!(failed.is_some_and(|undo| undo.in_a_row >= ATTEMPTS_MAX && !undo.last_error.is_empty()), "{saga:?}");
            }
            open => prop_assert!(false, "it has not ended: {open:?}"),
        }
    }
}
