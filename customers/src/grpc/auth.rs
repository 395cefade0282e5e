//! `lastro.customers.v1.AuthService`.

use std::sync::Arc;

use lastro_mesh::call::Call;
use lastro_proto::customers::v1::auth_service_server::AuthService;
use lastro_proto::customers::v1::{GetJwksRequest, Jwks, LoginRequest, LogoutRequest, LogoutResponse, RefreshRequest, TokenResponse};
use tonic::{Request, Response, Status};

use crate::app::App;
use crate::app::get_jwks::get_jwks;
use crate::app::login::login;
use crate::app::logout::logout;
use crate::app::refresh::refresh;

pub struct Auth(pub Arc<App>);

#[tonic::async_trait]
impl AuthService for Auth {
    async fn login(&self, request: Request<LoginRequest>) -> Result<Response<TokenResponse>, Status> {
        let call = Call::of(&request)?.clone();
        Ok(Response::new(login(&self.0, &call, request.into_inner()).await?))
    }

    async fn refresh(&self, request: Request<RefreshRequest>) -> Result<Response<TokenResponse>, Status> {
        // Spawned: a caller that leaves must not undo a trade whose new token it never saw.
        let (app, call) = (self.0.clone(), Call::of(&request)?.clone());
        let traded = tokio::spawn(async move { refresh(&app, &call, request.get_ref()).await }).await;
        Ok(Response::new(traded.map_err(|_| Status::internal("internal error"))??))
    }

    async fn logout(&self, request: Request<LogoutRequest>) -> Result<Response<LogoutResponse>, Status> {
        let call = Call::of(&request)?;
        logout(&self.0, call, call.user()?).await?;
        Ok(Response::new(LogoutResponse {}))
    }

    async fn get_jwks(&self, _: Request<GetJwksRequest>) -> Result<Response<Jwks>, Status> {
        Ok(Response::new(get_jwks(&self.0).await?))
    }
}
