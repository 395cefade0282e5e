//! `lastro.internal.customers.v1.IdentityService`.

use std::sync::Arc;

use lastro_proto::internal::customers::v1::identity_service_server::IdentityService;
use lastro_proto::internal::customers::v1::{ConfirmOwnerRequest, ConfirmOwnerResponse, ListRevocationsRequest, ListRevocationsResponse};
use tonic::{Request, Response, Status};

use crate::app::App;
use crate::app::confirm_owner::confirm_owner;
use crate::app::list_revocations::list_revocations;

pub struct Identity(pub Arc<App>);

#[tonic::async_trait]
impl IdentityService for Identity {
    async fn list_revocations(&self, request: Request<ListRevocationsRequest>) -> Result<Response<ListRevocationsResponse>, Status> {
        Ok(Response::new(list_revocations(&self.0, request.get_ref().since).await?))
    }

    async fn confirm_owner(&self, request: Request<ConfirmOwnerRequest>) -> Result<Response<ConfirmOwnerResponse>, Status> {
        let may_own = confirm_owner(&self.0, &request.get_ref().user_id).await?;
        Ok(Response::new(ConfirmOwnerResponse { may_own }))
    }
}
