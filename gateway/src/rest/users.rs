//! `/users`.

use http::StatusCode;
use lastro_mesh::outbound::Outbound;
use lastro_proto::customers::v1::users_service_client::UsersServiceClient;
use lastro_proto::customers::v1::{
    ChangePasswordRequest, ChangePasswordResponse, CreateUserRequest, DeleteUserRequest, DeleteUserResponse, GetMeRequest, GetUserRequest,
    ListUsersRequest, ListUsersResponse, UpdateUserRequest, User, UsersService,
};
use rest_over_grpc::handling::{self, Context};

use super::{TIMEOUT, answer, call, hand_on, idempotency, request, set_location, set_status};

#[derive(Clone)]
pub struct Users(pub UsersServiceClient<Outbound>);

impl UsersService for Users {
    hand_on! {
        get_me: GetMeRequest => User;
        get_user: GetUserRequest => User;
        list_users: ListUsersRequest => ListUsersResponse;
        update_user: UpdateUserRequest => User;
        change_password: ChangePasswordRequest => ChangePasswordResponse;
    }

    async fn create_user(&self, mut message: CreateUserRequest, cx: &mut Context) -> Result<User, handling::Status> {
        idempotency::apply(&mut message.external_id, cx.request_headers())?;
        let call = call(cx.request_headers(), TIMEOUT);
        let user = answer(self.0.clone().create_user(request(&call, message)).await)?;
        set_status(cx, if user.replayed { StatusCode::OK } else { StatusCode::CREATED });
        set_location(cx, "users", &user.id);
        Ok(user)
    }

    async fn delete_user(&self, message: DeleteUserRequest, cx: &mut Context) -> Result<DeleteUserResponse, handling::Status> {
        let call = call(cx.request_headers(), TIMEOUT);
        let deleted = answer(self.0.clone().delete_user(request(&call, message)).await)?;
        set_status(cx, StatusCode::NO_CONTENT);
        Ok(deleted)
    }
}
