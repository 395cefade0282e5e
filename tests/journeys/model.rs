//! Everything that money does, against a model: random sequences of every operation over the public surface, with crashes in between, and after each the
//! answer, every balance and every state compared with a small ledger in memory. Ignored in a plain run: `make test-model`. LASTRO_MODEL_CASES says how many
//! sequences, LASTRO_MODEL_SEED which.

mod compare;
mod ledger;
mod payments;
mod player;
mod steps;

use anyhow::{Context as _, Result};
use lastro_mesh::clock;
use lastro_tests::{Postgres, Server};
use libtest_mimic::Trial;
use proptest::test_runner::{Config, RngAlgorithm, TestCaseError, TestError, TestRng, TestRunner};

use self::player::Player;
use self::steps::{Step, step};
use crate::{block_on, failed};

pub fn trials() -> Vec<Trial> {
    let trial = |name: &str, test: fn() -> Result<()>| Trial::test(format!("model::{name}"), move || failed(test())).with_ignored_flag(true);
    vec![trial("on_sqlite", || run(None)), trial("on_postgresql", || run(Some(Postgres::start()?)))]
}

fn setting(name: &str) -> Option<u64> {
    std::env::vars().find(|(key, _)| key == name).and_then(|(_, value)| value.parse().ok())
}

/// Steps of one sequence.
const STEPS: usize = 60;

fn run(postgres: Option<Postgres>) -> Result<()> {
    let now = clock::now_s().unsigned_abs();
    let (seed, cases) = (setting("LASTRO_MODEL_SEED").unwrap_or(now), setting("LASTRO_MODEL_CASES").unwrap_or(40));
    let where_ = if postgres.is_some() { "PostgreSQL" } else { "SQLite" };
    eprintln!("model on {where_}: LASTRO_MODEL_SEED={seed}, {cases} sequences of {STEPS} steps");
    let folder = tempfile::tempdir()?;
    let url = postgres.as_ref().map(Postgres::url);
    let flags: Vec<&str> = url.iter().flat_map(|url| ["--database-url", url.as_str()]).chain(["--payment-provider", "sandbox"]).collect();
    let world = std::cell::RefCell::new(Some(Server::start(&folder.path().join("data"), &flags)?));
    let mut bytes = [0; 32];
    bytes[..8].copy_from_slice(&seed.to_be_bytes());
    let config = Config { cases: u32::try_from(cases)?, max_shrink_iters: 60, failure_persistence: None, ..Config::default() };
    let mut runner = TestRunner::new_with_rng(config, TestRng::from_seed(RngAlgorithm::ChaCha, &bytes));
    let counts = std::cell::RefCell::new(std::collections::BTreeMap::<String, u32>::new());
    let outcome = runner.run(&proptest::collection::vec(step(), STEPS), |steps| {
        let server = world.borrow_mut().take().ok_or_else(|| TestCaseError::fail("no server"))?;
        let (server, done) = block_on(play(server, &flags, &steps, &counts));
        *world.borrow_mut() = Some(server);
        done.map_err(|error| TestCaseError::fail(format!("{error:#}")))
    });
    eprintln!("model on {where_}: {:?}", counts.borrow());
    match outcome {
        Ok(()) => {}
        Err(TestError::Fail(why, steps)) => anyhow::bail!("LASTRO_MODEL_SEED={seed}: {why}\nby {steps:#?}"),
        Err(abort) => anyhow::bail!("{abort}"),
    }
    let server = world.into_inner().context("a server")?;
    block_on(async {
        let stored = crate::ledger::Ledger::open(url.as_deref(), &server.data).await?;
        stored.check().await?;
        stored.check_chains(500).await
    })
}

/// A sequence over accounts of its own. The server is given back, or another one in its place.
async fn play(
    server: Server,
    flags: &[&str],
    steps: &[Step],
    counts: &std::cell::RefCell<std::collections::BTreeMap<String, u32>>,
) -> (Server, Result<()>) {
    let mut player = match Player::new(server, flags).await {
        Ok(player) => player,
        Err((server, error)) => return (server, Err(error)),
    };
    // All but two begin with some money: those two may be closed.
    for to in [0, 1, 3, 4, 6] {
        if let Err(error) = player.step(&Step::Deposit { to, amount: 9000 }).await {
            return (player.server, Err(error));
        }
    }
    for (number, step) in steps.iter().enumerate() {
        let name = format!("{step:?}").split([' ', '(', '{']).next().unwrap_or_default().to_owned();
        *counts.borrow_mut().entry(name).or_default() += 1;
        if let Err(error) = player.step(step).await {
            let error = error.context(format!("step {number}, {step:?}"));
            return (player.server, Err(error));
        }
    }
    let compared = player.compare().await;
    for transaction in &player.ledger.transactions {
        let state = format!("{:?}", transaction.state).split(' ').next().unwrap_or_default().to_owned();
        *counts.borrow_mut().entry(format!("= {state}")).or_default() += 1;
    }
    (player.server, compared)
}
