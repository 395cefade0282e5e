//! A batch with one member that the database refuses: all the others settle, that one is parked.

use std::time::{Duration, Instant};

use anyhow::Result;
use lastro_tests::Api;
use sea_orm::ConnectionTrait as _;
use serde_json::json;

use crate::World;
use crate::ledger::Ledger;

/// An amount that nobody else in the tests moves, in minor units.
const POISON: i64 = 66_613;

pub async fn one_bad_member_of_a_batch_is_parked(world: &World) -> Result<()> {
    let (api, administrator) = (world.server.api(), world.server.administrator().await?);
    let someone = api.someone().await?;
    let (from, to) = (api.account(&someone.token, "BRL").await?, api.account(&someone.token, "BRL").await?);
    api.deposit(&administrator, &from, "BRL", "10000.00").await?;
    let ledger = Ledger::of(world).await?;
    let database = ledger.transactions.writer();
    if world.postgres.is_some() {
        database
            .execute_unprepared(&format!(
                "CREATE FUNCTION poison() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN IF abs(NEW.amount) = {POISON} THEN RAISE EXCEPTION 'poison'; END IF; RETURN NEW; END $$; \
                 CREATE TRIGGER poison BEFORE INSERT ON postings FOR EACH ROW EXECUTE FUNCTION poison()"
            ))
            .await?;
    } else {
        let trigger =
            format!("CREATE TRIGGER poison BEFORE INSERT ON postings WHEN abs(NEW.amount) = {POISON} BEGIN SELECT RAISE(ABORT, 'poison'); END");
        database.execute_unprepared(&trigger).await?;
    }
    let calls = (0..40).map(|number| {
        let amount = if number == 20 { "666.13" } else { "1.00" };
        let body = Api::transfer(&format!("p{number}"), &from, &to, amount);
        let (api, token) = (api.clone(), someone.token.clone());
        async move { api.json(reqwest::Method::POST, "/api/v1/transactions", Some(&token), &[("prefer", "wait=1")], Some(body)).await }
    });
    let answers: Vec<_> = futures_util::future::join_all(calls).await.into_iter().collect::<Result<_>>()?;
    for (number, answer) in answers.iter().enumerate() {
        let expected = if number == 20 { json!("PROCESSING") } else { json!("COMPLETED") };
        assert_eq!((number, answer.body["state"].clone()), (number, expected), "{answer:?}");
    }
    assert_eq!(answers[20].status, 202);
    assert_eq!(api.posted(&someone.token, &to).await?, "39.00");
    let id = uuid::Uuid::parse_str(&answers[20].text("id")?)?;
    let since = Instant::now();
    loop {
        let text = if world.postgres.is_some() { format!("'{id}'") } else { format!("x'{}'", id.simple()) };
        if ledger.count(&format!("SELECT count(*) AS count FROM dead_letters WHERE operation_id = {text}")).await? == 1 {
            break;
        }
        assert!(since.elapsed() < Duration::from_secs(20), "after its last attempt it becomes a dead letter");
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    database.execute_unprepared(if world.postgres.is_some() { "DROP TRIGGER poison ON postings" } else { "DROP TRIGGER poison" }).await?;
    // It is where it was, with its money: nothing is dropped, and nothing moves until an operator says so.
    let parked = api.get(&format!("/api/v1/transactions/{id}"), Some(&someone.token)).await?;
    assert_eq!(parked.body["state"], "PROCESSING");
    assert_eq!(api.posted(&someone.token, &from).await?, "9961.00");
    ledger.check().await
}
