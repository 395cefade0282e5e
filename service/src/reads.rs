//! Reads of the database that may take long, in turns: of what belongs to one key (a caller, a product) only a few at once, and of all keys so few that whatever
//! else needs a connection gets one. Whoever asks for more waits, and is refused after a while as one of a crowd, for which no breaker opens: the service is well.

use std::fmt::Debug;
use std::hash::Hash;
use std::sync::Arc;
use std::time::Duration;

use lastro_database::{Database, Error, Kind};
use lastro_mesh::call::Call;
use lastro_mesh::status::{INTERNAL, Problem};
use lastro_mesh::turns::Turns;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::{Instant, timeout_at};
use tracing::Instrument as _;

/// Reads that wait for their turn, of all keys.
const WAITING_MAX: usize = 1_000;
/// How long they wait, and how long they read.
const WAIT_MAX: Duration = Duration::from_secs(1);
const READ_MAX: Duration = Duration::from_secs(2);
/// What is left of a deadline to answer in, and a quarter of it where that is less.
const MARGIN: Duration = Duration::from_millis(500);

/// The turns of reads of one database: half of its connections for all keys together, and half of these for one key.
pub struct ReadTurns<K> {
    of_key: Turns<K>,
    of_all: Arc<Semaphore>,
    waiting: Semaphore,
    /// What they are, as in "too many … are under way".
    what: &'static str,
}

impl<K: Hash + Eq + Clone + Debug + Send + Sync + 'static> ReadTurns<K> {
    /// Of reads that are called that, such as "reads of this product".
    pub fn new(database: &Database, what: &'static str) -> Self {
        let of_all = (database.connections_that_read() as usize / 2).max(1);
        let of_key = (of_all / 2).max(1);
        Self { of_key: Turns::new(of_key), of_all: Arc::new(Semaphore::new(of_all)), waiting: Semaphore::new(WAITING_MAX), what }
    }

    /// Reads when it is its turn. A call that waits for that gives up its place among those that are handled at once. Refuses where too many wait, and what
    /// takes too long: that is no failure of the service. The turn is kept until the database is done, whether or not somebody still waits for it.
    pub async fn read<T: Send + 'static>(
        &self,
        call: &Call,
        key: K,
        read: impl Future<Output = Result<T, Error>> + Send + 'static,
    ) -> Result<T, Problem> {
        let turn = self.turn(call, &key).await?;
        let slow = || Problem::crowded(format!("{} take too long now; ask again later", self.what));
        let by = end_of(call).min(Instant::now() + READ_MAX);
        let Ok(Ok(place)) = timeout_at(by, self.of_all.clone().acquire_owned()).await else { return Err(slow()) };
        let read = async move {
            let _held = (turn, place);
            read.await
        };
        match timeout_at(by, tokio::spawn(read.in_current_span())).await {
            Ok(Ok(Err(error))) if matches!(error.kind, Kind::Conflict | Kind::Cancelled) => {
                tracing::warn!(%error, ?key, "{} take too long", self.what);
                Err(slow())
            }
            Ok(Ok(read)) => read.map_err(|error| crate::database_problem(&error)),
            Ok(Err(error)) => {
                tracing::error!(%error, ?key, "a read ended before it was done");
                Err(Problem::new(&INTERNAL, "internal error"))
            }
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
        self.of_key.take(key.clone(), end_of(call).min(now + WAIT_MAX)).await.ok_or_else(busy)
    }
}

/// By when a call has to know what it answers.
fn end_of(call: &Call) -> Instant {
    let remaining = call.deadline.saturating_duration_since(Instant::now());
    call.deadline.checked_sub(MARGIN.min(remaining / 4)).unwrap_or(call.deadline)
}
