//! Orders read back: lists, searches, analytics, and what merchants have sold.

use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use lastro_tests::Answer;
use percent_encoding::{NON_ALPHANUMERIC, utf8_percent_encode};
use reqwest::Method;
use serde_json::{Value, json};
use tokio::time::sleep;
use uuid::Uuid;

use crate::World;
use crate::inventory::new_product;
use crate::market::{Market, new_order};

const FRESHNESS: &str = "x-lastro-freshness";

async fn read(market: &Market, path: &str, token: &str, written: &Answer) -> Result<Answer> {
    market.api.json(Method::GET, &format!("/api/v1/{path}"), Some(token), &[(FRESHNESS, written.header(FRESHNESS))], None).await
}

fn ids(answer: &Answer) -> Result<Vec<String>> {
    ensure!(answer.status == 200, "{answer:?}");
    let orders = answer.body["orders"].as_array().context("orders")?;
    Ok(orders.iter().map(|order| order["id"].as_str().unwrap_or_default().to_owned()).collect())
}

/// Until a list has an order as orders itself tells of it.
async fn until_it_is_read(market: &Market, id: &str) -> Result<()> {
    let since = Instant::now();
    loop {
        let (list, order) = (market.api.get("/api/v1/orders", Some(&market.buyer.token)).await?, market.get(id).await?);
        let found = list.body["orders"].as_array().into_iter().flatten().find(|order| order["id"] == id).cloned();
        if found.as_ref() == Some(&order.body) {
            return Ok(());
        }
        ensure!(since.elapsed() < Duration::from_secs(20), "it is listed as {found:?}, and is {order:?}");
        sleep(Duration::from_millis(50)).await;
    }
}

async fn product(market: &Market, name: &str, price: &str) -> Result<String> {
    let made = market.api.post("/api/v1/products", Some(&market.shop.administrator), new_product(name, &market.shop.account, price)).await?;
    let id = made.text("id")?;
    ensure!(market.shop.adjust(&id, "a", 100, &id).await?.status == 200, "no stock");
    Ok(id)
}

pub async fn orders_are_read_back(world: &World) -> Result<()> {
    let market = Market::open(&world.server).await?;
    let cheap = product(&market, "Mate", "0.35").await?;
    let done = market.order("done", &[(&market.shop.product, 2)]).await?;
    let small = market.order("small", &[(&cheap, 3)]).await?;
    let short = market.order("short", &[(&market.shop.product, 1_000)]).await?;
    let undone = market.order("undone", &[(&cheap, 10), (&market.shop.product, 1)]).await?;
    let [done_id, small_id, short_id, undone_id] = [&done, &small, &short, &undone].map(|answer| answer.text("id").unwrap_or_default());
    let cancelled = market.cancel(&undone_id).await?;
    assert_eq!(cancelled.status, 202, "{cancelled:?}");
    market.becomes(&undone_id, "CANCELLED").await?;
    for id in [&done_id, &small_id, &short_id, &undone_id] {
        until_it_is_read(&market, id).await?;
    }
    let list = async |query: &str| ids(&market.api.get(&format!("/api/v1/orders?{query}"), Some(&market.buyer.token)).await?);
    let of = |ids: &[&String]| ids.iter().map(|id| (*id).clone()).collect::<Vec<_>>();
    assert_eq!(list("").await?, of(&[&undone_id, &short_id, &small_id, &done_id]));
    assert_eq!(list("status=COMPLETED").await?, of(&[&small_id, &done_id]));
    assert_eq!(list("status=FAILED").await?, of(&[&short_id]));
    assert_eq!(list(&format!("productId={cheap}")).await?, of(&[&undone_id, &small_id]));
    assert_eq!(list("minTotal=20.00&maxTotal=20").await?, of(&[&done_id]));
    assert_eq!(list("maxTotal=1.05").await?, of(&[&small_id]));
    assert_eq!(list(&format!("customerId={}&status=CANCELLED", market.buyer.id)).await?, of(&[&undone_id]));
    assert_eq!(list("to=2020-01-01").await?, of(&[]));
    assert_eq!(list("from=2020-01-01").await?.len(), 4);
    // Page by page.
    let first = market.api.get("/api/v1/orders?pageSize=3", Some(&market.buyer.token)).await?;
    let second = market.api.get(&format!("/api/v1/orders?pageSize=3&pageToken={}", first.text("nextPageToken")?), Some(&market.buyer.token)).await?;
    assert_eq!((ids(&first)?.len(), ids(&second)?, &second.body["nextPageToken"]), (3, of(&[&done_id]), &json!("")));
    // Whoever has written sees it at once.
    let now = market.place(new_order("now", &[(&cheap, 1)], &market.account), "wait=0").await?;
    let seen = read(&market, "orders", &market.buyer.token, &now).await?;
    assert_eq!(ids(&seen)?.first(), Some(&now.text("id")?));
    // Somebody else has none, and sees none; an administrator sees all of a buyer.
    let other = market.api.someone().await?;
    assert_eq!(ids(&market.api.get("/api/v1/orders", Some(&other.token)).await?)?, of(&[]));
    for path in [format!("orders/customer/{}", market.buyer.id), format!("orders?customerId={}", market.buyer.id)] {
        let refused = market.api.get(&format!("/api/v1/{path}"), Some(&other.token)).await?;
        assert_eq!((refused.status, &refused.body["reason"]), (404, &json!("USER_NOT_FOUND")), "{refused:?}");
        let all = market.api.get(&format!("/api/v1/{path}"), Some(&market.shop.administrator)).await?;
        assert_eq!(ids(&all)?.len(), 5, "{all:?}");
    }
    Ok(())
}

pub async fn orders_are_found_by_words(world: &World) -> Result<()> {
    let market = Market::open(&world.server).await?;
    let sweet = product(&market, "Café com AÇÚCAR (500 g)", "3.00").await?;
    let plain = product(&market, "Café", "2.00").await?;
    let both = market.order("gift-4711", &[(&sweet, 1), (&plain, 1)]).await?;
    let one = market.order("plain", &[(&plain, 1)]).await?;
    let (both_id, one_id) = (both.text("id")?, one.text("id")?);
    read(&market, "orders", &market.buyer.token, &both).await?;
    read(&market, "orders", &market.buyer.token, &one).await?;
    let search = async |q: &str| {
        let query = utf8_percent_encode(q, NON_ALPHANUMERIC);
        market.api.get(&format!("/api/v1/orders/search?q={query}"), Some(&market.buyer.token)).await
    };
    for (q, found) in [
        ("cafe", vec![&one_id, &both_id]),
        ("CAFÉ", vec![&one_id, &both_id]),
        ("açucar cafe", vec![&both_id]),
        ("4711", vec![&both_id]),
        ("500", vec![&both_id]),
        ("cafe tea", vec![]),
        ("caf", vec![]),
    ] {
        assert_eq!(ids(&search(q).await?)?.iter().collect::<Vec<_>>(), found, "{q}");
    }
    // Whatever is typed is words, or none.
    for odd in [
        "",
        " ",
        "'",
        "\"",
        "\"cafe",
        "cafe\"",
        "(",
        ")",
        "()",
        "&",
        "|",
        "!",
        "!cafe",
        "cafe & ",
        "cafe | tea",
        "a <-> b",
        "cafe:*",
        ":*",
        "*",
        "cafe*",
        "%",
        "_",
        "\\",
        "--",
        "'; DROP TABLE orders; --",
        "NEAR(a b)",
        "AND",
        "OR",
        "NOT",
        "a AND",
        "^cafe",
        "{cafe}",
        "cafe : tea",
        "-cafe",
        "+cafe",
        "~",
        "\t\n",
        "\u{0}",
        "日本",
        "😀",
        "é́́́",
        "%00",
        "a'b\"c(d",
    ] {
        let told = search(odd).await?;
        assert!(told.status == 200 || (odd.contains('\u{0}') && told.status == 400), "{odd:?}: {told:?}");
    }
    assert_eq!(ids(&search("\"café\" & (açúcar | !tea):*").await?)?, Vec::<String>::new(), "all of its words: tea is one of them");
    Ok(())
}

pub async fn orders_are_counted_and_sales_are_told(world: &World) -> Result<()> {
    let market = Market::open(&world.server).await?;
    let merchant = market.api.someone().await?;
    let account = market.api.account(&merchant.token, "BRL").await?;
    let made = market.api.post("/api/v1/products", Some(&market.shop.administrator), new_product("Lamp", &account, "30.00")).await?;
    let lamp = made.text("id")?;
    market.shop.adjust(&lamp, "a", 100, &lamp).await?;
    let done = market.order("done", &[(&lamp, 2)]).await?;
    let undone = market.order("undone", &[(&lamp, 3)]).await?;
    market.cancel(&undone.text("id")?).await?;
    market.becomes(&undone.text("id")?, "CANCELLED").await?;
    for order in [&done, &undone] {
        until_it_is_read(&market, &order.text("id")?).await?;
    }
    let sales = market.api.get(&format!("/api/v1/reports/sales?accountId={account}"), Some(&merchant.token)).await?;
    let row = &sales.body["rows"][0];
    let shown = (&row["productId"], &row["productName"], &row["sold"], &row["paid"]["amount"], &row["returned"], &row["refunded"]["amount"]);
    assert_eq!(shown, (&json!(lamp), &json!("Lamp"), &json!(5), &json!("150.00"), &json!(3), &json!("90.00")), "{sales:?}");
    let refused = market.api.get(&format!("/api/v1/reports/sales?accountId={account}"), Some(&market.buyer.token)).await?;
    assert_eq!((refused.status, &refused.body["reason"]), (404, &json!("ACCOUNT_NOT_FOUND")));
    // Analytics are for administrators, and of everybody: other journeys of the same world are in them.
    let analytics = market.api.get("/api/v1/orders/analytics", Some(&market.shop.administrator)).await?;
    let number = |value: &Value| value.as_i64().unwrap_or_default();
    let today = analytics.body["days"].as_array().and_then(|days| days.iter().rfind(|day| day["currencyCode"] == "BRL")).context("today")?;
    let by_status: i64 = ["pending", "completed", "shipped", "delivered", "cancelled", "failed"].iter().map(|status| number(&today[*status])).sum();
    assert!(number(&today["orders"]) >= 2 && number(&today["orders"]) == by_status && number(&today["cancelled"]) >= 1, "{today}");
    assert!(
        number(&today["sagaMsP95"]) > 0 && number(&today["sagaMsMean"]) > 0 && number(&today["compensated"]) <= number(&today["orders"]),
        "{today}"
    );
    assert!(today["compensationRate"].as_str().is_some_and(|rate| rate.len() == 6), "{today}");
    assert!(analytics.body["asOfTime"].is_string() && sales.body["asOfTime"].is_string(), "{analytics:?}");
    assert!(analytics.body["topProducts"].as_array().is_some_and(|products| (1..=10).contains(&products.len())), "{analytics:?}");
    let refused = market.api.get("/api/v1/orders/analytics", Some(&market.buyer.token)).await?;
    assert_eq!((refused.status, &refused.body["reason"]), (403, &json!("PERMISSION_MISSING")));
    // Where all of it is one process, its metrics tell of the business.
    if world.server.authority.is_none() { metrics_tell_of_the_business(&world.server.ops).await } else { Ok(()) }
}

async fn metrics_tell_of_the_business(ops: &str) -> Result<()> {
    let at_least = [
        ("lastro_orders_created_total ", 2.0),
        ("lastro_orders_completed_total ", 2.0),
        ("lastro_orders{status=\"CANCELLED\"} ", 1.0),
        ("lastro_orders_open ", 0.0),
        ("lastro_orders_oldest_open_seconds ", 0.0),
        ("lastro_payments_total{outcome=\"completed\"} ", 2.0),
        ("lastro_payments_completed_percent ", 1.0),
        ("lastro_transactions_accepted_total{currency=\"BRL\"} ", 3.0),
        ("lastro_transactions_per_minute{currency=\"BRL\"} ", 0.0),
        ("lastro_volume_minor_total{currency=\"BRL\"} ", 15_000.0),
    ];
    let since = Instant::now();
    loop {
        let text = reqwest::get(format!("http://{ops}/metrics")).await?.text().await?;
        let is_told =
            |(name, least): &(&str, f64)| text.lines().filter_map(|line| line.strip_prefix(name)?.parse::<f64>().ok()).any(|found| found >= *least);
        let missing: Vec<_> = at_least.iter().filter(|wanted| !is_told(wanted)).collect();
        if missing.is_empty() {
            return Ok(());
        }
        ensure!(since.elapsed() < Duration::from_secs(30), "{missing:?} of\n{text}");
        sleep(Duration::from_millis(200)).await;
    }
}

pub async fn bad_reads_of_orders_are_named(world: &World) -> Result<()> {
    let market = Market::open(&world.server).await?;
    for (query, field) in [
        ("orders?status=LOST", "status"),
        ("orders?customerId=me", "customerId"),
        ("orders?productId=x", "productId"),
        ("orders?minTotal=-1", "minTotal"),
        ("orders?minTotal=2&maxTotal=1", "minTotal"),
        ("orders?maxTotal=1,5", "maxTotal"),
        ("orders?from=2026-02-30", "from"),
        ("orders?from=2026-02-02&to=2026-02-01", "from"),
        ("orders?pageSize=1001", "pageSize"),
        ("orders?pageToken=x", "pageToken"),
        ("orders/search?pageSize=-1", "pageSize"),
        ("orders/customer/me", "customerId"),
    ] {
        let refused = market.api.get(&format!("/api/v1/{query}"), Some(&market.buyer.token)).await?;
        assert_eq!((refused.status, &refused.body["errors"][0]["field"]), (400, &json!(field)), "{query}: {refused:?}");
    }
    let long = "x".repeat(201);
    let refused = market.api.get(&format!("/api/v1/orders/search?q={long}"), Some(&market.buyer.token)).await?;
    assert_eq!((refused.status, &refused.body["errors"][0]["field"]), (400, &json!("q")));
    let none = market.api.get(&format!("/api/v1/orders/customer/{}", Uuid::new_v4()), Some(&market.shop.administrator)).await?;
    assert_eq!(ids(&none)?, Vec::<String>::new(), "reports does not know who is a user");
    let none = market.api.get(&format!("/api/v1/orders?productId={}", Uuid::new_v4()), Some(&market.shop.administrator)).await?;
    assert_eq!(ids(&none)?, Vec::<String>::new());
    Ok(())
}
