//! A row of an answer, in the binary form of its columns.

use std::ops::Range;

use bytes::Bytes;
use fallible_iterator::FallibleIterator as _;
use postgres_protocol::message::backend::DataRowBody;
use tokio_postgres::types::{FromSql, Type};

use super::Statement;
use crate::Error;

/// One row.
#[derive(Debug)]
pub struct Row {
    statement: Statement,
    bytes: Bytes,
    fields: Vec<Option<Range<usize>>>,
}

impl Row {
    pub(super) fn new(statement: Statement, body: &DataRowBody) -> Result<Self, Error> {
        let fields = body.ranges().collect().map_err(Error::broken)?;
        Ok(Self { statement, bytes: body.buffer_bytes().clone(), fields })
    }

    /// The value of a column, counted from 0. An error if the column is of another type, or NULL where the type cannot be.
    pub fn get<'r, T: FromSql<'r>>(&'r self, column: usize) -> Result<T, Error> {
        let unreadable = |why: &dyn std::fmt::Display| Error::corrupt(format!("column {column}: {why}"));
        let of: &Type = self.statement.columns().get(column).ok_or_else(|| unreadable(&"there is none"))?;
        if !T::accepts(of) {
            return Err(unreadable(&format!("it is {of}")));
        }
        let raw = self.fields.get(column).cloned().flatten().map(|range| &self.bytes[range]);
        T::from_sql_nullable(of, raw).map_err(|error| unreadable(&error))
    }
}
