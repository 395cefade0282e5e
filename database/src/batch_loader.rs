//! A batch loader: reads of single rows that are requested at the same time share one statement, as group commit shares one transaction. There is no
//! timer: the first read is sent at once, and reads that arrive while statements are in flight are sent with the next statement. An idle system reads as
//! fast as it would without batching, and a busy one reads up to 256 rows for the cost of one statement.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use futures_util::future::BoxFuture;
use tokio::sync::oneshot;
use uuid::Uuid;

use crate::Error;

/// Statements in flight at once: while PostgreSQL answers one, the next is prepared.
pub(crate) const IN_FLIGHT_MAX: usize = 2;
/// Rows that one statement reads at most.
const AT_ONCE: usize = 256;

/// What a statement found: each row that exists, or why that row cannot be decoded.
pub type Found<V> = Vec<(Uuid, Result<V, Error>)>;
type Read<V> = dyn Fn(Vec<Uuid>) -> BoxFuture<'static, Result<Found<V>, Error>> + Send + Sync;
type Answer<V> = Result<Option<V>, Error>;

/// Loads rows of one kind by their ids. Cheap to clone; all clones share their batches.
pub struct BatchLoader<V>(Arc<Inner<V>>);

struct Inner<V> {
    read: Box<Read<V>>,
    waiting: Mutex<Waiting<V>>,
}

struct Waiting<V> {
    callers: Vec<(Uuid, oneshot::Sender<Answer<V>>)>,
    in_flight: usize,
}

impl<V> Clone for BatchLoader<V> {
    fn clone(&self) -> Self {
        Self(self.0.clone())
    }
}

impl<V: Clone + Send + 'static> BatchLoader<V> {
    /// A loader whose statement is `read`: it gets the distinct ids of a batch.
    pub fn new(read: impl Fn(Vec<Uuid>) -> BoxFuture<'static, Result<Found<V>, Error>> + Send + Sync + 'static) -> Self {
        Self(Arc::new(Inner { read: Box::new(read), waiting: Mutex::new(Waiting { callers: Vec::new(), in_flight: 0 }) }))
    }

    /// Loads one row as it is now. Its statement starts after this call did, so that a caller sees what it has written before. A row that cannot be
    /// decoded fails the callers that asked for it, and nobody else.
    pub async fn load(&self, id: Uuid) -> Result<Option<V>, Error> {
        let (answer, answered) = oneshot::channel();
        let begins = {
            let mut waiting = self.0.waiting();
            waiting.callers.push((id, answer));
            let begins = waiting.in_flight < IN_FLIGHT_MAX;
            waiting.in_flight += usize::from(begins);
            begins
        };
        if begins {
            // A task of its own: the caller that starts it may be cancelled while other callers wait for the same statement.
            tokio::spawn(self.0.clone().read_all());
        }
        answered.await.unwrap_or_else(|_| Err(Error::broken("a read was given up")))
    }
}

impl<V> Inner<V> {
    fn waiting(&self) -> MutexGuard<'_, Waiting<V>> {
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl<V: Clone + Send + 'static> Inner<V> {
    /// Sends batches until no caller waits.
    async fn read_all(self: Arc<Self>) {
        let mut turn = Turn(Some(&self));
        loop {
            let callers = {
                let mut waiting = self.waiting();
                waiting.callers.retain(|(_, caller)| !caller.is_closed());
                if waiting.callers.is_empty() {
                    // Under the same lock, so that a caller that arrives now starts a new task.
                    waiting.in_flight -= 1;
                    turn.0 = None;
                    return;
                }
                let now = waiting.callers.len().min(AT_ONCE);
                let later = waiting.callers.split_off(now);
                std::mem::replace(&mut waiting.callers, later)
            };
            let mut ids: Vec<Uuid> = callers.iter().map(|(id, _)| *id).collect();
            ids.sort_unstable();
            ids.dedup();
            match (self.read)(ids).await {
                Ok(found) => {
                    let found: HashMap<Uuid, Result<V, Error>> = found.into_iter().collect();
                    for (id, caller) in callers {
                        // Sending fails when the caller was cancelled.
                        let _ = caller.send(found.get(&id).map(|one| one.as_ref().cloned().map_err(Error::copy)).transpose());
                    }
                }
                Err(error) => callers.into_iter().for_each(|(_, caller)| {
                    let _ = caller.send(Err(error.copy()));
                }),
            }
        }
    }
}

/// Counts a statement as in flight until it is dropped, so that a panic in `read` does not count for ever.
struct Turn<'a, V>(Option<&'a Inner<V>>);

impl<V> Drop for Turn<'_, V> {
    fn drop(&mut self) {
        let Some(inner) = self.0 else { return };
        let abandoned = {
            let mut waiting = inner.waiting();
            waiting.in_flight -= 1;
            // Nobody is left who would read for them.
            if waiting.in_flight == 0 { std::mem::take(&mut waiting.callers) } else { Vec::new() }
        };
        // Their callers are told that the read was given up.
        drop(abandoned);
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering};
    use std::time::Duration;

    use super::*;

    /// Rows are their own ids; row 7 cannot be decoded, and row 8 does not exist. Counts statements, each of which takes 10 ms.
    fn counted() -> (BatchLoader<u128>, Arc<AtomicUsize>) {
        let statements = Arc::new(AtomicUsize::new(0));
        let counted = statements.clone();
        let loader = BatchLoader::new(move |ids: Vec<Uuid>| {
            counted.fetch_add(1, Ordering::Relaxed);
            Box::pin(async move {
                tokio::time::sleep(Duration::from_millis(10)).await;
                let one = |id: Uuid| (id, if id.as_u128() == 7 { Err(Error::corrupt("seven")) } else { Ok(id.as_u128()) });
                Ok(ids.into_iter().filter(|id| id.as_u128() != 8).map(one).collect())
            })
        });
        (loader, statements)
    }

    #[tokio::test(start_paused = true)]
    async fn what_is_asked_for_meanwhile_goes_together_and_each_gets_its_own() {
        let (loader, statements) = counted();
        let reads = (0..1000_u128).map(|n| {
            let loader = loader.clone();
            tokio::spawn(async move { (n, loader.load(Uuid::from_u128(n % 100)).await) })
        });
        for read in reads.collect::<Vec<_>>() {
            let (n, got) = read.await.expect("no panic");
            match n % 100 {
                7 => assert!(got.is_err(), "{n}"),
                8 => assert_eq!(got.expect("it is not there"), None),
                id => assert_eq!(got.expect("it reads"), Some(id)),
            }
        }
        let made = statements.load(Ordering::Relaxed);
        assert!((1000 / AT_ONCE..20).contains(&made), "{made} statements");
    }

    #[tokio::test(start_paused = true)]
    async fn who_is_alone_goes_at_once_and_who_leaves_takes_nobody_along() {
        let (loader, statements) = counted();
        let left = tokio::time::timeout(Duration::from_millis(1), loader.load(Uuid::from_u128(1))).await;
        assert!(left.is_err());
        assert_eq!(loader.load(Uuid::from_u128(2)).await.expect("it reads"), Some(2));
        assert_eq!(statements.load(Ordering::Relaxed), 2);
        tokio::time::sleep(Duration::from_secs(1)).await;
        assert_eq!(loader.0.waiting().in_flight, 0);
    }

    #[tokio::test]
    async fn a_read_that_panics_is_told_and_the_next_one_works() {
        let panics = BatchLoader::<u128>::new(|ids| {
            Box::pin(async move {
                assert_ne!(ids[0].as_u128(), 1, "as asked");
                Ok(vec![(ids[0], Ok(2))])
            })
        });
        let reads = (0..4 * IN_FLIGHT_MAX).map(|_| {
            let panics = panics.clone();
            tokio::spawn(async move { panics.load(Uuid::from_u128(1)).await })
        });
        for read in reads.collect::<Vec<_>>() {
            assert!(read.await.expect("no panic here").is_err());
        }
        assert_eq!(panics.load(Uuid::from_u128(2)).await.expect("it reads"), Some(2));
    }
}
