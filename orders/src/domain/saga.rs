//! The saga of an order: three steps, each beside its undo. What has happened decides what is next, and nothing else: whoever takes a saga up, after a crash
//! too, goes on as the one before would have.
//!
//! A step whose outcome is not known is asked for again with the same key, and never assumed; where it is given up, its undo is made all the same. So every
//! call may be repeated, and an undo may come before what it undoes.

/// What is done, in this order; undone in the opposite one.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Step {
    /// The pieces are kept for the buyer.
    Reserve,
    /// The buyer pays for them.
    Pay,
    /// They leave their stores.
    Confirm,
}

impl Step {
    /// In their order.
    pub const ALL: [Self; 3] = [Self::Reserve, Self::Pay, Self::Confirm];

    /// Its name, and that of its undo.
    pub const fn names(self) -> (&'static str, &'static str) {
        match self {
            Self::Reserve => ("reserve", "release"),
            Self::Pay => ("pay", "refund"),
            Self::Confirm => ("confirm", "return"),
        }
    }

    const fn index(self) -> usize {
        match self {
            Self::Reserve => 0,
            Self::Pay => 1,
            Self::Confirm => 2,
        }
    }
}

/// Whether a step is done or undone.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Direction {
    /// The step.
    Do,
    /// Its undo.
    Undo,
}

/// How far a step is, or its undo.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum StepState {
    Waiting,
    /// It has begun; nobody may know what has become of it.
    Running,
    Done,
    /// It was refused, or given up.
    Failed,
}

/// What has happened to a step, or to its undo.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Record {
    pub state: StepState,
    /// How often it was tried.
    pub attempts: u32,
    /// How the last attempt ended that did not end it.
    pub trouble: Trouble,
    /// So many attempts in a row ended so.
    pub in_a_row: u32,
    pub last_error: String,
    pub start_us: Option<i64>,
    pub end_us: Option<i64>,
    /// Before then it is not tried again.
    pub next_attempt_us: Option<i64>,
}

/// How an attempt ended after which nothing is done yet.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Trouble {
    None,
    /// Nobody knows yet.
    Pending,
    Refused,
    Unanswered,
}

/// How far a saga is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum State {
    Started,
    InventoryReserved,
    PaymentProcessing,
    Completed,
    Compensating,
    Compensated,
    /// An undo has failed.
    Failed,
}

impl State {
    pub const ALL: [Self; 7] =
        [Self::Started, Self::InventoryReserved, Self::PaymentProcessing, Self::Completed, Self::Compensating, Self::Compensated, Self::Failed];

    /// Whether it still goes forward.
    pub const fn is_forward(self) -> bool {
        matches!(self, Self::Started | Self::InventoryReserved | Self::PaymentProcessing)
    }
}

/// Why what was done is undone.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Cause {
    /// A step was refused, or there was no answer.
    StepFailed,
    /// It took too long.
    TimedOut,
    /// Its buyer, or an administrator, has cancelled the order.
    Cancelled,
    /// An administrator has given the saga up.
    GivenUp,
}

/// A saga as it stands.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Saga {
    pub state: State,
    pub cause: Option<Cause>,
    /// For programs; empty as long as nothing went wrong.
    pub reason: String,
    /// For a person.
    pub detail: String,
    /// Of each step.
    pub steps: [Record; 3],
    /// Of each undo; None of those that are not needed.
    pub undos: [Option<Record>; 3],
}

/// What is next.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Next {
    Call(Step, Direction),
    /// Until then nothing.
    Wait(i64),
    /// The time is over: what was done is to be undone.
    TimeOut,
    /// It has ended, or failed.
    Nothing,
}

/// What has become of a call.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Outcome {
    Done,
    /// Whoever was asked does not know yet.
    Pending,
    /// It was not done, and will not be.
    Refused {
        reason: String,
        detail: String,
    },
    /// There was no answer, or none that says what was done.
    Unanswered {
        error: String,
    },
    /// Nobody was asked, since whoever is to be asked is known to be away: that is no attempt.
    NotAsked {
        error: String,
    },
}

/// When something happens.
#[derive(Debug, Clone, Copy)]
pub struct Now {
    pub us: i64,
    /// How much of a pause is left to chance, 0 to 1000.
    pub jitter_permille: i64,
    /// Somebody else had the saga before, and may have made calls that nobody has written down.
    pub is_taken_over: bool,
}

/// Attempts of a step without an answer, and of an undo that is refused.
pub const ATTEMPTS_MAX: u32 = 3;
/// Before the second attempt; twice as long before each one after that.
const PAUSE_US: i64 = 1_000_000;
/// Of what is asked for again and again: at most.
const PAUSE_MAX_US: i64 = 60_000_000;
/// A payment that nobody knows of yet is asked for more often.
const PENDING_PAUSE_MAX_US: i64 = 5_000_000;

impl Record {
    fn waiting() -> Self {
        let (state, last_error) = (StepState::Waiting, String::new());
        Self { state, attempts: 0, trouble: Trouble::None, in_a_row: 0, last_error, start_us: None, end_us: None, next_attempt_us: None }
    }

    fn begin(&mut self, now_us: i64) {
        (self.state, self.start_us, self.next_attempt_us) = (StepState::Running, Some(self.start_us.unwrap_or(now_us)), None);
    }

    fn end(&mut self, state: StepState, now_us: i64) {
        (self.state, self.end_us, self.next_attempt_us) = (state, Some(now_us), None);
    }

    /// An attempt that ended as the one before did counts on from it.
    fn count(&mut self, trouble: Trouble, error: String) {
        self.in_a_row = if self.trouble == trouble { self.in_a_row + 1 } else { 1 };
        (self.trouble, self.last_error) = (trouble, error);
    }

    /// Nobody was asked: the next attempt is still the same one.
    fn put_off(&mut self, error: String, now: Now) {
        self.last_error = error;
        self.next_attempt_us = Some(now.us + PAUSE_US + PAUSE_US * (now.jitter_permille - 500) / 5000);
    }

    /// The next attempt is made after a pause: 1 s, 2 s, 4 s and so on, more or less a tenth.
    fn pause(&mut self, now: Now, pause_max_us: i64) {
        let doubled = PAUSE_US.saturating_mul(1_i64.checked_shl(self.in_a_row.saturating_sub(1).min(20)).unwrap_or(i64::MAX)).min(pause_max_us);
        self.next_attempt_us = Some(now.us + doubled + doubled * (now.jitter_permille - 500) / 5000);
    }
}

impl Saga {
    /// One whose first step is to be made.
    pub fn new() -> Self {
        let steps = [Record::waiting(), Record::waiting(), Record::waiting()];
        Self { state: State::Started, cause: None, reason: String::new(), detail: String::new(), steps, undos: [None, None, None] }
    }

    /// The same, begun.
    pub fn start(now_us: i64) -> Self {
        let mut saga = Self::new();
        saga.steps[0].begin(now_us);
        saga
    }

    pub fn step(&self, step: Step) -> &Record {
        &self.steps[step.index()]
    }

    pub fn undo(&self, step: Step) -> Option<&Record> {
        self.undos[step.index()].as_ref()
    }

    pub fn is_done(&self, step: Step) -> bool {
        self.step(step).state == StepState::Done
    }

    /// Whether everything was done once, whatever became of it later.
    pub fn was_completed(&self) -> bool {
        self.is_done(Step::Confirm)
    }

    /// What is next.
    pub fn next(&self, now_us: i64, deadline_us: i64) -> Next {
        let (step, direction, record) = match self.state {
            State::Completed | State::Compensated | State::Failed => return Next::Nothing,
            _ if self.state.is_forward() && now_us >= deadline_us => return Next::TimeOut,
            State::Compensating => {
                let needed = Step::ALL.into_iter().rev().filter_map(|step| Some((step, self.undo(step)?)));
                match needed.into_iter().find(|(_, record)| record.state != StepState::Done) {
                    Some((step, record)) => (step, Direction::Undo, record),
                    None => return Next::Nothing,
                }
            }
            State::Started | State::InventoryReserved | State::PaymentProcessing => match Step::ALL.into_iter().find(|step| !self.is_done(*step)) {
                Some(step) => (step, Direction::Do, self.step(step)),
                None => return Next::Nothing,
            },
        };
        match record.next_attempt_us.filter(|next| *next > now_us) {
            // A clock that was set back does not stop it: no pause is that long.
            Some(next) if next - now_us <= 2 * PAUSE_MAX_US => Next::Wait(if self.state.is_forward() { next.min(deadline_us) } else { next }),
            _ => Next::Call(step, direction),
        }
    }

    /// What became of a call that [`next`](Self::next) asked for.
    pub fn note(&mut self, step: Step, direction: Direction, outcome: Outcome, now: Now) {
        match direction {
            Direction::Do => self.note_do(step, outcome, now),
            Direction::Undo => self.note_undo(step, outcome, now),
        }
    }

    fn note_do(&mut self, step: Step, outcome: Outcome, now: Now) {
        let record = &mut self.steps[step.index()];
        if let Outcome::NotAsked { error } = outcome {
            return record.put_off(error, now);
        }
        record.attempts += 1;
        match outcome {
            Outcome::Done => {
                record.end(StepState::Done, now.us);
                self.state = match step {
                    Step::Reserve => State::InventoryReserved,
                    Step::Pay => State::PaymentProcessing,
                    Step::Confirm => State::Completed,
                };
                if let Some(next) = self.steps.get_mut(step.index() + 1) {
                    next.begin(now.us);
                }
            }
            Outcome::Pending => {
                record.count(Trouble::Pending, String::new());
                record.pause(now, PENDING_PAUSE_MAX_US);
                if step == Step::Pay {
                    self.state = State::PaymentProcessing;
                }
            }
            Outcome::Refused { reason, detail } => {
                record.last_error = format!("{reason}: {detail}");
                // What an earlier attempt has asked for may have been done all the same: it is undone as what was given up.
                if record.attempts == 1 && !now.is_taken_over {
                    record.end(StepState::Failed, now.us);
                }
                // Where a saga was undone that knows nothing of it, orders was restored from a backup.
                let undoes = if reason == SAGA_CANCELLED { Undoes::Everything } else { Undoes::WhatHasBegun };
                self.compensate(Cause::StepFailed, undoes, (reason, detail), now.us);
            }
            Outcome::Unanswered { error } | Outcome::NotAsked { error } => {
                record.count(Trouble::Unanswered, error.clone());
                if record.in_a_row < ATTEMPTS_MAX {
                    record.pause(now, PAUSE_MAX_US);
                    return;
                }
                let detail = format!("no answer to {} in {ATTEMPTS_MAX} attempts: {error}", step.names().0);
                self.compensate(Cause::StepFailed, Undoes::WhatHasBegun, (UNAVAILABLE.to_owned(), detail), now.us);
            }
        }
    }

    fn note_undo(&mut self, step: Step, outcome: Outcome, now: Now) {
        let Some(record) = &mut self.undos[step.index()] else { return };
        if let Outcome::NotAsked { error } = outcome {
            return record.put_off(error, now);
        }
        record.attempts += 1;
        match outcome {
            Outcome::Done => {
                record.end(StepState::Done, now.us);
                self.go_on_undoing(now.us);
            }
            Outcome::Pending => {
                record.count(Trouble::Pending, String::new());
                record.pause(now, PAUSE_MAX_US);
            }
            Outcome::Refused { reason, detail } => {
                record.count(Trouble::Refused, format!("{reason}: {detail}"));
                if record.in_a_row < ATTEMPTS_MAX {
                    record.pause(now, PAUSE_MAX_US);
                    return;
                }
                record.end(StepState::Failed, now.us);
                self.state = State::Failed;
                (self.reason, self.detail) = (reason, format!("{} failed: {detail}", step.names().1));
            }
            // Whoever is away comes back: what was done must not stay half undone because of that.
            Outcome::Unanswered { error } | Outcome::NotAsked { error } => {
                record.count(Trouble::Unanswered, error);
                record.pause(now, PAUSE_MAX_US);
            }
        }
    }

    /// The next undo begins; after the last one everything is undone.
    fn go_on_undoing(&mut self, now_us: i64) {
        let mut left = self.undos.iter_mut().rev().flatten().filter(|undo| undo.state != StepState::Done);
        match left.next() {
            Some(next) => next.begin(now_us),
            None => self.state = State::Compensated,
        }
    }

    /// Undoes what was done, and what may have been: also what was given up without an answer.
    fn compensate(&mut self, cause: Cause, undoes: Undoes, (reason, detail): (String, String), now_us: i64) {
        self.state = State::Compensating;
        (self.cause, self.reason, self.detail) = (Some(cause), reason, detail);
        for (record, undo) in self.steps.iter_mut().zip(&mut self.undos) {
            match record.state {
                StepState::Waiting if undoes == Undoes::Everything => *undo = Some(Record::waiting()),
                // Not begun, or refused: there is nothing to undo.
                StepState::Waiting | StepState::Failed => {}
                StepState::Done => *undo = Some(Record::waiting()),
                StepState::Running => {
                    record.end(StepState::Failed, now_us);
                    // A step that was never tried may have been: the process may have been killed after the call.
                    *undo = Some(Record::waiting());
                }
            }
        }
        self.go_on_undoing(now_us);
    }

    /// The time is over.
    pub fn time_out(&mut self, now_us: i64) {
        let stuck = Step::ALL.into_iter().find(|step| !self.is_done(*step)).map_or("", |step| step.names().0);
        if self.state.is_forward() {
            // That costs calls of which two do nothing, and is right for a saga that was restored from a backup, too.
            self.compensate(Cause::TimedOut, Undoes::Everything, (TIMED_OUT.to_owned(), format!("{stuck} was not done in time")), now_us);
        }
    }

    /// The order is cancelled. False where that changes nothing, since it is undone already, or is being undone.
    pub fn cancel(&mut self, now_us: i64) -> bool {
        if !self.state.is_forward() && self.state != State::Completed {
            return false;
        }
        self.compensate(Cause::Cancelled, Undoes::WhatHasBegun, (CANCELLED.to_owned(), String::new()), now_us);
        true
    }

    /// An administrator has the next attempt made at once. False where there is none.
    pub fn retry(&mut self) -> bool {
        match self.state {
            State::Completed | State::Compensated => false,
            State::Failed => {
                for undo in self.undos.iter_mut().flatten().filter(|undo| undo.state == StepState::Failed) {
                    (undo.state, undo.end_us, undo.trouble) = (StepState::Running, None, Trouble::None);
                }
                self.state = State::Compensating;
                true
            }
            State::Started | State::InventoryReserved | State::PaymentProcessing | State::Compensating => {
                let all = self.steps.iter_mut().chain(self.undos.iter_mut().flatten());
                for record in all.filter(|record| record.state == StepState::Running) {
                    (record.next_attempt_us, record.trouble) = (None, Trouble::None);
                }
                true
            }
        }
    }

    /// An administrator gives the order up. False where nothing is left to be undone.
    pub fn give_up(&mut self, now_us: i64) -> bool {
        if !self.state.is_forward() {
            return self.retry();
        }
        self.compensate(Cause::GivenUp, Undoes::WhatHasBegun, (GIVEN_UP.to_owned(), "an administrator has given the order up".to_owned()), now_us);
        true
    }
}

/// Which steps are undone.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Undoes {
    WhatHasBegun,
    /// Also what has not begun, for all that is written down.
    Everything,
}

/// What a callee says of a step that was undone before.
const SAGA_CANCELLED: &str = "SAGA_CANCELLED";

/// Why a saga is undone, for programs, where nobody else has said it.
pub const UNAVAILABLE: &str = "UNAVAILABLE";
pub const TIMED_OUT: &str = "TIMED_OUT";
pub const CANCELLED: &str = "CANCELLED";
pub const GIVEN_UP: &str = "GIVEN_UP";

#[cfg(test)]
mod tests;
