//! Rows in the binary format of COPY: <https://www.postgresql.org/docs/15/sql-copy.html>, "Binary Format".

use bytes::{BufMut as _, BytesMut};

/// A column of a COPY: its name, and its value of a row. The statement is made of the names and the rows of the values, so that neither can be moved,
/// left out or written twice without the other.
pub struct Column<T: ?Sized> {
    /// As in the table.
    pub name: &'static str,
    /// Writes the value.
    pub write: fn(&T, Field<'_>) -> Written,
}

/// The statement that copies these columns into a table, whose name is ours.
pub fn copy_statement<T>(table: &str, columns: &[Column<T>]) -> String {
    let names = columns.iter().map(|column| column.name).collect::<Vec<_>>().join(", ");
    format!("COPY {table} ({names}) FROM STDIN (FORMAT binary)")
}

/// The place of one value in what is about to be sent.
pub struct Field<'b>(&'b mut BytesMut);

/// A value was written.
pub struct Written(());

impl Field<'_> {
    /// A value in the binary form of its type.
    pub fn bytes(self, value: &[u8]) -> Written {
        self.0.put_i32(value.len() as i32);
        self.0.put_slice(value);
        Written(())
    }

    /// A value, or NULL.
    pub fn optional(self, value: Option<&[u8]>) -> Written {
        match value {
            Some(value) => self.bytes(value),
            None => {
                self.0.put_i32(-1);
                Written(())
            }
        }
    }

    /// A `bigint`.
    pub fn bigint(self, value: i64) -> Written {
        self.bytes(&value.to_be_bytes())
    }
}

/// Writes rows straight into what is about to be sent.
pub(super) fn write_rows<'r, T: 'r>(bytes: &mut BytesMut, columns: &[Column<T>], rows: impl IntoIterator<Item = &'r T>) {
    bytes.put_slice(b"PGCOPY\n\xff\r\n\0");
    // No flags, no header extension.
    bytes.put_slice(&[0; 8]);
    for row in rows {
        bytes.put_i16(columns.len() as i16);
        for column in columns {
            let Written(()) = (column.write)(row, Field(bytes));
        }
    }
    bytes.put_i16(-1);
}
