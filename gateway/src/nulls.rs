//! In the JSON of protobuf `null` means that a field is not given, which the generated code does not read for every kind of field. It is taken
//! out of a body where the contracts have such a field, and nowhere else: a field that is not known, or a client's own key in a map, stays to be
//! refused.

use std::fmt;
use std::sync::LazyLock;

use bytes::Bytes;
use serde::de::{Deserialize, Deserializer, Error, MapAccess, SeqAccess, Visitor};
use serde_json::{Map, Value};

use crate::{openapi, routes};

static DOCUMENT: LazyLock<Value> = LazyLock::new(openapi::document);

/// The body of a request as it is read.
pub fn without(body: Bytes, method: &str, path: &str) -> Bytes {
    if !body.windows(4).any(|window| window == b"null") {
        return body;
    }
    let template = routes::template(method, path).unwrap_or_default();
    let schema = &DOCUMENT["paths"][template][method.to_lowercase()]["requestBody"]["content"]["application/json"]["schema"];
    // What cannot be read is refused later, in the words of the one who reads it.
    let Ok(Once(mut value)) = serde_json::from_slice(&body) else { return body };
    remove(&mut value, schema);
    value.to_string().into()
}

fn remove(value: &mut Value, schema: &Value) {
    let schema = match schema["$ref"].as_str().and_then(|reference| reference.strip_prefix('#')) {
        Some(pointer) => DOCUMENT.pointer(pointer).unwrap_or(&Value::Null),
        None => schema,
    };
    match value {
        Value::Object(members) => {
            members.retain(|name, value| !value.is_null() || schema["properties"].get(name).is_none());
            members.iter_mut().for_each(|(name, value)| remove(value, &schema["properties"][name.as_str()]));
        }
        Value::Array(items) => items.iter_mut().for_each(|item| remove(item, &schema["items"])),
        _ => {}
    }
}

/// A value in which no name is given twice: of two, one would be lost.
struct Once(Value);

impl<'de> Deserialize<'de> for Once {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(OnceVisitor)
    }
}

struct OnceVisitor;

impl<'de> Visitor<'de> for OnceVisitor {
    type Value = Once;

    fn expecting(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str("JSON")
    }

    fn visit_unit<E: Error>(self) -> Result<Once, E> {
        Ok(Once(Value::Null))
    }

    fn visit_bool<E: Error>(self, value: bool) -> Result<Once, E> {
        Ok(Once(value.into()))
    }

    fn visit_i64<E: Error>(self, value: i64) -> Result<Once, E> {
        Ok(Once(value.into()))
    }

    fn visit_u64<E: Error>(self, value: u64) -> Result<Once, E> {
        Ok(Once(value.into()))
    }

    fn visit_f64<E: Error>(self, value: f64) -> Result<Once, E> {
        Ok(Once(value.into()))
    }

    fn visit_str<E: Error>(self, value: &str) -> Result<Once, E> {
        Ok(Once(value.into()))
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut items: A) -> Result<Once, A::Error> {
        let mut list = Vec::new();
        while let Some(Once(item)) = items.next_element()? {
            list.push(item);
        }
        Ok(Once(list.into()))
    }

    fn visit_map<A: MapAccess<'de>>(self, mut entries: A) -> Result<Once, A::Error> {
        let mut members = Map::new();
        while let Some((name, Once(value))) = entries.next_entry::<String, _>()? {
            if members.insert(name, value).is_some() {
                return Err(A::Error::custom("a name is given twice"));
            }
        }
        Ok(Once(members.into()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_fields_that_the_contracts_have_are_taken_out() {
        for (given, read) in [
            (r#"{"description":null,"type":"DEPOSIT"}"#, r#"{"type":"DEPOSIT"}"#),
            (r#"{"amount":{"amount":null,"currencyCode":"BRL"}}"#, r#"{"amount":{"currencyCode":"BRL"}}"#),
            (r#"{"nothing":null,"hold":null}"#, r#"{"nothing":null}"#),
            (r#"{"metadata":{"description":null}}"#, r#"{"metadata":{"description":null}}"#),
            (r#"{"type":"DEPOSIT","type":"WITHDRAWAL","hold":null}"#, r#"{"type":"DEPOSIT","type":"WITHDRAWAL","hold":null}"#),
            (r#"{"description":"null"}"#, r#"{"description":"null"}"#),
            ("{null", "{null"),
        ] {
            assert_eq!(without(Bytes::from_static(given.as_bytes()), "POST", "/api/v1/transactions"), read.as_bytes());
        }
    }
}
