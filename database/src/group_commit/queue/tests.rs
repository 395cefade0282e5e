use tokio::sync::{Semaphore, oneshot};
use tokio::time::Instant;

use super::*;
use crate::Error;
use crate::group_commit::{Failure, How, Key, Limits, Locks, Refusal, Work};

const LIMITS: Limits = Limits { batch_max: 8, batch_size_max: 20, queue_max: 100, at_once: 3 };

/// A request that locks two things.
struct Request {
    number: u128,
    locks: [u128; 2],
    alone: bool,
    reply: oneshot::Sender<Refusal>,
}

impl Work for Request {
    fn id(&self) -> Uuid {
        Uuid::from_u128(self.number)
    }

    fn key(&self) -> Option<Key<'_>> {
        None
    }

    fn keys(&self) -> Vec<Key<'_>> {
        Vec::new()
    }

    fn absorb(&mut self, other: Self) -> Option<Self> {
        Some(other)
    }

    fn goes_alone(&self) -> bool {
        self.alone
    }

    fn is_abandoned(&self) -> bool {
        self.reply.is_closed()
    }

    fn refuse(self, refusal: Refusal) {
        let _ = self.reply.send(refusal);
    }
}

struct Nobody;

impl Committer for Nobody {
    type Work = Request;
    type Outcome = ();
    type Heed = ();
    type Detour = ();
    type Stored = ();

    fn locks(&self, work: &Request) -> Locks {
        work.locks.iter().map(|lock| Uuid::from_u128(*lock)).collect()
    }

    fn size(&self, work: &Request) -> usize {
        if work.locks[0] == work.locks[1] { 10 } else { 1 }
    }

    async fn attempt(&self, jobs: &[Job<Request>], _: &How<()>) -> Result<Vec<Option<()>>, Failure<()>> {
        Ok(jobs.iter().map(|_| Some(())).collect())
    }

    async fn detour(&self, (): (), _: &mut How<()>, _: Instant) {}

    fn answer(&self, _: Request, (): ()) {}

    async fn stored(&self, _: &[Key<'_>], _: bool) -> Result<Vec<()>, Error> {
        Ok(Vec::new())
    }

    fn key_of((): &()) -> Key<'_> {
        (Uuid::nil(), "")
    }

    fn answer_stored(&self, _: Request, _: Vec<()>) {}

    fn note_keys((): &(), _: impl FnMut(Key<'_>)) {}
}

/// A request, and the end at which its caller waits.
async fn request(number: u128, locks: [u128; 2], alone: bool) -> (Box<Job<Request>>, oneshot::Receiver<Refusal>) {
    let (reply, answer) = oneshot::channel();
    let place = Arc::new(Semaphore::new(1)).acquire_owned().await.expect("a place");
    (Box::new(Job { work: Request { number, locks, alone, reply }, locked_by: Instant::now(), _place: Some(place) }), answer)
}

async fn queue(requests: impl IntoIterator<Item = (u128, [u128; 2], bool)>) -> (VecDeque<Box<Job<Request>>>, Vec<oneshot::Receiver<Refusal>>) {
    let (mut waiting, mut answers) = (VecDeque::new(), Vec::new());
    for (number, locks, alone) in requests {
        let (job, answer) = request(number, locks, alone).await;
        waiting.push_back(job);
        answers.push(answer);
    }
    (waiting, answers)
}

fn take(waiting: &mut VecDeque<Box<Job<Request>>>, locked: &[u128]) -> Vec<u128> {
    let locked: Locked = locked.iter().map(|id| Uuid::from_u128(*id)).collect();
    numbers(&take_disjoint(&Nobody, &LIMITS, waiting, &locked))
}

fn numbers<'a>(jobs: impl IntoIterator<Item = &'a Box<Job<Request>>>) -> Vec<u128> {
    jobs.into_iter().map(|job| job.work.number).collect()
}

#[tokio::test]
async fn a_job_that_is_passed_over_keeps_its_locks() {
    // The first wants two ids, of which one is locked. Those behind it that want either of them must not pass it.
    let requests = [(1, [10, 20], false), (2, [20, 30], false), (3, [40, 50], false), (4, [30, 60], false), (5, [50, 70], false)];
    let (mut waiting, _answers) = queue(requests).await;
    assert_eq!(take(&mut waiting, &[10]), [3, 5], "4 wants what 2 waits for");
    assert_eq!(numbers(&waiting), [1, 2, 4]);
    // That is free now, and another one that others use all the time is not.
    assert_eq!(take(&mut waiting, &[40, 50]), [1, 2, 4]);
}

#[tokio::test]
async fn what_its_caller_gave_up_never_gets_into_a_batch() {
    let (mut waiting, mut answers) = queue([(1, [1, 2], false), (2, [3, 4], false)]).await;
    drop(answers.remove(0));
    assert_eq!((take(&mut waiting, &[]), waiting.len()), (vec![2], 0));
}

#[tokio::test]
async fn a_batch_has_a_size_and_the_rest_keeps_its_order() {
    let (mut waiting, _answers) = queue((0..11).map(|number| (number, [2 * number, 2 * number + 1], false))).await;
    assert_eq!(take(&mut waiting, &[]), (0..8).collect::<Vec<_>>());
    assert_eq!(numbers(&waiting), [8, 9, 10]);
    // Those that are large count for more: the third one of ten parts waits.
    let (mut waiting, _answers) = queue((0..4).map(|number| (number, [number, number], false))).await;
    assert_eq!(take(&mut waiting, &[]), [0, 1]);
    assert_eq!(take(&mut waiting, &[]), [2, 3]);
}

#[tokio::test]
async fn what_goes_alone_has_a_batch_of_its_own() {
    let (mut waiting, _answers) = queue([(1, [1, 2], false), (2, [3, 5], true), (4, [8, 9], false), (5, [5, 6], false)]).await;
    assert_eq!(take(&mut waiting, &[]), [1, 4], "5 wants what 2 locks");
    assert_eq!(take(&mut waiting, &[]), [2]);
    assert_eq!(take(&mut waiting, &[]), [5]);
}
