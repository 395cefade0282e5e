//! Transactions, counted by day, type and currency.

use lastro_database::rows::{Type, insert_rows};
use lastro_database::{Error, Transaction, all};
use sea_orm::{ConnectionTrait, FromQueryResult, Value};
use uuid::Uuid;

use super::daily::{added, newest};
use crate::domain::calendar::Day;
use crate::domain::operation::{CountChanges, Counts, CountsOf};
use crate::domain::total::Total;

#[derive(FromQueryResult)]
struct Row {
    owner_id: Uuid,
    day: i64,
    kind: i64,
    currency_code: String,
    accepted: i64,
    completed: i64,
    rejected: i64,
    released: i64,
    amount_billions: i64,
    amount_rest: i64,
    processing_us: i64,
    newest_us: i64,
}

/// Adds what a batch of events has changed.
pub async fn add(tx: &Transaction, changes: CountChanges) -> Result<(), Error> {
    let columns = [
        ("owner_id", Type::Uuid),
        ("day", Type::BigInt),
        ("kind", Type::BigInt),
        ("currency_code", Type::Text),
        ("accepted", Type::BigInt),
        ("completed", Type::BigInt),
        ("rejected", Type::BigInt),
        ("released", Type::BigInt),
        ("amount_billions", Type::BigInt),
        ("amount_rest", Type::BigInt),
        ("processing_us", Type::BigInt),
        ("newest_us", Type::BigInt),
    ];
    let row = |(of, counts): (CountsOf, Counts)| {
        let (amount_billions, amount_rest) = counts.amount.parts();
        let key: [Value; 4] = [of.owner_id.into(), of.day.number().into(), of.kind.into(), of.currency_code.into()];
        let Counts { accepted, completed, rejected, released, processing_us, newest_us, .. } = counts;
        let numbers = [accepted, completed, rejected, released, amount_billions, amount_rest, processing_us, newest_us];
        key.into_iter().chain(numbers.map(Value::from)).collect()
    };
    let more =
        ["accepted", "completed", "rejected", "released", "processing_us"].map(|name| format!("{name} = operation_days.{name} + excluded.{name}"));
    let conflict = format!(
        "ON CONFLICT (owner_id, day, kind, currency_code) DO UPDATE SET {}, {}, {}",
        more.join(", "),
        added("operation_days", "amount"),
        newest("operation_days")
    );
    // By key, so that two that add to the same ones never wait for each other in a circle.
    insert_rows(tx, "operation_days", &columns, &conflict, changes.0.into_iter().map(row).collect()).await.map(|_| ())
}

/// The counts of a user's transactions, or of all (nil), from a day to another one, up to a limit.
pub async fn list(on: &impl ConnectionTrait, owner_id: Uuid, from: Day, to: Day, limit: u64) -> Result<Vec<(CountsOf, Counts)>, Error> {
    let sql = format!(
        "SELECT owner_id, day, kind, currency_code, accepted, completed, rejected, released, amount_billions, amount_rest, processing_us, newest_us \
         FROM operation_days WHERE owner_id = $1 AND day BETWEEN $2 AND $3 ORDER BY day, kind, currency_code LIMIT {limit}"
    );
    let rows: Vec<Row> = all(on, &sql, [owner_id.into(), from.number().into(), to.number().into()]).await?;
    Ok(rows.into_iter().map(Row::counts).collect())
}

impl Row {
    fn counts(self) -> (CountsOf, Counts) {
        let of = CountsOf { owner_id: self.owner_id, day: Day::of_number(self.day), kind: self.kind, currency_code: self.currency_code };
        let amount = Total::of_parts(self.amount_billions, self.amount_rest);
        let Self { accepted, completed, rejected, released, processing_us, newest_us, .. } = self;
        (of, Counts { accepted, completed, rejected, released, amount, processing_us, newest_us })
    }
}
