//! Completes the OpenAPI documents with what only the contracts know: what each field means (its comment) and which values it takes (its
//! validation rules). A rule that is not known here stops the build, so that no document promises more than the services take.

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;

use anyhow::{Context as _, Result, bail};
use prost_reflect::{DescriptorPool, DynamicMessage, EnumDescriptor, FieldDescriptor, Kind, MessageDescriptor, MethodDescriptor, Value};
use prost_types::FileDescriptorProto;
use serde_json::{Map, Value as Json, json};

/// Every document in the folder.
pub fn complete(pool: &DescriptorPool, out: &Path) -> Result<()> {
    let inputs = inputs(pool);
    for entry in fs::read_dir(out)? {
        let path = entry?.path();
        if !path.to_string_lossy().ends_with(".openapi.json") {
            continue;
        }
        let mut document: Json = serde_json::from_str(&fs::read_to_string(&path)?)?;
        let schemas = document["components"]["schemas"].as_object_mut().context("schemas")?;
        for (name, schema) in schemas.iter_mut() {
            if let Some(message) = pool.get_message_by_name(name).filter(|message| message.package_name().starts_with("lastro.")) {
                complete_message(schema, &message, inputs.contains(name)).with_context(|| name.clone())?;
            } else if let Some(one) = pool.get_enum_by_name(name) {
                complete_enum(schema, &one);
            }
        }
        complete_operations(&mut document, pool)?;
        fs::write(&path, serde_json::to_string_pretty(&document)?)?;
    }
    Ok(())
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

fn complete_message(schema: &mut Json, message: &MessageDescriptor, is_input: bool) -> Result<()> {
    describe(schema, comment(message.parent_file().file_descriptor_proto(), message.path()));
    let mut required = Vec::new();
    for field in message.fields() {
        let Some(property) = schema["properties"].get_mut(field.json_name()) else { continue };
        complete_field(property, &field).with_context(|| field.name().to_owned())?;
        if is_required(&field) {
            required.push(json!(field.json_name()));
        }
    }
    if !required.is_empty() {
        schema["required"] = Json::Array(required);
    }
    if is_input {
        schema["additionalProperties"] = json!(false);
    }
    Ok(())
}

fn complete_enum(schema: &mut Json, one: &EnumDescriptor) {
    let file = one.parent_file();
    let of = |path: &[i32]| comment(file.file_descriptor_proto(), path).unwrap_or_default();
    let values: Vec<String> = one.values().map(|value| format!("`{}`: {}", value.name(), of(value.path()))).collect();
    describe(schema, Some([vec![of(one.path())], values].concat().join("\n\n")));
}

/// What each operation does, and the rules of its parameters.
fn complete_operations(document: &mut Json, pool: &DescriptorPool) -> Result<()> {
    let methods: Vec<MethodDescriptor> = pool.services().flat_map(|service| service.methods().collect::<Vec<_>>()).collect();
    let paths = document["paths"].as_object_mut().context("paths")?;
    let mut in_paths = Vec::new();
    for operation in paths.values_mut().filter_map(Json::as_object_mut).flat_map(Map::values_mut) {
        let name = operation["operationId"].as_str().context("an operationId")?.to_owned();
        let method = methods.iter().find(|method| method.name() == name).with_context(|| name.clone())?;
        let file = method.parent_file();
        describe(operation, comment(file.file_descriptor_proto(), method.path()));
        operation["tags"] = json!([method.parent_service().name().trim_end_matches("Service")]);
        for parameter in operation.get_mut("parameters").and_then(Json::as_array_mut).into_iter().flatten() {
            let field = method.input().fields().find(|field| parameter["name"] == field.json_name() || parameter["name"] == field.name());
            let field = field.with_context(|| format!("{name}: {}", parameter["name"]))?;
            complete_field(&mut parameter["schema"], &field)?;
            // A parameter is described as a whole.
            let description = parameter["schema"].as_object_mut().and_then(|schema| schema.remove("description"));
            parameter["description"] = description.unwrap_or_default();
            if parameter["in"] == "path" {
                in_paths.push((method.input().full_name().to_owned(), field.json_name().to_owned()));
            }
        }
        // A body that may be empty need not be there.
        let needs_body = method.input().fields().any(|field| is_required(&field) && !in_paths.iter().any(|(_, path)| path == field.json_name()));
        if operation.get("requestBody").is_some() {
            operation["requestBody"]["required"] = json!(needs_body);
        }
    }
    for (message, field) in in_paths {
        if let Some(schema) = document["components"]["schemas"].get_mut(&message) {
            schema["properties"].as_object_mut().map(|properties| properties.remove(&field));
            let required: Vec<Json> = schema["required"].as_array().into_iter().flatten().filter(|name| **name != field).cloned().collect();
            schema.as_object_mut().map(|schema| schema.remove("required"));
            if !required.is_empty() {
                schema["required"] = Json::Array(required);
            }
        }
    }
    Ok(())
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
    Some(paragraphs.collect::<Vec<_>>().join("\n\n"))
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

fn complete_field(schema: &mut Json, field: &FieldDescriptor) -> Result<()> {
    if let Kind::Message(message) = field.kind()
        && message.full_name() == "google.protobuf.Duration"
    {
        schema["pattern"] = json!("^-?[0-9]+([.][0-9]{1,9})?s$");
    }
    if let Some(rules) = rules(field) {
        apply(schema, &rules, Some(&field.kind()))?;
    }
    let file = field.parent_message().parent_file();
    describe(schema, comment(file.file_descriptor_proto(), field.path()));
    Ok(())
}

/// The rules of a field, of an item, or of a key, in the words of JSON Schema.
fn apply(schema: &mut Json, rules: &DynamicMessage, kind: Option<&Kind>) -> Result<()> {
    let ignores_zero = set_fields(rules).iter().any(|(name, _)| name == "ignore");
    for (name, value) in set_fields(rules) {
        match (name.as_str(), value.as_message()) {
            ("ignore" | "required", _) => {}
            ("string", Some(rules)) => apply_string(schema, rules, ignores_zero)?,
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

fn apply_string(schema: &mut Json, rules: &DynamicMessage, ignores_zero: bool) -> Result<()> {
    for (name, value) in set_fields(rules) {
        match name.as_str() {
            "min_len" => schema["minLength"] = number(&value)?,
            "max_len" => schema["maxLength"] = number(&value)?,
            "pattern" => schema["pattern"] = json!(value.as_str()),
            "email" => schema["format"] = json!("email"),
            "uuid" if ignores_zero => schema["anyOf"] = json!([{ "format": "uuid" }, { "const": "" }]),
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
