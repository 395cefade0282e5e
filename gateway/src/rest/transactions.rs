//! `/transactions`: the idempotency key and the wait may come as headers, and the status tells how far it came.

use std::time::Duration;

use http::{HeaderMap, HeaderName, HeaderValue, StatusCode};
use lastro_mesh::call::Slot;
use lastro_mesh::outbound::Outbound;
use lastro_proto::transactions::v1::transaction::State;
use lastro_proto::transactions::v1::transactions_service_client::TransactionsServiceClient;
use lastro_proto::transactions::v1::{
    CreateTransactionRequest, GetTransactionRequest, ListTransactionEventsRequest, ListTransactionEventsResponse, ListTransactionsRequest,
    ListTransactionsResponse, Transaction, TransactionsService,
};
use rest_over_grpc::handling::{self, Context};

use super::{SLOT, TIMEOUT, answer, call, hand_on, idempotency, patience, request, set_location, set_status};

const PREFER: HeaderName = HeaderName::from_static("prefer");
const PREFERENCE_APPLIED: HeaderName = HeaderName::from_static("preference-applied");
/// nginx takes the request, which it keeps, to this place of its configuration, and this answer goes no further. It cannot know before that
/// a call is to wait for longer than it would: the wait may stand in the body.
/// <https://nginx.org/en/docs/http/ngx_http_proxy_module.html#proxy_ignore_headers>
const REDIRECT_HEADER: HeaderName = HeaderName::from_static("x-accel-redirect");
const LONG_WAIT_PLACE: &str = "@long_wait";

#[derive(Clone)]
pub struct Transactions(pub TransactionsServiceClient<Outbound>);

impl TransactionsService for Transactions {
    hand_on! {
        get_transaction: GetTransactionRequest => Transaction;
        list_transactions: ListTransactionsRequest => ListTransactionsResponse;
        list_transaction_events: ListTransactionEventsRequest => ListTransactionEventsResponse;
    }

    async fn create_transaction(&self, mut message: CreateTransactionRequest, cx: &mut Context) -> Result<Transaction, handling::Status> {
        idempotency::apply(&mut message.external_id, cx.request_headers())?;
        let preferred = preferred_wait(cx.request_headers());
        if let Some(seconds) = preferred {
            message.wait = Some(pbjson_types::Duration { seconds, nanos: 0 });
        }
        // A wait out of range is the service's to refuse.
        let wait = message.wait.as_ref().and_then(|wait| u64::try_from(wait.seconds).ok()).unwrap_or_default().min(30);
        let waits = message.wait.as_ref().is_some_and(|wait| wait.seconds > 0 || wait.nanos > 0);
        if patience(cx.request_headers()).is_some_and(|patience| patience < Duration::from_secs(wait + 1)) {
            cx.insert_response_header(REDIRECT_HEADER, HeaderValue::from_static(LONG_WAIT_PLACE));
            return Ok(Transaction::default());
        }
        let mut call = call(cx.request_headers(), TIMEOUT + Duration::from_secs(wait));
        call.waits = waits;
        if waits {
            // It is not load, it is patience.
            let _ = SLOT.try_with(Slot::release);
        }

        let transaction = answer(self.0.clone().create_transaction(request(&call, message)).await)?;
        set_status(cx, status_of(&transaction, waits));
        set_location(cx, "transactions", &transaction.id);
        if let Some(applied) = preferred.and_then(|seconds| HeaderValue::from_str(&format!("wait={seconds}")).ok()) {
            cx.insert_response_header(PREFERENCE_APPLIED, applied);
        }
        Ok(transaction)
    }
}

/// 202 as long as the outcome is not known or was not waited for; 201 with it; 200 for a repetition that has it.
fn status_of(transaction: &Transaction, waits: bool) -> StatusCode {
    let decided = !matches!(transaction.state(), State::Unspecified | State::Pending | State::Processing);
    let terminal = decided && transaction.state() != State::Authorized;
    match (transaction.replayed, waits) {
        (true, _) if terminal => StatusCode::OK,
        (false, true) if decided => StatusCode::CREATED,
        _ => StatusCode::ACCEPTED,
    }
}

/// `Prefer: wait=5` (RFC 7240), in seconds. What is not understood is ignored, as the RFC says.
fn preferred_wait(headers: &HeaderMap) -> Option<i64> {
    let lists = headers.get_all(PREFER).iter().filter_map(|value| value.to_str().ok());
    lists.flat_map(|list| list.split([',', ';'])).find_map(|preference| {
        let (name, value) = preference.split_once('=')?;
        let digits = value.trim().trim_matches('"');
        let is_wait = name.trim().eq_ignore_ascii_case("wait") && !digits.is_empty() && digits.bytes().all(|digit| digit.is_ascii_digit());
        // A number that is too large is understood, and refused by the service as what is too long.
        is_wait.then(|| digits.parse().unwrap_or(i64::MAX))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn headers(pairs: &[(HeaderName, &'static str)]) -> HeaderMap {
        pairs.iter().map(|(name, value)| (name.clone(), HeaderValue::from_static(value))).collect()
    }

    #[test]
    fn reads_the_preference_to_wait() {
        for (value, wait) in [
            ("wait=5", Some(5)),
            ("respond-async, wait=10", Some(10)),
            ("Wait = \"7\"", Some(7)),
            ("wait=99999999999999999999", Some(i64::MAX)),
            ("wait=-1", None),
            ("wait", None),
            ("wait=x", None),
            ("other=1", None),
        ] {
            assert_eq!(preferred_wait(&headers(&[(PREFER, value)])), wait, "{value}");
        }
    }

    #[test]
    fn the_status_tells_how_far_it_came() {
        let transaction = |state, replayed| Transaction { state: state as i32, replayed, ..Transaction::default() };
        for (state, replayed, waits, status) in [
            (State::Completed, false, false, 202),
            (State::Completed, false, true, 201),
            (State::Rejected, false, true, 201),
            (State::Authorized, false, true, 201),
            (State::Pending, false, true, 202),
            (State::Completed, true, false, 200),
            (State::Pending, true, true, 202),
            (State::Authorized, true, true, 202),
        ] {
            assert_eq!(status_of(&transaction(state, replayed), waits).as_u16(), status, "{state:?} {replayed} {waits}");
        }
    }
}
