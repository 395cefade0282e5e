//! Each account has a stream of its own. Accounts that exist get the events that they would have had: opened, and closed where they are. Serves versions
//! from 0.1.0.

use lastro_migrations::{event_table, lift_timeouts};
use lastro_money::Currency;
use lastro_proto::transactions::events::v1::{AccountClosed, AccountOpened, account_event::Event};
use sea_orm_migration::prelude::*;
use sea_orm_migration::sea_orm::FromQueryResult;
use uuid::Uuid;

use crate::store::account_events::{ACCOUNT_EVENTS, Cause, new_event};

#[derive(DeriveMigrationName)]
pub struct Migration;

#[derive(FromQueryResult)]
struct Account {
    id: Uuid,
    owner_id: Uuid,
    currency_code: String,
    system: bool,
    closed: bool,
    create_time_us: i64,
}

const AT_ONCE: usize = 1000;

#[async_trait::async_trait]
impl MigrationTrait for Migration {
    async fn up(&self, manager: &SchemaManager) -> Result<(), DbErr> {
        event_table(manager, ACCOUNT_EVENTS.table).await?;
        lift_timeouts(manager).await?;
        let (on, cause) = (manager.get_connection(), Cause { correlation_id: "migration", event_id: None });
        let failed = |error: lastro_database::Error| DbErr::Migration(error.to_string());
        let mut after = Uuid::nil();
        loop {
            let sql = format!(
                "SELECT a.id, a.owner_id, a.currency_code, a.system, b.closed, a.create_time_us FROM accounts a JOIN balances b ON b.account_id = a.id \
                 WHERE a.id > $1 ORDER BY a.id LIMIT {AT_ONCE}"
            );
            let accounts: Vec<Account> = lastro_database::all(on, &sql, [after.into()]).await.map_err(failed)?;
            let (mut opened, mut closed) = (Vec::with_capacity(accounts.len()), Vec::new());
            for account in &accounts {
                after = account.id;
                if Currency::from_code(&account.currency_code).is_none() {
                    return Err(DbErr::Migration(format!("the account {} has a currency that is none", account.id)));
                }
                let (owner_id, currency_code) = (account.owner_id.to_string(), account.currency_code.clone());
                let event = Event::Opened(AccountOpened { owner_id, currency_code, system: account.system });
                opened.push((account.id, new_event("OPENED", event, cause, account.create_time_us)));
                if account.closed {
                    // When it was is not known any more.
                    closed.push((account.id, new_event("CLOSED", Event::Closed(AccountClosed {}), cause, lastro_mesh::clock::now_us())));
                }
            }
            ACCOUNT_EVENTS.append_all(on, opened).await.map_err(failed)?;
            ACCOUNT_EVENTS.append_all(on, closed).await.map_err(failed)?;
            if accounts.len() < AT_ONCE {
                return Ok(());
            }
        }
    }
}
