//! The JSON of a request, read strictly by the contract of its method before it becomes a message: every name once, whichever of a field's
//! two names it is; nothing that the message does not have, or that stands in the path; and `null` for what is not given.
//!
//! Names are looked at with the schema of the message in the OpenAPI document. A name in a map is the client's own, and stands once as well.

use std::cell::RefCell;
use std::fmt;
use std::sync::LazyLock;

use bytes::Bytes;
use lastro_mesh::status::Problem;
use lastro_proto::json;
use lastro_proto::methods::Method;
use lastro_proto::reasons::MALFORMED_JSON;
use serde::de::{DeserializeSeed, Deserializer, Error, MapAccess, SeqAccess, Visitor};
use serde_json::{Map, Value};

use super::json_path;
use crate::openapi;

static DOCUMENT: LazyLock<Value> = LazyLock::new(openapi::document);

/// Longer names are cut where an error repeats them.
const NAME_SHOWN_MAX: usize = 100;

/// The request message as JSON: the body, with the fields that stand in the path and in the query. What is no JSON at all passes as it is, to be
/// refused in the words of the one who reads it.
pub fn read(method: &Method, body: Bytes, fields: [Map<String, Value>; 2]) -> Result<Bytes, Problem> {
    let fields = || fields.into_iter().flatten();
    if !method.takes_body {
        let empty = body.iter().all(u8::is_ascii_whitespace) || serde_json::from_slice::<Map<String, Value>>(&body).is_ok_and(|body| body.is_empty());
        if !empty {
            return Err(Problem::new(&MALFORMED_JSON, "this method takes no body; send none"));
        }
        return Ok(Value::Object(fields().collect()).to_string().into());
    }
    let body = if body.iter().all(u8::is_ascii_whitespace) { Bytes::from_static(b"{}") } else { body };
    let Some(mut value) = parse(&body)? else { return Ok(body) };
    let mut changed = keep_the_contract(&mut value, schema_of(method), method, &mut Vec::new())?;
    if let Value::Object(members) = &mut value {
        for (name, value) in fields() {
            members.insert(name, value);
            changed = true;
        }
    }
    Ok(if changed { value.to_string().into() } else { body })
}

/// The schema of a method's request message.
fn schema_of(method: &Method) -> &'static Value {
    let operation = &DOCUMENT["paths"][method.http_path][method.http_method.to_lowercase()];
    &operation["requestBody"]["content"]["application/json"]["schema"]
}

/// None for what is no JSON.
fn parse(body: &[u8]) -> Result<Option<Value>, Problem> {
    let doubled = RefCell::new(None);
    let mut deserializer = serde_json::Deserializer::from_slice(body);
    let parsed = Once(&doubled).deserialize(&mut deserializer).and_then(|value| deserializer.end().map(|()| value));
    match (parsed, doubled.into_inner()) {
        (Ok(value), _) => Ok(Some(value)),
        (Err(error), Some(name)) => {
            let within = json_path::path_at(body, error.line(), error.column());
            Err(given_twice(&join(&within, &name)))
        }
        (Err(_), None) => Ok(None),
    }
}

fn given_twice(field: &str) -> Problem {
    refuse(field, "is given twice; send it once")
}

fn refuse(field: &str, description: &str) -> Problem {
    let problem = Problem::field(field, description);
    Problem { detail: format!("{field}: {description}"), reason: &MALFORMED_JSON, ..problem }
}

fn join(within: &str, name: &str) -> String {
    let shown: String = name.chars().take(NAME_SHOWN_MAX).collect();
    if within.is_empty() { shown } else { format!("{within}.{shown}") }
}

/// Takes out what is null and refuses what the contract does not have; whether something was taken out. `path` is where `value` stands.
fn keep_the_contract(value: &mut Value, schema: &Value, method: &Method, path: &mut Vec<String>) -> Result<bool, Problem> {
    let schema = match schema["$ref"].as_str().and_then(|reference| reference.strip_prefix('#')) {
        Some(pointer) => DOCUMENT.pointer(pointer).unwrap_or(&Value::Null),
        None => schema,
    };
    let mut changed = false;
    match value {
        Value::Object(members) => match schema["properties"].as_object() {
            Some(properties) => {
                let known = |name: &str| {
                    let json_name = if properties.contains_key(name) { name.to_owned() } else { json::camel_case(name) };
                    properties.get_key_value(&json_name)
                };
                let before = members.len();
                members.retain(|name, value| !(value.is_null() && known(name).is_some()));
                changed |= members.len() < before;
                let mut seen: Vec<&str> = Vec::new();
                for (name, value) in members.iter_mut() {
                    let Some((json_name, schema)) = known(name) else {
                        let top = path.is_empty();
                        let in_path = top && method.path_fields.contains(&json::camel_case(name).as_str());
                        let why = if in_path { "stands in the path; remove it from the body" } else { "is not known here; remove it" };
                        return Err(refuse(&join(&path.join("."), name), why));
                    };
                    if seen.contains(&json_name.as_str()) {
                        return Err(given_twice(&join(&path.join("."), json_name)));
                    }
                    seen.push(json_name);
                    path.push(json_name.clone());
                    changed |= keep_the_contract(value, schema, method, path)?;
                    path.pop();
                }
            }
            None => {
                for (name, value) in members.iter_mut().filter(|_| schema["additionalProperties"].is_object()) {
                    path.push(name.chars().take(NAME_SHOWN_MAX).collect());
                    changed |= keep_the_contract(value, &schema["additionalProperties"], method, path)?;
                    path.pop();
                }
            }
        },
        Value::Array(items) => {
            for (index, item) in items.iter_mut().enumerate() {
                let last = path.last_mut().map(|last| std::mem::replace(last, format!("{last}[{index}]")));
                changed |= keep_the_contract(item, &schema["items"], method, path)?;
                if let (Some(place), Some(last)) = (path.last_mut(), last) {
                    *place = last;
                }
            }
        }
        _ => {}
    }
    Ok(changed)
}

/// Reads JSON in which no object has a name twice, at any depth; remembers the name that it has twice.
#[derive(Clone, Copy)]
struct Once<'a>(&'a RefCell<Option<String>>);

impl<'de> DeserializeSeed<'de> for Once<'_> {
    type Value = Value;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<Value, D::Error> {
        deserializer.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for Once<'_> {
    type Value = Value;

    fn expecting(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str("JSON")
    }

    fn visit_unit<E: Error>(self) -> Result<Value, E> {
        Ok(Value::Null)
    }

    fn visit_bool<E: Error>(self, value: bool) -> Result<Value, E> {
        Ok(value.into())
    }

    fn visit_i64<E: Error>(self, value: i64) -> Result<Value, E> {
        Ok(value.into())
    }

    fn visit_u64<E: Error>(self, value: u64) -> Result<Value, E> {
        Ok(value.into())
    }

    fn visit_f64<E: Error>(self, value: f64) -> Result<Value, E> {
        Ok(value.into())
    }

    fn visit_str<E: Error>(self, value: &str) -> Result<Value, E> {
        Ok(value.into())
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut items: A) -> Result<Value, A::Error> {
        let mut list = Vec::new();
        while let Some(item) = items.next_element_seed(self)? {
            list.push(item);
        }
        Ok(list.into())
    }

    fn visit_map<A: MapAccess<'de>>(self, mut entries: A) -> Result<Value, A::Error> {
        let mut members = Map::new();
        while let Some(name) = entries.next_key::<String>()? {
            if members.contains_key(&name) {
                // Before its value, so that the place of the error is that of the object.
                *self.0.borrow_mut() = Some(name);
                return Err(A::Error::custom("a name is given twice"));
            }
            members.insert(name, entries.next_value_seed(self)?);
        }
        Ok(members.into())
    }
}

#[cfg(test)]
mod tests {
    use lastro_proto::methods::METHODS;

    use super::*;

    fn read_as(name: &str, json: &'static str) -> Result<Bytes, Problem> {
        let method = METHODS.iter().find(|method| method.name == name).expect("a method");
        read(method, Bytes::from_static(json.as_bytes()), [Map::new(), Map::new()])
    }

    #[test]
    fn null_is_a_field_that_is_not_given() {
        for (given, read) in [
            (r#"{"description":null,"type":"DEPOSIT"}"#, r#"{"type":"DEPOSIT"}"#),
            (r#"{"amount":{"amount":null,"currencyCode":"BRL"}}"#, r#"{"amount":{"currencyCode":"BRL"}}"#),
            (r#"{"external_id":null,"hold":null}"#, "{}"),
            (r#"{"external_id":null,"externalId":"k"}"#, r#"{"externalId":"k"}"#),
            (r#"{"external_id":"k","externalId":null}"#, r#"{"external_id":"k"}"#),
            (r#"{"metadata":{"description":null}}"#, r#"{"metadata":{"description":null}}"#),
            (r#"{"description":"null"}"#, r#"{"description":"null"}"#),
            ("{null", "{null"),
            ("[]", "[]"),
        ] {
            assert_eq!(read_as("CreateTransaction", given).expect(given), read.as_bytes());
        }
    }

    #[test]
    fn nothing_is_said_twice_and_nothing_that_is_not_asked() {
        for (json, field) in [
            (r#"{"type":"DEPOSIT","type":"WITHDRAWAL"}"#, "type"),
            (r#"{"type":"DEPOSIT","\u0074ype":"DEPOSIT"}"#, "type"),
            (r#"{"type":null,"type":"DEPOSIT"}"#, "type"),
            (r#"{"amount":{"amount":"1","amount":"2"}}"#, "amount.amount"),
            (r#"{"metadata":{"a":"1","b":"2","a":"3"}}"#, "metadata.a"),
            (r#"{"nothing":{"deep":[{"x":1,"x":2}]}}"#, "nothing.deep[0].x"),
            (r#"{"externalId":"a","external_id":"b"}"#, "externalId"),
            (r#"{"external_id":"a","externalId":"a"}"#, "externalId"),
            (r#"{"amount":{"currencyCode":"BRL","currency_code":"USD"}}"#, "amount.currencyCode"),
            (r#"{"nothing":null}"#, "nothing"),
            (r#"{"amount":{"amount":"1","x":1}}"#, "amount.x"),
        ] {
            assert_eq!(read_as("CreateTransaction", json).expect_err(json).fields[0].field, field, "{json}");
        }
        let in_path = read_as("UpdateUser", r#"{"id":"0190b3a2-7c1e-7d5e-9a3b-2f6c1d0e4b5a","name":"x"}"#).expect_err("an id in the body");
        assert!(in_path.fields[0].field == "id" && in_path.detail.contains("path"), "{in_path:?}");
        assert_eq!(read_as("UpdateUser", r#"{"roles":["USER"],"roles":[]}"#).expect_err("twice").fields[0].field, "roles");
    }

    #[test]
    fn a_method_without_a_body_takes_none() {
        for (json, taken) in [("", true), (" ", true), ("{}", true), (r#"{"pageSize":1}"#, false), ("[]", false), ("x", false)] {
            assert_eq!(read_as("ListAccounts", json).is_ok(), taken, "{json}");
        }
    }
}
