//! What sagas ask of transactions: a payment with its undos, each of which may be repeated, and may come first.

use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use lastro_proto::internal::transactions::v1::order_payment::State;
use lastro_proto::internal::transactions::v1::order_payments_service_client::OrderPaymentsServiceClient;
use lastro_proto::internal::transactions::v1::{
    CancelOrderPaymentRequest, GetOrderPaymentRequest, OrderPayment, OrderPaymentLeg, PaymentCall, ProcessOrderPaymentRequest,
    RefundOrderPaymentRequest,
};
use lastro_proto::r#type::v1::Money;
use lastro_tests::client::Someone;
use lastro_tests::{Api, Stack};
use libtest_mimic::Trial;
use reqwest::Method;
use serde_json::json;
use tonic::Status;
use tonic::transport::Channel;

use crate::reservations::{CROWDS, to_replica};
use crate::{World, block_on, failed};

pub fn trials(world: impl Fn() -> Result<Arc<World>> + Clone + Send + 'static) -> Vec<Trial> {
    vec![Trial::test("stack::order_payments::what_sagas_pay_from_accounts", move || failed(block_on(what_sagas_pay_from_accounts(world()?.stack()))))]
}

/// Two replicas of transactions, a buyer with 100.00, and a merchant.
struct Rig {
    api: Api,
    administrator: String,
    replicas: [OrderPaymentsServiceClient<Channel>; 2],
    buyer: Someone,
    account: String,
    merchant: Someone,
    of_merchant: String,
}

impl Rig {
    async fn open(stack: &Stack) -> Result<Self> {
        let front = stack.front();
        let (api, administrator) = (front.api(), front.administrator().await?);
        let (buyer, merchant) = (api.someone().await?, api.someone().await?);
        let (account, of_merchant) = (api.account(&buyer.token, "BRL").await?, api.account(&merchant.token, "BRL").await?);
        api.deposit(&administrator, &account, "BRL", "100.00").await?;
        let channels = [to_replica(stack, "transactions-1", "orders").await?, to_replica(stack, "transactions-2", "orders").await?];
        let replicas = channels.map(OrderPaymentsServiceClient::new);
        Ok(Self { api, administrator, replicas, buyer, account, merchant, of_merchant })
    }

    fn call(&self, saga: &str, epoch: i64) -> Option<PaymentCall> {
        Some(PaymentCall { on_behalf_of: self.buyer.id.clone(), saga_id: saga.to_owned(), step: "pay".to_owned(), epoch })
    }

    fn process(&self, saga: &str, epoch: i64, card_token: &str, amount: &str) -> ProcessOrderPaymentRequest {
        let account_id = if card_token.is_empty() { self.account.clone() } else { String::new() };
        let amount = Some(Money { currency_code: "BRL".to_owned(), amount: amount.to_owned() });
        let legs = vec![OrderPaymentLeg { destination_account_id: self.of_merchant.clone(), amount }];
        ProcessOrderPaymentRequest { call: self.call(saga, epoch), account_id, card_token: card_token.to_owned(), legs }
    }

    async fn pay(&self, replica: usize, saga: &str, epoch: i64, card_token: &str, amount: &str) -> Result<OrderPayment, Status> {
        self.replicas[replica].clone().process(self.process(saga, epoch, card_token, amount)).await.map(tonic::Response::into_inner)
    }

    async fn cancel(&self, replica: usize, saga: &str, epoch: i64) -> Result<OrderPayment, Status> {
        let request = CancelOrderPaymentRequest { call: self.call(saga, epoch) };
        self.replicas[replica].clone().cancel(request).await.map(tonic::Response::into_inner)
    }

    async fn refund(&self, replica: usize, saga: &str, epoch: i64) -> Result<OrderPayment, Status> {
        let request = RefundOrderPaymentRequest { call: self.call(saga, epoch) };
        self.replicas[replica].clone().refund(request).await.map(tonic::Response::into_inner)
    }

    async fn get(&self, saga: &str) -> Result<OrderPayment> {
        let request = GetOrderPaymentRequest { call: self.call(saga, 1) };
        Ok(self.replicas[0].clone().get(request).await?.into_inner())
    }

    async fn becomes(&self, saga: &str, state: State) -> Result<OrderPayment> {
        let since = Instant::now();
        loop {
            let payment = self.get(saga).await?;
            if payment.state() == state {
                return Ok(payment);
            }
            ensure!(since.elapsed() < Duration::from_secs(20), "{payment:?}");
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
    }

    /// What the buyer, and the merchant, have.
    async fn have(&self) -> Result<(String, String)> {
        Ok((self.api.posted(&self.buyer.token, &self.account).await?, self.api.posted(&self.merchant.token, &self.of_merchant).await?))
    }
}

fn saga() -> String {
    uuid::Uuid::now_v7().to_string()
}

fn reason(told: Result<OrderPayment, Status>) -> String {
    lastro_mesh::status::reason_name(&told.expect_err("it is refused")).unwrap_or_default()
}

fn have(buyer: &str, merchant: &str) -> (String, String) {
    (buyer.to_owned(), merchant.to_owned())
}

async fn what_sagas_pay_from_accounts(stack: &Stack) -> Result<()> {
    let _no_crowd = CROWDS.lock().await;
    let rig = Rig::open(stack).await?;
    // Forth, the same again at the other replica, and back.
    let first = saga();
    let paid = rig.pay(0, &first, 1, "", "30.00").await?;
    assert_eq!(paid.state(), State::Captured);
    assert_eq!(rig.pay(1, &first, 1, "", "30.00").await?, paid);
    assert_eq!(rig.have().await?, have("70.00", "30.00"));
    assert_eq!(rig.cancel(1, &first, 1).await?.state(), State::Captured, "money that has moved is given back by a refund");
    assert_eq!(rig.refund(0, &first, 1).await?.state(), State::Refunded);
    assert_eq!(rig.refund(1, &first, 1).await?.state(), State::Refunded);
    assert_eq!(rig.have().await?, have("100.00", "0.00"));
    assert_eq!(reason(rig.pay(0, &first, 1, "", "30.00").await), "SAGA_CANCELLED");
    // The undo was faster: nothing is ever paid. Both at once end in either order, and never in money that has moved and was told not to have.
    let second = saga();
    assert_eq!(rig.cancel(0, &second, 1).await?.state(), State::None);
    assert_eq!(reason(rig.pay(1, &second, 1, "", "30.00").await), "SAGA_CANCELLED");
    assert_eq!(reason(rig.refund(1, &second, 1).await), "PAYMENT_NOT_FOUND");
    for _ in 0..20 {
        let saga = saga();
        let (cancelled, paid) = tokio::join!(rig.cancel(0, &saga, 1), rig.pay(1, &saga, 1, "", "1.00"));
        let now = rig.get(&saga).await?.state();
        match (cancelled?.state(), paid) {
            (State::None, paid) => assert_eq!((reason(paid).as_str(), now), ("SAGA_CANCELLED", State::None)),
            (State::Captured, _) => {
                assert_eq!(now, State::Captured);
                assert_eq!(rig.refund(0, &saga, 1).await?.state(), State::Refunded);
            }
            (state, paid) => anyhow::bail!("{state:?} {paid:?}"),
        }
    }
    assert_eq!(rig.have().await?, have("100.00", "0.00"));
    // A lease that was lost: whatever it asks for is refused, at either replica, and so is what it has asked for before.
    let third = saga();
    rig.pay(0, &third, 3, "", "10.00").await?;
    assert_eq!(rig.pay(1, &third, 5, "", "10.00").await?.state(), State::Captured);
    for stale in [rig.pay(0, &third, 4, "", "10.00").await, rig.cancel(1, &third, 4).await, rig.refund(0, &third, 3).await] {
        assert_eq!(reason(stale), "STALE_EPOCH");
    }
    assert_eq!(rig.get(&third).await?.state(), State::Captured);
    // A stale cancellation cancels nothing.
    let fourth = saga();
    rig.pay(0, &fourth, 7, "", "10.00").await?;
    assert_eq!(reason(rig.cancel(0, &fourth, 6).await), "STALE_EPOCH");
    assert_eq!(rig.pay(1, &fourth, 8, "", "10.00").await?.state(), State::Captured);
    // Declined is an answer; a merchant that has nothing left gives nothing back, and may be asked again.
    let poor = rig.pay(0, &saga(), 1, "", "1000.00").await?;
    assert_eq!((poor.state(), poor.reason.as_str()), (State::Declined, "INSUFFICIENT_FUNDS"));
    let spent = rig.api.transact(&rig.merchant.token, Api::transfer("spent", &rig.of_merchant, &rig.account, "15.00")).await?;
    assert_eq!(spent.body["state"], "COMPLETED", "{spent:?}");
    assert_eq!(reason(rig.refund(0, &fourth, 8).await), "INSUFFICIENT_FUNDS");
    rig.api.deposit(&rig.administrator, &rig.of_merchant, "BRL", "15.00").await?;
    assert_eq!(rig.refund(0, &fourth, 8).await?.state(), State::Refunded);
    // Only from the account of whoever it is on behalf of, and with a public payment of that name it has nothing to do.
    let stranger = rig.api.someone().await?;
    let mut theirs = rig.process(&saga(), 1, "", "1.00");
    theirs.call.as_mut().expect("a call").on_behalf_of.clone_from(&stranger.id);
    assert_eq!(reason(rig.replicas[0].clone().process(theirs).await.map(tonic::Response::into_inner)), "ACCOUNT_NOT_FOUND");
    let fifth = saga();
    let public = json!({ "orderId": fifth, "method": "ACCOUNT", "accountId": rig.account,
        "legs": [{ "destinationAccountId": rig.of_merchant, "amount": { "currencyCode": "BRL", "amount": "2.00" } }] });
    assert_eq!(rig.api.post("/api/v1/payments/process", Some(&rig.buyer.token), public).await?.status, 201);
    assert_eq!(rig.get(&fifth).await?.state(), State::None);
    // The policy lets nobody else call.
    for who in ["gateway", "edge", "inventory", "customers"] {
        let mut other = OrderPaymentsServiceClient::new(to_replica(stack, "transactions-1", who).await?);
        let refused = other.process(rig.process(&saga(), 1, "", "1.00")).await.expect_err("not for these");
        assert_eq!(refused.code(), tonic::Code::PermissionDenied, "{who}: {refused:?}");
    }
    Ok(())
}

/// With a payment provider that nobody else asks.
pub async fn what_sagas_pay_by_card(stack: &Stack) -> Result<()> {
    let rig = Rig::open(stack).await?;
    let first = saga();
    assert_eq!(rig.pay(0, &first, 1, "tok_approve", "30.00").await?.state(), State::Captured);
    assert_eq!(rig.have().await?, have("100.00", "30.00"));
    assert_eq!(rig.refund(1, &first, 1).await?.state(), State::Refunded);
    assert_eq!(rig.have().await?, have("100.00", "0.00"));
    let declined = rig.pay(0, &saga(), 1, "tok_decline", "30.00").await?;
    assert_eq!((declined.state(), declined.reason.as_str()), (State::Declined, "CARD_DECLINED"));
    // The provider answers late: whoever asks again learns of it.
    let late = saga();
    assert_eq!(rig.pay(0, &late, 1, "tok_timeout", "3.00").await?.state(), State::Pending);
    assert_eq!(rig.becomes(&late, State::Captured).await?.reason, "");
    // Cancelled while nobody knows: until it is known, and given back, it is not over.
    let cancelled = saga();
    let asking = rig.pay(0, &cancelled, 1, "tok_timeout", "4.00");
    let cancelling = async {
        tokio::time::sleep(Duration::from_millis(500)).await;
        rig.cancel(1, &cancelled, 1).await
    };
    let (asked, told) = tokio::join!(asking, cancelling);
    assert_eq!(told?.state(), State::Pending);
    ensure!(matches!(asked.as_ref().map(OrderPayment::state), Ok(State::Pending | State::Declined)), "{asked:?}");
    let over = rig.becomes(&cancelled, State::Declined).await?;
    assert_eq!(over.reason, "SAGA_CANCELLED");
    assert_eq!(rig.have().await?, have("100.00", "3.00"));
    // A refund that the provider declines is an undo that fails, and may be asked for again.
    let kept = saga();
    assert_eq!(rig.pay(0, &kept, 1, "tok_approve", "6.66").await?.state(), State::Captured);
    for _ in 0..2 {
        assert_eq!(reason(rig.refund(0, &kept, 1).await), "REFUND_DECLINED");
    }
    assert_eq!(rig.get(&kept).await?.state(), State::Captured);
    // What the merchant has given back in part is given back to the end.
    let partly = saga();
    let paid = rig.pay(0, &partly, 1, "tok_approve", "10.00").await?;
    let body = json!({ "paymentId": paid.transaction_id, "externalId": "part", "amount": { "currencyCode": "BRL", "amount": "4.00" } });
    let part = rig.api.json(Method::POST, "/api/v1/payments/refund", Some(&rig.merchant.token), &[], Some(body)).await?;
    assert_eq!(part.status, 201, "{part:?}");
    assert_eq!(rig.refund(1, &partly, 1).await?.state(), State::Refunded);
    assert_eq!(rig.have().await?, have("100.00", "9.66"));
    Ok(())
}
