//! Whether what reports tells of an account is what the ledger has: its owner and currency, every posting (not its type and description), and every day. What
//! has not come yet is no difference.

use std::collections::{BTreeMap, BTreeSet};

use lastro_database::{Database, Error, one};
use sea_orm::FromQueryResult;
use uuid::Uuid;

use crate::domain::calendar::Day;
use crate::domain::operation::Entry;
use crate::store::daily::{self, Flow};
use crate::store::edition::{self, Edition};
use crate::store::{accounts, early, entries};

/// Postings that are compared at once.
pub const PAGE: u32 = 5_000;
/// An account as the ledger has it.
#[derive(Debug, Clone)]
pub struct LedgerAccount {
    /// Its id.
    pub id: Uuid,
    /// Whose it is.
    pub owner_id: Uuid,
    /// ISO 4217 alphabetic code.
    pub currency_code: String,
    /// How many postings it has.
    pub version: i64,
}

/// A posting as the ledger has it.
#[derive(Debug, Clone, Copy)]
pub struct LedgerPosting {
    /// Its place in the history of its account, from 1.
    pub account_version: i64,
    /// The transaction.
    pub transaction_id: Uuid,
    /// In minor units: negative debits, positive credits.
    pub amount: i64,
    /// The balance after it.
    pub balance: i64,
    /// When it was recorded, Unix microseconds, where the ledger kept it.
    pub record_us: Option<i64>,
    /// When it counts, Unix microseconds.
    pub effective_us: i64,
}

/// The ledger.
pub trait Ledger {
    /// The postings of an account after a version and up to another one, in their order, up to [`PAGE`].
    fn postings(&self, account_id: Uuid, after: i64, up_to: i64) -> impl Future<Output = Result<Vec<LedgerPosting>, Error>> + Send;
}

/// What was found of one account.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Found {
    /// Postings that were compared.
    pub postings: i64,
    /// Postings of the ledger that have not come yet.
    pub to_come: i64,
    /// Days on which there are postings.
    pub days: i64,
    /// What is not as the ledger has it.
    pub differences: Vec<String>,
}

/// The tables of reports.
pub struct Verifier {
    database: Database,
    edition: Edition,
}

#[derive(FromQueryResult)]
struct Count {
    count: i64,
}

impl Verifier {
    /// Of this database.
    pub async fn open(database: &Database) -> Result<Self, Error> {
        Ok(Self { database: database.clone(), edition: edition::get(database.reader()).await? })
    }

    /// Whether these are still the tables with which it began: they may have been made anew meanwhile.
    pub async fn is_of_these_tables(&self) -> Result<bool, Error> {
        Ok(edition::get(self.database.reader()).await?.begun_us == self.edition.begun_us)
    }

    /// Events that could not be applied: what they tell is missing until they are.
    pub async fn dead_letters(&self) -> Result<i64, Error> {
        let found: Option<Count> = one(self.database.reader(), "SELECT count(*) AS count FROM dead_events", []).await?;
        Ok(found.map_or(0, |found| found.count))
    }

    /// Compares one account as it is when the call begins: its owner and currency, every posting that counts by then, and the sums of every day. What comes
    /// meanwhile is not looked at: postings never change, and the days are read in one statement, with the version up to which they are.
    pub async fn check(&self, account: &LedgerAccount, ledger: &impl Ledger) -> Result<Found, Error> {
        let (first, last) = (Day::of_number(i64::MIN + 1), Day::of_number(i64::MAX));
        let told = daily::read(self.database.reader(), &[account.id], first, last, None).await?;
        let mut found = Found { to_come: (account.version - told.version).max(0), ..Found::default() };
        self.compare_account(account, told.version, &mut found).await?;
        let days = self.compare_postings(account, told.version, ledger, &mut found).await?;
        // Where a posting differs its day does too: that is not worth telling twice.
        if found.differences.is_empty() {
            found.compare_days(account, &days, &told.days);
        }
        Ok(found)
    }

    async fn compare_account(&self, account: &LedgerAccount, version: i64, found: &mut Found) -> Result<(), Error> {
        let known = async || accounts::get(self.database.reader(), account.id).await;
        match known().await? {
            Some(known) if known.owner_id != account.owner_id => found.differs(account, format!("belongs to {} here", known.owner_id)),
            Some(known) if known.currency_code != account.currency_code => found.differs(account, format!("is in {} here", known.currency_code)),
            // That it was opened may come later than what was posted to it.
            None if version > 0 && !early::has(self.database.reader(), account.id).await? && known().await?.is_none() => {
                found.differs(account, "has postings here, and was never opened".to_owned());
            }
            _ => {}
        }
        Ok(())
    }

    /// Compares every posting up to a version; what they come to by day.
    async fn compare_postings(
        &self,
        account: &LedgerAccount,
        version: i64,
        ledger: &impl Ledger,
        found: &mut Found,
    ) -> Result<BTreeMap<Day, Flow>, Error> {
        let mut days: BTreeMap<Day, Flow> = BTreeMap::new();
        let mut at = 0;
        while at < version && found.differences.is_empty() {
            let of_ledger = ledger.postings(account.id, at, version).await?;
            let of_reports = entries::after(self.database.reader(), account.id, at, PAGE).await?;
            if of_ledger.is_empty() {
                found.differs(account, format!("has {version} postings here, and {at} in the ledger"));
            }
            let mut of_reports = of_reports.into_iter();
            for posting in of_ledger {
                let entry = of_reports.next().filter(|entry| entry.posted.account_version == posting.account_version);
                match entry {
                    Some(entry) => {
                        self.compare_posting(account, &posting, &entry, found);
                        days.entry(entry.day).or_default().add(entry.posted.amount);
                    }
                    None => found.differs(account, format!("version {}: is not here", posting.account_version)),
                }
                at = posting.account_version;
                found.postings += 1;
            }
        }
        Ok(days)
    }

    fn compare_posting(&self, account: &LedgerAccount, posting: &LedgerPosting, entry: &Entry, found: &mut Found) {
        let posted = &entry.posted;
        let here = (entry.transaction_id, posted.amount, posted.balance, posting.record_us.map(|_| posted.record_us), entry.effective_us);
        let there = (posting.transaction_id, posting.amount, posting.balance, posting.record_us, posting.effective_us);
        if here != there {
            found.differs(account, format!("version {}: is {here:?} here, and {there:?} in the ledger", posting.account_version));
            return;
        }
        let day = self.edition.calendar.day_of(entry.effective_us);
        if day != entry.day {
            let zone = self.edition.calendar.name();
            found.differs(account, format!("version {}: counts on {} here, and on {day} in {zone}", posting.account_version, entry.day));
        }
    }
}

impl Found {
    fn compare_days(&mut self, account: &LedgerAccount, expected: &BTreeMap<Day, Flow>, told: &BTreeMap<Day, Flow>) {
        self.days = expected.len() as i64;
        for day in expected.keys().chain(told.keys()).collect::<BTreeSet<_>>() {
            let (expected, told) = (expected.get(day).copied().unwrap_or_default(), told.get(day).copied().unwrap_or_default());
            if expected != told {
                let sums = |flow: &Flow| (flow.credits.minor_units(), flow.debits.minor_units());
                self.differs(account, format!("{day}: credits and debits are {:?} here, and {:?} by its postings", sums(&told), sums(&expected)));
            }
        }
    }

    fn differs(&mut self, account: &LedgerAccount, how: String) {
        self.differences.push(format!("account {}: {how}", account.id));
    }
}
