//! The days of accounts, cached: see [`lastro_events::cache`]. The commit of a projection has its accounts forgotten, here and at every other replica.

use std::sync::Arc;
use std::time::Duration;

use lastro_database::{Database, Error};
use lastro_events::cache::{Cache, Cached};
use lastro_mesh::clock;
use serde_json::{Value, json};
use uuid::Uuid;

use crate::app::current::CurrentEdition;
use crate::domain::calendar::Day;
use crate::domain::total::Total;
use crate::store::accounts::{self, Account};
use crate::store::daily::{self, Days, Flow};
use crate::store::{edition, entries};

/// How many days before today are cached, apart from the sum of all days before them: any 366 days of the last two years and more are answered from them.
const DAYS_CACHED: i64 = 800;
/// And how many days after today.
const DAYS_AHEAD_CACHED: i64 = 400;

/// The cache of this process.
pub type DaysCache = Cache<AccountDays>;

/// The days of accounts, as the database has them.
pub struct AccountDays {
    pub database: Database,
    pub edition: CurrentEdition,
}

/// What is known of an account.
#[derive(Debug, PartialEq, Eq)]
pub struct KnownDays {
    /// Of which edition of the tables it is, by when that was begun.
    pub edition_us: i64,
    /// The account.
    pub account: Account,
    /// The first day that is apart from those before it.
    pub from: Day,
    /// The last day that is known.
    pub to: Day,
    /// What happened.
    pub days: Days,
}

impl KnownDays {
    /// The days from one to another one; None where they are not among those that are known apart.
    pub fn range(&self, from: Day, to: Day) -> Option<Days> {
        if from < self.from || to > self.to {
            return None;
        }
        let mut range = Days { before: self.days.before, newest_us: self.days.newest_us, version: self.days.version, ..Days::default() };
        for (day, flow) in self.days.days.range(..=to) {
            if *day < from {
                range.before.add_flow(flow);
            } else {
                range.days.insert(*day, *flow);
            }
        }
        Some(range)
    }
}

/// Of this database, beside the other replicas.
pub fn open(database: &Database, edition: &CurrentEdition, bus: &lastro_events::bus::Bus) -> Arc<DaysCache> {
    Cache::new(AccountDays { database: database.clone(), edition: edition.clone() }, bus)
}

impl Cached for AccountDays {
    type Value = KnownDays;
    const CHANNEL: &'static str = "reports days";
    const METRIC: &'static str = "lastro_daily_balances_cache_total";
    const SHARED_FOR: Duration = Duration::from_secs(60 * 60);

    async fn query(&self, account_id: Uuid) -> Result<Option<KnownDays>, Error> {
        let Some(account) = accounts::get(self.database.reader(), account_id).await? else { return Ok(None) };
        // Looked up first: where another edition comes in between, the days are taken for those of the one before, and thrown away.
        let edition = self.edition.get();
        let today = edition.calendar.day_of(clock::now_us());
        let (from, to) = (today.plus(-DAYS_CACHED), today.plus(DAYS_AHEAD_CACHED));
        let days = daily::read(self.database.reader(), &[account_id], from, to, None).await?;
        Ok(Some(KnownDays { edition_us: edition.begun_us, account, from, to, days }))
    }

    async fn is_current(&self, account_id: Uuid, known: Option<&KnownDays>) -> Result<bool, Error> {
        // An account that is not there may have come since.
        let Some(known) = known else { return Ok(false) };
        if edition::get(self.database.reader()).await?.begun_us != known.edition_us {
            return Ok(false);
        }
        let version = entries::versions_of(self.database.reader(), &[account_id]).await?.first().map_or(0, |(_, version)| *version);
        Ok(version == known.days.version)
    }

    fn to_bytes(known: Option<&KnownDays>) -> Vec<u8> {
        let flow = |flow: &Flow| {
            let (credits, debits) = (flow.credits.parts(), flow.debits.parts());
            json!([credits.0, credits.1, debits.0, debits.1])
        };
        let write = |KnownDays { edition_us, account, from, to, days }: &KnownDays| {
            let each: Vec<Value> = days.days.iter().map(|(day, of_day)| json!([day.number(), flow(of_day)])).collect();
            json!({
                "edition": edition_us,
                "account": [account.id, account.owner_id, account.currency_code, account.is_system, account.opened_us, account.version],
                "from": from.number(), "to": to.number(), "before": flow(&days.before), "days": each, "newest": days.newest_us, "version": days.version,
            })
        };
        json!(known.map(write)).to_string().into_bytes()
    }

    fn of_bytes(bytes: &[u8]) -> Option<Option<KnownDays>> {
        let found: Value = serde_json::from_slice(bytes).ok()?;
        if found.is_null() { Some(None) } else { of_json(&found).map(Some) }
    }
}

fn of_json(found: &Value) -> Option<KnownDays> {
    let id = |value: &Value| Uuid::parse_str(value.as_str()?).ok();
    let flow = |value: &Value| {
        let number = |place: usize| value[place].as_i64();
        Some(Flow { credits: Total::of_parts(number(0)?, number(1)?), debits: Total::of_parts(number(2)?, number(3)?) })
    };
    let account = &found["account"];
    let account = Account {
        id: id(&account[0])?,
        owner_id: id(&account[1])?,
        currency_code: account[2].as_str()?.to_owned(),
        is_system: account[3].as_bool()?,
        opened_us: account[4].as_i64()?,
        version: account[5].as_i64()?,
    };
    let day = |value: &Value| Some((Day::of_number(value[0].as_i64()?), flow(&value[1])?));
    let days = found["days"].as_array()?.iter().map(day).collect::<Option<_>>()?;
    let days = Days { before: flow(&found["before"])?, days, newest_us: found["newest"].as_i64(), version: found["version"].as_i64()? };
    let bound = |name: &str| found[name].as_i64().map(Day::of_number);
    Some(KnownDays { edition_us: found["edition"].as_i64()?, account, from: bound("from")?, to: bound("to")?, days })
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;

    fn known() -> KnownDays {
        let flow = |credits, debits| Flow { credits: Total::of(credits), debits: Total::of(debits) };
        let days = BTreeMap::from([(Day::of_number(10), flow(i64::MAX, 0)), (Day::of_number(12), flow(4, 5))]);
        let days = Days { before: flow(1, 2), days, newest_us: Some(7), version: 3 };
        let account = Account {
            id: Uuid::from_u128(1),
            owner_id: Uuid::from_u128(2),
            currency_code: "BRL".to_owned(),
            is_system: false,
            opened_us: 5,
            version: 1,
        };
        KnownDays { edition_us: 8, account, from: Day::of_number(9), to: Day::of_number(20), days }
    }

    #[test]
    fn what_is_shared_reads_back() {
        assert_eq!(AccountDays::of_bytes(&AccountDays::to_bytes(Some(&known()))), Some(Some(known())));
        assert_eq!(AccountDays::of_bytes(&AccountDays::to_bytes(None)), Some(None));
        assert_eq!(AccountDays::of_bytes(b"{}"), None);
    }

    #[test]
    fn a_range_begins_with_all_that_was_before_it() {
        let range = known().range(Day::of_number(11), Day::of_number(12)).expect("it is known");
        assert_eq!(range.before.credits, Total::of(1) + Total::of(i64::MAX));
        assert_eq!(range.days.keys().map(|day| day.number()).collect::<Vec<_>>(), [12]);
        for (from, to) in [(8, 12), (12, 21)] {
            assert!(known().range(Day::of_number(from), Day::of_number(to)).is_none(), "of days that are not apart nothing is known");
        }
        assert_eq!(known().range(Day::of_number(10), Day::of_number(11)).expect("it is known").days.len(), 1);
    }
}
