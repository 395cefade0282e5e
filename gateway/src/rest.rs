//! The generated REST services over generated gRPC clients: one call each. What REST adds to a method, a status or a header, is said here.

mod accounts;
mod auth;
mod idempotency;
mod transactions;
mod users;

use std::net::IpAddr;
use std::time::Duration;

use http::{HeaderMap, HeaderName, HeaderValue, StatusCode};
use lastro_mesh::call::{Call, CorrelationId, Slot};
use lastro_mesh::inbound::ClientAddress;
use lastro_mesh::outbound::Outbound;
use lastro_mesh::trace::TraceContext;
use lastro_proto::customers::v1::auth_service_client::AuthServiceClient;
use lastro_proto::customers::v1::users_service_client::UsersServiceClient;
use lastro_proto::rest::Transcoder;
use lastro_proto::transactions::v1::accounts_service_client::AccountsServiceClient;
use lastro_proto::transactions::v1::transactions_service_client::TransactionsServiceClient;
use rest_over_grpc::handling::{self, Context};
use tonic::Response;

use crate::problem;

/// Where the client is; the edge sets it, whatever the client sent.
pub const ADDRESS_HEADER: HeaderName = HeaderName::from_static("x-lastro-client-address");
/// The status of a success that is not 200; the edge takes it off again.
pub const STATUS_HEADER: HeaderName = HeaderName::from_static("x-lastro-status");

/// The key of a request that creates something (draft-ietf-httpapi-idempotency-key-header).
pub const IDEMPOTENCY_KEY: HeaderName = HeaderName::from_static("idempotency-key");

/// How many seconds the proxy before us waits for an answer, where it waits for less than anybody may ask for.
pub const PATIENCE_HEADER: HeaderName = HeaderName::from_static("x-lastro-patience");
/// An answer has to be on its way so long before a proxy's patience ends.
const PATIENCE_MARGIN: Duration = Duration::from_millis(200);

tokio::task_local! {
    /// The slot of the request that is answered.
    pub static SLOT: Slot;
}

/// For calls that wait for nothing.
const TIMEOUT: Duration = Duration::from_secs(5);

/// Every annotated method.
pub type Api = Transcoder<users::Users, auth::Auth, accounts::Accounts, transactions::Transactions>;

/// The API of the services behind these channels.
pub fn api(customers: &Outbound, transactions: &Outbound) -> Api {
    Transcoder::new(
        users::Users(UsersServiceClient::new(customers.clone())),
        auth::Auth(AuthServiceClient::new(customers.clone())),
        accounts::Accounts(AccountsServiceClient::new(transactions.clone())),
        transactions::Transactions(TransactionsServiceClient::new(transactions.clone())),
    )
}

/// What is told in [`PATIENCE_HEADER`].
fn patience(headers: &HeaderMap) -> Option<Duration> {
    headers.get(PATIENCE_HEADER)?.to_str().ok()?.parse().ok().map(Duration::from_secs)
}

/// The call as it goes on to a service. Its deadline lets us answer in our own words before a proxy gives us up.
fn call(headers: &HeaderMap, timeout: Duration) -> Call {
    let timeout = patience(headers).map_or(timeout, |patience| timeout.min(patience.saturating_sub(PATIENCE_MARGIN)));
    Call {
        correlation_id: CorrelationId::accept(headers).unwrap_or_default(),
        trace: TraceContext::of(headers).map_or_else(TraceContext::start, TraceContext::child),
        token: headers.get(http::header::AUTHORIZATION).cloned(),
        address: headers.get(ADDRESS_HEADER).and_then(|value| value.to_str().ok()?.parse::<IpAddr>().ok()),
        ..Call::start(timeout)
    }
}

/// A request to a service on behalf of the client.
fn request<T>(call: &Call, message: T) -> tonic::Request<T> {
    let mut request = call.request(message);
    if let Some(address) = call.address {
        request.extensions_mut().insert(ClientAddress(address));
    }
    request
}

/// The service's answer, or its refusal.
fn answer<T>(outcome: Result<Response<T>, tonic::Status>) -> Result<T, handling::Status> {
    outcome.map(Response::into_inner).map_err(|status| problem::pack(&problem::from_status(&status)))
}

/// Answers with another status than 200.
fn set_status(cx: &mut Context, status: StatusCode) {
    cx.insert_response_header(STATUS_HEADER, HeaderValue::from(status.as_u16()));
}

/// Says where what was made is.
fn set_location(cx: &mut Context, collection: &str, id: &str) {
    if let Ok(location) = HeaderValue::from_str(&format!("/api/v1/{collection}/{id}")) {
        cx.insert_response_header(http::header::LOCATION, location);
    }
}

/// Methods that only hand on.
macro_rules! hand_on {
    ($($method:ident: $request:ty => $response:ty;)*) => {
        $(async fn $method(&self, message: $request, cx: &mut Context) -> Result<$response, handling::Status> {
            let call = crate::rest::call(cx.request_headers(), crate::rest::TIMEOUT);
            crate::rest::answer(self.0.clone().$method(crate::rest::request(&call, message)).await)
        })*
    };
}
use hand_on;
