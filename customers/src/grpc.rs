//! The services of customers on the wire: unwrap, call one use case, wrap.

mod auth;
mod identity;
mod users;

use std::sync::Arc;

use lastro_proto::customers::v1::auth_service_server::AuthServiceServer;
use lastro_proto::customers::v1::users_service_server::UsersServiceServer;
use lastro_proto::internal::customers::v1::identity_service_server::IdentityServiceServer;
use tonic::service::Routes;

use crate::app::App;

pub fn public_routes(app: &Arc<App>) -> Routes {
    Routes::new(UsersServiceServer::new(users::Users(app.clone()))).add_service(AuthServiceServer::new(auth::Auth(app.clone())))
}

/// As [`public_routes`], with what only services may call.
pub fn all_routes(app: &Arc<App>) -> Routes {
    public_routes(app).add_service(IdentityServiceServer::new(identity::Identity(app.clone())))
}
