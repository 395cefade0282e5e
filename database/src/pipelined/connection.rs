//! A connection that sends several statements at once and then reads their answers: the extended query protocol with one Sync at the end
//! (<https://www.postgresql.org/docs/15/protocol-flow.html>, "Pipelining"). After the first error the server skips everything up to the
//! Sync, data of a COPY and a COMMIT included: a COMMIT at the end commits all or nothing, and nobody has to wait before sending it.
//!
//! Nothing is read while something is written. That cannot lock both sides up: what is sent here is answered with a few bytes a
//! statement, and the one that has many rows goes out alone with BEGIN.

use std::collections::HashMap;
use std::fmt::Write as _;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Waker};
use std::time::Duration;

use bytes::{BufMut as _, BytesMut};
use fallible_iterator::FallibleIterator as _;
use postgres_protocol::IsNull;
use postgres_protocol::message::backend::{ErrorResponseBody, Message};
use postgres_protocol::message::frontend::{self, BindError};
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _, ReadBuf};
use tokio_postgres::types::{self, ToSql, Type};

use super::Row;
use super::copy::{Column, write_rows};
use crate::Error;

/// How long an answer may take: the server gives a statement up after 5 s (`statement_timeout`). Longer, and it is frozen or gone.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(6);

/// What carries a session.
pub trait Stream: AsyncRead + AsyncWrite + Send + Sync + Unpin {}

impl<T: AsyncRead + AsyncWrite + Send + Sync + Unpin> Stream for T {}

/// A session in which one exchange goes on at a time. One whose exchange was not waited for to its end can never be used again.
pub struct Connection {
    stream: Box<dyn Stream>,
    statements: HashMap<String, Statement>,
    state: State,
    output: BytesMut,
    input: BytesMut,
}

/// Where the session stands, as its last answer told.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    Idle,
    InTransaction,
    InFailedTransaction,
    /// An exchange goes on, or it ended in the middle.
    Unknown,
}

/// A prepared statement. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Statement(Arc<Prepared>);

#[derive(Debug)]
struct Prepared {
    name: String,
    parameters: Vec<Type>,
    columns: Vec<Type>,
}

impl Statement {
    pub(super) fn columns(&self) -> &[Type] {
        &self.0.columns
    }
}

impl Connection {
    pub(super) fn new(stream: Box<dyn Stream>) -> Self {
        Self { stream, statements: HashMap::new(), state: State::Idle, output: BytesMut::new(), input: BytesMut::new() }
    }

    /// No transaction is open and the server has said nothing since: it says something unasked before it ends a session.
    pub fn is_idle(&mut self) -> bool {
        let mut byte = [0];
        let mut unasked = ReadBuf::new(&mut byte);
        let mut context = Context::from_waker(Waker::noop());
        self.state == State::Idle && self.input.is_empty() && Pin::new(&mut self.stream).poll_read(&mut context, &mut unasked).is_pending()
    }

    /// A transaction is open that can only be rolled back.
    pub fn has_failed(&self) -> bool {
        self.state == State::InFailedTransaction
    }

    /// A statement, prepared when it is first asked for.
    pub async fn prepare(&mut self, sql: &str) -> Result<Statement, Error> {
        if let Some(statement) = self.statements.get(sql) {
            return Ok(statement.clone());
        }
        let name = format!("s{}", self.statements.len());
        self.output.clear();
        frontend::parse(&name, sql, [], &mut self.output).map_err(Error::broken)?;
        frontend::describe(b'S', &name, &mut self.output).map_err(Error::broken)?;
        let (mut parameters, mut columns) = (Vec::new(), Vec::new());
        self.exchange(|message| {
            match message {
                Message::ParameterDescription(body) => {
                    parameters = body.parameters().map(|oid| Ok(Type::from_oid(oid))).collect().map_err(Error::broken)?;
                }
                Message::RowDescription(body) => {
                    columns = body.fields().map(|field| Ok(Type::from_oid(field.type_oid()))).collect().map_err(Error::broken)?;
                }
                _ => {}
            }
            Ok(())
        })
        .await?;
        let known = |types: Vec<Option<Type>>| types.into_iter().collect::<Option<Vec<Type>>>().ok_or_else(|| Error::corrupt("a type of its own"));
        let statement = Statement(Arc::new(Prepared { name, parameters: known(parameters)?, columns: known(columns)? }));
        self.statements.insert(sql.to_owned(), statement.clone());
        Ok(statement)
    }

    /// Statements that go out together.
    pub fn pipeline(&mut self) -> Pipeline<'_> {
        self.output.clear();
        Pipeline { connection: self, result: Ok(()), statements: 0, query: None }
    }

    /// Sends what was gathered, with a Sync, and gives each message of the answer to `read`, up to the server's word that it is ready.
    async fn exchange(&mut self, mut read: impl FnMut(Message) -> Result<(), Error>) -> Result<(), Error> {
        self.state = State::Unknown;
        frontend::sync(&mut self.output);
        let mut result = Ok(());
        let ended = tokio::time::timeout(ANSWER_TIMEOUT, async {
            self.stream.write_all(&self.output).await.map_err(Error::broken)?;
            self.stream.flush().await.map_err(Error::broken)?;
            loop {
                match self.receive().await? {
                    Message::ReadyForQuery(body) => return State::of(body.status()),
                    // The first one is the cause: nothing after it was done.
                    Message::ErrorResponse(body) => result = std::mem::replace(&mut result, Ok(())).and(Err(server_error(&body))),
                    message if result.is_ok() => result = read(message),
                    _ => {}
                }
            }
        })
        .await
        .unwrap_or_else(|_| Err(Error::broken(format!("the server did not answer within {ANSWER_TIMEOUT:?}"))));
        match ended {
            Ok(state) => {
                self.state = state;
                result
            }
            // A server that ends the session says why before.
            Err(broken) => result.and(Err(broken)),
        }
    }

    async fn receive(&mut self) -> Result<Message, Error> {
        loop {
            if let Some(message) = Message::parse(&mut self.input).map_err(Error::broken)? {
                return Ok(message);
            }
            if self.stream.read_buf(&mut self.input).await.map_err(Error::broken)? == 0 {
                return Err(Error::broken("the server ended the connection"));
            }
        }
    }
}

impl State {
    /// Of the status byte of ReadyForQuery.
    fn of(status: u8) -> Result<Self, Error> {
        match status {
            b'I' => Ok(Self::Idle),
            b'T' => Ok(Self::InTransaction),
            b'E' => Ok(Self::InFailedTransaction),
            other => Err(Error::broken(format!("the server is in a state that does not exist: {other}"))),
        }
    }
}

/// Statements on their way out. They do nothing until they are [sent](Self::send).
#[must_use = "nothing is sent before `send`"]
pub struct Pipeline<'c> {
    connection: &'c mut Connection,
    /// The first thing that could not be written.
    result: Result<(), Error>,
    /// How many statements there are.
    statements: usize,
    /// The statement whose rows are asked for, and its place.
    query: Option<(usize, Statement)>,
}

impl Pipeline<'_> {
    /// A statement with its parameters. At most one statement of a pipeline may answer with rows, but for those that only [check](Self::check).
    pub fn execute(&mut self, statement: &Statement, parameters: &[&(dyn ToSql + Sync)]) {
        let mut written = self.write(statement, parameters);
        if !statement.columns().is_empty() && self.query.replace((self.statements - 1, statement.clone())).is_some() {
            written = written.and(Err(Error::corrupt("two statements of one pipeline that answer with rows")));
        }
        self.keep(written);
    }

    /// A statement that raises an error when something is not as it must be. Its rows say nothing.
    pub fn check(&mut self, statement: &Statement, parameters: &[&(dyn ToSql + Sync)]) {
        let written = self.write(statement, parameters);
        self.keep(written);
    }

    /// A [COPY](super::copy_statement) with rows of its columns.
    pub fn copy<'r, T: 'r>(&mut self, statement: &Statement, columns: &[Column<T>], rows: impl IntoIterator<Item = &'r T>) {
        let written = self.write(statement, &[]).and_then(|()| {
            let output = &mut self.connection.output;
            output.put_u8(b'd');
            let begin = output.len();
            output.put_i32(0);
            write_rows(output, columns, rows);
            // Counts itself, and not the letter before.
            let length = i32::try_from(output.len() - begin).map_err(Error::other)?;
            output[begin..begin + 4].copy_from_slice(&length.to_be_bytes());
            frontend::copy_done(output);
            Ok(())
        });
        self.keep(written);
    }

    /// Sends everything; the rows of the query, if there was one. After an error of the server nothing of what followed it was done.
    pub async fn send(self) -> Result<Vec<Row>, Error> {
        self.result?;
        let (mut rows, query, mut ended) = (Vec::new(), self.query, 0);
        self.connection
            .exchange(|message| {
                match (message, &query) {
                    (Message::CommandComplete(_), _) => ended += 1,
                    (Message::DataRow(body), Some((place, query))) if *place == ended => rows.push(Row::new(query.clone(), &body)?),
                    _ => {}
                }
                Ok(())
            })
            .await?;
        Ok(rows)
    }

    fn write(&mut self, statement: &Statement, parameters: &[&(dyn ToSql + Sync)]) -> Result<(), Error> {
        let Prepared { name, parameters: expected, .. } = &*statement.0;
        self.statements += 1;
        if expected.len() != parameters.len() {
            return Err(Error::corrupt(format!("a statement with {} parameters, given {}", expected.len(), parameters.len())));
        }
        let output = &mut self.connection.output;
        let write_one = |(value, of): (&&(dyn ToSql + Sync), &Type), output: &mut BytesMut| -> Result<_, Box<dyn std::error::Error + Sync + Send>> {
            Ok(match value.to_sql_checked(of, output)? {
                types::IsNull::Yes => IsNull::Yes,
                types::IsNull::No => IsNull::No,
            })
        };
        // Parameters and columns alike in binary.
        frontend::bind("", name, [1], parameters.iter().zip(expected), write_one, [1], output).map_err(|error| match error {
            BindError::Conversion(error) => Error::corrupt(error),
            BindError::Serialization(error) => Error::other(error),
        })?;
        frontend::execute("", 0, output).map_err(Error::other)
    }

    fn keep(&mut self, written: Result<(), Error>) {
        if self.result.is_ok() {
            self.result = written;
        }
    }
}

/// The server's own words, for the log.
fn server_error(body: &ErrorResponseBody) -> Error {
    let (mut severity, mut code, mut text) = (String::new(), String::new(), String::new());
    let mut fields = body.fields();
    while let Ok(Some(field)) = fields.next() {
        let value = String::from_utf8_lossy(field.value_bytes());
        // https://www.postgresql.org/docs/15/protocol-error-fields.html
        match field.type_() {
            b'V' => severity = value.into_owned(),
            b'C' => code = value.into_owned(),
            b'M' => text.insert_str(0, &value),
            b'D' => {
                let _ = write!(text, ": {value}");
            }
            _ => {}
        }
    }
    Error::of_server(&severity, &code, &text)
}
