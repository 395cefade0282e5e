//! The registry of reasons: what every error names, with its gRPC code, its HTTP status and who may fix it. The mesh's own
//! (`INVALID_ARGUMENT`, `UNAUTHENTICATED`, …) are in `lastro_mesh::status`; [`all`] lists both.

use lastro_mesh::status::{self, Reason};

lastro_mesh::reasons! {
    /// There is no such user, or it is somebody else.
    USER_NOT_FOUND: NotFound, 404, Caller, "There is no such user";
    /// There is no such account, or it is somebody else's.
    ACCOUNT_NOT_FOUND: NotFound, 404, Caller, "There is no such account";
    /// There is no such transaction, or it is somebody else's.
    TRANSACTION_NOT_FOUND: NotFound, 404, Caller, "There is no such transaction";
    /// Another user has the address.
    EMAIL_TAKEN: AlreadyExists, 409, Caller, "The email address is taken";
    /// Unknown user, wrong password or disabled user: not said which.
    INVALID_CREDENTIALS: Unauthenticated, 401, Caller, "Email or password is wrong";
    /// Too many failed logins of one account or address.
    LOGIN_THROTTLED: ResourceExhausted, 429, Time, "Too many failed logins";
    /// The refresh token is unknown, expired, used, or its session is over.
    INVALID_REFRESH_TOKEN: Unauthenticated, 401, Caller, "The refresh token is not valid, or no longer";
    /// The last administrator would be gone.
    LAST_ADMINISTRATOR: FailedPrecondition, 409, Caller, "The last administrator cannot go";
    /// The key was used for another request.
    IDEMPOTENCY_KEY_REUSED: AlreadyExists, 422, Caller, "The idempotency key was used for another request";
    /// The user may not own an account.
    OWNER_NOT_ALLOWED: FailedPrecondition, 409, Caller, "The user may not own an account";
    /// A user has money, or a transaction of its own is not settled yet.
    USER_HAS_MONEY: FailedPrecondition, 409, Caller, "The user still has money";
    /// The account is another user's to change so.
    ACCOUNT_NOT_YOURS: PermissionDenied, 403, Caller, "The account is not yours to change";
    /// Nothing can be done with a closed account any more.
    ACCOUNT_CLOSED: FailedPrecondition, 409, Caller, "The account is closed";
    /// The account has money, or something is held.
    ACCOUNT_NOT_EMPTY: FailedPrecondition, 409, Caller, "The account is not empty";
    /// A transaction that is not settled yet names the account.
    ACCOUNT_IN_USE: FailedPrecondition, 409, Caller, "A transaction that is not settled names the account";
    /// The account could not hold what it would get.
    BALANCE_OVERFLOW: FailedPrecondition, 409, Caller, "A balance would leave 64 bits";
    /// The hold is another user's to capture or to void.
    HOLD_NOT_YOURS: PermissionDenied, 403, Caller, "The hold is not yours";
    /// The transaction is no hold, or it is not authorized yet, or it was rejected.
    HOLD_NOT_AUTHORIZED: FailedPrecondition, 409, Caller, "The transaction is no authorized hold";
    /// The hold was captured or voided.
    HOLD_RESOLVED: FailedPrecondition, 409, Caller, "The hold was captured or voided already";
    /// The hold ran out.
    HOLD_EXPIRED: FailedPrecondition, 409, Caller, "The hold has expired";
    /// The transaction is another user's to reverse.
    REVERSAL_NOT_YOURS: PermissionDenied, 403, Caller, "The transaction is not yours to reverse";
    /// Only completed deposits, withdrawals and transfers are reversed.
    NOT_REVERSIBLE: FailedPrecondition, 409, Caller, "The transaction cannot be reversed";
    /// Another reversal of the transaction was accepted.
    ALREADY_REVERSED: FailedPrecondition, 409, Caller, "The transaction is reversed already";
    /// One member of an atomic batch is refused, and with it all: the metadata has its `index` and its `reason`.
    BATCH_REFUSED: FailedPrecondition, 422, Caller, "A transaction of the batch is refused, and with it the batch";
    /// There is no such payment, or it is somebody else's.
    PAYMENT_NOT_FOUND: NotFound, 404, Caller, "There is no such payment";
    /// The payment is another user's to refund, or the caller's own.
    REFUND_NOT_YOURS: PermissionDenied, 403, Caller, "The payment is not yours to refund";
    /// The payment was declined, or its outcome is not known yet.
    PAYMENT_NOT_CAPTURED: FailedPrecondition, 409, Caller, "The payment has moved no money";
    /// More than what is left of the payment.
    REFUND_TOO_MUCH: FailedPrecondition, 409, Caller, "More than what is left of the payment";
    /// So many refunds of one payment that no more are made.
    TOO_MANY_REFUNDS: FailedPrecondition, 409, Caller, "Too many refunds of one payment";
    /// So many payments and refunds by card of one user wait for the provider that no more are made.
    TOO_MANY_OPEN_PAYMENTS: FailedPrecondition, 409, Caller, "Too many payments wait for the payment provider";
    /// The payment provider does not pay it back.
    REFUND_DECLINED: FailedPrecondition, 409, Operator, "The payment provider declined the refund";
    /// An account has less than what it would give back.
    INSUFFICIENT_FUNDS: FailedPrecondition, 409, Caller, "An account has not enough money";
    /// An account that would give something back is frozen.
    ACCOUNT_FROZEN: FailedPrecondition, 409, Operator, "The account is frozen";
    /// No provider's transaction or event has the key.
    OPERATION_NOT_FOUND: NotFound, 404, Caller, "There is no such operation";
    /// The transaction with the key is settled by the ledger alone.
    OPERATION_NOT_EXTERNAL: FailedPrecondition, 409, Caller, "No provider settles the transaction with this key";
    /// So many different events were reported of one transaction that no more are stored.
    TOO_MANY_EVENTS: FailedPrecondition, 409, Caller, "Too many different events of one transaction";
    /// There is no such product.
    PRODUCT_NOT_FOUND: NotFound, 404, Caller, "There is no such product";
    /// There are fewer pieces than what is asked for: the fields name the items, the metadata the products.
    OUT_OF_STOCK: FailedPrecondition, 409, Caller, "There is not enough in stock";
    /// A store cannot count so many pieces.
    STOCK_OVERFLOW: FailedPrecondition, 409, Caller, "A store cannot have so many pieces";
    /// The stock was changed since the caller has read it.
    VERSION_CONFLICT: Aborted, 409, Caller, "The stock has another version";
    /// No more stores of one product are made.
    TOO_MANY_STORES: FailedPrecondition, 409, Caller, "The product is in too many stores";
    /// No reservation has the name.
    RESERVATION_NOT_FOUND: NotFound, 404, Caller, "There is no such reservation";
    /// The reservation was confirmed.
    RESERVATION_CONFIRMED: FailedPrecondition, 409, Caller, "The reservation was confirmed already";
    /// The reservation was released.
    RESERVATION_RELEASED: FailedPrecondition, 409, Caller, "The reservation was released already";
    /// The time of the reservation is over.
    RESERVATION_EXPIRED: FailedPrecondition, 409, Caller, "The reservation has expired";
    /// There is no such order, or it is somebody else's.
    ORDER_NOT_FOUND: NotFound, 404, Caller, "There is no such order";
    /// The product is not sold at this moment.
    PRODUCT_INACTIVE: FailedPrecondition, 409, Caller, "The product is not sold now";
    /// What is asked for does not follow from the order's status.
    ORDER_STATUS_CONFLICT: FailedPrecondition, 409, Caller, "The order's status does not allow it";
    /// Nothing of the saga is left to be done, or to be undone.
    SAGA_FINISHED: FailedPrecondition, 409, Caller, "The saga has ended";
    /// The saga has undone the step, before or after it was made.
    SAGA_CANCELLED: FailedPrecondition, 409, Caller, "The saga has undone this step";
    /// Whoever calls has lost its lease on the saga.
    STALE_EPOCH: FailedPrecondition, 409, Caller, "Somebody else has the saga now";
    /// The read side has not seen yet what the caller's freshness token names.
    NOT_FRESH_YET: Unavailable, 503, Time, "The read side has not seen that write yet";
    /// The feature is in the contract but not offered yet.
    NOT_OFFERED: Unimplemented, 501, Operator, "Not offered yet";
    /// The header and the body say different things.
    IDEMPOTENCY_KEY_CONFLICT: InvalidArgument, 400, Caller, "Idempotency-Key and externalId differ";
    /// The JSON cannot be read, or has an unknown field.
    MALFORMED_JSON: InvalidArgument, 400, Caller, "The JSON of the request cannot be read";
    /// No route has the path.
    NO_SUCH_ROUTE: NotFound, 404, Caller, "There is no such resource";
    /// The route does not take the method; `Allow` lists those that it takes.
    METHOD_NOT_ALLOWED: Unimplemented, 405, Caller, "The resource does not take this method";
    /// Only `application/json` is read.
    UNSUPPORTED_MEDIA_TYPE: InvalidArgument, 415, Caller, "Send application/json";
}

/// Why an operation was refused at settlement: the `reason` of a REJECTED transaction. An answer, not an error.
pub mod rejections {
    /// The source account has less available.
    pub const INSUFFICIENT_FUNDS: &str = "INSUFFICIENT_FUNDS";
    /// A balance would leave 64 bits.
    pub const BALANCE_OVERFLOW: &str = "BALANCE_OVERFLOW";
    /// One of the accounts is closed.
    pub const ACCOUNT_CLOSED: &str = "ACCOUNT_CLOSED";
    /// The source account is frozen.
    pub const ACCOUNT_FROZEN: &str = "ACCOUNT_FROZEN";
    /// The saga of an order has cancelled its payment.
    pub const SAGA_CANCELLED: &str = "SAGA_CANCELLED";
    /// The payment provider has declined a charge, and not said why.
    pub const PAYMENT_DECLINED: &str = "PAYMENT_DECLINED";
    /// The provider that was to settle it has reported that it failed, and not why.
    pub const PROVIDER_FAILED: &str = "PROVIDER_FAILED";
    /// Those of the ledger's own rules. What a provider gives as its reason is any text.
    pub const ALL_REJECTIONS: &[&str] = &[INSUFFICIENT_FUNDS, BALANCE_OVERFLOW, ACCOUNT_CLOSED, ACCOUNT_FROZEN];
}

/// The whole registry.
pub fn all() -> impl Iterator<Item = &'static Reason> {
    status::ALL.iter().chain(ALL).copied()
}

/// The entry with this name.
pub fn by_name(name: &str) -> Option<&'static Reason> {
    all().find(|reason| reason.name == name)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::methods::METHODS;

    #[test]
    fn every_reason_that_a_method_may_be_refused_for_is_in_the_registry() {
        for method in METHODS {
            for reason in method.reasons {
                assert!(by_name(reason).is_some(), "{}: {reason}", method.path);
            }
        }
    }
}
