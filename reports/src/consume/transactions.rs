//! Entries, daily balances and counts, from the events of transactions. A batch of events is one database transaction of a few statements, whatever it holds.

use std::collections::{BTreeMap, BTreeSet};

use lastro_database::Transaction;
use lastro_events::consumer::Failure;
use lastro_events::inbox::Progress;
use lastro_events::{Event, Handler};
use lastro_proto::transactions::events::v1::{self as wire, OperationEvent, operation_event};
use uuid::Uuid;

use super::{Readers, decode, id};
use crate::domain::calendar::Calendar;
use crate::domain::heads::Contradiction;
use crate::domain::operation::{CountChanges, Ending, Entry, Leg, Posted, Submission};
use crate::store::operations::Operation;
use crate::store::{counts, daily, early, edition, entries, operations};

/// Entries behind a gap that are read at once.
const READ_AT_ONCE: u32 = 1_000;

pub struct Transactions {
    pub readers: Readers,
}

/// What a batch of events changes.
#[derive(Default)]
struct Batch {
    counts: CountChanges,
    /// The entries of transactions that are settled now, each with the version of the last event of its transaction.
    entries: Vec<(Entry, i64)>,
    /// Rows of `operations` to insert or update: transactions that are open, and those that have ended without a posting.
    keep: Vec<Operation>,
    /// Transactions that are settled now, and whose row in `operations` is deleted.
    delete: Vec<Uuid>,
    /// Transactions that an earlier batch has settled, each with the version of its newest event.
    settled: Vec<(Uuid, i64)>,
}

impl Handler for Transactions {
    async fn apply(&self, tx: &Transaction, events: &[Event]) -> Result<(), Failure> {
        let streams = || events.chunk_by(|one, next| one.aggregate_id == next.aggregate_id);
        let begun_before: Vec<Uuid> = streams().filter(|stream| stream[0].version > 1).map(|stream| stream[0].aggregate_id).collect();
        let mut stored = operations::get(tx, &begun_before).await?;
        // That of the tables, whatever this process began with: another edition may have taken their place.
        let calendar = edition::get(tx).await?.calendar;
        let mut batch = Batch::default();
        for stream in streams() {
            batch.add(stream, stored.remove(&stream[0].aggregate_id), &calendar)?;
        }
        operations::keep(tx, batch.keep).await?;
        operations::delete(tx, &batch.delete).await?;
        operations::set_settled_versions(tx, batch.settled).await?;
        post(tx, batch.entries).await?;
        Ok(counts::add(tx, batch.counts).await?)
    }

    fn applied(&self, events: &[Event]) {
        self.readers.tell(events, &posted_to(events));
    }

    fn progress(&self) -> Progress {
        operations::PROGRESS
    }
}

/// The accounts to which anything was posted, each once.
fn posted_to(events: &[Event]) -> Vec<Uuid> {
    let endings = events.iter().filter_map(|event| ending_of(event).ok().flatten());
    let postings = endings.flat_map(|ending| match ending {
        Ending::Completed { postings, .. } => postings,
        Ending::Rejected | Ending::Released => Vec::new(),
    });
    let accounts: BTreeSet<Uuid> = postings.map(|posted| posted.account_id).collect();
    accounts.into_iter().collect()
}

/// Stores entries, moves the heads of their accounts, and adds what counts now to their days.
async fn post(tx: &Transaction, new: Vec<(Entry, i64)>) -> Result<(), Failure> {
    if new.is_empty() {
        return Ok(());
    }
    let mut by_account: BTreeMap<Uuid, Vec<Entry>> = BTreeMap::new();
    for (entry, _) in &new {
        by_account.entry(entry.posted.account_id).or_default().push(entry.clone());
    }
    let ids: Vec<Uuid> = by_account.keys().copied().collect();
    let heads = entries::lock_heads(tx, &ids).await?;
    let wrong = |error: Contradiction| Failure::Event(error.to_string());
    // What the ledger cannot have told is refused before anything is stored.
    let mut advanced = Vec::with_capacity(by_account.len());
    for (account_id, new) in by_account {
        let (head, now) = heads.get(&account_id).copied().unwrap_or_default().advance(new).map_err(wrong)?;
        advanced.push((account_id, head, now));
    }
    entries::insert(tx, &new).await?;
    let (mut moved, mut counting, mut closing) = (Vec::with_capacity(advanced.len()), Vec::with_capacity(new.len()), Vec::new());
    for (account_id, head, now) in advanced {
        // A gap may be closed now: only then what lies behind it is read.
        let place = if now.is_empty() || head.ahead == 0 { &mut moved } else { &mut closing };
        place.push((account_id, head));
        counting.extend(now);
    }
    daily::add(tx, counting.iter()).await?;
    for (account_id, mut head) in closing {
        // However much lies there: page by page.
        loop {
            let (after, behind) = head.catch_up(entries::after(tx, account_id, head.version, READ_AT_ONCE).await?).map_err(wrong)?;
            head = after;
            daily::add(tx, behind.iter()).await?;
            if behind.is_empty() || head.ahead == 0 {
                break;
            }
        }
        moved.push((account_id, head));
    }
    moved.sort_unstable_by_key(|(account_id, _)| *account_id);
    entries::set_heads(tx, moved.into_iter()).await?;
    Ok(early::note(tx, new.iter().map(|(entry, _)| (entry.posted.account_id, entry.transaction_id)).collect()).await?)
}

impl Batch {
    /// Adds the next events of one transaction, of which this much is stored.
    fn add(&mut self, stream: &[Event], stored: Option<Operation>, calendar: &Calendar) -> Result<(), Failure> {
        let (first, last) = (&stream[0], &stream[stream.len() - 1]);
        let (transaction_id, was_stored) = (first.aggregate_id, stored.is_some());
        let mut operation = match stored {
            Some(stored) => Operation { version: last.version, ..stored },
            None if first.version == 1 => Operation {
                id: transaction_id,
                version: last.version,
                submitted: first.payload.clone(),
                accepted_us: first.recorded_us,
                has_ended: false,
            },
            // No row, and not its first event: it was settled earlier, and this version knows no event that follows.
            None => {
                self.settled.push((transaction_id, last.version));
                return Ok(());
            }
        };
        if operation.has_ended {
            self.keep.push(operation);
            return Ok(());
        }
        let submission = submission_of(&operation)?;
        if first.version == 1 {
            self.counts.accepted(&submission, calendar);
        }
        for event in stream {
            let Some(ending) = ending_of(event)? else { continue };
            self.counts.ended(&submission, &ending, event.recorded_us, calendar);
            if let Ending::Completed { postings, effective_us } = &ending {
                let entries = submission.entries(transaction_id, postings, *effective_us, event.recorded_us, calendar);
                let entries = entries.map_err(|error| Failure::Event(error.to_string()))?;
                self.entries.extend(entries.into_iter().map(|entry| (entry, last.version)));
                self.delete.extend(was_stored.then_some(transaction_id));
                return Ok(());
            }
            operation = Operation { submitted: Vec::new(), has_ended: true, ..operation };
            break;
        }
        self.keep.push(operation);
        Ok(())
    }
}

/// How it was submitted: what its first event tells.
fn submission_of(operation: &Operation) -> Result<Submission, Failure> {
    let wrong = |what: &str| Failure::Event(format!("the first event of a transaction: {what}"));
    let payload = <OperationEvent as prost::Message>::decode(operation.submitted.as_slice()).map_err(|error| wrong(&error.to_string()))?;
    let Some(operation_event::Event::Submitted(submitted)) = payload.event else { return Err(wrong("must be SUBMITTED")) };
    let of_legs = submitted.legs.iter().map(|leg| Leg { currency_code: leg.currency_code.clone(), description: leg.description.clone() });
    let legs = if submitted.legs.is_empty() {
        vec![Leg { currency_code: submitted.currency_code.clone(), description: String::new() }]
    } else {
        of_legs.collect()
    };
    Ok(Submission {
        owner_id: id("owner_id", &submitted.owner_id)?,
        kind: submitted.r#type.into(),
        description: submitted.description,
        effective_us: submitted.effective_time_us,
        legs,
        accepted_us: operation.accepted_us,
    })
}

/// How a transaction ended by an event; None where it has not.
fn ending_of(event: &Event) -> Result<Option<Ending>, Failure> {
    Ok(match decode::<OperationEvent>(event)?.event {
        Some(operation_event::Event::Completed(completed)) => {
            let posted = |posting: &wire::Posting| {
                Ok(Posted {
                    account_id: id("account_id", &posting.account_id)?,
                    amount: posting.amount_minor,
                    account_version: posting.account_version,
                    balance: posting.balance_minor,
                    record_us: posting.record_time_us.unwrap_or(event.recorded_us),
                })
            };
            let postings = completed.postings.iter().map(posted).collect::<Result<_, Failure>>()?;
            Some(Ending::Completed { postings, effective_us: completed.effective_time_us })
        }
        Some(operation_event::Event::Rejected(_)) => Some(Ending::Rejected),
        Some(operation_event::Event::Voided(_) | operation_event::Event::Expired(_)) => Some(Ending::Released),
        // What a newer ledger tells is not known here yet.
        Some(operation_event::Event::Submitted(_) | operation_event::Event::Processing(_) | operation_event::Event::Authorized(_)) | None => None,
    })
}
