//! Transactions of several legs: splits, fees, payroll, exchange.

use anyhow::Result;
use lastro_proto::transactions::v1::transaction::{State, Type};
use lastro_proto::transactions::v1::transactions_service_client::TransactionsServiceClient;
use lastro_proto::transactions::v1::{CreateTransactionRequest, LegRequest};
use lastro_proto::r#type::v1::Money;
use lastro_tests::Api;
use lastro_tests::client::Someone;
use serde_json::{Value, json};

use crate::World;
use crate::grpc::{channel, with_token};

pub fn money(currency: &str, amount: &str) -> Value {
    json!({ "currencyCode": currency, "amount": amount })
}

pub fn leg(from: &str, to: &str, currency: &str, amount: &str) -> Value {
    json!({ "sourceAccountId": from, "destinationAccountId": to, "amount": money(currency, amount) })
}

pub fn of_legs(key: &str, legs: &[Value]) -> Value {
    json!({ "externalId": key, "type": "TRANSFER", "legs": legs })
}

/// Somebody with an account in BRL that has some money.
pub async fn with_money(world: &World, amount: &str) -> Result<(Api, Someone, String)> {
    let api = world.server.api();
    let someone = api.someone().await?;
    let account = api.account(&someone.token, "BRL").await?;
    api.deposit(&world.server.administrator().await?, &account, "BRL", amount).await?;
    Ok((api, someone, account))
}

/// What an account has posted, held and available.
pub async fn balance(api: &Api, token: &str, account: &str) -> Result<[String; 3]> {
    let answer = api.get(&format!("/api/v1/accounts/{account}"), Some(token)).await?;
    Ok(["posted", "held", "available"].map(|name| answer.body[name]["amount"].as_str().unwrap_or_default().to_owned()))
}

/// Each posting of an answer: account, amount, balance after.
pub fn postings(body: &Value) -> Vec<(String, String, String)> {
    let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    let of = |one: &Value| (text(&one["accountId"]), text(&one["amount"]["amount"]), text(&one["balanceAfter"]["amount"]));
    body["postings"].as_array().into_iter().flatten().map(of).collect()
}

/// A sale with a fee: what one leg brings the next one uses, and an answer shows the caller's own postings with the balance after each.
pub async fn legs_are_judged_in_order_and_posted_together(world: &World) -> Result<()> {
    let (api, ana, from) = with_money(world, "100.00").await?;
    let (rui, other) = (api.someone().await?, api.account(&ana.token, "BRL").await?);
    let to = api.account(&rui.token, "BRL").await?;
    // `other` is empty: what the first leg brings pays the second and the third.
    let legs = [leg(&from, &other, "BRL", "90.00"), leg(&other, &to, "BRL", "60.00"), leg(&other, &from, "BRL", "30.00")];
    let made = api.transact(&ana.token, of_legs("l1", &legs)).await?;
    assert_eq!(
        (made.status, made.text("state")?.as_str(), &made.body["amount"], made.text("sourceAccountId")?.as_str()),
        (201, "COMPLETED", &Value::Null, "")
    );
    assert_eq!((made.body["legs"].as_array().map(Vec::len), &made.body["legs"][1]["amount"]), (Some(3), &money("BRL", "60.00")));
    let own = |account: &str, amount: &str, after: &str| (account.to_owned(), amount.to_owned(), after.to_owned());
    let expected = [
        own(&from, "-90.00", "10.00"),
        own(&other, "90.00", "90.00"),
        own(&other, "-60.00", "30.00"),
        own(&other, "-30.00", "0.00"),
        own(&from, "30.00", "40.00"),
    ];
    assert_eq!(postings(&made.body), expected, "not the one of somebody else");
    assert_eq!(api.posted(&rui.token, &to).await?, "60.00");

    // All or none, and the refusal names the leg.
    let legs = [leg(&from, &to, "BRL", "10.00"), leg(&from, &other, "BRL", "31.00"), leg(&from, &to, "BRL", "0.01")];
    let refused = api.transact(&ana.token, of_legs("l2", &legs)).await?;
    assert_eq!(
        (refused.text("state")?.as_str(), refused.text("reason")?.as_str(), &refused.body["rejectedLeg"]),
        ("REJECTED", "INSUFFICIENT_FUNDS", &json!(1))
    );
    assert_eq!((refused.status, postings(&refused.body).len(), api.posted(&ana.token, &from).await?), (201, 0, "40.00".to_owned()));
    // The same request again is the same transaction.
    let again = api.transact(&ana.token, of_legs("l2", &legs)).await?;
    assert_eq!(
        (again.status, &again.body["id"], &again.body["replayed"], &again.body["rejectedLeg"]),
        (200, &refused.body["id"], &json!(true), &json!(1))
    );
    let other_legs = api.transact(&ana.token, of_legs("l2", &legs[..2])).await?;
    assert_eq!((other_legs.status, other_legs.text("reason")?.as_str()), (422, "IDEMPOTENCY_KEY_REUSED"));
    assert_eq!(
        api.transact(&ana.token, Api::transfer("plain", &from, &to, "40.01")).await?.body["rejectedLeg"],
        Value::Null,
        "only where there are legs"
    );

    // A hundred payees in one transaction; it is in the list of each, and of each of its accounts.
    let mut payees = Vec::new();
    for _ in 0..100 {
        payees.push(api.account(&rui.token, "BRL").await?);
    }
    let legs: Vec<Value> = payees.iter().map(|payee| leg(&from, payee, "BRL", "0.10")).collect();
    let made = api.transact(&ana.token, of_legs("l3", &legs)).await?;
    assert_eq!((made.status, made.text("state")?.as_str(), api.posted(&ana.token, &from).await?.as_str()), (201, "COMPLETED", "30.00"), "{made:?}");
    for (token, filter) in
        [(&ana.token, format!("accountId={from}&type=TRANSFER")), (&rui.token, format!("accountId={}", payees[99])), (&rui.token, String::new())]
    {
        let listed = api.get(&format!("/api/v1/transactions?pageSize=1&{filter}"), Some(token)).await?;
        assert_eq!(listed.body["transactions"][0]["id"], made.body["id"], "{filter} {listed:?}");
    }
    Ok(())
}

/// One call exchanges between two currencies whose accounts the caller owns; each currency sums to zero.
pub async fn exchanges_between_currencies(world: &World) -> Result<()> {
    let (api, ana, brl) = with_money(world, "550.00").await?;
    let (dealer, administrator) = (api.someone().await?, world.server.administrator().await?);
    let usd = api.account(&ana.token, "USD").await?;
    api.deposit(&administrator, &usd, "USD", "100.00").await?;
    let [dealer_brl, dealer_usd] = [api.account(&dealer.token, "BRL").await?, api.account(&dealer.token, "USD").await?];
    let legs = [leg(&brl, &dealer_brl, "BRL", "550.00"), leg(&usd, &dealer_usd, "USD", "100.00")];
    let made = api.transact(&ana.token, of_legs("x1", &legs)).await?;
    assert_eq!((made.status, made.text("state")?.as_str()), (201, "COMPLETED"), "{made:?}");
    assert_eq!(
        (api.posted(&dealer.token, &dealer_brl).await?, api.posted(&dealer.token, &dealer_usd).await?),
        ("550.00".to_owned(), "100.00".to_owned())
    );
    // A leg is of one currency, and every source is the caller's.
    let mixed = api.transact(&ana.token, of_legs("x2", &[leg(&brl, &dealer_brl, "BRL", "1"), leg(&brl, &dealer_usd, "BRL", "1")])).await?;
    assert_eq!((mixed.status, &mixed.body["errors"][0]["field"]), (400, &json!("legs[1].amount.currencyCode")), "{mixed:?}");
    let stolen = api.transact(&ana.token, of_legs("x3", &[leg(&brl, &dealer_brl, "BRL", "1"), leg(&dealer_brl, &brl, "BRL", "1")])).await?;
    assert_eq!(
        (stolen.status, stolen.text("reason")?.as_str(), &stolen.body["errors"][0]["field"]),
        (404, "ACCOUNT_NOT_FOUND", &json!("legs[1].sourceAccountId")),
        "{stolen:?}"
    );
    Ok(())
}

/// A payroll shows nobody another one's pay: not in answers, lists, events or streams. The submitter and an administrator see all of it.
pub async fn a_payroll_shows_nobody_anothers_pay(world: &World) -> Result<()> {
    let (api, boss, from) = with_money(world, "100.00").await?;
    let (ana, rui) = (api.someone().await?, api.someone().await?);
    let [of_ana, of_rui] = [api.account(&ana.token, "BRL").await?, api.account(&rui.token, "BRL").await?];
    let mut body = of_legs("pay", &[leg(&from, &of_ana, "BRL", "70.01"), leg(&from, &of_rui, "BRL", "20.02")]);
    body["legs"][0]["description"] = json!("for ana alone");
    let made = api.transact(&boss.token, body).await?;
    let path = format!("/api/v1/transactions/{}", made.text("id")?);
    let administrator = world.server.administrator().await?;
    for (token, sees, hidden) in [
        (&ana.token, vec!["70.01"], "20.02"),
        (&rui.token, vec!["20.02"], "70.01"),
        (&boss.token, vec!["70.01", "20.02"], "§"),
        (&administrator, vec!["70.01", "20.02"], "§"),
    ] {
        for path in [path.clone(), "/api/v1/transactions?pageSize=1".to_owned(), format!("{path}/events"), format!("{path}:watch")] {
            if path.contains("pageSize") && *token == administrator {
                continue; // Others' come in between.
            }
            let told = api.get(&path, Some(token)).await?;
            let text = told.body.as_str().map_or_else(|| told.body.to_string(), str::to_owned);
            let minor = |amount: &str| amount.replace('.', "");
            assert!(sees.iter().all(|amount| text.contains(*amount) || text.contains(&format!("\"{}\"", minor(amount)))), "{path} {text}");
            assert!(!text.contains(hidden) && !text.contains(&format!("\"{}\"", minor(hidden))), "{path} shows {hidden}: {text}");
            assert_eq!(text.contains("for ana alone"), hidden != "70.01", "{path} {text}");
        }
    }
    // The submitter sees that others were paid, and not what they have.
    let events = api.get(&format!("{path}/events"), Some(&boss.token)).await?;
    let postings_told = &events.body["events"][1]["payload"]["completed"]["postings"];
    assert_eq!((&postings_told[1]["amountMinor"], &postings_told[1]["balanceMinor"]), (&json!("7001"), &json!("0")), "{events:?}");
    // Hashes cover what others may not see, so that they would tell whoever tries it out.
    for (token, shown) in [(&boss.token, [true, false]), (&ana.token, [false, false])] {
        let events = api.get(&format!("{path}/events"), Some(token)).await?;
        assert_eq!([0, 1].map(|index| events.body["events"][index]["hash"] != ""), shown, "{events:?}");
    }
    // Whoever sees only its own legs is not told which of all it was.
    let refused = api.transact(&boss.token, of_legs("too much", &[leg(&from, &of_ana, "BRL", "1.00"), leg(&from, &of_rui, "BRL", "100.00")])).await?;
    let id = refused.text("id")?;
    let told = api.get(&format!("/api/v1/transactions/{id}/events"), Some(&ana.token)).await?;
    assert_eq!((&told.body["events"][1]["payload"]["rejected"]["leg"], &refused.body["rejectedLeg"]), (&Value::Null, &json!(1)), "{told:?}");
    assert_eq!(api.get(&format!("/api/v1/transactions/{id}"), Some(&ana.token)).await?.body["rejectedLeg"], Value::Null);
    let seen = api.get(&path, Some(&rui.token)).await?;
    assert_eq!((seen.body["legs"].as_array().map(Vec::len), postings(&seen.body)), (Some(1), vec![(of_rui, "20.02".to_owned(), "20.02".to_owned())]));
    assert_eq!(api.get(&path, Some(&api.someone().await?.token)).await?.status, 404);
    Ok(())
}

pub async fn bad_legs_are_named(world: &World) -> Result<()> {
    let (api, ana, from) = with_money(world, "10.00").await?;
    let to = api.account(&ana.token, "BRL").await?;
    let good = || leg(&from, &to, "BRL", "1.00");
    let refused = async |body: Value, field: &str| -> Result<()> {
        let answer = api.transact(&ana.token, body.clone()).await?;
        assert_eq!((answer.status, &answer.body["errors"][0]["field"]), (400, &json!(field)), "{body} {answer:?}");
        Ok(())
    };
    let with = |name: &str, value: Value| {
        let mut body = of_legs("bad", &[good()]);
        body[name] = value;
        body
    };
    refused(with("amount", money("BRL", "1.00")), "amount").await?;
    refused(with("sourceAccountId", json!(from)), "sourceAccountId").await?;
    refused(with("destinationAccountId", json!(to)), "destinationAccountId").await?;
    refused(with("type", json!("WITHDRAWAL")), "legs").await?;
    refused(with("legs", json!(vec![good(); 101])), "legs").await?;
    for (leg_field, value, field) in [
        ("amount", money("BRL", "0"), "legs[1].amount.amount"),
        ("amount", money("BRL", "0.001"), "legs[1].amount.amount"),
        ("amount", Value::Null, "legs[1].amount"),
        ("amount", money("XXX", "1"), "legs[1].amount.currencyCode"),
        ("sourceAccountId", json!(""), "legs[1].sourceAccountId"),
        ("destinationAccountId", json!("x"), "legs[1].destinationAccountId"),
        ("destinationAccountId", json!(from), "legs[1].destinationAccountId"),
        ("description", json!("d".repeat(501)), "legs[1].description"),
    ] {
        let mut second = good();
        second[leg_field] = value;
        refused(of_legs("bad", &[good(), second]), field).await?;
    }
    // The key of what was refused at the call is not used up.
    assert_eq!(api.transact(&ana.token, of_legs("bad", &[good()])).await?.status, 201);
    Ok(())
}

/// The same over gRPC.
pub async fn legs_over_grpc(world: &World) -> Result<()> {
    let (api, ana, from) = with_money(world, "10.00").await?;
    let to = api.account(&ana.token, "BRL").await?;
    let mut client = TransactionsServiceClient::new(channel(world).await?);
    let leg = |from: &str, to: &str, amount: &str| LegRequest {
        source_account_id: from.to_owned(),
        destination_account_id: to.to_owned(),
        amount: Some(Money { currency_code: "BRL".to_owned(), amount: amount.to_owned() }),
        description: String::new(),
    };
    let request = |key: &str, legs: Vec<LegRequest>| CreateTransactionRequest {
        external_id: key.to_owned(),
        r#type: Type::Transfer as i32,
        legs,
        wait: Some(pbjson_types::Duration { seconds: 10, nanos: 0 }),
        ..CreateTransactionRequest::default()
    };
    let made = client
        .create_transaction(with_token(&ana.token, request("g1", vec![leg(&from, &to, "10.00"), leg(&to, &from, "4.00")]))?)
        .await?
        .into_inner();
    assert_eq!((made.state(), made.legs.len(), made.postings.len(), made.amount.is_none()), (State::Completed, 2, 4, true));
    let made =
        client.create_transaction(with_token(&ana.token, request("g2", vec![leg(&from, &to, "4.00"), leg(&from, &to, "0.01")]))?).await?.into_inner();
    assert_eq!((made.state(), made.rejected_leg, made.reason.as_str()), (State::Rejected, Some(1), "INSUFFICIENT_FUNDS"));
    Ok(())
}
