//! Many rows in one statement, on either database: PostgreSQL takes a column of values as one array, SQLite rows of VALUES and lists as JSON.

use sea_orm::sea_query::ArrayType;
use sea_orm::{ConnectionTrait, DbBackend, FromQueryResult, Value};
use uuid::Uuid;

use crate::{Error, all, execute};

/// Rows to a statement on SQLite: each size is one prepared statement.
const CHUNKS: [usize; 3] = [64, 8, 1];

/// The type of a column, as both databases have it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Type {
    /// `uuid`, 16 bytes on SQLite.
    Uuid,
    /// The same, or NULL. The nil UUID is NULL.
    OptionalUuid,
    /// `bigint`.
    BigInt,
    /// `text`.
    Text,
    /// `bytea`.
    Bytes,
    /// `boolean`, 0 or 1 on SQLite.
    Bool,
}

impl Type {
    fn array(self) -> (ArrayType, &'static str) {
        match self {
            Self::Uuid | Self::OptionalUuid => (ArrayType::Uuid, "uuid[]"),
            Self::BigInt => (ArrayType::BigInt, "bigint[]"),
            Self::Text => (ArrayType::String, "text[]"),
            Self::Bytes => (ArrayType::Bytes, "bytea[]"),
            Self::Bool => (ArrayType::Bool, "boolean[]"),
        }
    }
}

/// Adds rows to a table, in one statement on PostgreSQL. `conflict` is what follows, such as `ON CONFLICT (id) DO NOTHING`. How many rows were added
/// or changed. Table, columns and conflict are ours, never a caller's.
pub async fn insert_rows(
    tx: &impl ConnectionTrait,
    table: &str,
    columns: &[(&str, Type)],
    conflict: &str,
    rows: Vec<Vec<Value>>,
) -> Result<u64, Error> {
    if rows.is_empty() {
        return Ok(0);
    }
    check_width(table, columns, &rows)?;
    let names = columns.iter().map(|(name, _)| *name).collect::<Vec<_>>().join(", ");
    if tx.get_database_backend() == DbBackend::Postgres {
        let arrays = array_places(columns);
        let value = |(name, of): &(&str, Type)| match of {
            Type::OptionalUuid => format!("NULLIF(u.{name}, '{}'::uuid)", Uuid::nil()),
            _ => format!("u.{name}"),
        };
        let values = columns.iter().map(value).collect::<Vec<_>>().join(", ");
        let sql = format!("INSERT INTO {table} ({names}) SELECT {values} FROM unnest({arrays}) AS u ({names}) {conflict}");
        return execute(tx, &sql, arrays_of(columns.iter().map(|(_, of)| *of), rows)).await;
    }
    let (mut changed, mut rows) = (0, rows.into_iter());
    while let Some(size) = CHUNKS.into_iter().find(|size| *size <= rows.len()) {
        let values = value_places(columns.len(), size);
        // `WHERE true`, since SQLite would take ON of a conflict for that of a join.
        let sql = format!("INSERT INTO {table} ({names}) SELECT * FROM (VALUES {values}) WHERE true {conflict}");
        changed += execute(tx, &sql, rows.by_ref().take(size).flatten()).await?;
    }
    Ok(changed)
}

/// Changes rows of a table, in one statement on PostgreSQL: `t` is the table, `u` what is to be changed, with the columns as named here. How many rows were
/// changed. `set` is what follows SET, such as `state = u.state`, and `condition` what follows WHERE, such as `t.id = u.id AND t.version = u.from_version`.
pub async fn update_rows(
    tx: &impl ConnectionTrait,
    table: &str,
    columns: &[(&str, Type)],
    (set, condition): (&str, &str),
    rows: Vec<Vec<Value>>,
) -> Result<u64, Error> {
    if rows.is_empty() {
        return Ok(0);
    }
    check_width(table, columns, &rows)?;
    if tx.get_database_backend() == DbBackend::Postgres {
        let names = columns.iter().map(|(name, _)| *name).collect::<Vec<_>>().join(", ");
        let arrays = array_places(columns);
        let sql = format!("UPDATE {table} AS t SET {set} FROM unnest({arrays}) AS u ({names}) WHERE {condition}");
        return execute(tx, &sql, arrays_of(columns.iter().map(|(_, of)| *of), rows)).await;
    }
    let (mut changed, mut rows) = (0, rows.into_iter());
    let names = (1..).zip(columns).map(|(place, (name, _))| format!("column{place} AS {name}")).collect::<Vec<_>>().join(", ");
    while let Some(size) = CHUNKS.into_iter().find(|size| *size <= rows.len()) {
        let values = value_places(columns.len(), size);
        let sql = format!("UPDATE {table} AS t SET {set} FROM (SELECT {names} FROM (VALUES {values})) AS u WHERE {condition}");
        changed += execute(tx, &sql, rows.by_ref().take(size).flatten()).await?;
    }
    Ok(changed)
}

fn check_width(table: &str, columns: &[(&str, Type)], rows: &[Vec<Value>]) -> Result<(), Error> {
    if rows.iter().all(|row| row.len() == columns.len()) {
        return Ok(());
    }
    Err(Error::corrupt(format!("a row for {table} that has not as many values as there are columns")))
}

/// `$1::uuid[], $2::bigint[]`: an array for each column.
fn array_places(columns: &[(&str, Type)]) -> String {
    (1..).zip(columns).map(|(place, (_, of))| format!("${place}::{}", of.array().1)).collect::<Vec<_>>().join(", ")
}

/// `($1, $2), ($3, $4)`: so many rows of so many values.
fn value_places(columns: usize, rows: usize) -> String {
    let place = |row: usize, column: usize| format!("${}", row * columns + column + 1);
    let row = |row: usize| format!("({})", (0..columns).map(|column| place(row, column)).collect::<Vec<_>>().join(", "));
    (0..rows).map(row).collect::<Vec<_>>().join(", ")
}

/// One array for each column.
fn arrays_of(types: impl Iterator<Item = Type>, rows: Vec<Vec<Value>>) -> Vec<Value> {
    let mut columns: Vec<(Type, Vec<Value>)> = types.map(|of| (of, Vec::with_capacity(rows.len()))).collect();
    for row in rows {
        for (value, (of, column)) in row.into_iter().zip(&mut columns) {
            // An array has no NULL here.
            column.push(if *of == Type::OptionalUuid && value == Value::Uuid(None) { Value::from(Uuid::nil()) } else { value });
        }
    }
    columns.into_iter().map(|(of, values)| Value::Array(of.array().0, Some(Box::new(values)))).collect()
}

/// Every row of a query in which `{ids}` stands for "is one of these ids", as in `WHERE id {ids}`. The other placeholders begin with `$2`.
pub async fn all_of_ids<T: FromQueryResult>(
    on: &impl ConnectionTrait,
    sql: &str,
    ids: &[Uuid],
    values: impl IntoIterator<Item = Value>,
) -> Result<Vec<T>, Error> {
    let (sql, ids) = with_ids(on, sql, ids);
    all(on, &sql, std::iter::once(ids).chain(values)).await
}

/// As [`all_of_ids`], for a statement that changes rows; how many.
pub async fn execute_of_ids(on: &impl ConnectionTrait, sql: &str, ids: &[Uuid], values: impl IntoIterator<Item = Value>) -> Result<u64, Error> {
    let (sql, ids) = with_ids(on, sql, ids);
    execute(on, &sql, std::iter::once(ids).chain(values)).await
}

fn with_ids(on: &impl ConnectionTrait, sql: &str, ids: &[Uuid]) -> (String, Value) {
    if on.get_database_backend() == DbBackend::Postgres {
        let ids = ids.iter().map(|id| Value::from(*id)).collect();
        return (sql.replace("{ids}", "= ANY($1::uuid[])"), Value::Array(ArrayType::Uuid, Some(Box::new(ids))));
    }
    let json = ids.iter().map(|id| format!("\"{}\"", id.simple())).collect::<Vec<_>>().join(",");
    (sql.replace("{ids}", "IN (SELECT unhex(value) FROM json_each($1))"), Value::from(format!("[{json}]")))
}
