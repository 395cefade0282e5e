//! `lastro.internal.transactions.v1.OrderPaymentsService`.

use std::sync::Arc;

use lastro_mesh::call::Call;
use lastro_mesh::status::Problem;
use lastro_proto::internal::transactions::v1::order_payments_service_server::OrderPaymentsService;
use lastro_proto::internal::transactions::v1::{
    CancelOrderPaymentRequest, GetOrderPaymentRequest, OrderPayment, OrderPaymentLeg, PaymentCall, ProcessOrderPaymentRequest,
    RefundOrderPaymentRequest, order_payment,
};
use tonic::{Request, Response, Status};
use uuid::Uuid;

use super::payments::read_money;
use crate::app::App;
use crate::app::process_payment::{Method, PaymentLeg, PaymentRequest};
use crate::app::saga_payments::{Outcome, OutcomeState, SagaPayment, saga_cancel_payment, saga_pay, saga_payment, saga_refund};
use crate::store::sagas::SagaEpoch;

pub struct OrderPayments(pub Arc<App>);

#[tonic::async_trait]
impl OrderPaymentsService for OrderPayments {
    async fn process(&self, request: Request<ProcessOrderPaymentRequest>) -> Result<Response<OrderPayment>, Status> {
        let call = Call::of(&request)?.clone();
        let ProcessOrderPaymentRequest { call: asked, account_id, card_token, legs } = request.into_inner();
        let of = payment_of(asked)?;
        let leg = |leg: OrderPaymentLeg| PaymentLeg { destination: leg.destination_account_id, amount: leg.amount.map(read_money) };
        let method = if card_token.is_empty() { Method::Account } else { Method::Card };
        let legs = legs.into_iter().map(leg).collect();
        let wanted = PaymentRequest { order_id: String::new(), method, account_id: Some(account_id), card_token: Some(card_token), legs };
        Ok(Response::new(wire(saga_pay(&self.0, &call, of, wanted).await?)))
    }

    async fn get(&self, request: Request<GetOrderPaymentRequest>) -> Result<Response<OrderPayment>, Status> {
        let of = payment_of(request.into_inner().call)?;
        Ok(Response::new(wire(saga_payment(&self.0, &of).await?)))
    }

    async fn cancel(&self, request: Request<CancelOrderPaymentRequest>) -> Result<Response<OrderPayment>, Status> {
        let call = Call::of(&request)?.clone();
        let of = payment_of(request.into_inner().call)?;
        Ok(Response::new(wire(saga_cancel_payment(&self.0, &call, &of).await?)))
    }

    async fn refund(&self, request: Request<RefundOrderPaymentRequest>) -> Result<Response<OrderPayment>, Status> {
        let call = Call::of(&request)?.clone();
        let of = payment_of(request.into_inner().call)?;
        Ok(Response::new(wire(saga_refund(&self.0, &call, &of).await?)))
    }
}

fn payment_of(call: Option<PaymentCall>) -> Result<SagaPayment, Problem> {
    let call = call.ok_or_else(|| Problem::field("call", "is required"))?;
    let id = |text: &str, field: &str| {
        let id = Uuid::parse_str(text).ok().filter(|id| !id.is_nil());
        id.ok_or_else(|| Problem::field(field, "must be a UUID, not of zeros"))
    };
    let saga = SagaEpoch { id: id(&call.saga_id, "call.saga_id")?, epoch: call.epoch };
    Ok(SagaPayment { buyer_id: id(&call.on_behalf_of, "call.on_behalf_of")?, saga, step: call.step })
}

fn wire(outcome: Outcome) -> OrderPayment {
    let state = match outcome.state {
        OutcomeState::None => order_payment::State::None,
        OutcomeState::Pending => order_payment::State::Pending,
        OutcomeState::Captured => order_payment::State::Captured,
        OutcomeState::Declined => order_payment::State::Declined,
        OutcomeState::Refunded => order_payment::State::Refunded,
    };
    OrderPayment {
        state: state as i32,
        reason: outcome.reason.as_ref().map(|reason| reason.name().to_owned()).unwrap_or_default(),
        transaction_id: outcome.transaction_id.map(|id| id.to_string()).unwrap_or_default(),
    }
}
