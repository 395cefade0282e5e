//! What the events of one transaction come to: entries of accounts, and counts of a day.

use std::collections::BTreeMap;

use uuid::Uuid;

use super::calendar::{Calendar, Day};
use super::heads::Follows;
use super::total::Total;

/// How a transaction was submitted, as far as reports need it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Submission {
    /// Who submitted it.
    pub owner_id: Uuid,
    /// Its type, by the number that it has in the contract.
    pub kind: i64,
    /// As given.
    pub description: String,
    /// When it counts, Unix microseconds, if that was given.
    pub effective_us: Option<i64>,
    /// What moves, at least one.
    pub legs: Vec<Leg>,
    /// When it was accepted, Unix microseconds.
    pub accepted_us: i64,
}

/// One movement.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Leg {
    /// ISO 4217 alphabetic code.
    pub currency_code: String,
    /// As given for this one; empty: that of the whole.
    pub description: String,
}

/// What the ledger has posted to an account.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Posted {
    /// The account.
    pub account_id: Uuid,
    /// In minor units: negative debits, positive credits.
    pub amount: i64,
    /// The version of the account.
    pub account_version: i64,
    /// The balance after it.
    pub balance: i64,
    /// When it was recorded, Unix microseconds.
    pub record_us: i64,
}

/// A posting as statements show it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Entry {
    /// What was posted.
    pub posted: Posted,
    /// The transaction.
    pub transaction_id: Uuid,
    /// Its place among the postings of the transaction, from 0.
    pub posting: i64,
    /// The type of the transaction, by its number.
    pub kind: i64,
    /// When it counts, Unix microseconds.
    pub effective_us: i64,
    /// On which day.
    pub day: Day,
    /// Of the leg, or else of the transaction.
    pub description: String,
}

impl Follows for Entry {
    fn version(&self) -> i64 {
        self.posted.account_version
    }
    fn amount(&self) -> i64 {
        self.posted.amount
    }
    fn balance(&self) -> i64 {
        self.posted.balance
    }
    fn record_us(&self) -> i64 {
        self.posted.record_us
    }
}

/// How a transaction ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Ending {
    /// It is settled, with its postings: two a leg, the debit and then the credit.
    Completed {
        /// What was posted.
        postings: Vec<Posted>,
        /// When it counts, Unix microseconds, if that is another time than that of its end.
        effective_us: Option<i64>,
    },
    /// It was refused.
    Rejected,
    /// It was a hold, and was given up or ran out.
    Released,
}

/// Which row of counts: of the transactions that one user submitted, or of all (the nil UUID).
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct CountsOf {
    /// Who submitted them; nil for everybody.
    pub owner_id: Uuid,
    /// When they were accepted.
    pub day: Day,
    /// Their type, by its number.
    pub kind: i64,
    /// ISO 4217 alphabetic code.
    pub currency_code: String,
}

/// Transactions, counted.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Counts {
    /// Accepted.
    pub accepted: i64,
    /// COMPLETED.
    pub completed: i64,
    /// REJECTED.
    pub rejected: i64,
    /// Holds that were given up or ran out.
    pub released: i64,
    /// What the completed ones moved.
    pub amount: Total,
    /// From acceptance to the end, of those that are COMPLETED or REJECTED: the sum, in microseconds.
    pub processing_us: i64,
    /// When the newest of the events that count here was recorded, Unix microseconds.
    pub newest_us: i64,
}

impl Counts {
    fn add(&mut self, other: &Self) {
        self.accepted += other.accepted;
        self.completed += other.completed;
        self.rejected += other.rejected;
        self.released += other.released;
        self.amount += other.amount;
        self.processing_us = self.processing_us.saturating_add(other.processing_us);
        self.newest_us = self.newest_us.max(other.newest_us);
    }
}

/// What a batch of events adds to the counts.
#[derive(Debug, Default)]
pub struct CountChanges(pub BTreeMap<CountsOf, Counts>);

/// A posting too many or too few.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("a transaction of {legs} legs has {postings} postings, which must be two a leg")]
pub struct OddPostings {
    legs: usize,
    postings: usize,
}

impl Submission {
    /// The entries of its accounts, when it is settled.
    pub fn entries(
        &self,
        transaction_id: Uuid,
        postings: &[Posted],
        effective_us: Option<i64>,
        ended_us: i64,
        calendar: &Calendar,
    ) -> Result<Vec<Entry>, OddPostings> {
        if postings.len() != 2 * self.legs.len() {
            return Err(OddPostings { legs: self.legs.len(), postings: postings.len() });
        }
        let effective_us = effective_us.or(self.effective_us).unwrap_or(ended_us);
        let day = calendar.day_of(effective_us);
        let legs = self.legs.iter().flat_map(|leg| [leg, leg]);
        let entry = |((posting, posted), leg): ((i64, &Posted), &Leg)| Entry {
            posted: *posted,
            transaction_id,
            posting,
            kind: self.kind,
            effective_us,
            day,
            description: if leg.description.is_empty() { self.description.clone() } else { leg.description.clone() },
        };
        Ok((0..).zip(postings).zip(legs).map(entry).collect())
    }
}

impl CountChanges {
    /// It was accepted.
    pub fn accepted(&mut self, submission: &Submission, calendar: &Calendar) {
        let counts = Counts { accepted: 1, newest_us: submission.accepted_us, ..Counts::default() };
        for currency_code in currencies(submission) {
            self.add(submission, currency_code, calendar, &counts);
        }
    }

    /// It has ended.
    pub fn ended(&mut self, submission: &Submission, ending: &Ending, ended_us: i64, calendar: &Calendar) {
        let processing_us = ended_us.saturating_sub(submission.accepted_us).max(0);
        for currency_code in currencies(submission) {
            let of_end = Counts { newest_us: ended_us, ..Counts::default() };
            let counts = match ending {
                Ending::Completed { postings, .. } => {
                    Counts { completed: 1, amount: moved(submission, postings, currency_code), processing_us, ..of_end }
                }
                Ending::Rejected => Counts { rejected: 1, processing_us, ..of_end },
                Ending::Released => Counts { released: 1, ..of_end },
            };
            self.add(submission, currency_code, calendar, &counts);
        }
    }

    fn add(&mut self, submission: &Submission, currency_code: &str, calendar: &Calendar, counts: &Counts) {
        let day = calendar.day_of(submission.accepted_us);
        for owner_id in [submission.owner_id, Uuid::nil()] {
            let of = CountsOf { owner_id, day, kind: submission.kind, currency_code: currency_code.to_owned() };
            self.0.entry(of).or_default().add(counts);
        }
    }
}

/// Each once.
fn currencies(submission: &Submission) -> impl Iterator<Item = &str> {
    let codes = || submission.legs.iter().map(|leg| leg.currency_code.as_str());
    codes().enumerate().filter(move |(index, code)| !codes().take(*index).any(|before| before == *code)).map(|(_, code)| code)
}

/// What came to the accounts that are credited: of a hold that was captured in part that is less than what was submitted.
fn moved(submission: &Submission, postings: &[Posted], currency_code: &str) -> Total {
    let legs = submission.legs.iter().zip(postings.as_chunks::<2>().0);
    let of_currency = legs.filter(|(leg, _)| leg.currency_code == currency_code);
    of_currency.fold(Total::ZERO, |sum, (_, [_, credit])| sum + Total::of(credit.amount))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn calendar() -> Calendar {
        Calendar::named("UTC").expect("there is one")
    }

    fn submission(legs: &[(&str, &str)]) -> Submission {
        let leg = |(code, description): &(&str, &str)| Leg { currency_code: (*code).to_owned(), description: (*description).to_owned() };
        let legs = legs.iter().map(leg).collect();
        Submission { owner_id: Uuid::from_u128(1), kind: 3, description: "rent".to_owned(), effective_us: None, legs, accepted_us: 5_000 }
    }

    fn posted(account: u128, amount: i64) -> Posted {
        Posted { account_id: Uuid::from_u128(account), amount, account_version: 1, balance: amount, record_us: 9_000 }
    }

    #[test]
    fn an_entry_has_the_description_of_its_leg_and_counts_when_it_was_meant_to() {
        let of = submission(&[("BRL", ""), ("BRL", "parking")]);
        let postings = [posted(1, -5), posted(2, 5), posted(1, -7), posted(3, 7)];
        let entries = of.entries(Uuid::nil(), &postings, None, 9_000, &calendar()).expect("two a leg");
        assert_eq!(entries.iter().map(|entry| entry.description.as_str()).collect::<Vec<_>>(), ["rent", "rent", "parking", "parking"]);
        assert_eq!(entries.iter().map(|entry| entry.posting).collect::<Vec<_>>(), [0, 1, 2, 3]);
        assert_eq!(entries[0].effective_us, 9_000);
        let told = of.entries(Uuid::nil(), &postings, Some(-86_400_000_000), 9_000, &calendar()).expect("two a leg");
        assert_eq!((told[0].effective_us, told[0].day), (-86_400_000_000, Day::of_number(-1)));
        assert!(of.entries(Uuid::nil(), &postings[..3], None, 9_000, &calendar()).is_err());
    }

    #[test]
    fn a_transaction_counts_once_in_each_currency_for_its_submitter_and_for_all() {
        let (of, mut changes) = (submission(&[("BRL", ""), ("USD", ""), ("BRL", "")]), CountChanges::default());
        changes.accepted(&of, &calendar());
        let postings = vec![posted(1, -5), posted(2, 5), posted(1, -7), posted(3, 7), posted(1, -2), posted(2, 2)];
        changes.ended(&of, &Ending::Completed { postings, effective_us: None }, 9_000, &calendar());
        let found: Vec<_> = changes.0.into_iter().map(|(of, counts)| (of.owner_id.as_u128(), of.currency_code, counts)).collect();
        let counts =
            |minor| Counts { accepted: 1, completed: 1, amount: Total::of(minor), processing_us: 4_000, newest_us: 9_000, ..Counts::default() };
        let expected = [(0, "BRL", 7), (0, "USD", 7), (1, "BRL", 7), (1, "USD", 7)];
        assert_eq!(found, expected.map(|(owner, code, minor)| (owner, code.to_owned(), counts(minor))).to_vec());
    }
}
