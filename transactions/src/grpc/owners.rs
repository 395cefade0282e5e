//! `lastro.internal.transactions.v1.OwnersService`.

use std::sync::Arc;

use lastro_mesh::call::Call;
use lastro_proto::internal::transactions::v1::owners_service_server::OwnersService;
use lastro_proto::internal::transactions::v1::{CloseAccountsRequest, CloseAccountsResponse};
use tonic::{Request, Response, Status};

use crate::app::App;
use crate::app::close_accounts::close_accounts;

pub struct Owners(pub Arc<App>);

#[tonic::async_trait]
impl OwnersService for Owners {
    async fn close_accounts(&self, request: Request<CloseAccountsRequest>) -> Result<Response<CloseAccountsResponse>, Status> {
        close_accounts(&self.0, Call::of(&request)?, &request.get_ref().user_id).await?;
        Ok(Response::new(CloseAccountsResponse {}))
    }
}
