//! `lastro migrate`: everything that a cluster needs before its services can start. Several at once take turns, and a second run changes
//! nothing.

use std::path::Path;

use anyhow::{Context as _, Result};
use lastro_database::{Database, PostgresUrl};
use lastro_service::Service;
use sqlx::PgConnection;

use crate::admin;
use crate::cli::MigrateArgs;
use crate::services::{IDENTITY, SERVICES, rights_of};
use crate::storage::migrate_and_prepare;

/// Connections that each step may use.
const CONNECTIONS: u32 = 4;

/// Makes databases, roles, tables, the first signing key and the administrator.
pub async fn migrate(args: MigrateArgs) -> Result<()> {
    let url = args.server.url()?;
    let server = Database::connect_postgres(&url, "postgres", CONNECTIONS).context("--database-url cannot be used")?;
    let lock = lastro_migrations::lock(&server).await.context("the server cannot be reached")?;
    for service in SERVICES {
        let database = prepare(&server, &url, service, args.role_passwords.as_deref()).await?;
        if service.name == IDENTITY
            && let Some(file) = &args.admin_file
        {
            admin::ensure_from_file(&admin::customers_of(database.clone()).await?, file).await?;
        }
        database.close().await;
    }
    lock.release().await;
    server.close().await;
    Ok(())
}

/// One service's database, with its roles if there are passwords for them; opened as its owner.
async fn prepare(server: &Database, url: &PostgresUrl, registered: &Service, passwords: Option<&Path>) -> Result<Database> {
    let name = &registered.database_name();
    let Some(passwords) = passwords else {
        let database = Database::open_postgres(url, name, CONNECTIONS).await.with_context(|| format!("the database {name} cannot be made"))?;
        migrate_and_prepare(registered, &database).await?;
        return Ok(database);
    };
    let password = |role: &str| -> Result<String> {
        let path = passwords.join(role);
        let text = std::fs::read_to_string(&path).with_context(|| format!("the password of the role {role} is not in {}", path.display()))?;
        let text = text.trim().to_owned();
        anyhow::ensure!(!text.is_empty(), "{} is empty", path.display());
        Ok(text)
    };
    let (owner, service) = (format!("{name}_owner"), name);
    let owner_password = password(&owner)?;
    let pool = server.postgres().context("PostgreSQL is needed")?;
    let mut connection = pool.acquire().await?;
    make_role(&mut connection, &owner, &owner_password).await.with_context(|| format!("the role {owner} cannot be made"))?;
    make_role(&mut connection, service, &password(service)?).await.with_context(|| format!("the role {service} cannot be made"))?;
    make_database(&mut connection, name, &owner, service).await.with_context(|| format!("the database {name} cannot be made"))?;
    drop(connection);
    let database = Database::connect_postgres(&url.with_role(&owner, &owner_password), name, CONNECTIONS)?;
    migrate_and_prepare(registered, &database).await?;
    lastro_migrations::grant(&database, service, &rights_of(registered))
        .await
        .with_context(|| format!("the rights of {service} cannot be granted"))?;
    Ok(database)
}

/// Names of roles and databases are our own; a password is anybody's.
async fn make_role(connection: &mut PgConnection, role: &str, password: &str) -> Result<(), sqlx::Error> {
    let known: bool = sqlx::query_scalar("SELECT EXISTS (SELECT 1 FROM pg_roles WHERE rolname = $1)").bind(role).fetch_one(&mut *connection).await?;
    let verb = if known { "ALTER" } else { "CREATE" };
    // The password is the file's from now on, also where the role was there before.
    run(connection, format!("{verb} ROLE {role} LOGIN PASSWORD '{}'", password.replace('\'', "''"))).await
}

async fn make_database(connection: &mut PgConnection, name: &str, owner: &str, service: &str) -> Result<(), sqlx::Error> {
    let known: bool =
        sqlx::query_scalar("SELECT EXISTS (SELECT 1 FROM pg_database WHERE datname = $1)").bind(name).fetch_one(&mut *connection).await?;
    if !known {
        // Who is no superuser may make a database only for a role that it is a member of.
        run(connection, format!("GRANT {owner} TO CURRENT_USER")).await?;
        run(connection, format!("CREATE DATABASE {name} OWNER {owner}")).await?;
    }
    run(connection, format!("REVOKE CONNECT, TEMPORARY ON DATABASE {name} FROM PUBLIC")).await?;
    run(connection, format!("GRANT CONNECT ON DATABASE {name} TO {service}, {owner}")).await
}

async fn run(connection: &mut PgConnection, sql: String) -> Result<(), sqlx::Error> {
    sqlx::raw_sql(sqlx::AssertSqlSafe(sql)).execute(connection).await.map(|_| ())
}
