//! Daily balances of accounts.

use std::collections::BTreeMap;

use lastro_database::rows::{Type, all_of_ids, insert_rows};
use lastro_database::{Error, Transaction};
use sea_orm::{ConnectionTrait, FromQueryResult};
use uuid::Uuid;

use crate::domain::calendar::Day;
use crate::domain::operation::Entry;
use crate::domain::total::{BILLION, Total};

/// What came and what went.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Flow {
    /// What came.
    pub credits: Total,
    /// What went; positive.
    pub debits: Total,
}

impl Flow {
    /// Adds another one.
    pub fn add_flow(&mut self, other: &Self) {
        self.credits += other.credits;
        self.debits += other.debits;
    }

    /// Adds a posting.
    pub fn add(&mut self, amount: i64) {
        if amount < 0 { self.debits += Total::ZERO - Total::of(amount) } else { self.credits += Total::of(amount) }
    }
}

/// Adds entries that count now to the days of their accounts. Those of one account come in the order of their versions.
pub async fn add<'a>(tx: &Transaction, entries: impl Iterator<Item = &'a Entry>) -> Result<(), Error> {
    let mut days: BTreeMap<(Uuid, Day, Day), (Flow, i64)> = BTreeMap::new();
    for entry in entries {
        let day = days.entry((entry.posted.account_id, entry.day, Day::utc(entry.posted.record_us))).or_default();
        day.0.add(entry.posted.amount);
        day.1 = entry.posted.account_version;
    }
    let columns = [
        ("account_id", Type::Uuid),
        ("day", Type::BigInt),
        ("record_day", Type::BigInt),
        ("credits_billions", Type::BigInt),
        ("credits_rest", Type::BigInt),
        ("debits_billions", Type::BigInt),
        ("debits_rest", Type::BigInt),
        ("last_version", Type::BigInt),
    ];
    // In the order of their keys, so that two that add to the same ones never wait for each other in a circle.
    let row = |((account_id, day, record_day), (flow, last_version)): ((Uuid, Day, Day), (Flow, i64))| {
        let ((credits_billions, credits_rest), (debits_billions, debits_rest)) = (flow.credits.parts(), flow.debits.parts());
        let numbers = [day.number(), record_day.number(), credits_billions, credits_rest, debits_billions, debits_rest, last_version];
        std::iter::once(account_id.into()).chain(numbers.map(Into::into)).collect()
    };
    let conflict = format!(
        "ON CONFLICT (account_id, day, record_day) DO UPDATE SET {}, {}, last_version = excluded.last_version",
        added("daily_balances", "credits"),
        added("daily_balances", "debits")
    );
    insert_rows(tx, "daily_balances", &columns, &conflict, days.into_iter().map(row).collect()).await.map(|_| ())
}

/// What a conflict sets to add a sum that is kept in two columns: what is more than a billion in the rest goes over.
pub fn added(table: &str, name: &str) -> String {
    let (billions, rest) = (format!("{name}_billions"), format!("{name}_rest"));
    format!(
        "{billions} = {table}.{billions} + excluded.{billions} + ({table}.{rest} + excluded.{rest}) / {BILLION}, \
         {rest} = ({table}.{rest} + excluded.{rest}) % {BILLION}"
    )
}

/// The clause of an upsert that keeps the later one of two times.
pub fn newest(table: &str) -> String {
    format!("newest_us = CASE WHEN excluded.newest_us > {table}.newest_us THEN excluded.newest_us ELSE {table}.newest_us END")
}

/// The days of accounts, together.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Days {
    /// What came and went before the first day that is asked for.
    pub before: Flow,
    /// What came and went on each day on which anything did.
    pub days: BTreeMap<Day, Flow>,
    /// When the newest posting that counts here was recorded, Unix microseconds.
    pub newest_us: Option<i64>,
    /// The sum of the versions of the accounts: larger as soon as another posting of one of them counts.
    pub version: i64,
}

#[derive(FromQueryResult)]
struct Row {
    day: Option<i64>,
    credits_billions: i64,
    credits_rest: i64,
    debits_billions: i64,
    debits_rest: i64,
    newest_us: Option<i64>,
    version: i64,
}

/// The sums of the columns of `daily_balances`.
const SUMS: &str = "CAST(COALESCE(SUM(d.credits_billions), 0) AS bigint) AS credits_billions, CAST(COALESCE(SUM(d.credits_rest), 0) AS bigint) AS credits_rest, \
     CAST(COALESCE(SUM(d.debits_billions), 0) AS bigint) AS debits_billions, CAST(COALESCE(SUM(d.debits_rest), 0) AS bigint) AS debits_rest";
/// A day, or that before the first one.
const DAY: &str = "CASE WHEN d.day < $2 THEN $2 - 1 ELSE d.day END AS day";

/// The days of accounts, those from `from` to `to`. With `as_of_us` only what was recorded up to that instant counts. One statement, so that all of
/// it is of one moment.
pub async fn read(on: &impl ConnectionTrait, accounts: &[Uuid], from: Day, to: Day, as_of_us: Option<i64>) -> Result<Days, Error> {
    let rows: Vec<Row> = match as_of_us {
        None => {
            let sql = format!(
                "SELECT {DAY}, {SUMS}, CAST(NULL AS bigint) AS newest_us, CAST(0 AS bigint) AS version FROM daily_balances d \
                 WHERE d.account_id {{ids}} AND d.day <= $3 GROUP BY 1 \
                 UNION ALL SELECT NULL, 0, 0, 0, 0, MAX(CASE WHEN h.version > 0 THEN h.record_us END), CAST(COALESCE(SUM(h.version), 0) AS bigint) \
                 FROM account_heads h WHERE h.account_id {{ids}}"
            );
            all_of_ids(on, &sql, accounts, [from.number().into(), to.number().into()]).await?
        }
        Some(as_of_us) => {
            let amount = |side: &str, sign: &str, part: &str| {
                format!(
                    "CAST(COALESCE(SUM(CASE WHEN d.account_version > b.before AND d.amount {side} 0 THEN {sign}(d.amount {part} {BILLION}) ELSE 0 END), 0) AS bigint)"
                )
            };
            let sums = [amount(">", "", "/"), amount(">", "", "%"), amount("<", "-", "/"), amount("<", "-", "%")].join(", ");
            // Days of recording (UTC) before that of `as_of_us` are complete, so that their sums are taken; of that day itself entries are read one by one.
            // `before` is the last posting that was recorded on an earlier day: it is joined for its record time alone.
            let sql = format!(
                "SELECT {DAY}, {SUMS}, CAST(NULL AS bigint) AS newest_us, CAST(0 AS bigint) AS version FROM daily_balances d \
                 WHERE d.account_id {{ids}} AND d.day <= $3 AND d.record_day < $4 GROUP BY 1 \
                 UNION ALL SELECT {DAY}, {sums}, MAX(d.record_us), CAST(COALESCE(MAX(d.account_version), 0) AS bigint) FROM \
                 (SELECT p.account_id, COALESCE(MAX(CASE WHEN p.record_day < $4 THEN p.last_version END), 0) AS before, MAX(p.last_version) AS last \
                 FROM daily_balances p WHERE p.account_id {{ids}} AND p.record_day <= $4 GROUP BY p.account_id) b \
                 JOIN entries d ON d.account_id = b.account_id AND d.account_version BETWEEN b.before AND b.last \
                 WHERE d.record_us <= $5 GROUP BY 1"
            );
            let values = [from.number(), to.number(), Day::utc(as_of_us).number(), as_of_us].map(Into::into);
            all_of_ids(on, &sql, accounts, values).await?
        }
    };
    let mut found = Days::default();
    for row in rows {
        found.newest_us = found.newest_us.max(row.newest_us);
        found.version += row.version;
        let Some(day) = row.day.map(Day::of_number).filter(|day| *day <= to) else { continue };
        let flow = if day < from { &mut found.before } else { found.days.entry(day).or_default() };
        flow.credits += Total::of_parts(row.credits_billions, row.credits_rest);
        flow.debits += Total::of_parts(row.debits_billions, row.debits_rest);
    }
    Ok(found)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::domain::heads::Head;
    use crate::domain::operation::Posted;
    use crate::store::entries;

    const DAY_US: i64 = 86_400_000_000;

    /// An account whose third posting was recorded two days after the first two, and counts before them.
    async fn backdated() -> (lastro_database::Database, tempfile::TempDir, Uuid) {
        let folder = tempfile::tempdir().expect("a folder");
        let database = lastro_database::Database::open_sqlite(&folder.path().join("reports.db")).await.expect("a database");
        crate::SERVICE.migrator.run(&database).await.expect("the tables");
        let account_id = Uuid::from_u128(1);
        let entry = |account_version: i64, amount: i64, balance: i64, day: i64, record_us: i64| Entry {
            posted: Posted { account_id, amount, account_version, balance, record_us },
            transaction_id: Uuid::from_u128(account_version as u128),
            posting: 0,
            kind: 1,
            effective_us: day * DAY_US,
            day: Day::of_number(day),
            description: String::new(),
        };
        let stored = [entry(1, 10, 10, 5, 5 * DAY_US + 1), entry(2, -4, 6, 5, 5 * DAY_US + 7), entry(3, 100, 106, 3, 7 * DAY_US + 2)];
        let tx = database.begin().await.expect("a transaction");
        entries::insert(&tx, &stored.clone().map(|entry| (entry, 2))).await.expect("entries");
        entries::set_heads(&tx, [(account_id, Head { version: 3, ahead: 0, balance: 106, record_us: 7 * DAY_US + 2 })].into_iter())
            .await
            .expect("a head");
        add(&tx, stored.iter()).await.expect("days");
        tx.commit().await.expect("stored");
        (database, folder, account_id)
    }

    #[tokio::test]
    async fn what_was_known_at_an_instant_is_told_from_whole_days_and_the_one_that_was_under_way() {
        let (database, _folder, account_id) = backdated().await;
        let known = async |as_of_us: Option<i64>| {
            let found = read(database.reader(), &[account_id], Day::of_number(4), Day::of_number(9), as_of_us).await.expect("days");
            let net = |flow: &Flow| (flow.credits - flow.debits).minor_units();
            (net(&found.before), found.days.values().map(net).sum::<i128>(), found.newest_us)
        };
        assert_eq!(known(None).await, (100, 6, Some(7 * DAY_US + 2)));
        // Nothing, the first one, both, and both two days later, when the third one is under way and when it is there.
        assert_eq!(known(Some(5 * DAY_US)).await, (0, 0, None));
        assert_eq!(known(Some(5 * DAY_US + 1)).await, (0, 10, Some(5 * DAY_US + 1)));
        assert_eq!(known(Some(5 * DAY_US + 7)).await, (0, 6, Some(5 * DAY_US + 7)));
        assert_eq!(known(Some(6 * DAY_US)).await, (0, 6, Some(5 * DAY_US + 7)));
        assert_eq!(known(Some(7 * DAY_US + 1)).await, (0, 6, Some(5 * DAY_US + 7)));
        assert_eq!(known(Some(7 * DAY_US + 2)).await, (100, 6, Some(7 * DAY_US + 2)));
        assert_eq!(known(Some(8 * DAY_US)).await, (100, 6, Some(7 * DAY_US + 2)));
    }
}
