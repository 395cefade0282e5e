//! `lastro.internal.customers.v1.IdentityService`.

use std::sync::Arc;

use lastro_mesh::identity::Revocation;
use lastro_proto::internal::customers::v1::identity_service_server::IdentityService;
use lastro_proto::internal::customers::v1::{
    self as wire, ConfirmOwnerRequest, ConfirmOwnerResponse, ListRevocationsRequest, ListRevocationsResponse,
};
use tonic::{Request, Response, Status};

use crate::app::App;
use crate::app::confirm_owner::confirm_owner;
use crate::app::list_revocations::list_revocations;

pub struct Identity(pub Arc<App>);

#[tonic::async_trait]
impl IdentityService for Identity {
    async fn list_revocations(&self, request: Request<ListRevocationsRequest>) -> Result<Response<ListRevocationsResponse>, Status> {
        let page = list_revocations(&self.0, &request.get_ref().cursor).await?;
        let revocations = page.revocations.into_iter().map(wire).collect();
        Ok(Response::new(ListRevocationsResponse { revocations, cursor: page.cursor, more: page.more }))
    }

    async fn confirm_owner(&self, request: Request<ConfirmOwnerRequest>) -> Result<Response<ConfirmOwnerResponse>, Status> {
        let may_own = confirm_owner(&self.0, &request.get_ref().user_id).await?;
        Ok(Response::new(ConfirmOwnerResponse { may_own }))
    }
}

fn wire(revocation: Revocation) -> wire::Revocation {
    match revocation {
        Revocation::Session { session_id, forget_after_s } => {
            wire::Revocation { session_id: session_id.to_string(), forget_after_s, ..wire::Revocation::default() }
        }
        Revocation::User { user_id, token_version, forget_after_s } => {
            wire::Revocation { user_id: user_id.to_string(), token_version, forget_after_s, ..wire::Revocation::default() }
        }
    }
}
