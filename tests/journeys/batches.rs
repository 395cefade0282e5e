//! Batches, dry runs, and lost answers that are looked up.

use anyhow::Result;
use lastro_proto::transactions::v1::transaction::{State, Type};
use lastro_proto::transactions::v1::transactions_service_client::TransactionsServiceClient;
use lastro_proto::transactions::v1::{BatchCreateTransactionsRequest, CreateTransactionRequest, GetTransactionRequest, Transaction};
use lastro_proto::r#type::v1::Money;
use lastro_tests::{Answer, Api};
use serde_json::{Value, json};
use tonic_types::StatusExt as _;

use crate::World;
use crate::grpc::{channel, with_token};
use crate::legs::{balance, leg, money, of_legs, with_money};

async fn batch(api: &Api, token: &str, atomic: bool, requests: Vec<Value>) -> Result<Answer> {
    let body = json!({ "requests": requests, "atomic": atomic });
    api.json(reqwest::Method::POST, "/api/v1/transactions:batchCreate", Some(token), &[("prefer", "wait=10")], Some(body)).await
}

/// What stands at each place: a state, with its reason, or the reason of an error.
fn results(answer: &Answer) -> Vec<String> {
    let of = |one: &Value| match &one["error"] {
        Value::Null => {
            format!("{} {}", one["transaction"]["state"].as_str().unwrap_or_default(), one["transaction"]["reason"].as_str().unwrap_or_default())
        }
        error => error["reason"].as_str().unwrap_or_default().to_owned(),
    };
    answer.body["results"].as_array().into_iter().flatten().map(of).collect()
}

/// Each has its own result, in the order of the requests; the same key twice is one transaction.
pub async fn each_of_a_batch_has_its_result(world: &World) -> Result<()> {
    let (api, ana, from) = with_money(world, "10.00").await?;
    let to = api.account(&ana.token, "BRL").await?;
    let stranger = uuid::Uuid::now_v7().to_string();
    let mut waits = Api::transfer("b7", &from, &to, "1.00");
    waits["wait"] = json!("5s");
    let mut external = Api::transfer("b8", &from, &to, "1.00");
    external["settlement"] = json!("EXTERNAL");
    let requests = vec![
        Api::transfer("b1", &from, &to, "4.00"),
        Api::transfer("b2", &from, &to, "1000.00"),
        Api::transfer("b3", &from, &stranger, "1.00"),
        Api::transfer("b4", &from, &to, "0.001"),
        Api::transfer("b1", &from, &to, "4.00"),
        Api::transfer("b1", &from, &to, "5.00"),
        Api::transfer("", &from, &to, "1.00"),
        waits,
        external,
        of_legs("b9", &[leg(&from, &to, "BRL", "1.00"), leg(&to, &from, "BRL", "0.50")]),
        json!({ "externalId": "b10", "type": "DEPOSIT", "destinationAccountId": from, "amount": money("BRL", "1") }),
    ];
    let answer = batch(&api, &ana.token, false, requests.clone()).await?;
    assert_eq!((answer.status, answer.header("preference-applied")), (200, "wait=10"), "{answer:?}");
    let expected = [
        "COMPLETED ",
        "REJECTED INSUFFICIENT_FUNDS",
        "ACCOUNT_NOT_FOUND",
        "INVALID_ARGUMENT",
        "COMPLETED ",
        "IDEMPOTENCY_KEY_REUSED",
        "INVALID_ARGUMENT",
        "INVALID_ARGUMENT",
        "INVALID_ARGUMENT",
        "COMPLETED ",
        "PERMISSION_MISSING",
    ];
    assert_eq!(results(&answer), expected, "{answer:?}");
    let result = |index: usize| &answer.body["results"][index];
    assert_eq!((&result(0)["transaction"]["id"], &result(4)["transaction"]["replayed"]), (&result(4)["transaction"]["id"], &json!(true)));
    let fields: Vec<&Value> = [3, 6, 7, 8].map(|index| &result(index)["error"]["fields"][0]["field"]).into();
    assert_eq!(fields, ["amount.amount", "externalId", "wait", "settlement"], "{answer:?}");
    assert!(result(3)["error"]["message"].as_str().is_some_and(|text| text.contains("fraction digits")), "{answer:?}");
    assert_eq!(balance(&api, &ana.token, &from).await?[0], "5.50");
    // Sent again after a lost answer it changes nothing.
    assert_eq!(results(&batch(&api, &ana.token, false, requests).await?), expected);
    assert_eq!(balance(&api, &ana.token, &from).await?[0], "5.50");
    // A thousand, and one too many; none at all.
    let many = |count: usize| (0..count).map(|number| Api::transfer(&format!("m{number}"), &from, &to, "0.001")).collect::<Vec<_>>();
    assert_eq!(results(&batch(&api, &ana.token, false, many(1000)).await?), vec!["INVALID_ARGUMENT"; 1000]);
    for requests in [many(1001), Vec::new()] {
        let refused = batch(&api, &ana.token, false, requests).await?;
        assert_eq!((refused.status, &refused.body["errors"][0]["field"]), (400, &json!("requests")), "{refused:?}");
    }
    let transfers = (0..1000).map(|number| {
        Api::transfer(&format!("n{number}"), if number % 2 == 0 { &from } else { &to }, if number % 2 == 0 { &to } else { &from }, "0.01")
    });
    assert_eq!(results(&batch(&api, &ana.token, false, transfers.collect()).await?), vec!["COMPLETED "; 1000]);
    Ok(())
}

/// All, or nothing stored and no key used; the culprit is named.
pub async fn an_atomic_batch_is_all_or_nothing(world: &World) -> Result<()> {
    let (api, ana, from) = with_money(world, "10.00").await?;
    let to = api.account(&ana.token, "BRL").await?;
    // What an earlier one brings a later one uses; a hold is authorized.
    let mut held = Api::transfer("a3", &from, &to, "2.00");
    held["hold"] = json!(true);
    let good =
        vec![Api::transfer("a1", &from, &to, "10.00"), Api::transfer("a2", &to, &from, "4.00"), held, Api::transfer("a1", &from, &to, "10.00")];
    let answer = batch(&api, &ana.token, true, good.clone()).await?;
    assert_eq!(
        (answer.status, results(&answer)),
        (200, ["COMPLETED ", "COMPLETED ", "AUTHORIZED ", "COMPLETED "].map(str::to_owned).to_vec()),
        "{answer:?}"
    );
    assert_eq!(answer.body["results"][0]["transaction"]["id"], answer.body["results"][3]["transaction"]["id"]);
    assert_eq!(balance(&api, &ana.token, &from).await?, ["4.00", "2.00", "2.00"]);
    let again = batch(&api, &ana.token, true, good.clone()).await?;
    assert_eq!((again.status, &again.body["results"][1]["transaction"]["id"]), (200, &answer.body["results"][1]["transaction"]["id"]));
    assert_eq!(again.body["results"][1]["transaction"]["replayed"], json!(true));

    let refused = async |requests: Vec<Value>, index: usize, reason: &str, field: &str| -> Result<()> {
        let answer = batch(&api, &ana.token, true, requests).await?;
        assert_eq!(
            (answer.status, answer.text("reason")?.as_str(), &answer.body["errors"][0]["field"]),
            (422, "BATCH_REFUSED", &json!(field)),
            "{answer:?}"
        );
        let told = &answer.body["metadata"];
        assert_eq!((&told["index"], &told["reason"]), (&json!(index.to_string()), &json!(reason)), "{answer:?}");
        Ok(())
    };
    let one = |key: &str, amount: &str| Api::transfer(key, &from, &to, amount);
    refused(vec![one("n1", "1.00"), one("n2", "1.01")], 1, "INSUFFICIENT_FUNDS", "requests[1]").await?;
    refused(vec![one("n1", "1.00"), one("n2", "1.00"), one("n3", "x")], 2, "INVALID_ARGUMENT", "requests[2].amount.amount").await?;
    refused(vec![one("n1", "1.00"), one("n1", "2.00")], 1, "IDEMPOTENCY_KEY_REUSED", "requests[1]").await?;
    refused(vec![one("n1", "1.00"), one("a1", "10.00")], 1, "IDEMPOTENCY_KEY_REUSED", "requests[1]").await?;
    refused(vec![one("a1", "10.00"), one("a2", "3.99")], 1, "IDEMPOTENCY_KEY_REUSED", "requests[1]").await?;
    let strange = Api::transfer("n2", &from, &uuid::Uuid::now_v7().to_string(), "1.00");
    refused(vec![one("n1", "1.00"), strange], 1, "ACCOUNT_NOT_FOUND", "requests[1].destinationAccountId").await?;
    let legs = of_legs("n2", &[leg(&from, &to, "BRL", "1.00"), leg(&from, &to, "BRL", "1.01")]);
    refused(vec![legs], 0, "INSUFFICIENT_FUNDS", "requests[0].legs[1]").await?;
    let mut external = one("n2", "1.00");
    external["settlement"] = json!("EXTERNAL");
    refused(vec![one("n1", "1.00"), external], 1, "INVALID_ARGUMENT", "requests[1].settlement").await?;
    // Nothing was stored, and no key was used up.
    assert_eq!(balance(&api, &ana.token, &from).await?, ["4.00", "2.00", "2.00"]);
    assert_eq!(results(&batch(&api, &ana.token, true, vec![one("n1", "1.00"), one("n2", "1.00")]).await?), ["COMPLETED ", "COMPLETED "]);
    // Many at once over the same accounts: each whole or not at all.
    let many = (0..20).map(|number| {
        let requests = (0..10).map(|index| {
            Api::transfer(&format!("p{number}-{index}"), if index % 2 == 0 { &to } else { &from }, if index % 2 == 0 { &from } else { &to }, "0.01")
        });
        batch(&api, &ana.token, true, requests.collect())
    });
    for answer in futures_util::future::join_all(many).await {
        assert_eq!(results(&answer?), vec!["COMPLETED "; 10]);
    }
    Ok(())
}

/// The answer as it would be; nothing is stored, and no key is used up.
pub async fn a_dry_run_stores_nothing(world: &World) -> Result<()> {
    let (api, ana, from) = with_money(world, "10.00").await?;
    let to = api.account(&ana.token, "BRL").await?;
    let dry = |mut body: Value| {
        body["validateOnly"] = json!(true);
        body
    };
    let told = api.transact(&ana.token, dry(Api::transfer("d1", &from, &to, "4.00"))).await?;
    assert_eq!(
        (told.status, told.header("location"), told.text("id")?.as_str(), &told.body["replayed"], told.text("state")?.as_str()),
        (200, "", "", &json!(false), "COMPLETED"),
        "{told:?}"
    );
    assert_eq!(told.body["postings"][0]["balanceAfter"], money("BRL", "6.00"));
    let told = api.transact(&ana.token, dry(Api::transfer("d1", &from, &to, "10.01"))).await?;
    assert_eq!((told.status, told.text("state")?.as_str(), told.text("reason")?.as_str()), (200, "REJECTED", "INSUFFICIENT_FUNDS"));
    let told = api
        .post("/api/v1/transactions", Some(&ana.token), dry(of_legs("d1", &[leg(&from, &to, "BRL", "10.00"), leg(&from, &to, "BRL", "0.01")])))
        .await?;
    assert_eq!((told.status, &told.body["rejectedLeg"]), (200, &json!(1)));
    assert_eq!(api.transact(&ana.token, dry(Api::transfer("d1", &from, &to, "x"))).await?.status, 400);
    assert_eq!(balance(&api, &ana.token, &from).await?, ["10.00", "0.00", "10.00"]);
    let listed = api.get("/api/v1/transactions?type=TRANSFER", Some(&ana.token)).await?;
    assert_eq!(listed.body["transactions"], json!([]));

    let body = json!({ "requests": [Api::transfer("d1", &from, &to, "6.00"), Api::transfer("d2", &from, &to, "6.00"), Api::transfer("d3", &from, &to, "x")], "validateOnly": true });
    let told = api.post("/api/v1/transactions:batchCreate", Some(&ana.token), body.clone()).await?;
    assert_eq!(
        (told.status, results(&told)),
        (200, ["COMPLETED ", "REJECTED INSUFFICIENT_FUNDS", "INVALID_ARGUMENT"].map(str::to_owned).to_vec()),
        "{told:?}"
    );
    let mut atomic = body;
    atomic["atomic"] = json!(true);
    assert_eq!(api.post("/api/v1/transactions:batchCreate", Some(&ana.token), atomic.clone()).await?.status, 422);
    atomic["requests"] = json!([Api::transfer("d1", &from, &to, "6.00"), Api::transfer("d2", &from, &to, "4.00")]);
    let told = api.post("/api/v1/transactions:batchCreate", Some(&ana.token), atomic).await?;
    assert_eq!((told.status, results(&told), &told.body["results"][0]["transaction"]["id"]), (200, vec!["COMPLETED ".to_owned(); 2], &json!("")));

    let mut hold = Api::transfer("d1", &from, &to, "10.00");
    hold["hold"] = json!(true);
    let told = api.transact(&ana.token, dry(hold.clone())).await?;
    assert_eq!((told.status, told.text("state")?.as_str()), (200, "AUTHORIZED"));
    let held = api.transact(&ana.token, hold).await?;
    assert_eq!((held.status, &held.body["replayed"]), (201, &json!(false)), "the key was free");
    let capture = format!("/api/v1/transactions/{}:capture", held.text("id")?);
    let told = api.post(&capture, Some(&ana.token), json!({ "externalId": "k", "amount": money("BRL", "3.00"), "validateOnly": true })).await?;
    assert_eq!(
        (told.status, told.text("state")?.as_str(), &told.body["capturedAmount"], told.text("id")?.as_str()),
        (200, "COMPLETED", &money("BRL", "3.00"), ""),
        "{told:?}"
    );
    assert_eq!(balance(&api, &ana.token, &from).await?, ["10.00", "10.00", "0.00"]);
    assert_eq!(api.post(&capture, Some(&ana.token), json!({ "externalId": "k" })).await?.status, 200);
    // A key that was used tells what it became, or that it was used for something else.
    let told = api.transact(&ana.token, dry(Api::transfer("d1", &from, &to, "1.00"))).await?;
    assert_eq!((told.status, told.text("reason")?.as_str()), (422, "IDEMPOTENCY_KEY_REUSED"));
    Ok(())
}

/// A lost answer is looked up by its key: the caller's own alone.
pub async fn a_lost_answer_is_looked_up(world: &World) -> Result<()> {
    let (api, ana, from) = with_money(world, "10.00").await?;
    let rui = api.someone().await?;
    let to = api.account(&rui.token, "BRL").await?;
    let made = api.transact(&ana.token, Api::transfer("key/with ?", &from, &to, "1.00")).await?;
    let found = api.get("/api/v1/transactions/-?externalId=key%2Fwith%20%3F", Some(&ana.token)).await?;
    assert_eq!((found.status, &found.body["id"]), (200, &made.body["id"]), "{found:?}");
    for (token, query, status) in [
        (&rui.token, "-?externalId=key%2Fwith%20%3F", 404),
        (&ana.token, "-?externalId=none", 404),
        (&ana.token, "-", 400),
        (&ana.token, "-?externalId=", 400),
        (&ana.token, &format!("{}?externalId=x", made.text("id")?), 400),
    ] {
        let answer = api.get(&format!("/api/v1/transactions/{query}"), Some(token)).await?;
        assert_eq!(answer.status, status, "{query} {answer:?}");
    }
    let mut client = TransactionsServiceClient::new(channel(world).await?);
    let by_key = GetTransactionRequest { id: String::new(), external_id: Some("key/with ?".to_owned()) };
    assert_eq!(client.get_transaction(with_token(&ana.token, by_key)?).await?.into_inner().id, made.text("id")?);
    Ok(())
}

pub async fn batches_over_grpc(world: &World) -> Result<()> {
    let (api, ana, from) = with_money(world, "10.00").await?;
    let to = api.account(&ana.token, "BRL").await?;
    let mut client = TransactionsServiceClient::new(channel(world).await?);
    let one = |key: &str, amount: &str| CreateTransactionRequest {
        external_id: key.to_owned(),
        r#type: Type::Transfer as i32,
        source_account_id: Some(from.clone()),
        destination_account_id: Some(to.clone()),
        amount: Some(Money { currency_code: "BRL".to_owned(), amount: amount.to_owned() }),
        ..CreateTransactionRequest::default()
    };
    let batch = |requests, atomic| BatchCreateTransactionsRequest {
        requests,
        atomic,
        wait: Some(pbjson_types::Duration { seconds: 10, nanos: 0 }),
        validate_only: false,
    };
    let made = client.batch_create_transactions(with_token(&ana.token, batch(vec![one("g1", "1.00"), one("g2", "x")], false))?).await?.into_inner();
    let states: Vec<Option<State>> = made.results.iter().map(|result| result.transaction.as_ref().map(Transaction::state)).collect();
    assert_eq!(states, [Some(State::Completed), None]);
    assert_eq!(made.results[1].error.as_ref().map(|error| error.reason.as_str()), Some("INVALID_ARGUMENT"));
    let refused = client
        .batch_create_transactions(with_token(&ana.token, batch(vec![one("g3", "1.00"), one("g4", "10.00")], true))?)
        .await
        .expect_err("refused");
    let details = refused.get_error_details();
    let told = details.error_info().expect("an ErrorInfo");
    assert_eq!(
        (told.reason.as_str(), told.metadata["index"].as_str(), told.metadata["reason"].as_str()),
        ("BATCH_REFUSED", "1", "INSUFFICIENT_FUNDS")
    );
    // A full batch of the largest requests fits.
    let full: Vec<_> =
        (0..1000).map(|number| CreateTransactionRequest { description: "é".repeat(250), ..one(&format!("full {number}"), "0.01") }).collect();
    let made = client.batch_create_transactions(with_token(&ana.token, batch(full, false))?).await?.into_inner();
    assert_eq!(made.results.iter().filter(|result| result.transaction.is_some()).count(), 1000);
    Ok(())
}
