//! `lastro.internal.transactions.v1.OwnersService`.

use std::sync::Arc;

use lastro_mesh::call::Call;
use lastro_proto::internal::transactions::v1::owners_service_server::OwnersService;
use lastro_proto::internal::transactions::v1::{CloseAccountsRequest, CloseAccountsResponse, ConfirmAccountRequest, ConfirmAccountResponse};
use tonic::{Request, Response, Status};

use crate::app::App;
use crate::app::close_accounts::close_accounts;
use crate::app::confirm_account::{Confirmed, confirm_account};

pub struct Owners(pub Arc<App>);

#[tonic::async_trait]
impl OwnersService for Owners {
    async fn close_accounts(&self, request: Request<CloseAccountsRequest>) -> Result<Response<CloseAccountsResponse>, Status> {
        close_accounts(&self.0, Call::of(&request)?, &request.get_ref().user_id).await?;
        Ok(Response::new(CloseAccountsResponse {}))
    }

    async fn confirm_account(&self, request: Request<ConfirmAccountRequest>) -> Result<Response<ConfirmAccountResponse>, Status> {
        let message = request.get_ref();
        let confirmed = confirm_account(&self.0, &message.account_id, &message.currency_code).await?;
        let Confirmed { exists, is_in_currency, is_closed } = confirmed;
        Ok(Response::new(ConfirmAccountResponse { exists, is_in_currency, is_closed }))
    }
}
