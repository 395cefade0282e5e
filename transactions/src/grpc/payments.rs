//! `lastro.transactions.v1.PaymentsService`.

use std::sync::Arc;

use lastro_mesh::call::Call;
use lastro_mesh::status::Problem;
use lastro_proto::time::timestamp;
use lastro_proto::transactions::v1::payments_service_server::PaymentsService;
use lastro_proto::transactions::v1::{
    GetPaymentRequest, Payment, PaymentLegRequest, PaymentRefund, ProcessPaymentRequest, RefundPaymentRequest, payment, payment_refund,
};
use lastro_proto::r#type::v1::Money;
use tonic::{Request, Response, Status};
use uuid::Uuid;

use super::{fresh, money};
use crate::app::App;
use crate::app::get_payment::{self, PaymentName, PaymentState, RefundState, get_payment};
use crate::app::process_payment::{Method, PaymentLeg, PaymentRequest, process_payment};
use crate::app::refund_payment::{RefundRequest, refund_payment};
use crate::domain::submission;

pub struct Payments(pub Arc<App>);

#[tonic::async_trait]
impl PaymentsService for Payments {
    async fn process_payment(&self, request: Request<ProcessPaymentRequest>) -> Result<Response<Payment>, Status> {
        let call = Call::of(&request)?.clone();
        let (caller, message) = (call.user()?, request.into_inner());
        let method = method_from_wire(message.method()).ok_or_else(|| Problem::field("method", "must be ACCOUNT or CARD"))?;
        let leg = |leg: PaymentLegRequest| PaymentLeg { destination: leg.destination_account_id, amount: leg.amount.map(read_money) };
        let ProcessPaymentRequest { order_id, account_id, card_token, legs, .. } = message;
        let asked = PaymentRequest { order_id, method, account_id, card_token, legs: legs.into_iter().map(leg).collect() };
        let (payment, replayed) = process_payment(&self.0, &call, caller, asked).await?;
        let marks = marks_of(&payment);
        Ok(fresh::of_many_operations(&self.0, wire_payment(payment, replayed), marks).await)
    }

    async fn get_payment(&self, request: Request<GetPaymentRequest>) -> Result<Response<Payment>, Status> {
        let call = Call::of(&request)?;
        let GetPaymentRequest { order_id, payment_id } = request.get_ref().clone();
        let payment = get_payment(&self.0, call, call.user()?, &PaymentName { order_id, payment_id }).await?;
        Ok(Response::new(wire_payment(payment, false)))
    }

    async fn refund_payment(&self, request: Request<RefundPaymentRequest>) -> Result<Response<Payment>, Status> {
        let call = Call::of(&request)?.clone();
        let (caller, message) = (call.user()?, request.into_inner());
        let name = PaymentName { order_id: message.order_id, payment_id: message.payment_id.filter(|id| !id.is_empty()) };
        let asked = RefundRequest { name, amount: message.amount.map(read_money), external_id: message.external_id };
        let (payment, replayed) = refund_payment(&self.0, &call, caller, asked).await?;
        let marks = marks_of(&payment);
        Ok(fresh::of_many_operations(&self.0, wire_payment(payment, replayed), marks).await)
    }
}

/// Of the payment, and of what was given back of it.
fn marks_of(payment: &get_payment::Payment) -> Vec<(Uuid, i64)> {
    let operations = std::iter::once(&payment.operation).chain(payment.refunds.iter().map(|refund| &refund.operation));
    operations.filter_map(fresh::mark).collect()
}

pub fn read_money(money: Money) -> submission::Money {
    submission::Money { currency_code: money.currency_code, amount: money.amount }
}

const fn method_from_wire(method: payment::Method) -> Option<Method> {
    match method {
        payment::Method::Unspecified => None,
        payment::Method::Account => Some(Method::Account),
        payment::Method::Card => Some(Method::Card),
    }
}

const fn state_to_wire(state: PaymentState) -> payment::State {
    match state {
        PaymentState::Pending => payment::State::Pending,
        PaymentState::Captured => payment::State::Captured,
        PaymentState::Declined => payment::State::Declined,
        PaymentState::Refunded => payment::State::Refunded,
        PaymentState::Unknown => payment::State::Unknown,
    }
}

const fn refund_state_to_wire(state: RefundState) -> payment_refund::State {
    match state {
        RefundState::Pending => payment_refund::State::Pending,
        RefundState::Completed => payment_refund::State::Completed,
        RefundState::Declined => payment_refund::State::Declined,
        RefundState::Unknown => payment_refund::State::Unknown,
    }
}

fn wire_payment(payment: get_payment::Payment, replayed: bool) -> Payment {
    let operation = payment.operation;
    let method = if payment.is_by_card { payment::Method::Card } else { payment::Method::Account };
    let transaction_ids = std::iter::once(operation.id).chain(payment.refunds.iter().map(|refund| refund.operation.id));
    Payment {
        id: operation.id.to_string(),
        order_id: payment.order_id,
        method: method as i32,
        state: state_to_wire(payment.state) as i32,
        reason: operation.reason.as_ref().map(|reason| reason.name().to_owned()).unwrap_or_default(),
        amount: money(payment.amount.minor(), payment.amount.currency()),
        refunded_amount: money(payment.refunded.minor(), payment.refunded.currency()),
        transaction_ids: transaction_ids.map(|id| id.to_string()).collect(),
        create_time: Some(timestamp(operation.create_time_us)),
        update_time: Some(timestamp(operation.update_time_us)),
        refunds: payment.refunds.into_iter().map(wire_refund).collect(),
        replayed,
    }
}

fn wire_refund(refund: get_payment::Refund) -> PaymentRefund {
    PaymentRefund {
        transaction_id: refund.operation.id.to_string(),
        amount: money(refund.amount.minor(), refund.amount.currency()),
        state: refund_state_to_wire(refund.state) as i32,
        reason: refund.operation.reason.as_ref().map(|reason| reason.name().to_owned()).unwrap_or_default(),
        create_time: Some(timestamp(refund.operation.create_time_us)),
    }
}
