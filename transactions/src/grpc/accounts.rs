//! `lastro.transactions.v1.AccountsService`.

use std::sync::Arc;

use lastro_mesh::call::Call;
use lastro_mesh::page::Page;
use lastro_money::Minor;
use lastro_proto::time::timestamp;
use lastro_proto::transactions::v1::account::State;
use lastro_proto::transactions::v1::accounts_service_server::AccountsService;
use lastro_proto::transactions::v1::{
    Account, CloseAccountRequest, CreateAccountRequest, GetAccountRequest, ListAccountsRequest, ListAccountsResponse, UpdateAccountRequest,
};
use tonic::{Request, Response, Status};

use super::{fresh, money};
use crate::app::App;
use crate::app::close_account::close_account;
use crate::app::create_account::create_account;
use crate::app::get_account::get_account;
use crate::app::list_accounts::list_accounts;
use crate::app::update_account::update_account;
use crate::store::accounts::AccountWithBalance;

pub struct Accounts(pub Arc<App>);

#[tonic::async_trait]
impl AccountsService for Accounts {
    async fn create_account(&self, request: Request<CreateAccountRequest>) -> Result<Response<Account>, Status> {
        let call = Call::of(&request)?.clone();
        let opened = create_account(&self.0, &call, call.user()?, request.into_inner()).await?;
        let id = opened.account.account.id;
        // That it was opened is its first event, and all of it that others show.
        Ok(fresh::of_account(Account { replayed: opened.replayed, ..wire(opened.account) }, id, 1))
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

    async fn update_account(&self, request: Request<UpdateAccountRequest>) -> Result<Response<Account>, Status> {
        let call = Call::of(&request)?.clone();
        let account = update_account(&self.0, &call, call.user()?, request.into_inner()).await?;
        Ok(Response::new(wire(account)))
    }

    async fn close_account(&self, request: Request<CloseAccountRequest>) -> Result<Response<Account>, Status> {
        let call = Call::of(&request)?;
        let account = close_account(&self.0, call, call.user()?, &request.get_ref().id).await?;
        Ok(Response::new(wire(account)))
    }
}

fn wire(found: AccountWithBalance) -> Account {
    let AccountWithBalance { account, display_name, posted, held, credit_limit, frozen, closed } = found;
    let state = match (closed, frozen) {
        (true, _) => State::Closed,
        (false, true) => State::Frozen,
        (false, false) => State::Open,
    };
    Account {
        id: account.id.to_string(),
        owner_id: account.owner_id.to_string(),
        currency_code: account.currency.code().to_owned(),
        display_name,
        posted: money(posted, account.currency),
        held: money(held, account.currency),
        available: money(available(posted, held, credit_limit), account.currency),
        create_time: Some(timestamp(account.create_time_us)),
        replayed: false,
        credit_limit: money(credit_limit, account.currency),
        state: state as i32,
    }
}

/// At the edge of 64 bits it stays there: a clearing account may come close to it, and one with a credit limit and as much money.
fn available(posted: Minor, held: Minor, credit_limit: Minor) -> Minor {
    let net = posted.saturating_sub(held);
    net.checked_add(credit_limit).unwrap_or(Minor::MAX)
}
