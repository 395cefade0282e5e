//! The tables of the `events` crate, made in every service's database that stores or consumes events.

use sea_orm_migration::prelude::*;

use crate::dialect::{Dialect, run_statements};

/// An append-only event table that also has what others report, which may come twice: an index over the digests refuses the second one.
pub async fn reported_event_table(manager: &SchemaManager<'_>, table: &str) -> Result<(), DbErr> {
    event_table(manager, table).await?;
    // What the service itself appends cannot come twice: the state machine allows each of these once, and the version is unique. Leaving them out
    // saves two entries of an index for every operation (docs/adr/0006).
    let digests =
        format!("CREATE UNIQUE INDEX {table}_digest ON {table} (aggregate_id, digest) WHERE kind NOT IN ('SUBMITTED', 'COMPLETED', 'REJECTED')");
    run_statements(manager, &[&digests]).await
}

/// An append-only event table that is the outbox too. Retention: events are never deleted.
pub async fn event_table(manager: &SchemaManager<'_>, table: &str) -> Result<(), DbErr> {
    let postgres = Dialect::of(manager).is_postgres();
    // The transaction id comes from the database itself: see `store` in the events crate.
    let position = if postgres {
        "xid xid8 NOT NULL DEFAULT pg_current_xact_id(), seq bigint GENERATED ALWAYS AS IDENTITY"
    } else {
        "seq INTEGER PRIMARY KEY AUTOINCREMENT"
    };
    let create = format!(
        "CREATE TABLE {table} ({position}, id {{uuid}} NOT NULL, aggregate_id {{uuid}} NOT NULL, version {{bigint}} NOT NULL CHECK (version > 0), \
         kind {{text}} NOT NULL, payload {{bytes}} NOT NULL, digest {{bytes}} NOT NULL, correlation_id {{text}} NOT NULL, causation_id {{uuid}}, \
         recorded_us {{bigint}} NOT NULL, hash {{bytes}} NOT NULL, UNIQUE (aggregate_id, version)){{strict}}"
    );
    run_statements(manager, &[&create]).await?;
    if postgres {
        let index = format!("CREATE UNIQUE INDEX {table}_position ON {table} (xid, seq)");
        let function = format!(
            "CREATE FUNCTION {table}_append_only() RETURNS trigger LANGUAGE plpgsql AS \
             $$ BEGIN RAISE EXCEPTION '{table} is append-only'; END $$"
        );
        let rows =
            format!("CREATE TRIGGER {table}_append_only BEFORE UPDATE OR DELETE ON {table} FOR EACH ROW EXECUTE FUNCTION {table}_append_only()");
        let whole =
            format!("CREATE TRIGGER {table}_no_truncate BEFORE TRUNCATE ON {table} FOR EACH STATEMENT EXECUTE FUNCTION {table}_append_only()");
        run_statements(manager, &[&index, &function, &rows, &whole]).await
    } else {
        let refuse = |verb: &str| {
            format!(
                "CREATE TRIGGER {table}_no_{} BEFORE {verb} ON {table} BEGIN SELECT RAISE(ABORT, '{table} is append-only'); END",
                verb.to_lowercase()
            )
        };
        run_statements(manager, &[&refuse("UPDATE"), &refuse("DELETE")]).await
    }
}

/// What a service needs beside its event tables to publish them: how far the relay has published each, and the clusters in which they have lived.
pub async fn publisher_tables(manager: &SchemaManager<'_>) -> Result<(), DbErr> {
    relay_tables(manager).await?;
    upgrade_publisher_tables(manager).await
}

/// What a service needs to read the events of others: how far it has read each topic, the inbox, what is parked, and what is dead. Retention: an inbox
/// row a known aggregate; parked rows until the gap closes, which is seconds; dead ones until an operator retries them.
pub async fn reader_tables(manager: &SchemaManager<'_>) -> Result<(), DbErr> {
    consumer_tables(manager).await?;
    upgrade_reader_tables(manager).await
}

/// Brings what [`relay_tables`] made to what [`publisher_tables`] makes: cursors name the cluster that they belong to.
pub async fn upgrade_publisher_tables(manager: &SchemaManager<'_>) -> Result<(), DbErr> {
    run_statements(
        manager,
        &[
            "CREATE TABLE event_clusters (event_table {text} NOT NULL, incarnation {bigint} NOT NULL, cluster {bigint} NOT NULL, first_seq {bigint} NOT NULL, \
             first_xid {bigint} NOT NULL, PRIMARY KEY (event_table, incarnation)){strict}",
            "ALTER TABLE relay_cursors ADD COLUMN incarnation {bigint} NOT NULL DEFAULT 0",
            "ALTER TABLE relay_cursors ADD COLUMN cluster {bigint} NOT NULL DEFAULT 0",
        ],
    )
    .await
}

/// Brings what [`consumer_tables`] made to what [`reader_tables`] makes.
pub async fn upgrade_reader_tables(manager: &SchemaManager<'_>) -> Result<(), DbErr> {
    run_statements(
        manager,
        &[
            "ALTER TABLE bus_offsets ADD COLUMN incarnation {bigint} NOT NULL DEFAULT 0",
            "ALTER TABLE bus_offsets ADD COLUMN cluster {bigint} NOT NULL DEFAULT 0",
            // Unix microseconds.
            "ALTER TABLE inbox_parked ADD COLUMN parked_us {bigint} NOT NULL DEFAULT 0",
            "ALTER TABLE dead_events ADD COLUMN dead_us {bigint} NOT NULL DEFAULT 0",
            "CREATE INDEX inbox_parked_age ON inbox_parked (topic, parked_us)",
        ],
    )
    .await
}

/// How far the relay has published, as migrations up to 0.1.0 made it. One row a topic.
pub async fn relay_tables(manager: &SchemaManager<'_>) -> Result<(), DbErr> {
    run_statements(manager, &["CREATE TABLE relay_cursors (topic {text} PRIMARY KEY, xid {bigint} NOT NULL, seq {bigint} NOT NULL){strict}"]).await
}

/// What a consumer keeps, as migrations up to 0.1.0 made it.
pub async fn consumer_tables(manager: &SchemaManager<'_>) -> Result<(), DbErr> {
    const EVENT: &str = "topic {text} NOT NULL, aggregate_id {uuid} NOT NULL, version {bigint} NOT NULL, id {uuid} NOT NULL, kind {text} NOT NULL, \
                         payload {bytes} NOT NULL, correlation_id {text} NOT NULL, causation_id {uuid}, recorded_us {bigint} NOT NULL, \
                         digest {bytes} NOT NULL, hash {bytes} NOT NULL";
    let parked = format!("CREATE TABLE inbox_parked ({EVENT}, PRIMARY KEY (topic, aggregate_id, version)){{strict}}");
    let dead = format!("CREATE TABLE dead_events ({EVENT}, error {{text}} NOT NULL, PRIMARY KEY (topic, aggregate_id, version)){{strict}}");
    run_statements(
        manager,
        &[
            "CREATE TABLE bus_offsets (topic {text} NOT NULL, consumer_group {text} NOT NULL, xid {bigint} NOT NULL, seq {bigint} NOT NULL, \
             PRIMARY KEY (topic, consumer_group)){strict}",
            "CREATE TABLE inbox (topic {text} NOT NULL, aggregate_id {uuid} NOT NULL, version {bigint} NOT NULL, PRIMARY KEY (topic, aggregate_id)){strict}",
            &parked,
            &dead,
        ],
    )
    .await
}
