//! `lastro verify`: whether what a service tells is what the ledger has. It only reads, and works while everything runs.

use anyhow::{Context as _, Result, bail, ensure};
use lastro_database::{Database, Error};
use lastro_reports::verify::{Ledger, LedgerAccount, LedgerPosting, PAGE, Verifier};
use lastro_transactions::audit;
use uuid::Uuid;

use crate::cli::VerifyCommand;
use crate::print;
use crate::replay::open_there;

/// Accounts that are read at once.
const ACCOUNTS: u32 = 1_000;
/// Differences that are printed.
const PRINTED_MAX: usize = 100;

struct OfTransactions(Database);

impl Ledger for OfTransactions {
    async fn postings(&self, account_id: Uuid, after: i64, up_to: i64) -> Result<Vec<LedgerPosting>, Error> {
        let posting = |posting: audit::LedgerPosting| LedgerPosting {
            account_version: posting.account_version,
            transaction_id: posting.operation_id,
            amount: posting.amount,
            balance: posting.balance,
            record_us: posting.recorded_us,
            effective_us: posting.effective_us,
        };
        Ok(audit::postings(&self.0, account_id, after, up_to, PAGE).await?.into_iter().map(posting).collect())
    }
}

/// Compares, and fails where anything differs.
pub async fn verify(command: VerifyCommand) -> Result<()> {
    let VerifyCommand::Reports { data, database } = command;
    let (reports, transactions) = match database.url()? {
        Some(url) => {
            let open = |name: &str| Database::connect_postgres(&url, name, 4).with_context(|| format!("the database {name} cannot be opened"));
            (open(&lastro_reports::SERVICE.database_name())?, open(&lastro_transactions::SERVICE.database_name())?)
        }
        None => (open_there(&data, lastro_reports::NAME).await?, open_there(&data, lastro_transactions::NAME).await?),
    };
    let verifier = Verifier::open(&reports).await.context("the database of reports cannot be read")?;
    let ledger = OfTransactions(transactions.clone());
    let (mut accounts, mut postings, mut days, mut behind, mut to_come) = (0, 0, 0, 0, 0);
    let (mut differences, mut after) = (0, Uuid::nil());
    loop {
        let page = audit::accounts(&transactions, after, ACCOUNTS).await.context("the ledger cannot be read")?;
        let Some(last) = page.last() else { break };
        after = last.id;
        for account in page {
            let account =
                LedgerAccount { id: account.id, owner_id: account.owner_id, currency_code: account.currency_code, version: account.version };
            let found =
                verifier.check(&account, &ledger).await.with_context(|| format!("account {} cannot be compared now; run this again", account.id))?;
            accounts += 1;
            postings += found.postings;
            days += found.days;
            behind += u64::from(found.to_come > 0);
            to_come += found.to_come;
            for difference in found.differences {
                differences += 1;
                if differences <= PRINTED_MAX {
                    print::line(difference);
                }
            }
        }
    }
    let (dead, is_of_these_tables) = (verifier.dead_letters().await?, verifier.is_of_these_tables().await?);
    reports.close().await;
    transactions.close().await;
    ensure!(is_of_these_tables, "reports were made anew meanwhile; run this again");
    if differences > PRINTED_MAX {
        print::line(format!("and {} more", differences - PRINTED_MAX));
    }
    print::line(format!("{accounts} accounts, {postings} postings, {days} days of accounts compared"));
    if to_come > 0 {
        print::line(format!("{to_come} postings of {behind} accounts have not come yet"));
    }
    if differences > 0 {
        bail!("reports differ from the ledger in {differences} places; `lastro replay reports` makes them anew");
    }
    if dead > 0 {
        bail!("{dead} events could not be applied, and what they tell is missing; `lastro dead-letters list --service reports` names them");
    }
    ensure!(accounts > 0, "the ledger has no account; check --data or --database-url");
    print::line("reports are what the ledger has");
    Ok(())
}
