//! Journeys over the whole mesh, in one binary: each runs against a real `lastro up` on SQLite with the embedded bus, and on PostgreSQL
//! with Redis. The servers are started once and shared; a journey makes its own users.
#![allow(clippy::expect_used, clippy::unwrap_used, clippy::print_stderr, missing_docs, reason = "a test says what it expected")]

mod access;
mod accounts;
mod bus;
mod cli;
mod clients;
mod faults;
mod grpc;
mod idempotency;
mod ledger;
mod poison;
mod rest;
mod sessions;
mod tokens;
mod transfers;
mod users;

use std::sync::{Arc, Mutex};

use anyhow::Result;
use lastro_tests::{Postgres, Redis, Server};
use libtest_mimic::{Arguments, Failed, Trial};

/// The two ends of what Lastro runs on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Stores {
    Embedded,
    Production,
}

/// A server that journeys share.
pub struct World {
    pub server: Server,
    pub postgres: Option<Postgres>,
    // Held until the end.
    _redis: Option<Redis>,
    _folder: tempfile::TempDir,
}

impl World {
    fn start(stores: Stores) -> Result<Self> {
        let folder = tempfile::tempdir()?;
        let data = folder.path().join("data");
        let world = match stores {
            Stores::Embedded => Self { server: Server::start(&data, &[])?, postgres: None, _redis: None, _folder: folder },
            Stores::Production => {
                let (postgres, redis) = (Postgres::start()?, Redis::start()?);
                let server = Server::start(&data, &["--database-url", &postgres.url(), "--redis-url", &redis.url()])?;
                Self { server, postgres: Some(postgres), _redis: Some(redis), _folder: folder }
            }
        };
        Ok(world)
    }
}

/// Started when the first journey needs it, ended when the last one is done.
#[derive(Clone, Default)]
struct Shared(Arc<Mutex<[Option<Arc<World>>; 2]>>);

impl Shared {
    fn world(&self, stores: Stores) -> Result<Arc<World>> {
        let mut worlds = self.0.lock().map_err(|_| anyhow::anyhow!("another journey could not start its world"))?;
        let place = &mut worlds[stores as usize];
        if place.is_none() {
            *place = Some(Arc::new(World::start(stores)?));
        }
        Ok(place.clone().expect("just set"))
    }
}

/// Runs an async test to its end.
pub fn block_on<T>(work: impl Future<Output = T>) -> T {
    tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().expect("a runtime").block_on(work)
}

fn failed(result: Result<()>) -> Result<(), Failed> {
    result.map_err(|error| format!("{error:?}").into())
}

macro_rules! journeys {
    ($shared:expr; $($module:ident: $($name:ident),+ $(,)?;)+) => {{
        let mut trials = Vec::new();
        for stores in [Stores::Embedded, Stores::Production] {
            $($({
                let shared = $shared.clone();
                let name = format!("{}::{}::{}", format!("{stores:?}").to_lowercase(), stringify!($module), stringify!($name));
                trials.push(Trial::test(name, move || {
                    let world = shared.world(stores)?;
                    failed(block_on($module::$name(&world)))
                }));
            })+)+
        }
        trials
    }};
}

fn main() {
    let mut arguments = Arguments::from_args();
    // Each journey is many calls to two servers: more at once than cores only makes them wait.
    arguments.test_threads = arguments.test_threads.or(Some(4));
    let shared = Shared::default();
    let mut trials = journeys! { shared;
        access: every_method_wants_a_token, every_method_refuses_bad_input, somebody_elses_things_are_not_found;
        accounts: opens_lists_and_reads_accounts, pages_through_accounts, refuses_bad_accounts;
        grpc: moves_money_over_grpc, errors_carry_details, serves_health_and_reflection, internal_methods_are_not_served;
        idempotency: same_key_same_body, same_key_other_body, same_key_from_fifty_callers, keys_are_per_caller, key_in_header;
        ledger: the_ledger_adds_up;
        poison: one_bad_member_of_a_batch_is_parked;
        rest: problems_and_statuses, limits_of_the_edge, cross_origin_requests, openapi_and_reference;
        sessions: refresh_rotates, reused_refresh_token_ends_the_session, logout_is_dead_everywhere, password_change_ends_sessions, logins_are_throttled;
        tokens: forged_and_stale_tokens_are_refused;
        transfers: deposit_transfer_withdraw, lacking_funds_is_an_answer, a_hundred_withdrawals_one_wins, amounts_that_are_none, waits,
            histories_and_events, what_others_may_see;
        users: registers_and_reads, validates, administrators_manage_users, the_last_administrator_stays, a_deleted_user_is_anonymous;
    };
    trials.extend(bus::trials());
    trials.extend(cli::trials());
    trials.extend(clients::trials({
        let shared = shared.clone();
        move || shared.world(Stores::Embedded)
    }));
    trials.extend(faults::trials());
    let conclusion = libtest_mimic::run(&arguments, trials);
    // Ends the servers, which `exit` would not.
    drop(shared);
    conclusion.exit();
}
