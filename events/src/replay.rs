//! Makes the tables of a reader anew from the event stores, beside those that it works with, and puts them in their place while it works. `database::shadow`
//! has the other tables; here is what fills them.
//!
//! Before the new tables take the place of the old ones, nobody may apply events, and all that the old ones have is in the new ones: what was published
//! in the order of the store, and then whatever else is committed, since the fast way may have brought that already.

use std::pin::Pin;

use lastro_database::{Database, Error, Transaction};

use crate::consumer::{Consumer, Handler};
use crate::inbox;
use crate::store::EventStore;

/// What is done some time.
type Future<'a, T> = Pin<Box<dyn std::future::Future<Output = T> + Send + 'a>>;

/// Called after each page of events, with how many there were.
pub type OnProgress<'a> = &'a (dyn Fn(usize) + Send + Sync);

/// A consumer that fills new tables, whatever its handler is.
pub trait Projector: Send + Sync {
    /// Of which topic it reads the events.
    fn topic(&self) -> &'static str;

    /// See [`Consumer::read_to_end`].
    fn read_to_end<'a>(&'a self, on_progress: OnProgress<'a>) -> Future<'a, ()>;

    /// See [`Consumer::read_committed`].
    fn read_committed<'a>(&'a self, store: &'a EventStore, publisher: &'a Database) -> Future<'a, Result<(), Error>>;
}

impl<H: Handler> Projector for Consumer<H> {
    fn topic(&self) -> &'static str {
        self.topic.name
    }

    fn read_to_end<'a>(&'a self, on_progress: OnProgress<'a>) -> Future<'a, ()> {
        Box::pin(Self::read_to_end(self, on_progress))
    }

    fn read_committed<'a>(&'a self, store: &'a EventStore, publisher: &'a Database) -> Future<'a, Result<(), Error>> {
        Box::pin(Self::read_committed(self, store, publisher))
    }
}

/// Waits until nobody applies events of these topics, and keeps everybody from it until the transaction ends.
pub async fn hold_all_turns(tx: &Transaction, topics: &[&str]) -> Result<(), Error> {
    // In one order, as whoever wants several turns of one topic.
    let mut topics = topics.to_vec();
    topics.sort_unstable();
    for topic in topics {
        inbox::hold_all_turns(tx, topic).await?;
    }
    Ok(())
}
