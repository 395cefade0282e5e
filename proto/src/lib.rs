//! The contracts of Lastro, generated from `proto/lastro/**/*.proto`: messages with their JSON, clients, servers, validation,
//! REST routes, the OpenAPI document, the table of methods, and the registry of reasons that errors carry.

pub mod methods;
pub mod reasons;
pub mod time;

/// The generated tree, module by module as the proto packages are named.
#[allow(missing_docs, clippy::all, clippy::pedantic)]
mod generated {
    // Named by the validation of messages that the annotations are made of.
    #[allow(dead_code)]
    pub mod google {
        pub mod api {
            include!(concat!(env!("OUT_DIR"), "/google.api.rs"));
        }
    }
    pub mod lastro {
        pub mod r#type {
            pub mod v1 {
                include!(concat!(env!("OUT_DIR"), "/lastro.r#type.v1.rs"));
                include!(concat!(env!("OUT_DIR"), "/lastro.r#type.v1.serde.rs"));
            }
        }
        pub mod customers {
            pub mod v1 {
                include!(concat!(env!("OUT_DIR"), "/lastro.customers.v1.rs"));
                include!(concat!(env!("OUT_DIR"), "/lastro.customers.v1.serde.rs"));
                include!(concat!(env!("OUT_DIR"), "/lastro.customers.v1.rest.rs"));
            }
        }
        pub mod transactions {
            pub mod v1 {
                include!(concat!(env!("OUT_DIR"), "/lastro.transactions.v1.rs"));
                include!(concat!(env!("OUT_DIR"), "/lastro.transactions.v1.serde.rs"));
                include!(concat!(env!("OUT_DIR"), "/lastro.transactions.v1.rest.rs"));
            }
        }
        pub mod internal {
            pub mod customers {
                pub mod v1 {
                    include!(concat!(env!("OUT_DIR"), "/lastro.internal.customers.v1.rs"));
                    include!(concat!(env!("OUT_DIR"), "/lastro.internal.customers.v1.serde.rs"));
                }
            }
            pub mod transactions {
                pub mod v1 {
                    include!(concat!(env!("OUT_DIR"), "/lastro.internal.transactions.v1.rs"));
                    include!(concat!(env!("OUT_DIR"), "/lastro.internal.transactions.v1.serde.rs"));
                }
            }
        }
    }
    include!(concat!(env!("OUT_DIR"), "/validate_impl.rs"));
    include!(concat!(env!("OUT_DIR"), "/checks.rs"));
}
pub use generated::lastro::{customers, internal, transactions, r#type};

/// REST routes to every annotated method, over implementations of the generated `…Service` traits.
#[allow(missing_docs, clippy::all, clippy::pedantic)]
pub mod rest {
    use super::generated::lastro;
    include!(concat!(env!("OUT_DIR"), "/transcoder.rest.rs"));
}

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

/// The OpenAPI document of customers, as generated; the gateway completes it.
pub const OPENAPI_CUSTOMERS: &str = include_str!(concat!(env!("OUT_DIR"), "/lastro.customers.v1.openapi.json"));

/// As [`OPENAPI_CUSTOMERS`], of transactions.
pub const OPENAPI_TRANSACTIONS: &str = include_str!(concat!(env!("OUT_DIR"), "/lastro.transactions.v1.openapi.json"));
