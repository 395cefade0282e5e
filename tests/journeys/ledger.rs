//! The ledger itself, read past the API: what must hold whatever happened.

use anyhow::{Context as _, Result};
use lastro_database::{Database, all};
use lastro_events::EventStore;
use lastro_events::event::broken_link;
use sea_orm::FromQueryResult;
use uuid::Uuid;

use crate::World;

const EVENTS: EventStore = EventStore { table: "operation_events", topic: "transactions", message: "lastro.transactions.events.v1.OperationEvent" };

/// The databases of a server.
pub struct Ledger {
    pub transactions: Database,
    pub customers: Database,
}

#[derive(FromQueryResult)]
struct Count {
    count: i64,
}

#[derive(FromQueryResult)]
struct Id {
    id: Uuid,
}

#[derive(FromQueryResult)]
struct Key {
    private_key: Vec<u8>,
    public_key: String,
}

impl Ledger {
    pub async fn of(world: &World) -> Result<Self> {
        Self::open(world.postgres.as_deref(), &world.data).await
    }

    /// On PostgreSQL where there is a URL, else in the data folder.
    pub async fn open(url: Option<&str>, data: &std::path::Path) -> Result<Self> {
        let open = async |service: &str| match url {
            Some(url) => anyhow::Ok(Database::open_postgres(&url.parse()?, &format!("lastro_{service}"), 4).await?),
            None => Ok(Database::open_sqlite(&data.join(format!("{service}.db"))).await?),
        };
        Ok(Self { transactions: open("transactions").await?, customers: open("customers").await? })
    }

    pub async fn signing_key(&self) -> Result<(Vec<u8>, String)> {
        let keys: Vec<Key> = all(self.customers.reader(), "SELECT private_key, public_key FROM signing_keys", []).await?;
        keys.into_iter().next().map(|key| (key.private_key, key.public_key)).context("a signing key")
    }

    pub async fn count(&self, sql: &str) -> Result<i64> {
        let rows: Vec<Count> = all(self.transactions.writer(), sql, []).await?;
        Ok(rows.first().context("a count")?.count)
    }

    /// What has been refunded of each leg of a payment is the sum of what its refunds take of it, and never more than it got.
    async fn check_refunds(&self) -> Result<()> {
        #[derive(FromQueryResult)]
        struct Refunded {
            payment_id: Uuid,
            state: i64,
            refunded: Option<Vec<u8>>,
        }
        let minors = |bytes: &[u8]| -> Vec<i64> { bytes.as_chunks::<8>().0.iter().map(|minor| i64::from_be_bytes(*minor)).collect() };
        let sql = "SELECT coalesce(original_id, id) AS payment_id, CASE WHEN kind = 4 THEN 0 ELSE state END AS state, refunded FROM operations WHERE kind IN (4, 5)";
        let rows: Vec<Refunded> = all(self.transactions.writer(), sql, []).await?;
        let mut sums: std::collections::HashMap<Uuid, (Vec<i64>, Vec<i64>)> = std::collections::HashMap::new();
        for row in rows {
            let (of_payment, of_refunds) = sums.entry(row.payment_id).or_default();
            let parts = minors(&row.refunded.unwrap_or_default());
            match row.state {
                0 => *of_payment = parts,
                // AUTHORIZED and COMPLETED: the others give nothing back.
                3 | 4 => {
                    of_refunds.resize(parts.len(), 0);
                    of_refunds.iter_mut().zip(&parts).for_each(|(sum, part)| *sum += part);
                }
                _ => {}
            }
        }
        for (payment_id, (mut of_payment, of_refunds)) in sums {
            if of_refunds.is_empty() {
                of_payment.retain(|part| *part != 0);
            }
            anyhow::ensure!(of_payment == of_refunds, "of {payment_id} {of_payment:?} is refunded, and its refunds take {of_refunds:?}");
        }
        Ok(())
    }

    /// Every invariant, over everything that is there.
    pub async fn check(&self) -> Result<()> {
        let none = [
            (
                "per operation and currency the postings sum to zero",
                "SELECT count(*) AS count FROM (SELECT p.operation_id FROM postings p JOIN accounts a ON a.id = p.account_id \
                 GROUP BY p.operation_id, a.currency_code HAVING sum(p.amount) <> 0) AS x",
            ),
            (
                "per currency the ledger sums to zero",
                "SELECT count(*) AS count FROM (SELECT a.currency_code FROM balances b JOIN accounts a ON a.id = b.account_id GROUP BY a.currency_code HAVING sum(b.posted) <> 0) AS x",
            ),
            (
                "each balance is the sum of its postings, and its version their number",
                "SELECT count(*) AS count FROM balances b LEFT JOIN (SELECT account_id, sum(amount) AS total, count(*) AS lines, max(account_version) AS last \
                 FROM postings GROUP BY account_id) AS p ON p.account_id = b.account_id \
                 WHERE b.posted <> coalesce(p.total, 0) OR b.version <> coalesce(p.lines, 0) OR b.version <> coalesce(p.last, 0)",
            ),
            ("nobody is below its floor", "SELECT count(*) AS count FROM balances WHERE NOT system AND posted - held < floor"),
            (
                "no floor is below what the credit limit allows, unless the account is",
                "SELECT count(*) AS count FROM balances WHERE floor < -credit_limit AND floor < posted - held",
            ),
            (
                "what is held is held by holds: here those of a single leg, on accounts that no hold of legs names",
                "SELECT count(*) AS count FROM balances b WHERE b.held <> coalesce((SELECT sum(o.amount) FROM operations o WHERE o.state = 3 \
                 AND o.legs IS NULL AND o.source_account_id = b.account_id), 0) AND NOT EXISTS (SELECT 1 FROM operation_parties p \
                 JOIN operations l ON l.id = p.operation_id WHERE p.party_id = b.account_id AND l.state = 3)",
            ),
            (
                "record times increase strictly per account",
                "SELECT count(*) AS count FROM postings p JOIN postings q ON q.account_id = p.account_id AND q.account_version = p.account_version + 1 \
                 WHERE q.recorded_us <= p.recorded_us",
            ),
            (
                "every completed operation has two postings a leg, every other one none",
                "SELECT count(*) AS count FROM operations o LEFT JOIN (SELECT operation_id, count(*) AS lines FROM postings GROUP BY operation_id) AS p \
                 ON p.operation_id = o.id WHERE coalesce(p.lines, 0) <> CASE WHEN o.state = 4 THEN coalesce(length(o.balances_after) / 8, 2) ELSE 0 END",
            ),
            (
                "an operation and its reversal name each other, unless that was rejected",
                "SELECT count(*) AS count FROM operations o JOIN operations r ON r.original_id = o.id AND r.kind = 6 \
                 WHERE (r.state <> 5) <> (coalesce(o.reversal_id, o.id) = r.id)",
            ),
            (
                "what is refunded is a completed payment",
                "SELECT count(*) AS count FROM operations r LEFT JOIN operations o ON o.id = r.original_id AND o.kind = 4 AND o.state = 4 \
                 WHERE r.kind = 5 AND o.id IS NULL",
            ),
            (
                "a provider is asked for what is under way",
                "SELECT count(*) AS count FROM operations o LEFT JOIN provider_calls c ON c.operation_id = o.id AND c.state = 0 \
                 WHERE (o.kind = 4 AND o.state = 8 OR o.kind = 5 AND o.state = 3) AND c.operation_id IS NULL",
            ),
            (
                "a report of a provider that was applied is of its transaction",
                "SELECT count(*) AS count FROM provider_events e JOIN operations o ON o.id = e.operation_id \
                 WHERE o.owner_id <> e.provider_id OR o.external_id <> e.external_id OR o.state NOT IN (4, 5) AND e.outcome = 1 AND e.kind <> 1",
            ),
            (
                "an operation is at the version of its last event",
                "SELECT count(*) AS count FROM operations o WHERE o.version <> (SELECT max(version) FROM operation_events e WHERE e.aggregate_id = o.id)",
            ),
            (
                "every event belongs to an operation",
                "SELECT count(*) AS count FROM operation_events e LEFT JOIN operations o ON o.id = e.aggregate_id WHERE o.id IS NULL",
            ),
        ];
        for (rule, sql) in none {
            anyhow::ensure!(self.count(sql).await? == 0, "{rule}: broken");
        }
        self.check_refunds().await?;
        Ok(())
    }

    /// What happened to something, oldest first.
    pub async fn event_kinds(&self, table: &str, aggregate_id: Uuid) -> Result<Vec<String>> {
        #[derive(FromQueryResult)]
        struct Kind {
            kind: String,
        }
        let sql = format!("SELECT kind FROM {table} WHERE aggregate_id = $1 ORDER BY version");
        let kinds: Vec<Kind> = all(self.transactions.reader(), &sql, [aggregate_id.into()]).await?;
        Ok(kinds.into_iter().map(|row| row.kind).collect())
    }

    /// Changes something by hand, and takes it back again; whether the database allows it.
    pub async fn try_write(&self, sql: &str, id: Uuid) -> Result<()> {
        let tx = self.transactions.begin().await?;
        let written = lastro_database::execute(&tx, sql, [id.into()]).await;
        tx.rollback().await?;
        written?;
        Ok(())
    }

    /// Brings an operation into another state by hand.
    pub async fn set_state(&self, id: Uuid, state: i64) -> Result<()> {
        let tx = self.transactions.begin().await?;
        lastro_database::execute(&tx, "UPDATE operations SET state = $2 WHERE id = $1", [id.into(), state.into()]).await?;
        tx.commit().await?;
        Ok(())
    }

    /// Gives an account another balance by hand.
    pub async fn set_posted(&self, id: Uuid, posted: i64) -> Result<()> {
        let tx = self.transactions.begin().await?;
        lastro_database::execute(&tx, "UPDATE balances SET posted = $2 WHERE account_id = $1", [id.into(), posted.into()]).await?;
        tx.commit().await?;
        Ok(())
    }

    /// Locks the balance of an account, until the transaction ends. On PostgreSQL.
    pub async fn lock_balance(&self, id: Uuid) -> Result<lastro_database::Transaction> {
        let tx = self.transactions.begin().await?;
        // The tests wait longer than a session of a service may.
        lastro_database::execute(&tx, "SET LOCAL idle_in_transaction_session_timeout = 0", []).await?;
        lastro_database::execute(&tx, "SELECT 1 FROM balances WHERE account_id = $1 FOR UPDATE", [id.into()]).await?;
        Ok(tx)
    }

    /// Closes an account by hand, whatever names it.
    pub async fn close_account(&self, id: Uuid) -> Result<()> {
        let tx = self.transactions.begin().await?;
        lastro_database::execute(&tx, "UPDATE balances SET closed = $2 WHERE account_id = $1", [id.into(), true.into()]).await?;
        tx.commit().await?;
        Ok(())
    }

    /// The hash chain of every operation, up to `limit` of them.
    pub async fn check_chains(&self, limit: u32) -> Result<()> {
        let operations: Vec<Id> = all(self.transactions.reader(), &format!("SELECT id FROM operations ORDER BY id DESC LIMIT {limit}"), []).await?;
        for operation in operations {
            let stream = EVENTS.stream(&self.transactions, operation.id).await?;
            anyhow::ensure!(broken_link(&stream).is_none(), "the chain of {} is broken", operation.id);
        }
        Ok(())
    }
}

pub async fn the_ledger_adds_up(world: &World) -> Result<()> {
    let (api, administrator) = (world.server.api(), world.server.administrator().await?);
    let someone = api.someone().await?;
    let accounts = [api.account(&someone.token, "BRL").await?, api.account(&someone.token, "BRL").await?];
    api.deposit(&administrator, &accounts[0], "BRL", "100.00").await?;
    let transfers = (0..200).map(|number| {
        let (api, token) = (api.clone(), someone.token.clone());
        let (from, to) = (&accounts[number % 2], &accounts[(number + 1) % 2]);
        let body = lastro_tests::Api::transfer(&format!("t{number}"), from, to, &format!("{}.{:02}", number % 7, number % 99 + 1));
        async move { api.transact(&token, body).await }
    });
    for answer in futures_util::future::join_all(transfers).await {
        let answer = answer?;
        assert_eq!(answer.status, 201, "{answer:?}");
    }
    let ledger = Ledger::of(world).await?;
    ledger.check().await?;
    ledger.check_chains(300).await
}
