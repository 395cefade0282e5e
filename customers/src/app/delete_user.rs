//! Anonymises a user: its id and its ledger stay, everything that says who it was goes. Its accounts are closed before, by transactions: money
//! must not stay where nobody can move it.

use lastro_mesh::call::Call;
use lastro_mesh::clock;
use lastro_mesh::identity::User as Caller;
use lastro_mesh::status;
use lastro_proto::customers::events::v1::{UserDeleted, user_event::Event};
use lastro_proto::internal::transactions::v1::CloseAccountsRequest;
use lastro_proto::permissions::Permission;
use lastro_proto::reasons::USER_HAS_MONEY;
use uuid::Uuid;

use super::attempts::forget_account;
use super::update_user::keep_an_administrator;
use super::{App, reachable, revocation, tell};
use crate::Error;
use crate::store::users::{self, User};

/// The caller's own, or any for who may write users.
pub async fn delete_user(app: &App, call: &Call, caller: &Caller, id: &str) -> Result<(), Error> {
    let id = reachable(caller, id, Permission::WriteUsers)?;
    // What can be refused here is refused before anything is closed. No lock is held while another service is asked.
    let tx = app.database.begin().await?;
    let before = users::lock(&tx, id).await?.ok_or(Error::UserNotFound)?;
    keep_an_administrator(&tx, &before, &anonymous(&before)).await?;
    tx.rollback().await.map_err(lastro_database::Error::from)?;
    close_accounts(app, call, id).await?;

    let tx = app.database.begin().await?;
    let before = users::lock(&tx, id).await?.ok_or(Error::UserNotFound)?;
    let user = anonymous(&before);
    keep_an_administrator(&tx, &before, &user).await?;
    users::update(&tx, &user).await?;
    forget_account(&tx, &before).await?;
    tell(&tx, call, id, "USER_DELETED", Event::UserDeleted(UserDeleted {})).await?;
    let revoked = revocation::revoke_all(&tx, call, &user, app.settings.access_ttl_s).await?;
    app.commit(tx, [revoked]).await
}

fn anonymous(user: &User) -> User {
    User {
        name: String::new(),
        email: None,
        password_hash: String::new(),
        roles: 0,
        disabled: true,
        deleted: true,
        update_time_us: clock::now_us(),
        create_key_hash: None,
        create_request_hash: None,
        ..user.clone()
    }
}

async fn close_accounts(app: &App, call: &Call, user_id: Uuid) -> Result<(), Error> {
    // It takes as long as there are accounts: no attempt is given up before the caller's own time is over.
    let patient = Call { waits: true, ..call.clone() };
    let request = patient.request(CloseAccountsRequest { user_id: user_id.to_string() });
    match app.transactions.clone().close_accounts(request).await {
        Ok(_) => Ok(()),
        Err(refused) if status::reason_name(&refused).as_deref() == Some(USER_HAS_MONEY.name) => Err(Error::UserHasMoney),
        Err(status) => Err(Error::Transactions(Box::new(status))),
    }
}
