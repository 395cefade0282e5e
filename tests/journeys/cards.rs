//! Cards, and the payment provider that charges them: what it is asked, by whom, and what it is never asked twice.

use std::time::{Duration, Instant};

use anyhow::{Context as _, Result};
use futures_util::future::join_all;
use lastro_tests::payment_provider::{Fault, key, refund_key};
use lastro_tests::{PaymentProvider, Server};
use libtest_mimic::Trial;
use sea_orm::{ConnectionTrait as _, Statement};
use serde_json::json;

use crate::payments::{becomes, card, get, is, merchant, pay, refund, refused};
use crate::pipeline::Rig;
use crate::{block_on, failed};

pub fn trials() -> Vec<Trial> {
    vec![
        with_provider("a_charge_that_cannot_be_taken_is_given_back", |rig, provider| block_on(is_given_back(rig, provider)), false),
        with_provider("a_charge_that_cannot_be_taken_is_given_back_on_postgresql", |rig, provider| block_on(is_given_back(rig, provider)), true),
        with_provider("a_locked_account_is_waited_for", |rig, provider| block_on(a_locked_account_is_waited_for(rig, provider)), true),
        with_provider("one_payers_cards_keep_nobody", |rig, provider| block_on(one_payers_cards_keep_nobody(rig, provider)), false),
        with_provider("one_payers_cards_keep_nobody_on_postgresql", |rig, provider| block_on(one_payers_cards_keep_nobody(rig, provider)), true),
        with_providers("another_provider_is_not_asked", |providers| block_on(another_provider_is_not_asked(providers))),
        with_providers("a_restored_ledger_charges_nobody_again", |[provider, ..]| block_on(a_restored_ledger_charges_nobody_again(&provider))),
    ]
}

fn with_provider(name: &str, journey: fn(&Rig, &PaymentProvider) -> Result<()>, on_postgres: bool) -> Trial {
    let start = move || {
        let provider = PaymentProvider::start()?;
        let rig = Rig::start_with(on_postgres, &["--payment-provider", &provider.url])?;
        journey(&rig, &provider)
    };
    Trial::test(format!("cards::{name}"), move || failed(start()))
}

fn with_providers(name: &str, journey: fn([PaymentProvider; 3]) -> Result<()>) -> Trial {
    let start = move || journey([PaymentProvider::start()?, PaymentProvider::start()?, PaymentProvider::start()?]);
    Trial::test(format!("cards::{name}"), move || failed(start()))
}

/// The card was charged, and meanwhile the ledger can take no money for the merchant: the provider gives it back, and until it has, the payment is not over.
async fn is_given_back(rig: &Rig, provider: &PaymentProvider) -> Result<()> {
    provider.choose(|kind, _, number| if kind == "charges" || number == 1 { Fault::AnswersLate } else { Fault::None });
    let (api, ana, _) = rig.someone().await?;
    let (_, of_shop) = merchant(&api).await?;
    // What is asked for back of the second one is an amount that the provider does not pay back.
    let orders = [("given back", "5.00"), ("kept", "6.66")];
    let bodies = orders.map(|(order, amount)| card(order, "tok_approve", &[(&of_shop, amount)]));
    let answers = join_all(bodies.into_iter().map(|body| pay(&api, &ana.token, body))).await;
    answers.into_iter().map(|answer| answer?.text("id")).collect::<Result<Vec<_>>>()?;
    let keys = orders.map(|(order, _)| key("charge", &ana.id, &format!("lastro:payment:{order}")));
    // By hand: an account with something under way is not closed.
    let id: uuid::Uuid = of_shop.parse()?;
    let literal = if rig.postgres.is_some() { format!("'{id}'") } else { format!("x'{}'", id.simple()) };
    rig.transactions().await?.writer().execute_unprepared(&format!("UPDATE balances SET closed = true WHERE account_id = {literal}")).await?;
    let back = becomes(&api, &ana.token, "given%20back", "DECLINED").await?;
    assert_eq!(back.body["reason"], "ACCOUNT_CLOSED", "{back:?}");
    let since = Instant::now();
    while !provider.book().iter().any(|((kind, _), done)| kind == "refunds" && done.asked["chargeKey"] == keys[1].as_str()) {
        assert!(since.elapsed() < Duration::from_secs(20), "it is not asked for");
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    tokio::time::sleep(Duration::from_secs(2)).await;
    let kept = get(&api, &ana.token, "kept").await?;
    assert_eq!((&kept.body["state"], &kept.body["reason"]), (&json!("UNKNOWN"), &json!("ACCOUNT_CLOSED")), "{kept:?}");
    for (id, status) in keys.iter().zip(["DONE", "DECLINED"]) {
        let of_charge = |kind: &str| provider.book().into_iter().filter(|((of, _), _)| of == kind).map(|(_, done)| done).collect::<Vec<_>>();
        let given: Vec<String> =
            of_charge("refunds").into_iter().filter(|done| done.asked["chargeKey"] == id.as_str()).map(|done| done.status).collect();
        assert_eq!(given, [status], "once, for {id}");
        assert!(of_charge("charges").iter().any(|done| done.asked["key"] == id.as_str() && done.status == "DONE"));
    }
    // To an account that is closed already no card is charged.
    let charges = provider.book().len();
    let told = pay(&api, &ana.token, card("too late", "tok_approve", &[(&of_shop, "1.00")])).await?;
    assert_eq!((told.status, &told.body["state"], &told.body["reason"]), (201, &json!("DECLINED"), &json!("ACCOUNT_CLOSED")), "{told:?}");
    assert_eq!(provider.book().len(), charges);
    // What was given back leaves a trace.
    let sql = "SELECT count(*) AS count FROM provider_calls WHERE kind = 3 AND state = 1";
    let row = rig.transactions().await?.writer().query_one_raw(statement(rig, sql)).await?.context("a count")?;
    assert_eq!(row.try_get::<i64>("", "count")?, 1);
    Ok(())
}

fn statement(rig: &Rig, sql: &str) -> Statement {
    let backend = if rig.postgres.is_some() { sea_orm::DatabaseBackend::Postgres } else { sea_orm::DatabaseBackend::Sqlite };
    Statement::from_string(backend, sql)
}

/// An account that somebody is closing at this moment: the card is charged only after it is known what became of that.
async fn a_locked_account_is_waited_for(rig: &Rig, provider: &PaymentProvider) -> Result<()> {
    let (api, ana, _) = rig.someone().await?;
    let (_, of_shop) = merchant(&api).await?;
    let mut session = rig.session().await?;
    let id: uuid::Uuid = of_shop.parse()?;
    sqlx::raw_sql(sqlx::AssertSqlSafe(format!("BEGIN; UPDATE balances SET closed = true WHERE account_id = '{id}'"))).execute(&mut session).await?;
    let paid = pay(&api, &ana.token, card("meanwhile", "tok_approve", &[(&of_shop, "1.00")]));
    let closing = async {
        tokio::time::sleep(Duration::from_millis(700)).await;
        sqlx::raw_sql("COMMIT").execute(&mut session).await
    };
    let (paid, closed) = tokio::join!(paid, closing);
    closed?;
    let paid = paid?;
    assert_eq!((paid.status, &paid.body["state"], &paid.body["reason"]), (201, &json!("DECLINED"), &json!("ACCOUNT_CLOSED")), "{paid:?}");
    assert!(provider.book().is_empty(), "{:?}", provider.book());
    Ok(())
}

/// One sends tokens that the provider does not take, as many as it can: its own payments are as many as may wait, and those of others are made as ever.
async fn one_payers_cards_keep_nobody(rig: &Rig, provider: &PaymentProvider) -> Result<()> {
    provider.choose(|kind, asked, number| match asked["cardToken"].as_str() {
        Some("tok_strange") => Fault::Refuses,
        Some("tok_late") if kind == "charges" && number == 1 => Fault::AnswersLate,
        _ => Fault::None,
    });
    let (api, ana, _) = rig.someone().await?;
    let (eve, (shop, of_shop)) = (api.someone().await?, merchant(&api).await?);
    let late = pay(&api, &ana.token, card("late", "tok_late", &[(&of_shop, "1.00")])).await?;
    is(&late, 201, "UNKNOWN", "1.00", "0.00");
    let (mut unknown, mut told) = (0, 0);
    for number in 0..130 {
        let answer = pay(&api, &eve.token, card(&format!("e{number}"), "tok_strange", &[(&of_shop, "1.00")])).await?;
        if answer.status == 201 {
            is(&answer, 201, "UNKNOWN", "1.00", "0.00");
            unknown += 1;
        } else {
            refused(&answer, 409, "TOO_MANY_OPEN_PAYMENTS");
            told += 1;
        }
    }
    assert_eq!((unknown, told), (100, 30), "one after the other");
    is(&pay(&api, &ana.token, card("meanwhile", "tok_approve", &[(&of_shop, "1.00")])).await?, 201, "CAPTURED", "1.00", "0.00");
    becomes(&api, &ana.token, "late", "CAPTURED").await?;
    is(&refund(&api, &shop.token, "late", None, "back").await?, 201, "REFUNDED", "1.00", "1.00");
    // What was paid before is answered still.
    let again = pay(&api, &eve.token, card("e0", "tok_strange", &[(&of_shop, "1.00")])).await?;
    assert_eq!((again.status, &again.body["replayed"]), (200, &json!(true)), "{again:?}");
    Ok(())
}

/// The operator changes the provider. What is under way at the one before is not asked of the other one, and nobody pays back what it has not charged; one
/// that is only reached at another URL keeps its name.
async fn another_provider_is_not_asked([first, second, moved]: [PaymentProvider; 3]) -> Result<()> {
    let folder = tempfile::tempdir()?;
    first.choose(|_, asked, _| if asked["cardToken"] == "tok_lost" { Fault::Breaks } else { Fault::None });
    let named = |provider: &PaymentProvider, name: &str| ["--payment-provider", &provider.url, "--payment-provider-name", name].map(str::to_owned);
    let start_again = |server: &mut Server, flags: [String; 4]| {
        server.kill();
        *server = server.start_again(&flags.each_ref().map(String::as_str))?;
        anyhow::Ok(server.api())
    };
    let mut server = Server::start(&folder.path().join("data"), &named(&first, "first").each_ref().map(String::as_str))?;
    let api = server.api();
    let (ana, (shop, of_shop)) = (api.someone().await?, merchant(&api).await?);
    is(&pay(&api, &ana.token, card("made", "tok_approve", &[(&of_shop, "2.00")])).await?, 201, "CAPTURED", "2.00", "0.00");
    is(&pay(&api, &ana.token, card("lost", "tok_lost", &[(&of_shop, "2.00")])).await?, 201, "UNKNOWN", "2.00", "0.00");
    let api = start_again(&mut server, named(&second, "second"))?;
    refused(&refund(&api, &shop.token, "made", None, "back").await?, 501, "NOT_OFFERED");
    is(&pay(&api, &ana.token, card("new", "tok_approve", &[(&of_shop, "2.00")])).await?, 201, "CAPTURED", "2.00", "0.00");
    tokio::time::sleep(Duration::from_secs(4)).await;
    is(&get(&api, &ana.token, "lost").await?, 200, "UNKNOWN", "2.00", "0.00");
    assert_eq!(second.book().len(), 1, "{:?}", second.book());
    // The first one again, at another URL.
    let api = start_again(&mut server, named(&moved, "first"))?;
    becomes(&api, &ana.token, "lost", "CAPTURED").await?;
    is(&refund(&api, &shop.token, "made", None, "back").await?, 201, "REFUNDED", "2.00", "2.00");
    refused(&refund(&api, &shop.token, "new", None, "back of new").await?, 501, "NOT_OFFERED");
    Ok(())
}

/// A database is restored to where it stood before a payment, and the order is paid again: the provider sees the same key, and charges nobody a second time.
/// For another amount it is not the same order, and nobody guesses what it is.
async fn a_restored_ledger_charges_nobody_again(provider: &PaymentProvider) -> Result<()> {
    let folder = tempfile::tempdir()?;
    let (data, backup) = (folder.path().join("data"), folder.path().join("backup"));
    let flags = ["--payment-provider", &provider.url];
    let mut server = Server::start(&data, &flags)?;
    let api = server.api();
    let (ana, (shop, of_shop)) = (api.someone().await?, merchant(&api).await?);
    server.terminate()?;
    lastro_tests::run(std::process::Command::new("cp").arg("-a").args([&data, &backup]))?;
    let pay_and_refund = async |server: &Server| {
        let api = server.api();
        is(&pay(&api, &ana.token, card("o1", "tok_approve", &[(&of_shop, "3.00")])).await?, 201, "CAPTURED", "3.00", "0.00");
        is(&refund(&api, &shop.token, "o1", Some("1.00"), "k1").await?, 201, "CAPTURED", "3.00", "1.00");
        is(&pay(&api, &ana.token, card("o2", "tok_decline", &[(&of_shop, "3.00")])).await?, 201, "DECLINED", "3.00", "0.00");
        anyhow::Ok(())
    };
    server = server.start_again(&flags)?;
    pay_and_refund(&server).await?;
    let before = provider.book();
    for other_amount in [false, true] {
        server.terminate()?;
        std::fs::remove_dir_all(&data)?;
        lastro_tests::run(std::process::Command::new("cp").arg("-a").args([&backup, &data]))?;
        server = server.start_again(&flags)?;
        if other_amount {
            let api = server.api();
            is(&pay(&api, &ana.token, card("o1", "tok_approve", &[(&of_shop, "4.00")])).await?, 201, "UNKNOWN", "4.00", "0.00");
        } else {
            pay_and_refund(&server).await?;
        }
    }
    let after = provider.book();
    assert_eq!(before.keys().collect::<std::collections::BTreeSet<_>>(), after.keys().collect(), "nothing was done that had not been");
    let charge_key = key("charge", &ana.id, "lastro:payment:o1");
    let [charge, back] = [("charges", charge_key.clone()), ("refunds", refund_key(&shop.id, "k1", &charge_key))]
        .map(|(kind, key)| after.get(&(kind.to_owned(), key)).map(|done| done.times));
    assert_eq!((charge, back), (Some(3), Some(2)), "the same keys again: {after:?}");
    Ok(())
}
