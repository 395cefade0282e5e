use std::collections::HashMap;
use std::sync::{Arc, Mutex};

use tokio::sync::oneshot;
use tokio_util::sync::CancellationToken;

use super::*;
use crate::group_commit::{GroupCommit, Key, Limits, Locks};
use crate::{Error, Kind};

const LIMITS: Limits = Limits { batch_max: 100, batch_size_max: 100, queue_max: 200, at_once: 1 };

/// What a caller is told.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Told {
    Done(u32),
    Stored(u32),
}

/// Enters a number under a key.
struct Enter {
    key: String,
    number: u32,
    callers: Vec<oneshot::Sender<Result<Told, Refusal>>>,
}

impl Work for Enter {
    fn id(&self) -> Uuid {
        Uuid::from_u128(u128::from(self.number))
    }

    fn key(&self) -> Option<Key<'_>> {
        Some((Uuid::nil(), &self.key))
    }

    fn keys(&self) -> Vec<Key<'_>> {
        vec![(Uuid::nil(), &self.key)]
    }

    fn absorb(&mut self, other: Self) -> Option<Self> {
        self.callers.extend(other.callers);
        None
    }

    fn goes_alone(&self) -> bool {
        self.key.starts_with("alone")
    }

    fn is_abandoned(&self) -> bool {
        self.callers.iter().all(oneshot::Sender::is_closed)
    }

    fn refuse(self, refusal: Refusal) {
        self.callers.into_iter().for_each(|caller| drop(caller.send(Err(refusal))));
    }
}

/// A store in memory, whose attempts fail as they are told to.
#[derive(Default)]
struct Book {
    entered: Mutex<HashMap<String, u32>>,
    /// The keys of each attempt, and how it locked.
    attempts: Mutex<Vec<(Vec<String>, Lock)>>,
    /// How the next attempts fail, whatever they hold.
    failures: Mutex<Vec<Kind>>,
    /// What somebody else has locked until an attempt waits for it.
    locked: Mutex<Vec<String>>,
    /// Whether it is locked for ever.
    stuck: bool,
    /// How long an attempt takes.
    takes: Duration,
}

impl Committer for Book {
    type Work = Enter;
    type Outcome = (String, u32);
    type Heed = u32;
    type Detour = ();
    type Stored = (String, u32);

    fn locks(&self, work: &Enter) -> Locks {
        std::iter::once(work.id()).collect()
    }

    fn size(&self, _: &Enter) -> usize {
        1
    }

    async fn attempt(&self, jobs: &[Job<Enter>], how: &How<u32>) -> Result<Vec<Option<(String, u32)>>, Failure<()>> {
        tokio::time::sleep(self.takes).await;
        assert!(jobs.len() == 1 || !jobs.iter().any(|job| job.work.goes_alone()), "what goes alone has a batch of its own");
        self.attempts.lock().expect("no panic").push((jobs.iter().map(|job| job.work.key.clone()).collect(), how.lock));
        if let Some(kind) = self.failures.lock().expect("no panic").pop() {
            return Err(Error::of_kind(kind).into());
        }
        if jobs.iter().any(|job| job.work.key == "detour") && how.heed == 0 {
            return Err(Failure::Detour(()));
        }
        if jobs.iter().any(|job| job.work.key == "poison") {
            return Err(Error::of_kind(Kind::Other).into());
        }
        let mut entered = self.entered.lock().expect("no panic");
        if jobs.iter().any(|job| entered.contains_key(&job.work.key)) {
            return Err(Error::of_kind(Kind::Unique).into());
        }
        let locked = self.locked.lock().expect("no panic");
        let outcome = |job: &Job<Enter>| {
            let is_locked = locked.contains(&job.work.key) && (self.stuck || how.lock == Lock::Skip);
            (!is_locked).then(|| {
                entered.insert(job.work.key.clone(), job.work.number);
                (job.work.key.clone(), job.work.number)
            })
        };
        Ok(jobs.iter().map(outcome).collect())
    }

    async fn detour(&self, (): (), how: &mut How<u32>, _: Instant) {
        how.heed += 1;
    }

    fn answer(&self, work: Enter, (_, number): (String, u32)) {
        work.callers.into_iter().for_each(|caller| drop(caller.send(Ok(Told::Done(number)))));
    }

    async fn stored(&self, keys: &[Key<'_>], _: bool) -> Result<Vec<(String, u32)>, Error> {
        let entered = self.entered.lock().expect("no panic");
        Ok(keys.iter().filter_map(|(_, key)| Some(((*key).to_owned(), *entered.get(*key)?))).collect())
    }

    fn key_of((key, _): &(String, u32)) -> Key<'_> {
        (Uuid::nil(), key)
    }

    fn answer_stored(&self, work: Enter, stored: Vec<(String, u32)>) {
        let number = stored[0].1;
        work.callers.into_iter().for_each(|caller| drop(caller.send(Ok(Told::Stored(number)))));
    }

    fn note_keys((key, _): &(String, u32), mut note: impl FnMut(Key<'_>)) {
        note((Uuid::nil(), key));
    }
}

/// Has all of these entered at once, in one batch; what their callers are told, and what was attempted.
async fn enter(book: Book, requests: &[(&str, u32)]) -> (Vec<Result<Told, Refusal>>, Arc<Book>) {
    let book = Arc::new(book);
    let commit = GroupCommit::new(book.clone(), LIMITS);
    let submitted =
        requests.iter().map(|(key, number)| commit.submit(1, |reply| Enter { key: (*key).to_owned(), number: *number, callers: vec![reply] }));
    let stop = CancellationToken::new();
    let ends = async {
        let told = futures_util::future::join_all(submitted).await;
        stop.cancel();
        told
    };
    let (told, ()) = tokio::join!(ends, commit.run_batches(true, stop.clone()));
    (told, book)
}

#[tokio::test(start_paused = true)]
async fn what_comes_together_is_one_transaction_and_equal_keys_are_one() {
    let (told, book) = enter(Book::default(), &[("b", 1), ("a", 2), ("b", 3)]).await;
    assert_eq!(told, [Ok(Told::Done(1)), Ok(Told::Done(2)), Ok(Told::Done(1))], "the first one's request is what is stored");
    assert_eq!(*book.attempts.lock().expect("no panic"), [(vec!["a".to_owned(), "b".to_owned()], Lock::Skip)], "sorted by key");
}

#[tokio::test(start_paused = true)]
async fn a_key_that_exists_is_answered_and_the_rest_goes_on() {
    let book = Book { entered: Mutex::new(HashMap::from([("b".to_owned(), 7)])), ..Book::default() };
    let (told, book) = enter(book, &[("a", 1), ("b", 2), ("c", 3)]).await;
    assert_eq!(told, [Ok(Told::Done(1)), Ok(Told::Stored(7)), Ok(Told::Done(3))]);
    assert_eq!(book.attempts.lock().expect("no panic").len(), 2);
}

#[tokio::test(start_paused = true)]
async fn the_one_at_fault_is_found_and_keeps_nobody() {
    let requests: Vec<(String, u32)> =
        (0..17).map(|number| if number == 5 { ("poison".to_owned(), 5) } else { (format!("{number}"), number) }).collect();
    let borrowed: Vec<(&str, u32)> = requests.iter().map(|(key, number)| (key.as_str(), *number)).collect();
    let (told, book) = enter(Book::default(), &borrowed).await;
    for (number, told) in (0..).zip(told) {
        assert_eq!(told, if number == 5 { Err(Refusal::Broken) } else { Ok(Told::Done(number)) });
    }
    assert!(book.attempts.lock().expect("no panic").len() <= 11, "by halves");
}

#[tokio::test(start_paused = true)]
async fn what_may_succeed_later_is_tried_again_and_told_in_time() {
    let book = Book { failures: Mutex::new(vec![Kind::Conflict, Kind::Unavailable]), ..Book::default() };
    let (told, book) = enter(book, &[("a", 1)]).await;
    assert_eq!((told, book.attempts.lock().expect("no panic").len()), (vec![Ok(Told::Done(1))], 3));
    let since = Instant::now();
    let (told, _) = enter(Book { failures: Mutex::new(vec![Kind::Unavailable; 1000]), ..Book::default() }, &[("a", 1)]).await;
    assert_eq!(told, [Err(Refusal::Unavailable)]);
    assert!(since.elapsed() <= TRY_FOR && since.elapsed() + PAUSE_MAX >= TRY_FOR, "{:?}", since.elapsed());
}

#[tokio::test(start_paused = true)]
async fn what_others_have_locked_is_waited_for_and_keeps_nobody() {
    let book = Book { locked: Mutex::new(vec!["b".to_owned()]), ..Book::default() };
    let (told, book) = enter(book, &[("a", 1), ("b", 2)]).await;
    assert_eq!(told, [Ok(Told::Done(1)), Ok(Told::Done(2))]);
    let attempts = book.attempts.lock().expect("no panic").clone();
    assert_eq!(attempts.first(), Some(&(vec!["a".to_owned(), "b".to_owned()], Lock::Skip)));
    assert_eq!(attempts.last(), Some(&(vec!["b".to_owned()], Lock::Wait)), "only what is locked for long is waited for");
}

/// One waits for its lock for ever; those that lock the same wait behind it, and nobody else does.
#[tokio::test(start_paused = true)]
async fn who_waits_for_a_lock_keeps_nobody_else() {
    let book = Arc::new(Book { stuck: true, locked: Mutex::new(vec!["b".to_owned()]), ..Book::default() });
    let commit = GroupCommit::new(book.clone(), LIMITS);
    let submit = |key: &str, number: u32| {
        let key = key.to_owned();
        commit.submit(1, move |reply| Enter { key, number, callers: vec![reply] })
    };
    let stop = CancellationToken::new();
    let callers = async {
        let since = Instant::now();
        let first = futures_util::future::join(submit("b", 2), submit("a", 1));
        let later = async {
            tokio::time::sleep(Duration::from_millis(100)).await;
            let told = submit("c", 3).await;
            (told, since.elapsed())
        };
        let ((stuck, along), (later, took)) = futures_util::future::join(first, later).await;
        assert_eq!((along, later), (Ok(Told::Done(1)), Ok(Told::Done(3))));
        assert!(took < Duration::from_millis(200), "{took:?}");
        assert_eq!(stuck, Err(Refusal::Unavailable));
        stop.cancel();
    };
    tokio::join!(callers, commit.run_batches(true, stop.clone()));
}

/// What goes alone does so where it waits for locks, too: among others, its refusal would undo what they are told.
#[tokio::test(start_paused = true)]
async fn what_goes_alone_waits_alone() {
    let keys: Vec<String> = (0..12).map(|number| if number % 3 == 1 { format!("alone {number}") } else { format!("k{number}") }).collect();
    let book = Arc::new(Book { locked: Mutex::new(keys.clone()), ..Book::default() });
    let commit = GroupCommit::new(book.clone(), LIMITS);
    let stop = CancellationToken::new();
    let callers = async {
        let submitted = (0..).zip(&keys).map(|(number, key)| commit.submit(1, move |reply| Enter { key: key.clone(), number, callers: vec![reply] }));
        // Told to stop while they wait, it ends when all of them are answered.
        let stops = async {
            tokio::time::sleep(Duration::from_millis(20)).await;
            stop.cancel();
        };
        let (told, ()) = tokio::join!(futures_util::future::join_all(submitted), stops);
        for (number, told) in (0..).zip(told) {
            let told: Result<Told, Refusal> = told;
            assert_eq!(told, Ok(Told::Done(number)));
        }
    };
    tokio::join!(callers, commit.run_batches(true, stop.clone()));
}

/// Told to stop while the only batch is under way, of which one will have to wait for its lock: that one is answered still.
#[tokio::test(start_paused = true)]
async fn what_has_to_wait_is_answered_before_a_stop() {
    let book = Arc::new(Book { locked: Mutex::new(vec!["a".to_owned()]), takes: Duration::from_millis(10), ..Book::default() });
    let commit = GroupCommit::new(book.clone(), LIMITS);
    let stop = CancellationToken::new();
    let stops = async {
        tokio::time::sleep(Duration::from_millis(5)).await;
        stop.cancel();
    };
    let submitted = commit.submit(1, |reply| Enter { key: "a".to_owned(), number: 1, callers: vec![reply] });
    let (told, (), ()): (Result<Told, Refusal>, _, _) = tokio::join!(submitted, commit.run_batches(true, stop.clone()), stops);
    assert_eq!(told, Ok(Told::Done(1)));
}

/// Many wait for locks: so many batches of them at once, and the rest goes together.
#[tokio::test(start_paused = true)]
async fn those_that_wait_are_few_batches() {
    let keys: Vec<String> = (0..20).map(|number| format!("k{number:02}")).collect();
    let book = Arc::new(Book { stuck: true, locked: Mutex::new(keys.clone()), ..Book::default() });
    let commit = GroupCommit::new(book.clone(), LIMITS);
    let stop = CancellationToken::new();
    let callers = async {
        let submitted = (0..).zip(&keys).map(|(number, key)| {
            let commit = &commit;
            async move {
                tokio::time::sleep(Duration::from_millis(10 * u64::from(number))).await;
                commit.submit(1, |reply| Enter { key: key.clone(), number, callers: vec![reply] }).await
            }
        });
        let told = futures_util::future::join_all(submitted).await;
        assert!(told.iter().all(|told: &Result<Told, Refusal>| *told == Err(Refusal::Unavailable)), "{told:?}");
        stop.cancel();
    };
    tokio::join!(callers, commit.run_batches(true, stop.clone()));
    let attempts = book.attempts.lock().expect("no panic").clone();
    let mut together: Vec<Vec<String>> = attempts.into_iter().filter(|(_, lock)| *lock == Lock::Wait).map(|(keys, _)| keys).collect();
    together.dedup();
    together.sort();
    together.dedup();
    assert!(together.len() <= 4, "{together:?}");
}

#[tokio::test(start_paused = true)]
async fn a_detour_is_heeded_by_the_next_attempt() {
    let (told, book) = enter(Book::default(), &[("detour", 1)]).await;
    assert_eq!((told, book.attempts.lock().expect("no panic").len()), (vec![Ok(Told::Done(1))], 2));
}
