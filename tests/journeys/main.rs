//! Journeys over the whole mesh, in one binary: each runs against a real `lastro up` on SQLite with the embedded bus, on PostgreSQL with
//! Redis, and against the stack of compose: every service its own process, two of each, behind nginx. The worlds are started once and
//! shared; a journey makes its own users.
#![allow(clippy::expect_used, clippy::unwrap_used, clippy::print_stderr, missing_docs, reason = "a test says what it expected")]

mod abuse;
mod access;
mod account_life;
mod accounts;
mod batches;
mod broken_sagas;
mod bus;
mod cards;
mod cli;
mod clients;
mod demo;
mod edge;
mod faults;
mod grpc;
mod ha;
mod histories;
mod holds;
mod idempotency;
mod inventory;
mod ledger;
mod legs;
mod market;
mod meaning;
mod model;
mod order_payments;
mod order_providers;
mod order_reads;
mod orders;
mod payments;
mod pipeline;
mod pipelined;
mod poison;
mod projections;
mod provider_events;
mod providers;
mod readers;
mod replay;
mod reports;
mod reservations;
mod rest;
mod reversals;
mod revocations;
mod rules;
mod sessions;
mod stock_sequences;
mod stores;
mod streams;
mod tokens;
mod traces;
mod transfers;
mod users;

use std::collections::BTreeSet;
use std::path::PathBuf;
use std::sync::{Arc, Mutex};

use anyhow::Result;
use lastro_tests::{Front, PaymentProvider, Postgres, Redis, Server, Stack, stack};
use libtest_mimic::{Arguments, Failed, Trial};

/// What Lastro runs on and as.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// One process, SQLite, the embedded bus.
    Embedded,
    /// One process, PostgreSQL, Redis.
    Production,
    /// A process for each replica of each service, behind nginx.
    Stack,
}

/// A mesh that journeys share.
pub struct World {
    /// Where it is reached.
    pub server: Front,
    /// The server of its databases, if that is PostgreSQL.
    pub postgres: Option<String>,
    /// Where its databases are otherwise.
    pub data: PathBuf,
    processes: Processes,
    _folder: tempfile::TempDir,
}

/// Held until the end.
enum Processes {
    One { _server: Server, _stores: Option<(Postgres, Redis, PaymentProvider)> },
    Many(Stack, #[allow(dead_code, reason = "held until the end")] PaymentProvider),
}

impl World {
    /// The stack, for journeys that look at more than its front.
    pub fn stack(&self) -> &Stack {
        match &self.processes {
            Processes::Many(stack, _) => stack,
            Processes::One { .. } => panic!("this journey is for the stack"),
        }
    }

    fn start(kind: Kind) -> Result<Self> {
        let folder = tempfile::tempdir()?;
        let data = folder.path().join("data");
        let (server, postgres, processes) = match kind {
            Kind::Embedded => {
                let server = Server::start(&data, &[])?;
                (server.front(), None, Processes::One { _server: server, _stores: None })
            }
            Kind::Production => {
                let (postgres, redis, provider) = (Postgres::start()?, Redis::start()?, PaymentProvider::start()?);
                let stores = ["--database-url", &postgres.url(), "--redis-url", &redis.url()];
                let server = Server::start(&data, &[&stores[..], &["--payment-provider", &provider.url]].concat())?;
                (server.front(), Some(postgres.url()), Processes::One { _server: server, _stores: Some((postgres, redis, provider)) })
            }
            Kind::Stack => {
                let provider = PaymentProvider::start()?;
                let options = stack::Options { payment_provider: Some(provider.url.clone()), ..stack::Options::default() };
                let stack = Stack::start(options)?;
                (stack.front(), Some(stack.postgres.url()), Processes::Many(stack, provider))
            }
        };
        Ok(Self { server, postgres, data, processes, _folder: folder })
    }
}

/// Started when the first journey needs it, ended when the last one is done.
#[derive(Clone, Default)]
struct Shared(Arc<Mutex<[Option<Arc<World>>; 3]>>);

impl Shared {
    fn world(&self, kind: Kind) -> Result<Arc<World>> {
        let mut worlds = self.0.lock().map_err(|_| anyhow::anyhow!("another journey could not start its world"))?;
        let place = &mut worlds[kind as usize];
        if place.is_none() {
            *place = Some(Arc::new(World::start(kind)?));
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
        for kind in [Kind::Embedded, Kind::Production, Kind::Stack] {
            $($({
                let shared = $shared.clone();
                let name = format!("{}::{}::{}", format!("{kind:?}").to_lowercase(), stringify!($module), stringify!($name));
                trials.push(Trial::test(name, move || {
                    let world = shared.world(kind)?;
                    failed(block_on($module::$name(&world)))
                }));
            })+)+
        }
        trials
    }};
}

/// Logs what runs inside the tests themselves to standard error, where LASTRO_TEST_LOG has a filter such as `warn`.
fn log_if_asked() {
    let filter = std::env::vars().find(|(name, _)| name == "LASTRO_TEST_LOG").map(|(_, filter)| filter);
    if let Some(filter) = filter {
        tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr).init();
    }
}

fn main() {
    log_if_asked();
    let mut arguments = Arguments::from_args();
    // Each journey is many calls to two servers, or to a stack of its own: more at once than cores only makes them wait, and some of them past their deadlines.
    arguments.test_threads = arguments.test_threads.or_else(|| std::thread::available_parallelism().ok().map(std::num::NonZero::get));
    let shared = Shared::default();
    let mut trials = journeys! { shared;
        access: every_method_wants_a_token, every_method_refuses_bad_input, somebody_elses_things_are_not_found;
        accounts: opens_lists_and_reads_accounts, pages_through_accounts, refuses_bad_accounts;
        account_life: accounts_are_changed, accounts_are_closed, closing_and_paying_at_once, accounts_over_grpc, the_edges_of_accounts,
            effective_times;
        batches: each_of_a_batch_has_its_result, an_atomic_batch_is_all_or_nothing, a_dry_run_stores_nothing, a_lost_answer_is_looked_up,
            batches_over_grpc;
        holds: holds_are_captured, who_may_capture_and_void, holds_run_out, one_of_many_resolves_a_hold, a_closed_destination_keeps_the_hold,
            bad_holds_are_named, holds_over_grpc;
        legs: legs_are_judged_in_order_and_posted_together, exchanges_between_currencies, a_payroll_shows_nobody_anothers_pay, bad_legs_are_named,
            legs_over_grpc;
        provider_events: a_provider_settles_deposits, events_may_come_first, who_reports_what, news_reaches_whoever_waits,
            provider_events_over_grpc, reports_stay_as_they_were;
        reversals: transactions_are_reversed, a_rejected_reversal_may_be_followed, legs_and_the_outside_world_are_reversed, reversals_over_grpc;
        rules: rules_are_judged_in_their_order, the_outside_world_is_nobodys_to_name, what_is_not_settled_yet,
            what_gets_no_locks_is_told_so, a_dry_run_of_what_was_done, batches_are_bounded;
        grpc: moves_money_over_grpc, errors_carry_details, serves_health_and_reflection, what_is_not_grpc_is_told, grpc_web_works, gzip_is_taken, internal_methods_are_not_served;
        idempotency: same_key_same_body, same_key_other_body, same_key_from_fifty_callers, keys_are_per_caller, key_in_header;
        inventory: products_are_added_and_changed, bad_products_are_named, stock_is_adjusted, reservations_keep_pieces, bad_reservations_are_named,
            the_past_is_there, inventory_over_grpc;
        ledger: the_ledger_adds_up;
        meaning: every_route_has_one_channel, every_method_has_one_caller_and_one_deadline, every_method_bounds_its_message,
            every_route_bounds_its_body, what_stands_beside_a_transfer_changes_nothing,
            a_key_is_honoured_wherever_something_is_created, pages_end_by_bytes;
        orders: an_order_is_carried_out, orders_that_cannot_be_carried_out, an_order_is_placed_once, many_orders_for_few_pieces, orders_are_cancelled,
            an_undo_that_fails_is_resumed, bad_orders_are_named, who_sees_an_order, orders_over_grpc;
        order_reads: orders_are_read_back, orders_are_found_by_words, orders_are_counted_and_sales_are_told, bad_reads_of_orders_are_named;
        payments: an_account_pays_and_gets_back, a_card_pays, cards_get_back, who_may_refund, fifty_refunds_at_once, several_payments_of_one_order,
            bad_payments_are_named, payments_over_grpc;
        poison: one_bad_member_of_a_batch_is_parked;
        reports: days_begin_and_end_in_the_ledgers_time_zone, what_is_backdated_counts_from_its_day_on, balances_are_their_owners,
            what_is_cached_is_what_is_there,
            a_statement_runs_in_the_order_in_which_entries_count, transactions_are_counted, a_read_sees_what_its_caller_has_written,
            tables_for_spreadsheets, bad_reports_are_named, reports_over_grpc;
        replay: reports_are_made_anew_while_they_are_read, reports_are_what_the_ledger_has;
        rest: problems_and_statuses, limits_of_the_edge, texts_and_nulls, cross_origin_requests, openapi_and_reference;
        sessions: refresh_rotates, reused_refresh_token_ends_the_session, the_last_traded_refresh_token_may_come_again,
            a_token_that_was_never_given_ends_nothing, attempts_are_counted_before_they_are_made, a_user_with_40000_sessions_can_be_disabled,
            the_oldest_session_goes, no_revocation_is_forgotten, logout_is_dead_everywhere, password_change_ends_sessions, logins_are_throttled;
        streams: a_stream_ends_with_its_transaction, changes_come_as_they_happen;
        tokens: forged_and_stale_tokens_are_refused;
        transfers: deposit_transfer_withdraw, lacking_funds_is_an_answer, a_hundred_withdrawals_one_wins, amounts_that_are_none, waits,
            histories_and_events, lists_are_filtered, what_others_may_see;
        users: registers_and_reads, validates, administrators_manage_users, the_last_administrator_stays, a_deleted_user_is_anonymous,
            registering_is_idempotent_by_key;
    };
    trials.extend(edge::trials({
        let shared = shared.clone();
        move || shared.world(Kind::Stack)
    }));
    trials.extend(reservations::trials({
        let shared = shared.clone();
        move || shared.world(Kind::Stack)
    }));
    trials.extend(order_payments::trials({
        let shared = shared.clone();
        move || shared.world(Kind::Stack)
    }));
    trials.extend(stock_sequences::trials());
    trials.push(Trial::test("grpc::web_from_another_origin", || failed(block_on(grpc::grpc_web_from_another_origin()))));
    trials.extend(ha::trials());
    trials.extend(traces::trials());
    trials.extend(bus::trials());
    trials.extend(pipelined::trials());
    trials.extend(abuse::trials());
    trials.extend(payments::trials());
    trials.extend(cards::trials());
    trials.extend(order_providers::trials());
    trials.extend(broken_sagas::trials());
    trials.extend(pipeline::trials());
    trials.extend(revocations::trials());
    trials.extend(stores::trials());
    trials.extend(streams::trials());
    trials.extend(projections::trials());
    trials.extend(replay::trials());
    trials.extend(reports::trials());
    trials.extend(demo::trials());
    trials.extend(cli::trials());
    for kind in [Kind::Embedded, Kind::Stack] {
        let shared = shared.clone();
        trials.extend(clients::trials(kind, move || shared.world(kind)));
    }
    trials.extend(faults::trials());
    trials.extend(readers::trials());
    trials.extend(model::trials());
    trials.extend(histories::trials());
    trials.extend(providers::trials());
    each_long_suite_is_filtered_alone(&trials);
    let conclusion = libtest_mimic::run(&arguments, trials);
    // Ends the servers, which `exit` would not.
    drop(shared);
    conclusion.exit();
}

/// A long suite is run by the name of its module, and a filter is any part of a name: no such module may be called as another one ends, or both would run.
fn each_long_suite_is_filtered_alone(trials: &[Trial]) {
    let modules: BTreeSet<&str> =
        trials.iter().filter(|trial| trial.has_ignored_flag()).filter_map(|trial| trial.name().split("::").next()).collect();
    for module in &modules {
        let others: Vec<&&str> = modules.iter().filter(|other| *other != module && other.ends_with(module)).collect();
        assert!(others.is_empty(), "the filter {module}:: of the Makefile would run {others:?} too; call them otherwise");
    }
}
