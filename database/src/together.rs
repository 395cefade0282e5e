//! Reads of single things that are under way at once share a statement, as commits share one. Nobody waits for company: the first read goes out at
//! once, and what comes while statements are on their way goes with the next one. So an idle system reads as fast as before, and a busy one reads many
//! things for the price of one.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use futures_util::future::BoxFuture;
use tokio::sync::oneshot;
use uuid::Uuid;

use crate::Error;

/// Statements on their way at once: while one is answered the next is made.
pub(crate) const IN_FLIGHT_MAX: usize = 2;
/// What one statement reads at most.
const AT_ONCE: usize = 256;

/// What a read brought: of each thing that is there, itself, or why it does not read.
pub type Found<V> = Vec<(Uuid, Result<V, Error>)>;
type Read<V> = dyn Fn(Vec<Uuid>) -> BoxFuture<'static, Result<Found<V>, Error>> + Send + Sync;
type Answer<V> = Result<Option<V>, Error>;

/// Reads things of one kind by their ids. Cheap to clone; all clones are one.
pub struct Together<V>(Arc<Inner<V>>);

struct Inner<V> {
    read: Box<Read<V>>,
    waiting: Mutex<Waiting<V>>,
}

struct Waiting<V> {
    callers: Vec<(Uuid, oneshot::Sender<Answer<V>>)>,
    in_flight: usize,
}

impl<V> Clone for Together<V> {
    fn clone(&self) -> Self {
        Self(self.0.clone())
    }
}

impl<V: Clone + Send + 'static> Together<V> {
    /// Things that this reads.
    pub fn new(read: impl Fn(Vec<Uuid>) -> BoxFuture<'static, Result<Found<V>, Error>> + Send + Sync + 'static) -> Self {
        Self(Arc::new(Inner { read: Box::new(read), waiting: Mutex::new(Waiting { callers: Vec::new(), in_flight: 0 }) }))
    }

    /// One thing as it is now: the statement that reads it begins after this call does.
    pub async fn get(&self, id: Uuid) -> Result<Option<V>, Error> {
        let (answer, answered) = oneshot::channel();
        let begins = {
            let mut waiting = self.0.waiting();
            waiting.callers.push((id, answer));
            let begins = waiting.in_flight < IN_FLIGHT_MAX;
            waiting.in_flight += usize::from(begins);
            begins
        };
        if begins {
            // Of its own: whoever began it may leave while others wait.
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
    /// Reads until nobody waits.
    async fn read_all(self: Arc<Self>) {
        let mut turn = Turn(Some(&self));
        loop {
            let callers = {
                let mut waiting = self.waiting();
                if waiting.callers.is_empty() {
                    // Under the same lock: whoever comes now begins anew.
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
                        // Who has left does not want it any more.
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

/// A place among those in flight, given back should a read panic.
struct Turn<'a, V>(Option<&'a Inner<V>>);

impl<V> Drop for Turn<'_, V> {
    fn drop(&mut self) {
        if let Some(inner) = self.0 {
            inner.waiting().in_flight -= 1;
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering};
    use std::time::Duration;

    use super::*;

    /// Things are their own ids; 7 does not read, and 8 is not there. Counts statements, each of which takes a while.
    fn counted() -> (Together<u128>, Arc<AtomicUsize>) {
        let statements = Arc::new(AtomicUsize::new(0));
        let counted = statements.clone();
        let together = Together::new(move |ids: Vec<Uuid>| {
            counted.fetch_add(1, Ordering::Relaxed);
            Box::pin(async move {
                tokio::time::sleep(Duration::from_millis(10)).await;
                let one = |id: Uuid| (id, if id.as_u128() == 7 { Err(Error::corrupt("seven")) } else { Ok(id.as_u128()) });
                Ok(ids.into_iter().filter(|id| id.as_u128() != 8).map(one).collect())
            })
        });
        (together, statements)
    }

    #[tokio::test(start_paused = true)]
    async fn what_is_asked_for_meanwhile_goes_together_and_each_gets_its_own() {
        let (together, statements) = counted();
        let reads = (0..1000_u128).map(|n| {
            let together = together.clone();
            tokio::spawn(async move { (n, together.get(Uuid::from_u128(n % 100)).await) })
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
        let (together, statements) = counted();
        let left = tokio::time::timeout(Duration::from_millis(1), together.get(Uuid::from_u128(1))).await;
        assert!(left.is_err());
        assert_eq!(together.get(Uuid::from_u128(2)).await.expect("it reads"), Some(2));
        assert_eq!(statements.load(Ordering::Relaxed), 2);
        tokio::time::sleep(Duration::from_secs(1)).await;
        assert_eq!(together.0.waiting().in_flight, 0);
    }

    #[tokio::test]
    async fn a_read_that_panics_is_told_and_the_next_one_works() {
        let panics = Together::<u128>::new(|ids| {
            Box::pin(async move {
                assert_ne!(ids[0].as_u128(), 1, "as asked");
                Ok(vec![(ids[0], Ok(2))])
            })
        });
        for _ in 0..2 * IN_FLIGHT_MAX {
            assert!(panics.get(Uuid::from_u128(1)).await.is_err());
        }
        assert_eq!(panics.get(Uuid::from_u128(2)).await.expect("it reads"), Some(2));
    }
}
