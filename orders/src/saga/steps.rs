//! The steps of a saga, each beside its undo: what is asked of whom, and what the answer means. Every call is idempotent by (saga, step), and carries the epoch
//! of the lease: whoever has lost it is refused.

use std::time::Duration;

use http::HeaderValue;
use lastro_mesh::call::{Call, CorrelationId};
use lastro_mesh::status::{NOT_ASKED_HEADER, reason_name};
use lastro_mesh::trace::TraceContext;
use lastro_proto::internal::inventory::v1::{ConfirmRequest, ReleaseRequest, ReserveRequest, ReturnRequest, SagaCall, SagaItem, SagaReservation};
use lastro_proto::internal::transactions::v1::{
    CancelOrderPaymentRequest, OrderPayment, OrderPaymentLeg, PaymentCall, ProcessOrderPaymentRequest, RefundOrderPaymentRequest, order_payment,
};
use lastro_proto::reasons;
use lastro_proto::r#type::v1::Money;
use tonic::{Code, Response, Status};
use uuid::Uuid;

use crate::app::App;
use crate::batches::CallReport;
use crate::domain::order::{Item, Payment, Placed, merchants};
use crate::domain::saga::{Direction, Outcome, Step};
use crate::store::order_events::Reserved;
use crate::store::orders::Order;

/// What one call may take: less than what is left of a lease that was just written.
const CALL_MAX: Duration = Duration::from_millis(4_500);
/// Pieces are kept for so long, which is longer than a saga may take.
const KEPT_FOR_S: i64 = 15 * 60;
/// Of what is said by others, so much is kept.
const TEXT_BYTES_MAX: usize = 500;

/// How a call ended; None where somebody else has the saga.
pub async fn call(app: &App, order: &Order, step: Step, direction: Direction) -> Option<CallReport> {
    let asked = Asked { app, placed: &order.placed, epoch: order.progress.epoch };
    let answer = match (step, direction) {
        (Step::Reserve, Direction::Do) => asked.reserve().await,
        (Step::Reserve, Direction::Undo) => asked.release().await,
        (Step::Pay, Direction::Do) => asked.pay().await,
        (Step::Pay, Direction::Undo) => asked.refund().await,
        (Step::Confirm, Direction::Do) => asked.confirm().await,
        (Step::Confirm, Direction::Undo) => asked.r#return().await,
    };
    let Learnt { outcome, reserved, payment_id } = match answer {
        Ok(learnt) => learnt,
        Err(status) => Learnt::of(outcome_of(&status, direction)?),
    };
    Some(CallReport { step, direction, outcome, reserved, payment_id })
}

/// What was learnt by a call.
struct Learnt {
    outcome: Outcome,
    reserved: Vec<Reserved>,
    payment_id: Option<Uuid>,
}

impl Learnt {
    fn of(outcome: Outcome) -> Self {
        Self { outcome, reserved: Vec::new(), payment_id: None }
    }
}

/// What a refusal means: that it was not done and will not be, or that nobody knows. None where somebody else has the saga.
fn outcome_of(status: &Status, direction: Direction) -> Option<Outcome> {
    let reason = reason_name(status);
    if reason.as_deref() == Some(reasons::STALE_EPOCH.name) {
        return None;
    }
    let text = lastro_mesh::status::cut(status.message().to_owned(), TEXT_BYTES_MAX);
    if status.metadata().contains_key(NOT_ASKED_HEADER) {
        return Some(Outcome::NotAsked { error: text });
    }
    // An undo waits for what an operator, or time, has to mend.
    let is_for_now = [reasons::NOT_OFFERED.name, reasons::TOO_MANY_OPEN_PAYMENTS.name].map(Some).contains(&reason.as_deref());
    if direction == Direction::Undo && is_for_now {
        return Some(Outcome::Unanswered { error: text });
    }
    let refused = |name: String| Outcome::Refused { reason: reason.clone().unwrap_or(name), detail: text.clone() };
    Some(match status.code() {
        // Whoever was asked has said no.
        Code::FailedPrecondition | Code::NotFound | Code::AlreadyExists | Code::InvalidArgument | Code::OutOfRange | Code::Unimplemented => {
            refused(format!("{:?}", status.code()))
        }
        // It may have been done, or nobody was asked; also where a way is closed that an operator has to open.
        Code::Ok
        | Code::Cancelled
        | Code::Unknown
        | Code::DeadlineExceeded
        | Code::PermissionDenied
        | Code::ResourceExhausted
        | Code::Aborted
        | Code::Internal
        | Code::Unavailable
        | Code::DataLoss
        | Code::Unauthenticated => Outcome::Unanswered { error: format!("{:?}: {text}", status.code()) },
    })
}

/// One saga as its callees see it.
struct Asked<'a> {
    app: &'a App,
    placed: &'a Placed,
    epoch: i64,
}

impl Asked<'_> {
    /// Under the request and in the trace that placed the order.
    fn request<T>(&self, message: T) -> tonic::Request<T> {
        self.request_that(false, message)
    }

    /// The payment provider is waited for: that is no slow call.
    fn payment_request<T>(&self, message: T) -> tonic::Request<T> {
        self.request_that(matches!(self.placed.payment, Payment::Card(_)), message)
    }

    fn request_that<T>(&self, waits: bool, message: T) -> tonic::Request<T> {
        let start = Call { waits, ..Call::start(CALL_MAX) };
        let header = |name: &str, text: &str| Some((name.parse::<http::HeaderName>().ok()?, HeaderValue::from_str(text).ok()?));
        let told = [
            header(lastro_mesh::call::CORRELATION_HEADER, &self.placed.correlation_id),
            header(lastro_mesh::trace::TRACEPARENT, &self.placed.traceparent),
        ];
        let headers = told.into_iter().flatten().collect();
        let correlation_id = CorrelationId::accept(&headers).unwrap_or_default();
        let trace = TraceContext::of(&headers).map_or(start.trace, TraceContext::child);
        Call { correlation_id, trace, ..start }.request(message)
    }

    fn on_behalf_of(&self) -> String {
        self.placed.owner_id.to_string()
    }

    /// Of the reservation, which `confirm` and the undos are about, too.
    fn reservation(&self) -> Option<SagaCall> {
        let step = Step::Reserve.names().0.to_owned();
        Some(SagaCall { on_behalf_of: self.on_behalf_of(), saga_id: self.placed.id.to_string(), step, epoch: self.epoch })
    }

    fn payment(&self) -> Option<PaymentCall> {
        let step = Step::Pay.names().0.to_owned();
        Some(PaymentCall { on_behalf_of: self.on_behalf_of(), saga_id: self.placed.id.to_string(), step, epoch: self.epoch })
    }

    async fn reserve(&self) -> Result<Learnt, Status> {
        let item = |item: &Item| SagaItem {
            product_id: item.product_id.to_string(),
            store_id: self.placed.store_id.clone().unwrap_or_default(),
            quantity: i32::try_from(item.quantity).unwrap_or(i32::MAX),
        };
        let items = self.placed.items.iter().map(item).collect();
        let ttl = Some(pbjson_types::Duration { seconds: KEPT_FOR_S, nanos: 0 });
        let request = self.request(ReserveRequest { call: self.reservation(), items, ttl });
        let reserved = self.app.reservations.clone().reserve(request).await?.into_inner();
        let piece = |item: SagaItem| Reserved { product_id: item.product_id, store_id: item.store_id, quantity: item.quantity };
        Ok(Learnt { reserved: reserved.items.into_iter().map(piece).collect(), ..Learnt::of(Outcome::Done) })
    }

    async fn release(&self) -> Result<Learnt, Status> {
        let request = self.request(ReleaseRequest { call: self.reservation() });
        match self.app.reservations.clone().release(request).await {
            // Orders was restored from a backup, and does not know that the pieces had left their stores.
            Err(status) if reason_name(&status).as_deref() == Some(reasons::RESERVATION_CONFIRMED.name) => self.r#return().await,
            released => done(released),
        }
    }

    async fn pay(&self) -> Result<Learnt, Status> {
        let (account_id, card_token) = match &self.placed.payment {
            Payment::Account(account_id) => (account_id.to_string(), String::new()),
            Payment::Card(token) => (String::new(), token.as_ref().map_or_else(String::new, |token| token.0.clone())),
        };
        let currency = self.placed.total.currency();
        let leg = |(account_id, share): (Uuid, lastro_money::Minor)| OrderPaymentLeg {
            destination_account_id: account_id.to_string(),
            amount: Some(Money { currency_code: currency.code().to_owned(), amount: lastro_money::format(share, currency) }),
        };
        let legs = merchants(&self.placed.items).unwrap_or_default().into_iter().map(leg).collect();
        let request = self.payment_request(ProcessOrderPaymentRequest { call: self.payment(), account_id, card_token, legs });
        let payment = self.app.payments.clone().process(request).await?.into_inner();
        let reason = || if payment.reason.is_empty() { "PAYMENT_DECLINED".to_owned() } else { payment.reason.clone() };
        let outcome = match payment.state() {
            order_payment::State::Captured => Outcome::Done,
            order_payment::State::Unspecified | order_payment::State::None | order_payment::State::Pending => Outcome::Pending,
            order_payment::State::Declined => Outcome::Refused { reason: reason(), detail: "the payment was declined".to_owned() },
            order_payment::State::Refunded => Outcome::Refused { reason: "REFUNDED".to_owned(), detail: "the payment was given back".to_owned() },
        };
        Ok(learnt_of(&payment, outcome))
    }

    /// Cancels the payment, as far as no money has moved, and gives back what has.
    async fn refund(&self) -> Result<Learnt, Status> {
        let cancel = self.payment_request(CancelOrderPaymentRequest { call: self.payment() });
        let mut payment = self.app.payments.clone().cancel(cancel).await?.into_inner();
        if payment.state() == order_payment::State::Captured {
            let refund = self.payment_request(RefundOrderPaymentRequest { call: self.payment() });
            payment = self.app.payments.clone().refund(refund).await?.into_inner();
        }
        let outcome = match payment.state() {
            order_payment::State::None | order_payment::State::Declined | order_payment::State::Refunded => Outcome::Done,
            order_payment::State::Unspecified | order_payment::State::Pending | order_payment::State::Captured => Outcome::Pending,
        };
        Ok(learnt_of(&payment, outcome))
    }

    async fn confirm(&self) -> Result<Learnt, Status> {
        let request = self.request(ConfirmRequest { call: self.reservation() });
        done(self.app.reservations.clone().confirm(request).await)
    }

    async fn r#return(&self) -> Result<Learnt, Status> {
        let request = self.request(ReturnRequest { call: self.reservation() });
        done(self.app.reservations.clone().r#return(request).await)
    }
}

fn done(answer: Result<Response<SagaReservation>, Status>) -> Result<Learnt, Status> {
    answer.map(|_| Learnt::of(Outcome::Done))
}

fn learnt_of(payment: &OrderPayment, outcome: Outcome) -> Learnt {
    Learnt { payment_id: Uuid::parse_str(&payment.transaction_id).ok(), ..Learnt::of(outcome) }
}

/// The calls that a step makes, or its undo, in their order.
pub const fn methods(step: Step, direction: Direction) -> &'static [&'static str] {
    match (step, direction) {
        (Step::Reserve, Direction::Do) => &["/lastro.internal.inventory.v1.ReservationsService/Reserve"],
        (Step::Reserve, Direction::Undo) => &["/lastro.internal.inventory.v1.ReservationsService/Release"],
        (Step::Pay, Direction::Do) => &["/lastro.internal.transactions.v1.OrderPaymentsService/Process"],
        (Step::Pay, Direction::Undo) => {
            &["/lastro.internal.transactions.v1.OrderPaymentsService/Cancel", "/lastro.internal.transactions.v1.OrderPaymentsService/Refund"]
        }
        (Step::Confirm, Direction::Do) => &["/lastro.internal.inventory.v1.ReservationsService/Confirm"],
        (Step::Confirm, Direction::Undo) => &["/lastro.internal.inventory.v1.ReservationsService/Return"],
    }
}
