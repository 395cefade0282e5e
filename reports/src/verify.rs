//! Whether what reports tells of an account is what the ledger has: every posting, and every day. What has not come yet is no difference.

use std::collections::BTreeMap;

use lastro_database::{Database, Error};
use uuid::Uuid;

use crate::domain::calendar::{Calendar, Day};
use crate::domain::operation::Entry;
use crate::store::daily::{self, Flow};
use crate::store::{accounts, edition, entries};

/// Postings that are compared at once.
pub const PAGE: u32 = 5_000;
/// An account to which more is posted while it is looked at is looked at again, so often.
const ATTEMPTS: u32 = 20;

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
    calendar: Calendar,
}

impl Verifier {
    /// Of this database.
    pub async fn open(database: &Database) -> Result<Self, Error> {
        Ok(Self { database: database.clone(), calendar: edition::get(database.reader()).await?.calendar })
    }

    /// Compares one account, as it was at some moment during the call.
    pub async fn check(&self, account: &LedgerAccount, ledger: &impl Ledger) -> Result<Found, Error> {
        let version = || async {
            let found = entries::versions_of(self.database.reader(), &[account.id]).await?;
            Ok::<_, Error>(found.first().map_or(0, |(_, version)| *version))
        };
        let mut before = version().await?;
        for attempt in 1.. {
            let found = self.compare(account, before, ledger).await?;
            let after = version().await?;
            // What was read in several statements is of one moment where nothing has come in between.
            if found.differences.is_empty() || after == before || attempt == ATTEMPTS {
                return Ok(found);
            }
            before = after;
        }
        Ok(Found::default())
    }

    async fn compare(&self, account: &LedgerAccount, version: i64, ledger: &impl Ledger) -> Result<Found, Error> {
        let mut found = Found { to_come: (account.version - version).max(0), ..Found::default() };
        match accounts::get(self.database.reader(), account.id).await? {
            Some(known) if known.owner_id != account.owner_id => found.differs(account, format!("belongs to {} here", known.owner_id)),
            Some(known) if known.currency_code != account.currency_code => found.differs(account, format!("is in {} here", known.currency_code)),
            None if version > 0 => found.differs(account, "has postings here, and was never opened".to_owned()),
            _ => {}
        }
        let mut days: BTreeMap<Day, Flow> = BTreeMap::new();
        let mut at = 0;
        while at < version {
            let of_ledger = ledger.postings(account.id, at, version).await?;
            let of_reports = entries::after(self.database.reader(), account.id, at, PAGE).await?;
            if of_ledger.is_empty() {
                found.differs(account, format!("has {version} postings here, and {at} in the ledger"));
                break;
            }
            let mut of_reports = of_reports.into_iter();
            for posting in of_ledger {
                let entry = of_reports.next().filter(|entry| entry.posted.account_version == posting.account_version);
                match entry {
                    Some(entry) => {
                        self.compare_posting(account, &posting, &entry, &mut found);
                        days.entry(entry.day).or_default().add(entry.posted.amount);
                    }
                    None => found.differs(account, format!("version {}: is not here", posting.account_version)),
                }
                at = posting.account_version;
                found.postings += 1;
            }
            if !found.differences.is_empty() {
                // What follows is not worth telling.
                return Ok(found);
            }
        }
        found.days = days.len() as i64;
        let (first, last) = (Day::of_number(i64::MIN + 1), Day::of_number(i64::MAX));
        let told = daily::read(self.database.reader(), &[account.id], first, last, None).await?;
        for day in days.keys().chain(told.days.keys()).collect::<std::collections::BTreeSet<_>>() {
            let (expected, told) = (days.get(day).copied().unwrap_or_default(), told.days.get(day).copied().unwrap_or_default());
            if expected != told {
                let sums = |flow: &Flow| (flow.credits.minor_units(), flow.debits.minor_units());
                found.differs(account, format!("{day}: credits and debits are {:?} here, and {:?} by its postings", sums(&told), sums(&expected)));
            }
        }
        Ok(found)
    }

    fn compare_posting(&self, account: &LedgerAccount, posting: &LedgerPosting, entry: &Entry, found: &mut Found) {
        let posted = &entry.posted;
        let here = (entry.transaction_id, posted.amount, posted.balance, posting.record_us.map(|_| posted.record_us), entry.effective_us);
        let there = (posting.transaction_id, posting.amount, posting.balance, posting.record_us, posting.effective_us);
        if here != there {
            found.differs(account, format!("version {}: is {here:?} here, and {there:?} in the ledger", posting.account_version));
        } else if self.calendar.day_of(entry.effective_us) != entry.day {
            found.differs(account, format!("version {}: counts on {} here, which is another day", posting.account_version, entry.day));
        }
    }
}

impl Found {
    fn differs(&mut self, account: &LedgerAccount, how: String) {
        self.differences.push(format!("account {}: {how}", account.id));
    }
}
