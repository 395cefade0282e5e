//! The codec of every generated client and server: protobuf, and validation of requests the moment they are decoded, once, by code
//! generated from the rules in the proto files. A request that breaks a rule never reaches a handler.

use std::marker::PhantomData;

use prost::Message;
use prost_protovalidate::{Validate, ValidationError};
use tonic::codec::{Codec, DecodeBuf, Decoder};
use tonic::{Code, Status};
use tonic_prost::{ProstCodec, ProstDecoder, ProstEncoder};
use tonic_types::FieldViolation;

use crate::status::{MALFORMED_MESSAGE, Problem};

/// A broken rule: which field, and what the rule says.
pub type Violation = FieldViolation;

/// Implemented for every message by the build script of the contracts.
pub trait Checked {
    /// True for messages that some method takes.
    const IS_REQUEST: bool;
    /// Every broken rule.
    fn violations(&self) -> Vec<Violation>;
    /// Adds the text that has a NUL in it: PostgreSQL stores none, and no store should take what the other refuses.
    fn nuls(&self, _broken: &mut Vec<Violation>) {}
}

/// A message for which the build may have generated a validation, or not: where it has, the inherent method is chosen, else that of [`NoRules`].
#[derive(Debug)]
pub struct MaybeRules<'a, T>(pub &'a T);

impl<T: Validate> MaybeRules<'_, T> {
    /// By the generated validation.
    pub fn validate(&self) -> Result<(), ValidationError> {
        self.0.validate()
    }
}

/// Messages without rules, for [`MaybeRules`].
pub trait NoRules {
    /// Nothing can be broken.
    fn validate(&self) -> Result<(), ValidationError> {
        Ok(())
    }
}

impl<T> NoRules for MaybeRules<'_, T> {}

/// Adds a field with a NUL in its text.
pub fn no_nul(field: &str, text: &str, broken: &mut Vec<Violation>) {
    if text.contains('\0') {
        broken.push(FieldViolation::new(field, "must not contain the character NUL"));
    }
}

/// Adds what is wrong within a field.
pub fn no_nul_within(field: &str, message: &impl Checked, broken: &mut Vec<Violation>) {
    let mut inner = Vec::new();
    message.nuls(&mut inner);
    broken.extend(inner.into_iter().map(|one| FieldViolation::new(format!("{field}.{}", one.field), one.description)));
}

/// The violations of a generated validation as they go on the wire.
/// `words` says what fields must be, by their paths.
pub fn violations(outcome: Result<(), ValidationError>, words: &[(&str, &'static str)]) -> Vec<Violation> {
    let describe = |violation: prost_protovalidate::Violation| {
        let (path, rule) = (violation.field_path(), violation.rule_id());
        let in_words = ["enum.", "string.pattern", "duration.", "timestamp."].iter().any(|family| rule.starts_with(family));
        let of_the_contract = if in_words { words_at(words, &path) } else { None };
        FieldViolation::new(&path, of_the_contract.map_or_else(|| describe(rule, violation.message()), str::to_owned))
    };
    let mut broken: Vec<Violation> = outcome.err().map(|error| error.into_violations().into_iter().map(describe).collect()).unwrap_or_default();
    // One is enough to say what is wrong with a field; the first is the most basic.
    broken.dedup_by(|later, first| later.field == first.field);
    broken
}

/// The words for a path, with its indexes or without.
pub fn words_at(words: &[(&str, &'static str)], path: &str) -> Option<&'static str> {
    // A path may be as long as a client's own names.
    let longest = words.iter().map(|(at, _)| at.len()).max().unwrap_or_default();
    let (mut plain, mut in_brackets) = (String::new(), false);
    for character in path.chars() {
        match character {
            '[' => in_brackets = true,
            ']' => in_brackets = false,
            _ if in_brackets => {}
            _ if plain.len() > longest => return None,
            _ => plain.push(character),
        }
    }
    words.iter().find(|(at, _)| *at == plain).map(|(_, words)| *words)
}

/// Rules that the library explains in words that a caller would not know.
fn describe(rule_id: &str, message: &str) -> String {
    let numbers: Vec<&str> = message.split(' ').filter(|word| word.trim_start_matches('-').bytes().all(|byte| byte.is_ascii_digit())).collect();
    match (rule_id, numbers.as_slice()) {
        ("string.min_len", ["1"]) => return "must not be empty".to_owned(),
        ("string.min_len", [least]) => return format!("must have {least} characters at least"),
        ("string.max_len", [most]) => return format!("must have {most} characters at most"),
        ("int32.gte_lte", [least, most]) => return format!("must be from {least} to {most}"),
        ("repeated.max_items", [most]) => return format!("must have {most} items at most"),
        ("map.max_pairs", [most]) => return format!("must have {most} entries at most"),
        ("repeated.unique", _) => return "must not have the same item twice".to_owned(),
        _ => {}
    }
    match rule_id {
        "string.uuid" | "string.uuid_empty" => "must be a UUID such as 0190b3a2-7c1e-7d5e-9a3b-2f6c1d0e4b5a".to_owned(),
        "string.email" | "string.email_empty" => "must be an email address".to_owned(),
        "required" => "is required".to_owned(),
        _ if message.is_empty() => format!("breaks the rule {rule_id}"),
        _ => message.to_owned(),
    }
}

/// Protobuf over gRPC, with requests validated.
#[derive(Debug)]
pub struct ValidatingCodec<T, U>(PhantomData<(T, U)>);

impl<T, U> Default for ValidatingCodec<T, U> {
    fn default() -> Self {
        Self(PhantomData)
    }
}

impl<T, U> Codec for ValidatingCodec<T, U>
where
    T: Message + Send + 'static,
    U: Message + Default + Checked + Send + 'static,
{
    type Encode = T;
    type Decode = U;
    type Encoder = ProstEncoder<T>;
    type Decoder = ValidatingDecoder<U>;

    fn encoder(&mut self) -> Self::Encoder {
        ProstCodec::<T, U>::default().encoder()
    }

    fn decoder(&mut self) -> Self::Decoder {
        ValidatingDecoder(ProstCodec::<T, U>::default().decoder())
    }
}

/// Decodes, then validates what is a request.
#[derive(Debug)]
pub struct ValidatingDecoder<U>(ProstDecoder<U>);

impl<U: Message + Default + Checked> Decoder for ValidatingDecoder<U> {
    type Item = U;
    type Error = Status;

    fn decode(&mut self, buffer: &mut DecodeBuf<'_>) -> Result<Option<U>, Status> {
        let decoded = self.0.decode(buffer).map_err(|status| match status.code() {
            Code::Internal if U::IS_REQUEST => Problem::new(&MALFORMED_MESSAGE, "the bytes are no message of this method's request type").into(),
            _ => status,
        })?;
        let broken = decoded.as_ref().filter(|_| U::IS_REQUEST).map(Checked::violations).unwrap_or_default();
        if broken.is_empty() { Ok(decoded) } else { Err(Problem::fields(broken).into()) }
    }
}
