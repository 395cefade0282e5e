//! Accounts, and whose they are, from the events of accounts.

use lastro_database::Transaction;
use lastro_events::consumer::Failure;
use lastro_events::inbox::Progress;
use lastro_events::{Event, Handler};
use lastro_proto::transactions::events::v1::{AccountEvent, account_event};
use uuid::Uuid;

use super::{Readers, decode, id};
use crate::store::accounts::{self, Account};
use crate::store::early;

pub struct Accounts {
    pub readers: Readers,
}

impl Handler for Accounts {
    async fn apply(&self, tx: &Transaction, events: &[Event]) -> Result<(), Failure> {
        let (mut new, mut changed) = (Vec::new(), Vec::new());
        for stream in events.chunk_by(|one, next| one.aggregate_id == next.aggregate_id) {
            let (Some(first), Some(last)) = (stream.first(), stream.last()) else { continue };
            if first.version > 1 {
                changed.push((last.aggregate_id, last.version));
                continue;
            }
            let Some(account_event::Event::Opened(opened)) = decode::<AccountEvent>(first)?.event else {
                return Err(Failure::Event("the first event of an account must be OPENED".to_owned()));
            };
            new.push(Account {
                id: first.aggregate_id,
                owner_id: id("owner_id", &opened.owner_id)?,
                currency_code: opened.currency_code,
                is_system: opened.system,
                opened_us: first.recorded_us,
                version: last.version,
            });
        }
        let opened: Vec<Uuid> = new.iter().map(|account| account.id).collect();
        early::forget(tx, &opened).await?;
        accounts::insert(tx, new).await?;
        // What else happens to an account is nothing that reports tells, so far.
        Ok(accounts::set_versions(tx, changed).await?)
    }

    fn applied(&self, events: &[Event]) {
        // Nothing is cached of an account that is not there.
        self.readers.tell(events, &[]);
    }

    fn progress(&self) -> Progress {
        Progress::Own { table: "accounts", id: "id", version: "version" }
    }
}
