//! Reads of the database that may take long, in turns: of what belongs to one key (a caller, a product) only a few at once, and of all keys so few that whatever
//! else needs a connection gets one. Whoever asks for more waits, and is refused after a while as one of a crowd, for which no breaker opens: the service is well.

use std::fmt::Debug;
use std::hash::Hash;
use std::time::Duration;

use lastro_database::{Error, Kind};
use lastro_mesh::call::Call;
use lastro_mesh::status::Problem;
use lastro_mesh::turns::Turns;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::{Instant, timeout_at};

/// Reads of one key at once.
const AT_ONCE_OF_KEY: usize = 4;
/// Of all keys: half of the connections that a service has.
const AT_ONCE: usize = 8;
/// Those that wait for their turn, of all keys.
const WAITING_MAX: usize = 1_000;
/// How long they wait, how long they read, and what is left of their deadline to answer.
const WAIT_MAX: Duration = Duration::from_secs(1);
const READ_MAX: Duration = Duration::from_secs(2);
const MARGIN: Duration = Duration::from_millis(500);

/// The turns of reads.
pub struct ReadTurns<K> {
    of_key: Turns<K>,
    of_all: Semaphore,
    waiting: Semaphore,
    /// What they are, as in "too many … are under way".
    what: &'static str,
}

impl<K: Hash + Eq + Clone + Debug + Send + Sync + 'static> ReadTurns<K> {
    /// Of reads that are called that, such as "reads of this product".
    pub fn new(what: &'static str) -> Self {
        Self { of_key: Turns::new(AT_ONCE_OF_KEY), of_all: Semaphore::new(AT_ONCE), waiting: Semaphore::new(WAITING_MAX), what }
    }

    /// Reads when it is its turn. A call that waits for that gives up its place among those that are handled at once. Refuses where too many wait, and what
    /// takes too long: that is no failure of the service.
    pub async fn read<T>(&self, call: &Call, key: K, read: impl Future<Output = Result<T, Error>>) -> Result<T, Problem> {
        let _turn = self.turn(call, &key).await?;
        let slow = || Problem::crowded(format!("{} take too long now; ask again later", self.what));
        let by = call.deadline.checked_sub(MARGIN).unwrap_or(call.deadline).min(Instant::now() + READ_MAX);
        let read = async {
            let _place = self.of_all.acquire().await;
            read.await
        };
        match timeout_at(by, read).await {
            Ok(Err(error)) if matches!(error.kind, Kind::Conflict | Kind::Cancelled) => {
                tracing::warn!(%error, ?key, "{} take too long", self.what);
                Err(slow())
            }
            Ok(read) => read.map_err(|error| crate::database_problem(&error)),
            Err(_) => Err(slow()),
        }
    }

    async fn turn(&self, call: &Call, key: &K) -> Result<OwnedSemaphorePermit, Problem> {
        let busy = || Problem::crowded(format!("too many {} are under way; ask for fewer at once", self.what));
        let now = Instant::now();
        if let Some(turn) = self.of_key.take(key.clone(), now).await {
            return Ok(turn);
        }
        let _waiting = self.waiting.try_acquire().map_err(|_| busy())?;
        call.slot.release();
        let by = call.deadline.checked_sub(MARGIN).unwrap_or(call.deadline).min(now + WAIT_MAX);
        self.of_key.take(key.clone(), by).await.ok_or_else(busy)
    }
}
