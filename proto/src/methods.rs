//! The table of every RPC: its path, who may call it, and its REST route. Made from the proto annotations at build time.

use lastro_mesh::identity::Access;
use lastro_mesh::outbound::Class;

/// One RPC.
#[derive(Debug, Clone, Copy)]
pub struct Method {
    /// Full name of the service: `lastro.customers.v1.UsersService`.
    pub service: &'static str,
    /// Name of the method: `CreateUser`.
    pub name: &'static str,
    /// Path on the wire: `/lastro.customers.v1.UsersService/CreateUser`.
    pub path: &'static str,
    /// Who may call it.
    pub access: Access,
    /// Whether what it reads or changes is nobody's own: everybody who may call it sees the same.
    pub shared: bool,
    /// `POST`, or empty where REST does not offer it.
    pub http_method: &'static str,
    /// Path template of the REST route, or empty.
    pub http_path: &'static str,
    /// The status of a success over REST.
    pub success: Success,
    /// Whether the header `Idempotency-Key` may carry the idempotency key.
    pub takes_idempotency_key: bool,
    /// The field of the request that is the idempotency key itself, or empty.
    pub key: &'static str,
    /// Whether the header `Prefer` may say for how long to wait.
    pub takes_wait: bool,
    /// Whether somebody outside is waited for in the call.
    pub waits_outside: bool,
    /// The table that it answers over REST to `Accept: text/csv`, if it does.
    pub csv: Option<Csv>,
    /// The reasons that it may be refused for, beside those that every call may be.
    pub reasons: &'static [&'static str],
    /// Whether it answers again and again.
    pub streams: bool,
    /// Whether a second call does no harm: `idempotency_level` in the proto.
    pub retry_safe: bool,
    /// Whether the REST route reads the whole message from the body (`body: "*"`). Then nothing of it comes from the query.
    pub takes_body: bool,
    /// The fields that stand in the path of the REST route, by their names in JSON. They stand nowhere else.
    pub path_fields: &'static [&'static str],
    /// The fields that the REST route reads from the query.
    pub query: &'static [Parameter],
    /// Full name of the request message.
    pub input: &'static str,
    /// With which other methods it is judged.
    pub class: Class,
    /// The largest request message, in bytes.
    pub request_bytes_max: usize,
    /// The largest body over REST, in bytes.
    pub body_bytes_max: usize,
}

/// The messages of one field of an answer, as rows of a table.
#[derive(Debug, Clone, Copy)]
pub struct Csv {
    /// The field of the answer, by its name in JSON.
    pub rows: &'static str,
    /// In the order of the fields of the message.
    pub columns: &'static [Column],
}

/// A column of a table.
#[derive(Debug, Clone, Copy)]
pub struct Column {
    /// As the first row has it: the field's name in JSON. An amount of money has another column for its currency.
    pub name: &'static str,
    /// Where it stands in a message as JSON.
    pub path: &'static [&'static str],
}

/// A field that a REST route reads from its query.
#[derive(Debug, Clone, Copy)]
pub struct Parameter {
    /// Its name in JSON: `pageSize`.
    pub name: &'static str,
    /// Its name in the proto, which is read as well: `page_size`.
    pub proto_name: &'static str,
    /// How it is written.
    pub form: Form,
}

/// How a parameter is written in a query, and then in JSON.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Form {
    /// A whole number of 32 bits.
    Number,
    /// `true` or `false`.
    Bool,
    /// Anything else: in JSON it is a string.
    Text,
}

/// The status of a success over REST: `Rest.Success` in the contracts.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Success {
    /// 200.
    Ok,
    /// 201 with a `Location`, or 200 for a repetition.
    Created,
    /// 204, without a body.
    NoContent,
    /// 202 as long as the outcome is not known or was not waited for, then 201; 200 for a repetition that has it.
    Accepted,
    /// 202: what becomes of it is looked up.
    Taken,
}

/// With which other methods a method is judged by a breaker. An unknown one is a write.
pub fn class_of(path: &str) -> Class {
    by_path(path).map_or(Class::Write, |method| method.class)
}

/// Every RPC of every package, in the order of the files.
pub const METHODS: &[Method] = include!(concat!(env!("OUT_DIR"), "/methods.rs"));

/// The method with this path on the wire.
pub fn by_path(path: &str) -> Option<&'static Method> {
    METHODS.iter().find(|method| method.path == path)
}

/// Whether the method with this path may be called again when nobody knows whether it was done.
pub fn is_retry_safe(path: &str) -> bool {
    by_path(path).is_some_and(|method| method.retry_safe)
}
