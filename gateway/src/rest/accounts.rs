//! `/accounts`.

use http::StatusCode;
use lastro_mesh::outbound::Outbound;
use lastro_proto::transactions::v1::accounts_service_client::AccountsServiceClient;
use lastro_proto::transactions::v1::{Account, AccountsService, CreateAccountRequest, GetAccountRequest, ListAccountsRequest, ListAccountsResponse};
use rest_over_grpc::handling::{self, Context};

use super::{TIMEOUT, answer, call, hand_on, idempotency, request, set_location, set_status};

#[derive(Clone)]
pub struct Accounts(pub AccountsServiceClient<Outbound>);

impl AccountsService for Accounts {
    hand_on! {
        get_account: GetAccountRequest => Account;
        list_accounts: ListAccountsRequest => ListAccountsResponse;
    }

    async fn create_account(&self, mut message: CreateAccountRequest, cx: &mut Context) -> Result<Account, handling::Status> {
        idempotency::apply(&mut message.external_id, cx.request_headers())?;
        let call = call(cx.request_headers(), TIMEOUT);
        let account = answer(self.0.clone().create_account(request(&call, message)).await)?;
        set_status(cx, if account.replayed { StatusCode::OK } else { StatusCode::CREATED });
        set_location(cx, "accounts", &account.id);
        Ok(account)
    }
}
