//! Reversals: a new transaction that moves everything back, once.

use anyhow::Result;
use lastro_proto::transactions::v1::ReverseTransactionRequest;
use lastro_proto::transactions::v1::transaction::{State, Type};
use lastro_proto::transactions::v1::transactions_service_client::TransactionsServiceClient;
use lastro_tests::{Answer, Api};
use serde_json::{Value, json};

use crate::World;
use crate::account_life::patch;
use crate::grpc::{channel, with_token};
use crate::legs::{leg, money, of_legs, postings, with_money};

async fn reverse(api: &Api, token: &str, id: &str, key: &str) -> Result<Answer> {
    api.post(&format!("/api/v1/transactions/{id}:reverse"), Some(token), json!({ "externalId": key })).await
}

fn is_refused(answer: &Answer, status: u16, reason: &str) {
    assert_eq!((answer.status, answer.body["reason"].as_str()), (status, Some(reason)), "{answer:?}");
}

/// By who owns every account that it debits, or an administrator; whole, once, and again with the same key.
pub async fn transactions_are_reversed(world: &World) -> Result<()> {
    let (api, ana, from) = with_money(world, "100.00").await?;
    let (rui, administrator) = (api.someone().await?, world.server.administrator().await?);
    let to = api.account(&rui.token, "BRL").await?;
    let made = api.transact(&ana.token, Api::transfer("t1", &from, &to, "30.00")).await?.text("id")?;
    // Its submitter as such may not; who does not see it does not find it.
    is_refused(&reverse(&api, &ana.token, &made, "r").await?, 403, "REVERSAL_NOT_YOURS");
    is_refused(&reverse(&api, &api.someone().await?.token, &made, "r").await?, 404, "TRANSACTION_NOT_FOUND");
    let back = reverse(&api, &rui.token, &made, "r").await?;
    assert_eq!(
        (back.status, back.text("type")?.as_str(), back.text("state")?.as_str(), back.text("originalId")?),
        (201, "REVERSAL", "COMPLETED", made.clone()),
        "{back:?}"
    );
    assert_eq!(back.header("location"), format!("/api/v1/transactions/{}", back.text("id")?));
    assert_eq!((api.posted(&ana.token, &from).await?, api.posted(&rui.token, &to).await?), ("100.00".to_owned(), "0.00".to_owned()));
    let original = api.get(&format!("/api/v1/transactions/{made}"), Some(&ana.token)).await?;
    assert_eq!((original.text("state")?.as_str(), original.text("reversalId")?), ("COMPLETED", back.text("id")?));
    let again = reverse(&api, &rui.token, &made, "r").await?;
    assert_eq!((again.status, &again.body["id"], &again.body["replayed"]), (200, &back.body["id"], &json!(true)));
    is_refused(&reverse(&api, &rui.token, &made, "another").await?, 409, "ALREADY_REVERSED");
    is_refused(&reverse(&api, &administrator, &made, "another").await?, 409, "ALREADY_REVERSED");
    is_refused(&reverse(&api, &ana.token, &back.text("id")?, "r2").await?, 409, "NOT_REVERSIBLE");
    // The key is in the caller's own namespace.
    is_refused(&api.transact(&rui.token, Api::transfer("r", &to, &from, "1.00")).await?, 422, "IDEMPOTENCY_KEY_REUSED");
    api.transact(&rui.token, Api::transfer("used", &to, &from, "1000.00")).await?;
    let another = api.transact(&ana.token, Api::transfer("t3", &from, &to, "1.00")).await?.text("id")?;
    is_refused(&reverse(&api, &rui.token, &another, "used").await?, 422, "IDEMPOTENCY_KEY_REUSED");
    assert_eq!(reverse(&api, &rui.token, &another, "free").await?.status, 201);
    // Of two at once one is made.
    let made = api.transact(&ana.token, Api::transfer("t2", &from, &to, "1.00")).await?.text("id")?;
    let keys: Vec<String> = (0..10).map(|number| format!("at once {}", number / 2)).collect();
    let at_once = futures_util::future::join_all(keys.iter().map(|key| reverse(&api, &rui.token, &made, key))).await;
    let answers: Vec<Answer> = at_once.into_iter().collect::<Result<_>>()?;
    assert_eq!(answers.iter().filter(|answer| answer.status == 201).count(), 1, "{answers:?}");
    assert_eq!(answers.iter().filter(|answer| answer.status == 200).count(), 1, "the same key: {answers:?}");
    assert_eq!(api.posted(&rui.token, &to).await?, "0.00");
    Ok(())
}

/// It obeys funds and account states and may end REJECTED, which does not use up the once.
pub async fn a_rejected_reversal_may_be_followed(world: &World) -> Result<()> {
    let (api, ana, from) = with_money(world, "10.00").await?;
    let (rui, administrator) = (api.someone().await?, world.server.administrator().await?);
    let [to, away] = [api.account(&rui.token, "BRL").await?, api.account(&rui.token, "BRL").await?];
    let made = api.transact(&ana.token, Api::transfer("t", &from, &to, "10.00")).await?.text("id")?;
    api.transact(&rui.token, Api::transfer("gone", &to, &away, "0.01")).await?;
    let lacking = reverse(&api, &rui.token, &made, "r1").await?;
    assert_eq!(
        (lacking.status, lacking.text("state")?.as_str(), lacking.text("reason")?.as_str()),
        (201, "REJECTED", "INSUFFICIENT_FUNDS"),
        "{lacking:?}"
    );
    let original = api.get(&format!("/api/v1/transactions/{made}"), Some(&ana.token)).await?;
    assert_eq!(original.text("reversalId")?, "");
    api.transact(&rui.token, Api::transfer("back", &away, &to, "0.01")).await?;
    patch(&api, &administrator, &to, json!({ "frozen": true })).await?;
    assert_eq!(reverse(&api, &administrator, &made, "r2").await?.text("reason")?, "ACCOUNT_FROZEN");
    patch(&api, &administrator, &to, json!({ "frozen": false })).await?;
    assert_eq!(reverse(&api, &rui.token, &made, "r1").await?.text("state")?, "REJECTED", "the same key stays what it was");
    assert_eq!(reverse(&api, &administrator, &made, "r3").await?.text("state")?, "COMPLETED", "an administrator reverses what is others'");
    assert_eq!(api.posted(&ana.token, &from).await?, "10.00");
    Ok(())
}

/// A reversal of legs reverses all of them, the last one first; deposits and withdrawals go back to where they came from.
pub async fn legs_and_the_outside_world_are_reversed(world: &World) -> Result<()> {
    let (api, ana, from) = with_money(world, "10.00").await?;
    let administrator = world.server.administrator().await?;
    let [through, to] = [api.account(&ana.token, "BRL").await?, api.account(&ana.token, "BRL").await?];
    // Everything is at the end: only in the other order is there something to move back.
    let legs = [leg(&from, &through, "BRL", "10.00"), leg(&through, &to, "BRL", "10.00")];
    let made = api.transact(&ana.token, of_legs("l", &legs)).await?.text("id")?;
    let back = reverse(&api, &ana.token, &made, "r").await?;
    assert_eq!((back.status, back.text("state")?.as_str(), back.body["legs"].as_array().map(Vec::len)), (201, "COMPLETED", Some(2)), "{back:?}");
    let own = |account: &str, amount: &str, after: &str| (account.to_owned(), amount.to_owned(), after.to_owned());
    let expected = [own(&to, "-10.00", "0.00"), own(&through, "10.00", "10.00"), own(&through, "-10.00", "0.00"), own(&from, "10.00", "10.00")];
    assert_eq!(postings(&back.body), expected);

    let deposit = api.deposit(&administrator, &from, "BRL", "5.00").await?.text("id")?;
    assert_eq!(reverse(&api, &ana.token, &deposit, "d").await?.text("state")?, "COMPLETED", "its owner gives it back");
    let withdrawal = json!({ "externalId": "w", "type": "WITHDRAWAL", "sourceAccountId": from, "amount": money("BRL", "2.00") });
    let gone = api.transact(&ana.token, withdrawal).await?.text("id")?;
    is_refused(&reverse(&api, &ana.token, &gone, "w2").await?, 403, "REVERSAL_NOT_YOURS");
    assert_eq!(
        reverse(&api, &administrator, &gone, &format!("w-{gone}")).await?.text("state")?,
        "COMPLETED",
        "money from outside is an administrator's"
    );
    assert_eq!(api.posted(&ana.token, &from).await?, "10.00");
    // Of a hold what was captured.
    let mut held = Api::transfer("h", &from, &to, "8.00");
    held["hold"] = json!(true);
    let held = api.transact(&ana.token, held).await?.text("id")?;
    is_refused(&reverse(&api, &ana.token, &held, "h1").await?, 409, "NOT_REVERSIBLE");
    let capture = json!({ "externalId": "k", "amount": money("BRL", "3.00") });
    api.post(&format!("/api/v1/transactions/{held}:capture"), Some(&ana.token), capture).await?;
    let back = reverse(&api, &ana.token, &held, "h1").await?;
    assert_eq!((back.text("state")?.as_str(), &back.body["amount"]), ("COMPLETED", &money("BRL", "3.00")), "{back:?}");
    let refused = api.transact(&ana.token, Api::transfer("bad", &from, &to, "100.00")).await?.text("id")?;
    is_refused(&reverse(&api, &ana.token, &refused, "h2").await?, 409, "NOT_REVERSIBLE");
    assert_eq!(reverse(&api, &ana.token, &held, "").await?.body["errors"][0]["field"], Value::from("externalId"));
    Ok(())
}

pub async fn reversals_over_grpc(world: &World) -> Result<()> {
    let (api, ana, from) = with_money(world, "10.00").await?;
    let to = api.account(&ana.token, "BRL").await?;
    let id = api.transact(&ana.token, Api::transfer("t", &from, &to, "10.00")).await?.text("id")?;
    let mut client = TransactionsServiceClient::new(channel(world).await?);
    let request = ReverseTransactionRequest { id: id.clone(), external_id: "r".to_owned() };
    let back = client.reverse_transaction(with_token(&ana.token, request)?).await?.into_inner();
    assert_eq!((back.state(), back.r#type(), back.original_id), (State::Completed, Type::Reversal, id));
    Ok(())
}
