//! What can go wrong in a use case, and what of it a caller may read.

use std::time::Duration;

use lastro_mesh::codec::Violation;
use lastro_mesh::status::{INTERNAL, Problem, UNAVAILABLE};
use lastro_proto::permissions::Permission;
use lastro_proto::reasons;

use crate::domain::rejection::Rejection;
use crate::domain::submission::{self, Rule};
use crate::pipeline::{Culprit, Refused};

/// Why a use case refused, in the order in which rules are checked.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// Something on the way already says what the caller reads.
    #[error(transparent)]
    Problem(#[from] Problem),
    /// The request itself.
    #[error(transparent)]
    Submission(#[from] submission::Error),
    /// Deposits need a permission of their own.
    #[error("the permission write:deposits is missing")]
    MayNotDeposit,
    /// No such account, or somebody else's.
    #[error("there is no such account")]
    AccountNotFound {
        /// Which field of the request names it, where that is not the id of the call.
        field: Option<String>,
    },
    /// The account may be seen, and not be changed so.
    #[error("{0}")]
    AccountNotYours(&'static str),
    /// Nothing can be changed about a closed account.
    #[error("the account is closed")]
    AccountClosed,
    /// The account has money, or something is held.
    #[error("the account has money, or something is held; bring it to zero first")]
    AccountNotEmpty,
    /// An operation that is not settled yet names the account.
    #[error("a transaction that is not settled yet names the account; close it when that is settled")]
    AccountInUse,
    /// No such transaction, or somebody else's.
    #[error("there is no such transaction")]
    TransactionNotFound,
    /// The hold may be seen, and neither captured nor voided.
    #[error(
        "only who submitted a hold captures it; who owns every account that it would credit, and administrators, void it too; \
             what is held for a refund, the payment provider's answer ends"
    )]
    HoldNotYours,
    /// It is no hold, or not authorized yet, or rejected.
    #[error("the transaction is no authorized hold")]
    HoldNotAuthorized,
    /// The hold was captured or voided, by another key.
    #[error("the hold was captured or voided already")]
    HoldResolved,
    /// The hold has run out.
    #[error("the hold has expired, and what was held is released")]
    HoldExpired,
    /// The hold cannot be captured for this reason, and stays.
    #[error("the hold cannot be captured, and stays: {}", .0.name())]
    NotCaptured(Rejection),
    /// The transaction may be seen, and not be reversed.
    #[error("only who owns every account that the reversal would debit, or an administrator, reverses a transaction")]
    ReversalNotYours,
    /// Only what was completed is reversed, and neither payments nor reversals.
    #[error("only a COMPLETED transaction of type DEPOSIT, WITHDRAWAL or TRANSFER can be reversed")]
    NotReversible,
    /// Another reversal of it was accepted.
    #[error("the transaction is reversed already")]
    AlreadyReversed,
    /// No such payment, or somebody else's.
    #[error("there is no such payment")]
    PaymentNotFound,
    /// The payment may be seen, and not be refunded.
    #[error("only who owns every account that the refund would debit, or an administrator, refunds a payment; its payer does not")]
    RefundNotYours,
    /// There is nothing to give back.
    #[error("the payment has moved no money: it is {0}")]
    PaymentNotCaptured(&'static str),
    /// More than is left.
    #[error("at most {0} is left of the payment")]
    RefundTooMuch(lastro_money::Amount),
    /// The ledger refuses the refund.
    #[error("the refund is refused: {}", .0.name())]
    RefundRefused(Rejection),
    /// The provider refuses the refund.
    #[error("the payment provider declined the refund: {0}")]
    RefundDeclined(Box<str>),
    /// No more of one payment are made.
    #[error("a payment has {0} refunds at most")]
    TooManyRefunds(i64),
    /// No payment provider is set up.
    #[error("cards are not taken here: the operator has set up no payment provider")]
    NoPaymentProvider,
    /// Another one is.
    #[error("the payment was made through another payment provider than the one that is set up here; only that one can pay it back")]
    OtherPaymentProvider,
    /// No more wait for the provider.
    #[error("{0} of your payments and refunds by card wait for the payment provider; send more when it has answered some of them")]
    TooManyOpenPayments(i64),
    /// The saga has cancelled its payment.
    #[error("the saga has cancelled its payment")]
    SagaCancelled,
    /// Somebody has called with a higher epoch of the saga.
    #[error("somebody has called with a higher epoch of this saga; whoever calls has lost its lease")]
    StaleEpoch,
    /// No operation of this provider has the key.
    #[error("nothing was reported under this key, and no transaction has it")]
    OperationNotFound,
    /// The ledger alone settles the transaction with this key.
    #[error("the transaction with this key was submitted with settlement INTERNAL: nobody reports its outcome")]
    OperationNotExternal,
    /// No more are stored.
    #[error("{0} different events of this type were reported under this key; no more are stored")]
    TooManyEvents(usize),
    /// The user may not own an account.
    #[error("the user may not own an account")]
    OwnerNotAllowed,
    /// An account of the user has money, or an operation that is not settled yet.
    #[error("an account of the user has money, or a transaction of it is not settled yet")]
    UserHasMoney,
    /// The key was used for another request.
    #[error("the idempotency key was used for another request; use a new key, or send the same request")]
    IdempotencyKeyReused,
    /// The database is busy or away; the outcome is unknown.
    #[error("the ledger is busy or away; ask again with the same idempotency key")]
    LedgerUnavailable,
    /// The database refuses the operation itself.
    #[error("the ledger refused the operation")]
    LedgerBroken,
    /// Customers could not be asked.
    #[error("{0}")]
    Customers(Box<tonic::Status>),
    /// The database failed.
    #[error(transparent)]
    Database(#[from] lastro_database::Error),
}

impl From<Rule> for Error {
    fn from(rule: Rule) -> Self {
        Self::Submission(rule.into())
    }
}

impl From<Refused> for Error {
    fn from(refused: Refused) -> Self {
        match refused {
            Refused::KeyReused => Self::IdempotencyKeyReused,
            Refused::Crowded => Problem::crowded("too many transactions wait to be stored; ask again with the same idempotency key").into(),
            // Who resolved it is read again by whoever asked, and what goes together is told by its batch.
            Refused::Unavailable | Refused::ResolvedMeanwhile => Self::LedgerUnavailable,
            Refused::Broken => Self::LedgerBroken,
            Refused::AlreadyReversed => Self::AlreadyReversed,
            Refused::StaleEpoch => Self::StaleEpoch,
            Refused::SagaCancelled => Self::SagaCancelled,
            Refused::HoldExpired => Self::HoldExpired,
            Refused::NotCaptured(reason) => Self::NotCaptured(reason),
            // Told by whoever asked for a refund, who knows its currency.
            Refused::RefundTooMuch { .. } => Self::LedgerUnavailable,
            Refused::Together { index, culprit } => batch_refused_for(index, culprit).into(),
        }
    }
}

/// The batch is refused because of one of its requests, which would have been refused so by itself.
pub fn batch_refused_by(index: usize, of_one: Problem) -> Problem {
    if of_one.reason.code == tonic::Code::Unavailable || of_one.reason == &INTERNAL {
        // Nobody's fault, and nothing was stored.
        return of_one;
    }
    batch_refused(index, of_one.reason.name, &of_one.detail, &of_one.fields)
}

/// The batch is refused because of one of those that go together.
pub fn batch_refused_for(index: usize, culprit: Culprit) -> Problem {
    match culprit {
        Culprit::Rejected { reason, leg } => {
            let detail = format!("it would be REJECTED with {}", reason.name());
            let fields: Vec<Violation> = leg.map(|leg| Violation::new(format!("legs[{leg}]"), detail.clone())).into_iter().collect();
            batch_refused(index, reason.name(), &detail, &fields)
        }
        Culprit::KeyReused => batch_refused_by(index, Error::IdempotencyKeyReused.into()),
        Culprit::KeyExists => {
            let detail = "its idempotency key was used before, and not those of all others; send the batch as it was, or use new keys";
            batch_refused(index, reasons::IDEMPOTENCY_KEY_REUSED.name, detail, &[])
        }
    }
}

fn batch_refused(index: usize, reason: &str, detail: &str, fields: &[Violation]) -> Problem {
    let within = |field: &str| if field.is_empty() { format!("requests[{index}]") } else { format!("requests[{index}].{field}") };
    let mut fields: Vec<Violation> = fields.iter().map(|one| Violation::new(within(&one.field), one.description.clone())).collect();
    if fields.is_empty() {
        fields.push(Violation::new(within(""), detail));
    }
    let detail = format!("requests[{index}] is refused, and with it the batch: {detail}");
    let problem = Problem { fields, ..Problem::new(&reasons::BATCH_REFUSED, detail) };
    problem.with("index", index.to_string()).with("reason", reason)
}

impl From<Error> for Problem {
    fn from(error: Error) -> Self {
        let text = error.to_string();
        match error {
            Error::Problem(problem) => problem,
            Error::Submission(broken) => Self::field(broken.field(), text),
            Error::MayNotDeposit => Self::permission(Permission::WriteDeposits.name(), text),
            Error::AccountNotFound { field } => {
                let fields = field.map(|field| Violation::new(field, text.clone())).into_iter().collect();
                Self { fields, ..Self::new(&reasons::ACCOUNT_NOT_FOUND, text) }
            }
            Error::AccountNotYours(_) => Self::new(&reasons::ACCOUNT_NOT_YOURS, text),
            Error::AccountClosed => Self::new(&reasons::ACCOUNT_CLOSED, text),
            Error::AccountNotEmpty => Self::new(&reasons::ACCOUNT_NOT_EMPTY, text),
            Error::AccountInUse => Self::new(&reasons::ACCOUNT_IN_USE, text),
            Error::HoldNotYours => Self::new(&reasons::HOLD_NOT_YOURS, text),
            Error::HoldNotAuthorized => Self::new(&reasons::HOLD_NOT_AUTHORIZED, text),
            Error::HoldResolved => Self::new(&reasons::HOLD_RESOLVED, text),
            Error::HoldExpired => Self::new(&reasons::HOLD_EXPIRED, text),
            Error::NotCaptured(Rejection::AccountClosed) => Self::new(&reasons::ACCOUNT_CLOSED, text),
            Error::NotCaptured(Rejection::BalanceOverflow) => Self::new(&reasons::BALANCE_OVERFLOW, text),
            Error::NotCaptured(reason @ (Rejection::AccountFrozen | Rejection::InsufficientFunds)) => {
                tracing::error!(reason = reason.name(), "a capture was refused for what is judged at the hold");
                Self::new(&INTERNAL, "internal error")
            }
            Error::ReversalNotYours => Self::new(&reasons::REVERSAL_NOT_YOURS, text),
            Error::NotReversible => Self::new(&reasons::NOT_REVERSIBLE, text),
            Error::AlreadyReversed => Self::new(&reasons::ALREADY_REVERSED, text),
            Error::PaymentNotFound => Self::new(&reasons::PAYMENT_NOT_FOUND, text),
            Error::RefundNotYours => Self::new(&reasons::REFUND_NOT_YOURS, text),
            Error::PaymentNotCaptured(_) => Self::new(&reasons::PAYMENT_NOT_CAPTURED, text),
            Error::RefundTooMuch(_) => Self { fields: vec![Violation::new("amount", text.clone())], ..Self::new(&reasons::REFUND_TOO_MUCH, text) },
            Error::RefundRefused(Rejection::InsufficientFunds) => Self::new(&reasons::INSUFFICIENT_FUNDS, text),
            Error::RefundRefused(Rejection::AccountFrozen) => Self::new(&reasons::ACCOUNT_FROZEN, text),
            Error::RefundRefused(Rejection::AccountClosed) => Self::new(&reasons::ACCOUNT_CLOSED, text),
            Error::RefundRefused(Rejection::BalanceOverflow) => Self::new(&reasons::BALANCE_OVERFLOW, text),
            Error::RefundDeclined(_) => Self::new(&reasons::REFUND_DECLINED, text),
            Error::TooManyRefunds(_) => Self::new(&reasons::TOO_MANY_REFUNDS, text),
            Error::NoPaymentProvider | Error::OtherPaymentProvider => Self::new(&reasons::NOT_OFFERED, text),
            Error::TooManyOpenPayments(_) => Self::new(&reasons::TOO_MANY_OPEN_PAYMENTS, text),
            Error::SagaCancelled => Self::new(&reasons::SAGA_CANCELLED, text),
            Error::StaleEpoch => Self::new(&reasons::STALE_EPOCH, text),
            Error::OperationNotFound => Self::new(&reasons::OPERATION_NOT_FOUND, text),
            Error::OperationNotExternal => Self::new(&reasons::OPERATION_NOT_EXTERNAL, text),
            Error::TooManyEvents(_) => Self::new(&reasons::TOO_MANY_EVENTS, text),
            Error::TransactionNotFound => Self::new(&reasons::TRANSACTION_NOT_FOUND, text),
            Error::OwnerNotAllowed => Self::new(&reasons::OWNER_NOT_ALLOWED, text),
            Error::UserHasMoney => Self::new(&reasons::USER_HAS_MONEY, text),
            Error::IdempotencyKeyReused => Self::new(&reasons::IDEMPOTENCY_KEY_REUSED, text),
            Error::LedgerUnavailable => Self::new(&UNAVAILABLE, text).retry_after(Duration::from_secs(1)),
            Error::LedgerBroken => Self::new(&INTERNAL, "internal error"),
            Error::Customers(status) => {
                tracing::warn!(error = %status.message(), code = ?status.code(), "customers could not be asked");
                Self::new(&UNAVAILABLE, "the owner cannot be confirmed right now").because_of("customers")
            }
            Error::Database(error) => lastro_service::database_problem(&error),
        }
    }
}

impl From<Error> for tonic::Status {
    fn from(error: Error) -> Self {
        Problem::from(error).into()
    }
}
