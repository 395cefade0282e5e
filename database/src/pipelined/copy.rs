//! Rows in the binary format of COPY: <https://www.postgresql.org/docs/15/sql-copy.html>, "Binary Format".

use bytes::{BufMut as _, BytesMut};

/// Writes rows of a COPY straight into what is about to be sent.
pub struct CopyRows<'b> {
    bytes: &'b mut BytesMut,
    columns: i16,
}

impl<'b> CopyRows<'b> {
    pub(super) fn new(bytes: &'b mut BytesMut, columns: i16) -> Self {
        bytes.put_slice(b"PGCOPY\n\xff\r\n\0");
        // No flags, no header extension.
        bytes.put_slice(&[0; 8]);
        Self { bytes, columns }
    }

    /// Begins a row; as many fields must follow as there are columns.
    pub fn start(&mut self) {
        self.bytes.put_i16(self.columns);
    }

    /// A value in the binary form of its type.
    pub fn field(&mut self, value: &[u8]) {
        self.bytes.put_i32(value.len() as i32);
        self.bytes.put_slice(value);
    }

    /// A value, or NULL.
    pub fn optional(&mut self, value: Option<&[u8]>) {
        match value {
            Some(value) => self.field(value),
            None => self.bytes.put_i32(-1),
        }
    }

    pub(super) fn end(self) {
        self.bytes.put_i16(-1);
    }
}
