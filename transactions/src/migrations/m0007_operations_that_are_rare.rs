//! Indexes of the operations that are rare among all: those that are not completed, and those that are no transfers. A list that asks for them alone
//! finds them there, however long the history is. A transfer that settles at once is in none of them. Serves versions from 0.1.0.

use lastro_migrations::run_statements;
use sea_orm_migration::prelude::*;

#[derive(DeriveMigrationName)]
pub struct Migration;

/// The columns by which lists are read; the last one is for lists of all.
const BY: [(&str, &str); 5] = [
    ("source", "source_account_id, id"),
    ("destination", "destination_account_id, id"),
    ("source_owner", "source_owner_id, id"),
    ("destination_owner", "destination_owner_id, id"),
    ("all", "id"),
];
/// As the queries write them: a planner has to see that it is the same.
const RARE: [(&str, &str); 2] = [("undone", "state <> 4"), ("unusual", "kind <> 3")];

#[async_trait::async_trait]
impl MigrationTrait for Migration {
    async fn up(&self, manager: &SchemaManager) -> Result<(), DbErr> {
        let statements: Vec<String> = RARE
            .iter()
            .flat_map(|(rare, is_rare)| {
                BY.iter().map(move |(by, columns)| format!("CREATE INDEX operations_{rare}_{by} ON operations ({columns}) WHERE {is_rare}"))
            })
            .collect();
        run_statements(manager, &statements.iter().map(String::as_str).collect::<Vec<_>>()).await
    }
}
