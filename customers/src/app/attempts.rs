//! How often a password may be tried, for an account and from an address. An attempt is counted as failed before the password is looked at, and
//! taken back when it was right: of any number of attempts at once no more get through than are allowed.
//!
//! An address from which an account was logged in before has a count of its own for this account, so that nobody elsewhere can lock its owner out
//! there. This is what OWASP calls device cookies; callers are programs without cookies, so that the address, of IPv6 the /64, stands for the device.
//! After too many failures one attempt is let through now and then, after twice as long each time.
//!
//! Attempts that are under way might all be right, as when many workers of one account start together. So one that finds every place taken waits
//! until another one has ended, and is refused only when enough of them have failed.

use std::net::IpAddr;
use std::pin::pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use lastro_database::{Database, Transaction};
use lastro_mesh::call::Call;
use lastro_mesh::clock;
use lastro_mesh::serve::limited_address;
use lastro_mesh::status::Problem;
use moka::sync::Cache;
use sha2::{Digest as _, Sha256};
use tokio::sync::{Notify, OwnedSemaphorePermit, Semaphore};
use tokio::time::{Instant, timeout_at};

use super::App;
use crate::store::users::User;
use crate::store::{failures, known_addresses};
use crate::{Error, Settings};

/// Failures from an address are forgotten after so long.
const ADDRESS_WINDOW: Duration = Duration::from_secs(60);
const ADDRESSES_MAX: u64 = 100_000;
const ACCOUNTS_MAX: u64 = 100_000;
/// An attempt does not wait longer than this for its turn, nor than its call has time.
const WAIT_MAX: Duration = Duration::from_secs(2);
/// Attempts that wait for their turn, of one account and from one address; what exceeds it is refused at once.
const WAITING_PER_ACCOUNT: usize = 100;
const WAITING_PER_ADDRESS: u32 = 200;

/// An attempt that was counted less long ago may be under way on another replica, and be right.
const ELSEWHERE_MAX: Duration = Duration::from_millis(1500);
const LOOK_AGAIN: Duration = Duration::from_millis(100);

/// A login from a known address is noted again after so long.
const NOTE_AGAIN_US: i64 = 24 * 3600 * 1_000_000;

/// Under what the failures of an account are counted: the SHA-256 of its normalized address, so that unknown ones count too and none is kept.
pub type AccountHash = [u8; 32];

/// As [`AccountHash`].
pub fn account_of(email: &str) -> AccountHash {
    Sha256::digest(email.as_bytes()).into()
}

fn place_of(account: &AccountHash, address: IpAddr) -> AccountHash {
    let mut hasher = Sha256::new();
    hasher.update(account);
    hasher.update(limited_address(address).to_string());
    hasher.finalize().into()
}

/// An account has another e-mail address: its failures go along. The address of whoever changes it, if it was known, stays known with its own
/// failures, so that the failures of others do not keep the owner out; the others' hashes cannot be made anew, and their owners log in once more.
pub async fn carry(tx: &Transaction, call: &Call, old: &AccountHash, new: &AccountHash) -> Result<(), Error> {
    failures::carry(tx, old, new).await?;
    if let Some([before, now]) = call.address.map(|address| [old, new].map(|account| place_of(account, address)))
        && known_addresses::is_known(tx, old, &before).await?
    {
        failures::carry(tx, &before, &now).await?;
        known_addresses::note(tx, new, &now, clock::now_us(), clock::now_us()).await?;
    }
    Ok(known_addresses::clear(tx, old).await?)
}

/// Forgets every failure of a user and where it was logged in from.
pub async fn forget_account(tx: &Transaction, user: &User) -> Result<(), Error> {
    // Logins count by the e-mail address, changes of a password by the id.
    for account in user.email.iter().chain([&user.id.to_string()]).map(|name| account_of(name)) {
        failures::clear_everywhere(tx, &account).await?;
        known_addresses::clear(tx, &account).await?;
    }
    Ok(())
}

/// The attempts that are under way in this process, and the failures from each address in the last minute. Failures of accounts are in the
/// database, where all replicas count together.
pub struct Attempts {
    database: Database,
    failures_max: i64,
    pause_s: i64,
    failures_per_address: u32,
    /// At most as many attempts under way as may fail.
    accounts: Cache<AccountHash, Arc<Account>>,
    addresses: Cache<IpAddr, Arc<Address>>,
}

struct Account {
    turns: Arc<Semaphore>,
    /// For those that wait for a turn.
    waiting: Semaphore,
}

impl Account {
    fn new(at_once: usize) -> Self {
        Self { turns: Arc::new(Semaphore::new(at_once)), waiting: Semaphore::new(WAITING_PER_ACCOUNT) }
    }

    async fn turn(&self, until: Instant) -> Result<OwnedSemaphorePermit, Problem> {
        if let Ok(turn) = self.turns.clone().try_acquire_owned() {
            return Ok(turn);
        }
        let _waits = self.waiting.try_acquire().map_err(|_| busy())?;
        timeout_at(until, self.turns.clone().acquire_owned()).await.map_err(|_| busy())?.map_err(|_| busy())
    }
}

#[derive(Default)]
struct Address {
    counts: Mutex<Counts>,
    ended: Notify,
}

#[derive(Default)]
struct Counts {
    failed: u32,
    under_way: u32,
    waiting: u32,
}

/// Leave to look at a password once. Dropped without a word it counts as a failure: a caller that goes away must not get its attempt back.
#[must_use = "an attempt that is not taken back counts as failed"]
pub struct Attempt {
    address: Option<Arc<Address>>,
    account: AccountHash,
    /// Under what it counts: the account, or the account at a known address.
    counted: AccountHash,
    /// Where it came from, with the account.
    from: Option<AccountHash>,
    /// Held until the attempt has ended.
    _turn: OwnedSemaphorePermit,
}

/// How an attempt ended, for its address.
#[derive(Clone, Copy, PartialEq, Eq)]
enum End {
    Failed,
    /// It was right, or was never made.
    TakenBack,
}

impl Attempts {
    pub fn new(database: Database, settings: &Settings) -> Self {
        Self {
            database,
            failures_max: settings.login_failures_max,
            pause_s: settings.login_pause_s,
            failures_per_address: settings.login_failures_per_address,
            accounts: Cache::builder().max_capacity(ACCOUNTS_MAX).time_to_idle(ADDRESS_WINDOW).build(),
            addresses: Cache::builder().max_capacity(ADDRESSES_MAX).time_to_live(ADDRESS_WINDOW).build(),
        }
    }

    /// Takes an attempt for an account, or says when to try again.
    pub async fn take(&self, call: &Call, account: AccountHash) -> Result<Attempt, Error> {
        let until = call.deadline.min(Instant::now() + WAIT_MAX);
        let address = call.address.map(|address| self.addresses.get_with(limited_address(address), Arc::default));
        if let Some(address) = &address {
            timeout_at(until, address.take(self.failures_per_address)).await.map_err(|_| busy())??;
        }
        // From here on the address is told how it ended.
        let mut place = Place(address);
        let from = call.address.map(|address| place_of(&account, address));
        let counted = match from {
            Some(from) if known_addresses::is_known(self.database.reader(), &account, &from).await? => from,
            _ => account,
        };
        let account_at = self.accounts.get_with(counted, || Arc::new(Account::new(self.failures_max.clamp(1, 1000) as usize)));
        let turn = account_at.turn(until).await?;
        loop {
            let now_us = clock::now_us();
            let tx = self.database.begin().await?;
            let taken = failures::take(&tx, &counted, now_us, self.pause_s * 1_000_000, self.failures_max).await?;
            tx.commit().await.map_err(lastro_database::Error::from)?;
            if taken {
                return Ok(Attempt { address: place.0.take(), account, counted, from, _turn: turn });
            }
            let Some(failures) = failures::get(self.database.reader(), &counted).await? else { continue };
            let last_us = failures.last_us;
            let may_be_under_way = now_us - last_us < ELSEWHERE_MAX.as_micros() as i64;
            if !may_be_under_way || Instant::now() + LOOK_AGAIN > until {
                let wait_us = failures::wait_us(failures.failures - self.failures_max, self.pause_s * 1_000_000);
                let again_s = (last_us + wait_us) / 1_000_000 - clock::now_s();
                return Err(Error::LoginThrottled { retry_after_s: u64::try_from(again_s).unwrap_or(0).max(1) });
            }
            tokio::time::sleep(LOOK_AGAIN).await;
        }
    }
}

fn busy() -> Problem {
    Problem::crowded("too many logins of this account, or from this address, are under way").retry_after(Duration::from_secs(1))
}

/// Looks at the password of an account; the attempt if it was right. One that was not made, since the queue of passwords was full, is not counted:
/// whoever fills the queue must not be able to lock others out.
pub async fn check_password(app: &App, call: &Call, account: AccountHash, password: String, hash: Option<String>) -> Result<Option<Attempt>, Error> {
    let mut attempt = app.attempts.take(call, account).await?;
    match app.passwords.verify(call.deadline, password, hash).await {
        Ok(right) => Ok(right.then_some(attempt)),
        Err(error) => {
            attempt.not_made(&app.database).await?;
            Err(error)
        }
    }
}

/// A place among the attempts from an address that are under way, given back unused when it is dropped.
struct Place(Option<Arc<Address>>);

impl Drop for Place {
    fn drop(&mut self) {
        if let Some(address) = &self.0 {
            address.end(End::TakenBack);
        }
    }
}

/// One that waits for its turn, until it is dropped.
struct Waiter<'a>(&'a Address);

impl Drop for Waiter<'_> {
    fn drop(&mut self) {
        self.0.counts().waiting -= 1;
    }
}

impl Address {
    fn counts(&self) -> MutexGuard<'_, Counts> {
        self.counts.lock().unwrap_or_else(PoisonError::into_inner)
    }

    async fn take(&self, failures_max: u32) -> Result<(), Error> {
        let mut waiter = None;
        loop {
            let mut ended = pin!(self.ended.notified());
            // Before looking, so that an attempt that ends in between is noticed.
            ended.as_mut().enable();
            {
                let mut counts = self.counts();
                if counts.failed >= failures_max {
                    return Err(Error::LoginThrottled { retry_after_s: ADDRESS_WINDOW.as_secs() });
                }
                if counts.failed + counts.under_way < failures_max {
                    counts.under_way += 1;
                    // Its end takes the lock.
                    drop(counts);
                    return Ok(());
                }
                if waiter.is_none() {
                    if counts.waiting >= WAITING_PER_ADDRESS {
                        return Err(busy().into());
                    }
                    counts.waiting += 1;
                    waiter = Some(Waiter(self));
                }
            }
            ended.await;
        }
    }

    fn end(&self, end: End) {
        let mut counts = self.counts();
        counts.under_way = counts.under_way.saturating_sub(1);
        counts.failed += u32::from(end == End::Failed);
        drop(counts);
        self.ended.notify_waiters();
    }
}

impl Attempt {
    /// The password was right: the failures of the account are forgotten when the transaction commits. Until then nobody else gets this turn.
    pub async fn succeeded(&mut self, tx: &Transaction) -> Result<(), Error> {
        failures::clear(tx, &self.counted).await?;
        if let Some(from) = &self.from {
            let now_us = clock::now_us();
            known_addresses::note(tx, &self.account, from, now_us, now_us - NOTE_AGAIN_US).await?;
        }
        if let Some(address) = self.address.take() {
            address.end(End::TakenBack);
        }
        Ok(())
    }
}

impl Attempt {
    /// It counts no more: the password was not looked at, or was right.
    pub async fn not_made(&mut self, database: &Database) -> Result<(), Error> {
        if let Some(address) = self.address.take() {
            address.end(End::TakenBack);
        }
        let tx = database.begin().await?;
        failures::give_back(&tx, &self.counted).await?;
        Ok(tx.commit().await.map_err(lastro_database::Error::from)?)
    }
}

impl Drop for Attempt {
    fn drop(&mut self) {
        if let Some(address) = &self.address {
            address.end(End::Failed);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn of_many_at_once_no_more_are_tried_than_may_fail() {
        let address = Arc::new(Address::default());
        let tried = Arc::new(Mutex::new(0));
        let attempts: Vec<_> = (0..50)
            .map(|_| {
                let (address, tried) = (address.clone(), tried.clone());
                tokio::spawn(async move {
                    address.take(3).await?;
                    *tried.lock().expect("not poisoned") += 1;
                    tokio::time::sleep(Duration::from_millis(10)).await;
                    address.end(End::Failed);
                    Ok::<_, Error>(())
                })
            })
            .collect();
        for attempt in attempts {
            let _ = attempt.await.expect("no panic");
        }
        assert_eq!(*tried.lock().expect("not poisoned"), 3);
    }

    /// A crowd from one address, or of one account, waits in memory only so far; what comes then is told at once.
    #[tokio::test(start_paused = true)]
    async fn those_that_wait_are_bounded() {
        let (address, account) = (Arc::new(Address::default()), Arc::new(Account::new(3)));
        let (held, until) = (account.turn(Instant::now()).await.expect("a turn"), Instant::now() + Duration::from_secs(1));
        address.take(1).await.expect("the first");
        let from_address: Vec<_> = (0..1000)
            .map(|_| {
                let address = address.clone();
                tokio::spawn(async move { timeout_at(until, address.take(1)).await.map(|taken| taken.is_ok()) })
            })
            .collect();
        let of_account: Vec<_> = (0..1000)
            .map(|_| {
                let account = account.clone();
                tokio::spawn(async move { account.turn(until).await.map(std::mem::forget).is_ok() })
            })
            .collect();
        tokio::time::sleep(Duration::from_millis(1)).await;
        assert_eq!(address.counts().waiting, WAITING_PER_ADDRESS);
        assert_eq!(from_address.iter().filter(|one| !one.is_finished()).count() as u32, WAITING_PER_ADDRESS);
        assert_eq!(of_account.iter().filter(|one| !one.is_finished()).count(), WAITING_PER_ACCOUNT);
        drop(held);
        for one in from_address {
            let _ = one.await.expect("no panic");
        }
        assert_eq!(address.counts().waiting, 0);
    }

    #[tokio::test(start_paused = true)]
    async fn those_that_are_right_wait_for_each_other_and_all_get_in() {
        let address = Arc::new(Address::default());
        let attempts = (0..50).map(|_| {
            let address = address.clone();
            async move {
                address.take(3).await?;
                tokio::time::sleep(Duration::from_millis(10)).await;
                address.end(End::TakenBack);
                Ok::<_, Error>(())
            }
        });
        let ended: Vec<_> = attempts.map(tokio::spawn).collect();
        for attempt in ended {
            assert!(attempt.await.expect("no panic").is_ok());
        }
    }
}
