//! What an outside provider reports of a transaction that it settles, and what becomes of the report.

use super::operation::{Settlement, State};

/// The longest reason that a provider gives, in characters.
pub const REASON_MAX: usize = 200;

/// What a report is about.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ReportType {
    /// The provider knows of the transaction.
    Submitted,
    /// The money has come.
    Settled,
    /// It will not come.
    Failed,
}

impl ReportType {
    /// As it is written in messages.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Submitted => "SUBMITTED",
            Self::Settled => "SETTLED",
            Self::Failed => "FAILED",
        }
    }
}

/// What a provider says of an operation that waits for it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Word {
    /// It has moved the money.
    Settled,
    /// It has not, and will not, for this reason.
    Failed(Box<str>),
}

/// What became of a report.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ReportOutcome {
    /// The transaction stands as it says.
    Applied,
    /// The same had been reported before, in other words; or nobody's report is needed.
    PassedOver,
    /// The transaction has ended otherwise, or the ledger could not do as it says: somebody has to look into it.
    Contradicts,
}

/// What a report comes to where its transaction stands so; None where the transaction waits for exactly this, or is not that far yet.
pub fn outcome_of(report: ReportType, settlement: Settlement, state: State) -> Option<ReportOutcome> {
    use ReportOutcome as O;
    use ReportType as R;
    match (settlement, report, state) {
        (Settlement::Internal, ..) => Some(O::PassedOver),
        (Settlement::External, R::Submitted, _) => Some(O::Applied),
        (Settlement::External, R::Settled, State::Completed) | (Settlement::External, R::Failed, State::Rejected) => Some(O::PassedOver),
        (Settlement::External, R::Settled, State::Rejected | State::Voided | State::Expired)
        | (Settlement::External, R::Failed, State::Completed | State::Voided | State::Expired) => Some(O::Contradicts),
        (Settlement::External, R::Settled | R::Failed, State::Pending | State::Retrying | State::Waiting | State::Authorized) => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_terminal_state_is_never_changed_by_a_report() {
        for state in [State::Completed, State::Rejected, State::Voided, State::Expired] {
            for report in [ReportType::Submitted, ReportType::Settled, ReportType::Failed] {
                assert!(outcome_of(report, Settlement::External, state).is_some(), "{report:?} {state:?}");
            }
        }
        let of = |report, state| outcome_of(report, Settlement::External, state);
        assert_eq!(of(ReportType::Settled, State::Completed), Some(ReportOutcome::PassedOver));
        assert_eq!(of(ReportType::Failed, State::Completed), Some(ReportOutcome::Contradicts));
        assert_eq!(of(ReportType::Settled, State::Rejected), Some(ReportOutcome::Contradicts));
        assert_eq!(of(ReportType::Settled, State::Waiting), None);
        assert_eq!(outcome_of(ReportType::Failed, Settlement::Internal, State::Pending), Some(ReportOutcome::PassedOver));
    }
}
