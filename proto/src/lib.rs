//! The contracts of Lastro, generated from `proto/lastro/**/*.proto`: messages with their JSON, clients, servers, validation,
//! what REST offers, the OpenAPI document, the table of methods, and the registry of reasons that errors carry.

pub mod card;
pub mod json;
pub mod methods;
pub mod permissions;
pub mod reasons;
pub mod rest_methods;
pub mod time;

/// The generated tree, module by module as the proto packages are named.
#[allow(
    missing_docs,
    dead_code,
    unused_imports,
    unused_mut,
    clippy::all,
    clippy::pedantic,
    reason = "generated; the validation names messages of google.api that nobody makes"
)]
mod generated {
    include!(concat!(env!("OUT_DIR"), "/tree.rs"));
    include!(concat!(env!("OUT_DIR"), "/validate_impl.rs"));
    include!(concat!(env!("OUT_DIR"), "/checks.rs"));
}
pub use generated::lastro::*;

/// Every file with its imports, encoded as a `google.protobuf.FileDescriptorSet`.
pub const DESCRIPTORS: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/descriptors.bin"));

/// As [`DESCRIPTORS`], without what only services may call: what reflection serves.
pub const PUBLIC_DESCRIPTORS: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/public.bin"));

type Words = &'static [(&'static str, &'static str)];

/// By the full name of a request message: what its fields must be, in words.
const WORDS: &[(&str, Words)] = include!(concat!(env!("OUT_DIR"), "/words.rs"));

/// What the field at this path of a request message must be, in words, where the contract has some: `must be DEPOSIT, WITHDRAWAL or TRANSFER`.
pub fn must_be(message: &str, path: &str) -> Option<&'static str> {
    let (_, fields) = WORDS.iter().find(|(name, _)| *name == message)?;
    lastro_mesh::codec::words_at(fields, path)
}

/// Name and text of every public proto file and of its imports.
pub const SOURCES: &[(&str, &str)] = include!(concat!(env!("OUT_DIR"), "/sources.rs"));

/// The OpenAPI document of what REST offers: paths, parameters and schemas. The gateway completes it with what it adds itself.
pub const OPENAPI: &str = include_str!(concat!(env!("OUT_DIR"), "/openapi.json"));
