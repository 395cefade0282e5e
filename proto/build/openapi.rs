//! The OpenAPI document of what REST offers, from the contracts alone: paths, parameters, what each field means (its comment) and which values it
//! takes (its validation rules). A rule that is not known here stops the build, so that no document promises more than the services take.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::Path;

use anyhow::{Context as _, Result, bail, ensure};
use prost_reflect::{DescriptorPool, DynamicMessage, EnumDescriptor, FieldDescriptor, Kind, MessageDescriptor, MethodDescriptor, Value};
use prost_types::FileDescriptorProto;
use serde_json::{Map, Value as Json, json};

use crate::rest_methods::{Rest, http_rule};

/// Writes `openapi.json`.
pub fn write(pool: &DescriptorPool, out: &Path) -> Result<()> {
    let offered: Vec<MethodDescriptor> =
        pool.services().flat_map(|service| service.methods().collect::<Vec<_>>()).filter(|method| http_rule(method).is_some()).collect();
    let schemas = Schemas::new(pool, &offered)?;
    let (mut paths, mut tags) = (Map::new(), Vec::new());
    for method in &offered {
        let (verb, path, _) = http_rule(method).context("a route")?;
        let tag = tag(method);
        if !tags.iter().any(|one: &Json| one["name"] == tag) {
            let service = method.parent_service();
            let file = service.parent_file();
            tags.push(json!({ "name": tag, "description": comment(file.file_descriptor_proto(), service.path()).unwrap_or_default() }));
        }
        let operation = schemas.operation(method).with_context(|| method.full_name().to_owned())?;
        let taken = paths.entry(path).or_insert_with(|| json!({}));
        ensure!(taken.get(verb.to_lowercase()).is_none(), "{}: another method has its route", method.full_name());
        taken[verb.to_lowercase()] = operation;
    }
    let document = json!({
        "openapi": "3.1.0",
        "info": { "title": "Lastro", "version": std::env::var("CARGO_PKG_VERSION")? },
        "tags": tags,
        "paths": paths,
        "components": { "schemas": schemas.all(&offered)? },
    });
    fs::write(out.join("openapi.json"), serde_json::to_string_pretty(&document)?)?;
    Ok(())
}

/// `UsersService` is `Users`.
fn tag(method: &MethodDescriptor) -> String {
    method.parent_service().name().trim_end_matches("Service").to_owned()
}

/// The names of messages and enums in the document.
struct Schemas {
    /// By full name.
    names: BTreeMap<String, String>,
    messages: Vec<MessageDescriptor>,
    enums: Vec<EnumDescriptor>,
    inputs: BTreeSet<String>,
}

impl Schemas {
    /// Of everything that the methods take and answer.
    fn new(pool: &DescriptorPool, offered: &[MethodDescriptor]) -> Result<Self> {
        let mut open: Vec<MessageDescriptor> = offered.iter().flat_map(|method| [method.input(), method.output()]).collect();
        let (mut messages, mut enums) = (BTreeMap::new(), BTreeMap::new());
        while let Some(message) = open.pop() {
            let is_ours = message.full_name().starts_with("lastro.");
            if !is_ours || messages.contains_key(message.full_name()) {
                continue;
            }
            let mut note = |kind: &Kind| match kind {
                Kind::Message(of) => open.push(of.clone()),
                Kind::Enum(one) => {
                    enums.insert(one.full_name().to_owned(), one.clone());
                }
                _ => {}
            };
            for field in message.fields() {
                match field.kind() {
                    Kind::Message(entry) if entry.is_map_entry() => note(&entry.map_entry_value_field().kind()),
                    kind => note(&kind),
                }
            }
            messages.insert(message.full_name().to_owned(), message);
        }
        let mut names = BTreeMap::new();
        // Enums that have the same values are one for whoever reads JSON: the last of them, by their full names, stands for all.
        let same = |one: &EnumDescriptor| one.values().map(|value| (value.name().to_owned(), value.number())).collect::<Vec<_>>();
        let standing: BTreeMap<Vec<(String, i32)>, String> = enums.values().map(|one| (same(one), one.full_name().to_owned())).collect();
        let stands_for: BTreeMap<String, String> = enums.values().map(|one| (one.full_name().to_owned(), standing[&same(one)].clone())).collect();
        enums.retain(|full_name, _| stands_for[full_name] == *full_name);
        let all =
            messages.values().map(|one| (one.full_name(), one.package_name())).chain(enums.values().map(|one| (one.full_name(), one.package_name())));
        for (full_name, package) in all {
            // `lastro.transactions.v1.Transaction.State` is TransactionState.
            let short: String = full_name.strip_prefix(package).unwrap_or(full_name).split('.').collect();
            let other = names.values().any(|name| *name == short);
            ensure!(!other, "{full_name}: another message that REST shows has the name {short}");
            names.insert(full_name.to_owned(), short);
        }
        for (one, standing) in stands_for {
            let name = names.get(&standing).context("an enum")?.clone();
            names.insert(one, name);
        }
        Ok(Self { names, messages: messages.into_values().collect(), enums: enums.into_values().collect(), inputs: inputs(pool) })
    }

    fn reference(&self, full_name: &str) -> Result<Json> {
        let name = self.names.get(full_name).with_context(|| format!("{full_name} has no schema"))?;
        Ok(json!({ "$ref": format!("#/components/schemas/{name}") }))
    }

    fn operation(&self, method: &MethodDescriptor) -> Result<Json> {
        let (_, path, body) = http_rule(method).context("a route")?;
        let file = method.parent_file();
        let text = comment(file.file_descriptor_proto(), method.path()).context("a comment")?;
        let answers_nothing = Rest::of(method).success == "NO_CONTENT";
        let media = if method.is_server_streaming() { "text/event-stream" } else { "application/json" };
        let mut operation = json!({
            "operationId": method.name(),
            "summary": first_sentence(&text),
            "description": text,
            "tags": [tag(method)],
            "responses": { "200": { "content": { media: { "schema": self.reference(method.output().full_name())? } } } },
        });
        if answers_nothing {
            operation["responses"]["200"] = json!({});
        }
        let (mut parameters, mut needs_body) = (Vec::new(), false);
        for field in method.input().fields() {
            let in_path = is_in_path(&path, &field);
            if !in_path && !body.is_empty() {
                needs_body |= is_required(&field);
                continue;
            }
            let mut schema = self.of_field(&field)?;
            // A parameter is described as a whole.
            let description = schema.as_object_mut().and_then(|schema| schema.remove("description")).unwrap_or_default();
            let place = if in_path { "path" } else { "query" };
            let required = in_path || is_required(&field);
            parameters.push(json!({ "name": field.json_name(), "in": place, "required": required, "description": description, "schema": schema }));
        }
        if !parameters.is_empty() {
            operation["parameters"] = json!(parameters);
        }
        if !body.is_empty() {
            // A body that may be empty need not be there.
            let schema = self.reference(method.input().full_name())?;
            operation["requestBody"] = json!({ "required": needs_body, "content": { "application/json": { "schema": schema } } });
            if let Some(example) = example(&method.input(), &path) {
                operation["requestBody"]["content"]["application/json"]["example"] = example;
            }
        }
        Ok(operation)
    }

    /// The schemas that the operations refer to.
    fn all(&self, offered: &[MethodDescriptor]) -> Result<Map<String, Json>> {
        let mut all = Map::new();
        for message in &self.messages {
            let of_route = offered.iter().find(|method| method.input() == *message);
            let (path, body) = of_route.and_then(http_rule).map(|(_, path, body)| (path, body)).unwrap_or_default();
            // All of it stands in the path and the query, or nothing is answered at all.
            let is_answered = |method: &MethodDescriptor| method.output() == *message && Rest::of(method).success != "NO_CONTENT";
            let is_within = |other: &MessageDescriptor| other.fields().any(|field| field.kind().as_message() == Some(message));
            let is_shown = message.fields().len() > 0 || offered.iter().any(is_answered) || self.messages.iter().any(is_within);
            if of_route.is_some() && body.is_empty() || of_route.is_none() && !is_shown {
                continue;
            }
            let schema = self.of_message(message, &path).with_context(|| message.full_name().to_owned())?;
            all.insert(self.names[message.full_name()].clone(), schema);
        }
        for one in &self.enums {
            let size = |one: &EnumDescriptor| (one.values().len(), one.full_name().to_owned());
            let (name, taken) = (&self.names[one.full_name()], self.enums.iter().filter(|other| size(other) > size(one)));
            all.insert(name.clone(), of_enum(one, name, taken));
        }
        Ok(all)
    }

    /// A message, without what stands in the path.
    fn of_message(&self, message: &MessageDescriptor, path: &str) -> Result<Json> {
        let is_input = self.inputs.contains(message.full_name());
        let (mut properties, mut required) = (Map::new(), Vec::new());
        for field in message.fields().filter(|field| !is_in_path(path, field)) {
            properties.insert(field.json_name().to_owned(), self.of_field(&field).with_context(|| field.name().to_owned())?);
            // Answers carry every field, but for messages and choices that are not there.
            let is_always_there = !is_input && !field.supports_presence();
            if is_always_there || (is_input && is_required(&field)) {
                required.push(json!(field.json_name()));
            }
        }
        let mut schema = json!({ "type": "object", "properties": properties });
        if !required.is_empty() {
            schema["required"] = json!(required);
        }
        if is_input {
            schema["additionalProperties"] = json!(false);
        }
        describe(&mut schema, comment(message.parent_file().file_descriptor_proto(), message.path()));
        Ok(schema)
    }

    fn of_field(&self, field: &FieldDescriptor) -> Result<Json> {
        let mut schema = if field.is_map() {
            let entry = field.kind().as_message().context("an entry")?.clone();
            json!({ "type": "object", "additionalProperties": self.of_kind(&entry.map_entry_value_field().kind())? })
        } else if field.is_list() {
            json!({ "type": "array", "items": self.of_kind(&field.kind())? })
        } else {
            self.of_kind(&field.kind())?
        };
        if let Some(rules) = rules(field) {
            apply(&mut schema, &rules, Some(&field.kind()))?;
        }
        let file = field.parent_message().parent_file();
        describe(&mut schema, comment(file.file_descriptor_proto(), field.path()));
        Ok(schema)
    }

    /// As protobuf's JSON mapping has it.
    fn of_kind(&self, kind: &Kind) -> Result<Json> {
        Ok(match kind {
            Kind::Bool => json!({ "type": "boolean" }),
            Kind::String => json!({ "type": "string" }),
            Kind::Bytes => json!({ "type": "string", "format": "byte" }),
            Kind::Int32 | Kind::Sint32 | Kind::Sfixed32 => json!({ "type": "integer", "format": "int32" }),
            Kind::Uint32 | Kind::Fixed32 => json!({ "type": "integer", "format": "int64", "minimum": 0 }),
            Kind::Int64 | Kind::Sint64 | Kind::Sfixed64 => json!({ "type": "string", "format": "int64" }),
            Kind::Uint64 | Kind::Fixed64 => json!({ "type": "string", "format": "uint64" }),
            Kind::Float | Kind::Double => bail!("no contract has floating point"),
            Kind::Enum(one) => self.reference(one.full_name())?,
            Kind::Message(of) => match of.full_name() {
                "google.protobuf.Timestamp" => json!({ "type": "string", "format": "date-time" }),
                "google.protobuf.Duration" => json!({ "type": "string", "pattern": "^-?[0-9]+([.][0-9]{1,9})?s$" }),
                other => self.reference(other)?,
            },
        })
    }
}

/// A request as its fields' examples have it, without what stands in the path; None where they have none.
fn example(message: &MessageDescriptor, path: &str) -> Option<Json> {
    let mut fields = Map::new();
    for field in message.fields().filter(|field| !is_in_path(path, field)) {
        let options = field.options();
        let mut all = options.extensions();
        let said = all.find(|(extension, _)| extension.full_name() == "lastro.type.v1.example");
        let is_text = matches!(field.kind(), Kind::String | Kind::Enum(_));
        let read = |text: &str| if is_text { json!(text) } else { serde_json::from_str(text).unwrap_or_else(|_| json!(text)) };
        if said.as_ref().is_some_and(|(_, value)| value.as_str() == Some("")) {
            continue;
        }
        let said = said.and_then(|(_, value)| value.as_str().map(read));
        let within =
            || field.kind().as_message().filter(|of| !field.is_list() && of.full_name().starts_with("lastro.")).and_then(|of| example(of, ""));
        if let Some(value) = said.or_else(within) {
            fields.insert(field.json_name().to_owned(), value);
        }
    }
    (!fields.is_empty()).then_some(Json::Object(fields))
}

/// Generated clients may have one name for each value of all enums: a value that a larger enum has as well is told apart by the name of its enum.
fn of_enum<'a>(one: &EnumDescriptor, enum_name: &str, larger: impl Iterator<Item = &'a EnumDescriptor>) -> Json {
    let file = one.parent_file();
    let of = |path: &[i32]| comment(file.file_descriptor_proto(), path).unwrap_or_default();
    let values: Vec<String> = one.values().map(|value| format!("`{}`: {}", value.name(), of(value.path()))).collect();
    let names: Vec<String> = one.values().map(|value| value.name().to_owned()).collect();
    let taken: BTreeSet<String> = larger.flat_map(|other| other.values().map(|value| value.name().to_owned()).collect::<Vec<_>>()).collect();
    let in_clients = |name: &String| if taken.contains(name) { format!("{}_{name}", screaming(enum_name)) } else { name.clone() };
    let in_clients: Vec<String> = names.iter().map(in_clients).collect();
    let mut schema = json!({ "type": "string", "enum": names });
    if in_clients != names {
        schema["x-enum-varnames"] = json!(in_clients);
    }
    describe(&mut schema, Some([vec![of(one.path())], values].concat().join("\n\n")));
    schema
}

/// `TransactionState` is `TRANSACTION_STATE`.
fn screaming(name: &str) -> String {
    let mut words = String::new();
    for letter in name.chars() {
        if letter.is_uppercase() && !words.is_empty() {
            words.push('_');
        }
        words.extend(letter.to_uppercase());
    }
    words
}

fn is_in_path(path: &str, field: &FieldDescriptor) -> bool {
    path.contains(&format!("{{{}}}", field.json_name()))
}

/// Up to the first full stop before a space, without it.
fn first_sentence(text: &str) -> &str {
    text.split_once(". ").map_or(text, |(first, _)| first).split("\n\n").next().unwrap_or_default().trim_end_matches('.')
}

/// Messages that come from clients: fields that are not in them are refused.
pub fn inputs(pool: &DescriptorPool) -> BTreeSet<String> {
    let mut found = BTreeSet::new();
    let mut open: Vec<MessageDescriptor> = pool.services().flat_map(|service| service.methods().map(|m| m.input()).collect::<Vec<_>>()).collect();
    while let Some(message) = open.pop() {
        if found.insert(message.full_name().to_owned()) {
            open.extend(message.fields().filter_map(|field| field.kind().as_message().cloned()));
        }
    }
    found
}

fn describe(schema: &mut Json, text: Option<String>) {
    if let Some(text) = text.filter(|text| !text.is_empty()) {
        schema["description"] = json!(text);
    }
}

/// The comment above something, in one line a paragraph.
fn comment(file: &FileDescriptorProto, path: &[i32]) -> Option<String> {
    let location = file.source_code_info.as_ref()?.location.iter().find(|location| location.path == path)?;
    let paragraphs = location.leading_comments().trim().split("\n\n").map(|text| text.split_whitespace().collect::<Vec<_>>().join(" "));
    Some(in_json(&paragraphs.collect::<Vec<_>>().join("\n\n")))
}

/// A comment names fields as the contract does; JSON writes `external_id` as `externalId`.
fn in_json(text: &str) -> String {
    let mut written = String::with_capacity(text.len());
    for (index, part) in text.split('`').enumerate() {
        if index > 0 {
            written.push('`');
        }
        let is_name = index % 2 == 1
            && part.contains('_')
            && part.bytes().all(|byte| byte.is_ascii_lowercase() || byte.is_ascii_digit() || b"_.".contains(&byte));
        if !is_name {
            written.push_str(part);
            continue;
        }
        let mut upper = false;
        for character in part.chars() {
            match character {
                '_' => upper = true,
                _ if upper => {
                    written.push(character.to_ascii_uppercase());
                    upper = false;
                }
                _ => written.push(character),
            }
        }
    }
    written
}

pub fn rules(field: &FieldDescriptor) -> Option<DynamicMessage> {
    let options = field.options();
    let mut all = options.extensions();
    all.find(|(extension, _)| extension.full_name() == "buf.validate.field").and_then(|(_, value)| value.as_message().cloned())
}

/// The fields that are set.
fn set_fields(message: &DynamicMessage) -> Vec<(String, Value)> {
    message.fields().map(|(field, value)| (field.name().to_owned(), value.clone())).collect()
}

/// The rules of a field, of an item, or of a key, in the words of JSON Schema.
fn apply(schema: &mut Json, rules: &DynamicMessage, kind: Option<&Kind>) -> Result<()> {
    for (name, value) in set_fields(rules) {
        match (name.as_str(), value.as_message()) {
            ("ignore" | "required", _) => {}
            ("string", Some(rules)) => apply_string(schema, rules)?,
            ("int32" | "int64", Some(rules)) => {
                for (name, value) in set_fields(rules) {
                    let keyword = match name.as_str() {
                        "gte" => "minimum",
                        "lte" => "maximum",
                        other => bail!("the rule {other} of a number is not known to OpenAPI"),
                    };
                    schema[keyword] = number(&value)?;
                }
            }
            ("enum", Some(rules)) => apply_enum(schema, rules, kind.and_then(Kind::as_enum).context("an enum")?)?,
            ("repeated", Some(rules)) => {
                for (name, value) in set_fields(rules) {
                    match (name.as_str(), value.as_message()) {
                        ("min_items", _) => schema["minItems"] = number(&value)?,
                        ("max_items", _) => schema["maxItems"] = number(&value)?,
                        ("unique", _) => schema["uniqueItems"] = json!(true),
                        ("items", Some(rules)) => apply(&mut schema["items"], rules, kind)?,
                        (other, _) => bail!("the rule {other} of a list is not known to OpenAPI"),
                    }
                }
            }
            ("map", Some(rules)) => {
                for (name, value) in set_fields(rules) {
                    match (name.as_str(), value.as_message()) {
                        ("min_pairs", _) => schema["minProperties"] = number(&value)?,
                        ("max_pairs", _) => schema["maxProperties"] = number(&value)?,
                        ("keys", Some(rules)) => {
                            schema["propertyNames"] = json!({});
                            apply(&mut schema["propertyNames"], rules, None)?;
                        }
                        ("values", Some(rules)) => apply(&mut schema["additionalProperties"], rules, None)?,
                        (other, _) => bail!("the rule {other} of a map is not known to OpenAPI"),
                    }
                }
            }
            (other, _) => bail!("rules of {other} are not known to OpenAPI"),
        }
    }
    Ok(())
}

fn apply_string(schema: &mut Json, rules: &DynamicMessage) -> Result<()> {
    for (name, value) in set_fields(rules) {
        match name.as_str() {
            "min_len" => schema["minLength"] = number(&value)?,
            "max_len" => schema["maxLength"] = number(&value)?,
            "pattern" => schema["pattern"] = json!(value.as_str()),
            "email" => schema["format"] = json!("email"),
            "uuid" => schema["format"] = json!("uuid"),
            other => bail!("the rule {other} of a string is not known to OpenAPI"),
        }
    }
    Ok(())
}

fn apply_enum(schema: &mut Json, rules: &DynamicMessage, one: &EnumDescriptor) -> Result<()> {
    for (name, value) in set_fields(rules) {
        let listed: Vec<i32> = value.as_list().into_iter().flatten().filter_map(Value::as_i32).collect();
        let keep = |number: i32| match name.as_str() {
            "in" => listed.contains(&number),
            _ => !listed.contains(&number),
        };
        match name.as_str() {
            "defined_only" => {}
            "in" | "not_in" => {
                schema["enum"] = one.values().filter(|value| keep(value.number())).map(|value| json!(value.name())).collect();
            }
            other => bail!("the rule {other} of an enum is not known to OpenAPI"),
        }
    }
    Ok(())
}

fn number(value: &Value) -> Result<Json> {
    let signed = value.as_i32().map(i64::from).or(value.as_i64());
    signed.map(|number| json!(number)).or(value.as_u64().map(|number| json!(number))).context("a number")
}

/// Whether the field must be given: its rules do not let it be empty.
fn is_required(field: &FieldDescriptor) -> bool {
    let Some(rules) = rules(field) else { return false };
    let set = set_fields(&rules);
    let within = |kind: &str, rule: &str| {
        let rules = set.iter().find(|(name, _)| name == kind).and_then(|(_, value)| value.as_message());
        rules.into_iter().flat_map(set_fields).find(|(name, _)| name == rule).map(|(_, value)| value)
    };
    if set.iter().any(|(name, value)| name == "required" && value.as_bool() == Some(true)) {
        return true;
    }
    if field.supports_presence() || set.iter().any(|(name, _)| name == "ignore") {
        return false;
    }
    let is_empty_allowed = |value: &Value| value.as_list().is_some_and(|listed| listed.iter().any(|value| value.as_i32() == Some(0)));
    within("string", "min_len").and_then(|value| value.as_u64()).is_some_and(|least| least > 0)
        || ["uuid", "email", "pattern"].iter().any(|rule| within("string", rule).is_some())
        || within("enum", "in").is_some_and(|value| !is_empty_allowed(&value))
}
