//! Users, sessions, signing keys, and the events that tell of them. Times are Unix microseconds, UTC.

use lastro_migrations::{relay_tables, reported_event_table, run_statements};
use sea_orm_migration::prelude::*;

#[derive(DeriveMigrationName)]
pub struct Migration;

#[async_trait::async_trait]
impl MigrationTrait for Migration {
    async fn up(&self, manager: &SchemaManager) -> Result<(), DbErr> {
        run_statements(
            manager,
            &[
                // `roles` is a set of bits, 1 << the role's number. A deleted user keeps its id and loses everything else.
                "CREATE TABLE users (id {uuid} PRIMARY KEY, name {text} NOT NULL, email {text} UNIQUE, password_hash {text} NOT NULL, \
                 roles {bigint} NOT NULL, disabled {bool} NOT NULL, deleted {bool} NOT NULL, create_time_us {bigint} NOT NULL, \
                 update_time_us {bigint} NOT NULL){strict}",
                // Only the SHA-256 of a refresh token's secret is known here. Retention: until the refresh token has expired.
                "CREATE TABLE sessions (id {uuid} PRIMARY KEY, user_id {uuid} NOT NULL REFERENCES users (id), refresh_hash {bytes} NOT NULL, \
                 create_time_us {bigint} NOT NULL, refresh_expires_us {bigint} NOT NULL, revoked_us {bigint}, forget_after_s {bigint} NOT NULL){strict}",
                "CREATE INDEX sessions_user ON sessions (user_id)",
                "CREATE INDEX sessions_revoked ON sessions (revoked_us) WHERE revoked_us IS NOT NULL",
                // By SHA-256 of the address, so that unknown addresses count too and none is kept. Retention: a day.
                "CREATE TABLE login_failures (email_hash {bytes} PRIMARY KEY, failures {bigint} NOT NULL, last_us {bigint} NOT NULL){strict}",
                // `state`: PUBLISHED (verifies only), SIGNING, RETIRED.
                "CREATE TABLE signing_keys (kid {text} PRIMARY KEY, private_key {bytes} NOT NULL, public_key {text} NOT NULL, state {text} NOT NULL, \
                 create_time_us {bigint} NOT NULL){strict}",
            ],
        )
        .await?;
        reported_event_table(manager, "user_events").await?;
        relay_tables(manager).await
    }
}
