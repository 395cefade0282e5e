//! `lastro.customers.v1.UsersService`.

use std::sync::Arc;

use lastro_mesh::call::Call;
use lastro_mesh::page::Page;
use lastro_proto::customers::v1::users_service_server::UsersService;
use lastro_proto::customers::v1::{
    ChangePasswordRequest, ChangePasswordResponse, CreateUserRequest, DeleteUserRequest, DeleteUserResponse, GetMeRequest, GetUserRequest,
    ListUsersRequest, ListUsersResponse, UpdateUserRequest, User,
};
use lastro_proto::time::timestamp;
use tonic::{Request, Response, Status};

use crate::app::App;
use crate::app::change_password::change_password;
use crate::app::create_user::create_user;
use crate::app::delete_user::delete_user;
use crate::app::get_user::get_user;
use crate::app::list_users::list_users;
use crate::app::update_user::update_user;
use crate::domain::role::Roles;
use crate::store;

pub struct Users(pub Arc<App>);

#[tonic::async_trait]
impl UsersService for Users {
    async fn create_user(&self, request: Request<CreateUserRequest>) -> Result<Response<User>, Status> {
        let call = Call::of(&request)?.clone();
        let registered = create_user(&self.0, &call, request.into_inner()).await?;
        Ok(Response::new(User { replayed: registered.replayed, ..wire(registered.user) }))
    }

    async fn get_me(&self, request: Request<GetMeRequest>) -> Result<Response<User>, Status> {
        let caller = Call::of(&request)?.user()?;
        let user = get_user(&self.0, caller, &caller.id.to_string()).await?;
        Ok(Response::new(wire(user)))
    }

    async fn get_user(&self, request: Request<GetUserRequest>) -> Result<Response<User>, Status> {
        let caller = Call::of(&request)?.user()?;
        let user = get_user(&self.0, caller, &request.get_ref().id).await?;
        Ok(Response::new(wire(user)))
    }

    async fn list_users(&self, request: Request<ListUsersRequest>) -> Result<Response<ListUsersResponse>, Status> {
        let page = Page::read(request.get_ref().page_size, &request.get_ref().page_token)?;
        let (users, next_page_token) = list_users(&self.0, page).await?;
        Ok(Response::new(ListUsersResponse { users: users.into_iter().map(wire).collect(), next_page_token }))
    }

    async fn update_user(&self, request: Request<UpdateUserRequest>) -> Result<Response<User>, Status> {
        let call = Call::of(&request)?.clone();
        let user = update_user(&self.0, &call, call.user()?, request.into_inner()).await?;
        Ok(Response::new(wire(user)))
    }

    async fn delete_user(&self, request: Request<DeleteUserRequest>) -> Result<Response<DeleteUserResponse>, Status> {
        let call = Call::of(&request)?;
        delete_user(&self.0, call, call.user()?, &request.get_ref().id).await?;
        Ok(Response::new(DeleteUserResponse {}))
    }

    async fn change_password(&self, request: Request<ChangePasswordRequest>) -> Result<Response<ChangePasswordResponse>, Status> {
        let call = Call::of(&request)?.clone();
        change_password(&self.0, &call, call.user()?, request.into_inner()).await?;
        Ok(Response::new(ChangePasswordResponse {}))
    }
}

fn wire(user: store::users::User) -> User {
    User {
        id: user.id.to_string(),
        name: user.name,
        email: user.email.unwrap_or_default(),
        roles: Roles::from_bits(user.roles).numbers(),
        disabled: user.disabled,
        create_time: Some(timestamp(user.create_time_us)),
        update_time: Some(timestamp(user.update_time_us)),
        replayed: false,
    }
}
