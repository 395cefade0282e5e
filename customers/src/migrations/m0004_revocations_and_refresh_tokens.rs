//! One mark ends every session of a user; every refresh token that was given is known until it expires; registering is idempotent by key. Older
//! versions of customers and transactions are stopped before: they know neither the mark nor the tokens, and would end sessions that live and let in
//! those that are dead.

use lastro_migrations::run_statements;
use sea_orm_migration::prelude::*;

#[derive(DeriveMigrationName)]
pub struct Migration;

#[async_trait::async_trait]
impl MigrationTrait for Migration {
    async fn up(&self, manager: &SchemaManager) -> Result<(), DbErr> {
        run_statements(
            manager,
            &[
                // Raised when all of a user's tokens are revoked: tokens and sessions with a lower one are dead. Until `tokens_forget_after_s` (Unix
                // seconds) some of those tokens might still live, and every service must know the mark.
                "ALTER TABLE users ADD COLUMN token_version {bigint} NOT NULL DEFAULT 0",
                "ALTER TABLE users ADD COLUMN tokens_forget_after_s {bigint}",
                "CREATE INDEX users_revoked ON users (id) WHERE tokens_forget_after_s IS NOT NULL",
                // SHA-256 of the idempotency key, and of the name and the address, that the user was registered with.
                "ALTER TABLE users ADD COLUMN create_key_hash {bytes}",
                "ALTER TABLE users ADD COLUMN create_request_hash {bytes}",
                // `last_used_hash`: the refresh token that was traded last; for a few seconds it may be traded again.
                "ALTER TABLE sessions ADD COLUMN token_version {bigint} NOT NULL DEFAULT 0",
                "ALTER TABLE sessions ADD COLUMN last_used_hash {bytes}",
                "DROP INDEX sessions_revoked",
                "CREATE INDEX sessions_revoked ON sessions (revoked_us, id) WHERE revoked_us IS NOT NULL",
                "CREATE INDEX sessions_live ON sessions (user_id, id) WHERE revoked_us IS NULL",
                "CREATE INDEX sessions_expiry ON sessions (refresh_expires_us)",
                "CREATE INDEX login_failures_age ON login_failures (last_us)",
                // Every refresh token that was given, by the SHA-256 of its secret. Retention: as long as its session; of a used one, as long as a
                // refresh token lives.
                "CREATE TABLE refresh_tokens (hash {bytes} PRIMARY KEY, session_id {uuid} NOT NULL REFERENCES sessions (id) ON DELETE CASCADE, \
                 used_us {bigint}){strict}",
                "CREATE INDEX refresh_tokens_session ON refresh_tokens (session_id)",
                "CREATE INDEX refresh_tokens_used ON refresh_tokens (used_us) WHERE used_us IS NOT NULL",
                "INSERT INTO refresh_tokens (hash, session_id) SELECT refresh_hash, id FROM sessions WHERE revoked_us IS NULL",
            ],
        )
        .await
    }
}
