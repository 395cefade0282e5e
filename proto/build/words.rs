//! What a field of a request must be, in the contract's words, for whoever sent something else: the libraries that find it speak of lists of numbers
//! and of regular expressions.

use anyhow::{Context as _, Result};
use prost_reflect::{EnumDescriptor, FieldDescriptor, Kind, MessageDescriptor, Value};

use crate::openapi::rules;

/// Path within the message, as in the proto and without indexes, and the words: of every field that needs some.
pub fn of(message: &MessageDescriptor) -> Result<Vec<(String, String)>> {
    let mut all = Vec::new();
    collect(message, "", &mut all)?;
    Ok(all)
}

fn collect(message: &MessageDescriptor, within: &str, all: &mut Vec<(String, String)>) -> Result<()> {
    for field in message.fields() {
        let path = format!("{within}{}", field.name());
        match field.kind() {
            Kind::Enum(of) => all.push((path, must_be_one_of(&field, &of))),
            Kind::String if has_pattern(&field) => {
                let words = must_be(&field).with_context(|| format!("{}: a pattern needs words, (lastro.type.v1.must_be)", field.full_name()))?;
                all.push((path, words));
            }
            Kind::Message(of) if of.full_name() == "google.protobuf.Duration" => {
                all.push((path, "must be a duration in seconds, such as \"5s\" or \"0.5s\"".to_owned()));
            }
            Kind::Message(of) if of.full_name() == "google.protobuf.Timestamp" => {
                all.push((path, "must be an RFC 3339 time such as 2026-01-31T12:00:00Z".to_owned()));
            }
            Kind::Message(of) if of.full_name().starts_with("lastro.") && !of.is_map_entry() => collect(&of, &format!("{path}."), all)?,
            _ => {}
        }
    }
    Ok(())
}

fn has_pattern(field: &FieldDescriptor) -> bool {
    let text = rules(field).and_then(|rules| rules.get_field_by_name("string")?.as_message().cloned());
    text.is_some_and(|text| text.has_field_by_name("pattern"))
}

fn must_be(field: &FieldDescriptor) -> Option<String> {
    let options = field.options();
    let mut all = options.extensions();
    all.find(|(extension, _)| extension.full_name() == "lastro.type.v1.must_be").and_then(|(_, value)| value.as_str().map(str::to_owned))
}

/// The names that the field's rules allow; the one that stands for nothing is never meant.
fn must_be_one_of(field: &FieldDescriptor, of: &EnumDescriptor) -> String {
    let of_items =
        |rules: &prost_reflect::DynamicMessage| rules.get_field_by_name("repeated")?.as_message()?.get_field_by_name("items")?.as_message().cloned();
    let rules = rules(field).and_then(|rules| if field.is_list() { of_items(&rules) } else { Some(rules) });
    let rules = rules.and_then(|rules| rules.get_field_by_name("enum")?.as_message().cloned());
    let numbers = |name: &str| -> Vec<i32> {
        let list = rules.as_ref().and_then(|rules| rules.get_field_by_name(name).map(std::borrow::Cow::into_owned));
        list.as_ref().and_then(Value::as_list).into_iter().flatten().filter_map(Value::as_i32).collect()
    };
    let (only, never) = (numbers("in"), numbers("not_in"));
    let allowed =
        of.values().filter(|value| value.number() != 0 && (only.is_empty() || only.contains(&value.number())) && !never.contains(&value.number()));
    let names: Vec<String> = allowed.map(|value| value.name().to_owned()).collect();
    match names.split_last() {
        Some((last, rest)) if !rest.is_empty() => format!("must be {} or {last}", rest.join(", ")),
        _ => format!("must be {}", names.concat()),
    }
}
