//! `/auth` and the public keys.

use lastro_mesh::outbound::Outbound;
use lastro_proto::customers::v1::auth_service_client::AuthServiceClient;
use lastro_proto::customers::v1::{AuthService, GetJwksRequest, Jwks, LoginRequest, LogoutRequest, LogoutResponse, RefreshRequest, TokenResponse};
use rest_over_grpc::handling::{self, Context};

use super::hand_on;

#[derive(Clone)]
pub struct Auth(pub AuthServiceClient<Outbound>);

impl AuthService for Auth {
    hand_on! {
        login: LoginRequest => TokenResponse;
        refresh: RefreshRequest => TokenResponse;
        logout: LogoutRequest => LogoutResponse;
        get_jwks: GetJwksRequest => Jwks;
    }
}
