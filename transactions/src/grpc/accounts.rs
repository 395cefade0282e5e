//! `lastro.transactions.v1.AccountsService`.

use std::sync::Arc;

use lastro_mesh::call::Call;
use lastro_mesh::page::Page;
use lastro_proto::time::timestamp;
use lastro_proto::transactions::v1::accounts_service_server::AccountsService;
use lastro_proto::transactions::v1::{Account, CreateAccountRequest, GetAccountRequest, ListAccountsRequest, ListAccountsResponse};
use tonic::{Request, Response, Status};

use super::money;
use crate::app::App;
use crate::app::create_account::create_account;
use crate::app::get_account::get_account;
use crate::app::list_accounts::list_accounts;
use crate::store::accounts::AccountWithBalance;

pub struct Accounts(pub Arc<App>);

#[tonic::async_trait]
impl AccountsService for Accounts {
    async fn create_account(&self, request: Request<CreateAccountRequest>) -> Result<Response<Account>, Status> {
        let call = Call::of(&request)?.clone();
        let opened = create_account(&self.0, &call, call.user()?, request.into_inner()).await?;
        Ok(Response::new(Account { replayed: opened.replayed, ..wire(opened.account) }))
    }

    async fn get_account(&self, request: Request<GetAccountRequest>) -> Result<Response<Account>, Status> {
        let caller = Call::of(&request)?.user()?;
        let account = get_account(&self.0, caller, &request.get_ref().id).await?;
        Ok(Response::new(wire(account)))
    }

    async fn list_accounts(&self, request: Request<ListAccountsRequest>) -> Result<Response<ListAccountsResponse>, Status> {
        let (call, message) = (Call::of(&request)?, request.get_ref());
        let caller = call.user()?;
        let page = Page::read(message.page_size, &message.page_token)?;
        let _turn = self.0.list_turn(call, caller.id, page, false).await?;
        let (accounts, next_page_token) = list_accounts(&self.0, caller, message.owner_id.as_deref(), page).await?;
        Ok(Response::new(ListAccountsResponse { accounts: accounts.into_iter().map(wire).collect(), next_page_token }))
    }
}

fn wire(found: AccountWithBalance) -> Account {
    let AccountWithBalance { account, posted, held } = found;
    Account {
        id: account.id.to_string(),
        owner_id: account.owner_id.to_string(),
        currency_code: account.currency.code().to_owned(),
        display_name: account.display_name,
        posted: money(posted, account.currency),
        held: money(held, account.currency),
        // Saturating only where a clearing account is at the edge of 64 bits; an account with a floor never is.
        available: money(posted.saturating_sub(held), account.currency),
        create_time: Some(timestamp(account.create_time_us)),
        replayed: false,
    }
}
