//! The methods that REST offers, as the gateway needs them: what the annotations `google.api.http` and `lastro.type.v1.rest` say of each, and a type
//! for each with what depends on its messages. What an annotation asks of a message that has no such field stops the build.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::fs;
use std::path::Path;

use anyhow::{Context as _, Result, ensure};
use prost_reflect::{DescriptorPool, DynamicMessage, EnumValueDescriptor, Kind, MessageDescriptor, MethodDescriptor, ReflectMessage as _, Value};

use crate::{extension, rust_path};

/// The annotation `lastro.type.v1.rest` of a method.
#[derive(Debug, Default)]
pub struct Rest {
    /// `CREATED`, or empty for 200.
    pub success: String,
    pub location: String,
    pub takes_idempotency_key: bool,
    pub key: String,
    pub takes_wait: bool,
    pub waits_outside: bool,
    /// The field whose messages are rows, or empty.
    pub csv: String,
    pub reasons: Vec<String>,
}

impl Rest {
    pub fn of(method: &MethodDescriptor) -> Self {
        let Some(rest) = extension(method, "lastro.type.v1.rest") else { return Self::default() };
        let success = enum_name(&rest, "success").filter(|name| !name.ends_with("UNSPECIFIED")).unwrap_or_default();
        let value = |name: &str| rest.get_field_by_name(name).map(std::borrow::Cow::into_owned);
        let is = |name: &str| value(name).and_then(|value| value.as_bool()).unwrap_or_default();
        let listed = value("reasons");
        Self {
            success,
            location: value("location").and_then(|value| value.as_str().map(str::to_owned)).unwrap_or_default(),
            takes_idempotency_key: is("takes_idempotency_key"),
            key: value("key").and_then(|value| value.as_str().map(str::to_owned)).unwrap_or_default(),
            takes_wait: is("takes_wait"),
            waits_outside: is("waits_outside"),
            csv: value("csv").and_then(|value| value.as_str().map(str::to_owned)).unwrap_or_default(),
            reasons: listed.as_ref().and_then(Value::as_list).into_iter().flatten().filter_map(|one| one.as_str().map(str::to_owned)).collect(),
        }
    }

    /// As the value of `Method::success`.
    pub fn success_variant(&self) -> &'static str {
        match self.success.as_str() {
            "CREATED" => "Created",
            "NO_CONTENT" => "NoContent",
            "ACCEPTED" => "Accepted",
            "TAKEN" => "Taken",
            _ => "Ok",
        }
    }
}

fn enum_name(message: &DynamicMessage, field: &str) -> Option<String> {
    let field = message.descriptor().get_field_by_name(field)?;
    let number = message.get_field(&field).as_enum_number()?;
    Some(field.kind().as_enum()?.get_value(number)?.name().to_owned())
}

/// Method, path and body of the REST route.
pub fn http_rule(method: &MethodDescriptor) -> Option<(String, String, String)> {
    let rule = extension(method, "google.api.http")?;
    let body = rule.get_field_by_name("body").and_then(|body| body.as_str().map(str::to_owned)).unwrap_or_default();
    ["get", "put", "post", "delete", "patch"].iter().find_map(|verb| {
        let field = rule.descriptor().get_field_by_name(verb)?;
        if !rule.has_field(&field) {
            return None;
        }
        match rule.get_field(&field).into_owned() {
            Value::String(path) => Some((verb.to_uppercase(), with_json_names(method, path), body.clone())),
            _ => None,
        }
    })
}

/// Fields in a path are called as in JSON, as everything over REST is.
fn with_json_names(method: &MethodDescriptor, path: String) -> String {
    let named =
        |path: String, field: prost_reflect::FieldDescriptor| path.replace(&format!("{{{}}}", field.name()), &format!("{{{}}}", field.json_name()));
    method.input().fields().fold(path, named)
}

/// The type of each method that REST offers, and the visit of all of them. `index` is a method's place in the table of all.
pub fn write(pool: &DescriptorPool, out: &Path) -> Result<()> {
    let (mut code, mut visits) = (String::new(), String::new());
    let mut operations: BTreeMap<String, String> = BTreeMap::new();
    let methods = pool.services().flat_map(|service| service.methods().collect::<Vec<_>>());
    for (index, method) in methods.enumerate().filter(|(_, method)| http_rule(method).is_some()) {
        let name = method.full_name().to_owned();
        let other = operations.insert(method.name().to_owned(), name.clone());
        ensure!(other.is_none(), "{name} and {other:?}: the name of a method is its operationId, and must be unique among what REST offers");
        ensure!(!method.is_client_streaming(), "{name}: a request over REST is one message");
        let rest = Rest::of(&method);
        write_one(&mut code, index, &method, &rest).with_context(|| name.clone())?;
        let visit = if method.is_server_streaming() { "streaming" } else { "unary" };
        writeln!(visits, "visitor.{visit}::<M{index}>();")?;
    }
    writeln!(code, "/// Visits every method that REST offers.\npub fn visit(visitor: &mut impl Visitor) {{\n{visits}}}")?;
    fs::write(out.join("rest_methods.rs"), code)?;
    Ok(())
}

fn write_one(code: &mut String, index: usize, method: &MethodDescriptor, rest: &Rest) -> Result<()> {
    let (input, output) = (method.input(), method.output());
    let (request, answer) = (in_crate(&input), in_crate(&output));
    let mut items = String::new();
    if rest.takes_idempotency_key {
        need(&input, "external_id", |kind| *kind == Kind::String)?;
        writeln!(items, "fn external_id(request: &mut {request}) -> Option<&mut String> {{ Some(&mut request.external_id) }}")?;
    }
    if rest.takes_wait {
        need(&input, "wait", |kind| kind.as_message().is_some_and(|of| of.full_name() == "google.protobuf.Duration"))?;
        writeln!(items, "fn wait(request: &mut {request}) -> Option<&mut Option<::pbjson_types::Duration>> {{ Some(&mut request.wait) }}")?;
    }
    if input.get_field_by_name("validate_only").is_some_and(|field| field.kind() == Kind::Bool && !field.is_list()) {
        writeln!(items, "fn validates_only(request: &{request}) -> bool {{ request.validate_only }}")?;
    }
    if !rest.csv.is_empty() && output.get_field_by_name("next_page_token").is_some() {
        need(&output, "next_page_token", |kind| *kind == Kind::String)?;
        need(&input, "page_token", |kind| *kind == Kind::String)?;
        need(&input, "page_size", |kind| *kind == Kind::Int32)?;
        writeln!(
            items,
            "fn page(request: &mut {request}) -> Option<(&mut i32, &mut String)> {{ Some((&mut request.page_size, &mut request.page_token)) }}\n\
             fn next_page_token(answer: &{answer}) -> &str {{ &answer.next_page_token }}"
        )?;
    }
    ensure!(rest.location.is_empty() || ["CREATED", "ACCEPTED"].contains(&rest.success.as_str()), "only what is made or accepted has a location");
    if !rest.location.is_empty() {
        let (mut template, mut fields) = (String::new(), String::new());
        for part in rest.location.split_inclusive('}') {
            let Some((literal, field)) = part.strip_suffix('}').and_then(|part| part.split_once('{')) else {
                template.push_str(part);
                continue;
            };
            need(&output, field, |kind| *kind == Kind::String)?;
            write!(template, "{literal}{{}}")?;
            write!(fields, ", crate::rest_methods::escaped(&answer.{field})")?;
        }
        writeln!(items, "fn location(answer: &{answer}) -> Option<String> {{ Some(format!({template:?}{fields})) }}")?;
    }
    let may_be_replayed = output.get_field_by_name("replayed").is_some();
    if ["CREATED", "ACCEPTED"].contains(&rest.success.as_str()) || (rest.success == "TAKEN" && may_be_replayed) {
        need(&output, "replayed", |kind| *kind == Kind::Bool)?;
        writeln!(items, "fn is_replayed(answer: &{answer}) -> bool {{ answer.replayed }}")?;
    }
    if rest.success == "ACCEPTED" {
        let field = if output.get_field_by_name("state").is_some() { "state" } else { "status" };
        need(&output, field, |kind| kind.as_enum().is_some())?;
        let arms = progress(&output, field)?;
        writeln!(items, "fn progress(answer: &{answer}) -> Progress {{ match answer.{field} {{ {arms} _ => Progress::Unspecified }} }}")?;
    }
    if method.is_server_streaming() {
        need(&output, "event_id", |kind| *kind == Kind::String)?;
        need(&input, "last_event_id", |kind| *kind == Kind::String)?;
        let is_optional = input.get_field_by_name("last_event_id").is_some_and(|field| field.supports_presence());
        ensure!(is_optional, "last_event_id is optional");
        writeln!(items, "fn event_id(answer: &{answer}) -> &str {{ &answer.event_id }}")?;
        writeln!(items, "fn last_event_id(request: &mut {request}) -> Option<&mut Option<String>> {{ Some(&mut request.last_event_id) }}")?;
    }
    writeln!(
        code,
        "/// `{}`.\npub struct M{index};\n\nimpl RestMethod for M{index} {{\nconst METHOD: &'static Method = &METHODS[{index}];\ntype Request = {request};\n\
         type Answer = {answer};\n{items}}}\n",
        method.full_name()
    )?;
    Ok(())
}

/// The value of `Method::csv`: the columns that the messages of the field have.
pub fn csv(method: &MethodDescriptor, rest: &Rest) -> Result<String> {
    if rest.csv.is_empty() {
        return Ok("None".to_owned());
    }
    let output = method.output();
    let rows = output.get_field_by_name(&rest.csv).filter(prost_reflect::FieldDescriptor::is_list);
    let rows = rows.with_context(|| format!("{}: {} is to be its table, and is no list of its answer", method.full_name(), rest.csv))?;
    let row = rows.kind().as_message().cloned().context("a table of messages")?;
    let mut columns = String::new();
    for field in row.fields() {
        let name = field.json_name().to_owned();
        ensure!(!field.is_list() && !field.is_map(), "{}: a cell has one value", field.full_name());
        match field.kind() {
            Kind::Message(of) if of.full_name() == "lastro.type.v1.Money" => write!(
                columns,
                "Column {{ name: {name:?}, path: &[{name:?}, \"amount\"] }}, Column {{ name: \"{name}CurrencyCode\", path: &[{name:?}, \"currencyCode\"] }}, "
            )?,
            Kind::Message(of) if of.full_name() != "google.protobuf.Timestamp" => anyhow::bail!("{}: a cell has one value", field.full_name()),
            _ => write!(columns, "Column {{ name: {name:?}, path: &[{name:?}] }}, ")?,
        }
    }
    Ok(format!("Some(Csv {{ rows: {:?}, columns: &[{columns}] }})", rows.json_name()))
}

/// The message from the root of the crate.
fn in_crate(message: &MessageDescriptor) -> String {
    rust_path(message).replacen("lastro::", "crate::", 1)
}

fn need(message: &MessageDescriptor, field: &str, is_kind: impl Fn(&Kind) -> bool) -> Result<()> {
    let found = message.get_field_by_name(field).is_some_and(|field| is_kind(&field.kind()) && !field.is_list());
    ensure!(found, "the annotation needs a field {field} of the right type in {}", message.full_name());
    Ok(())
}

/// The arms of a match over the numbers of the states that are decided or final.
fn progress(answer: &MessageDescriptor, field: &str) -> Result<String> {
    let state = answer.get_field_by_name(field).and_then(|field| field.kind().as_enum().cloned()).context("a state")?;
    let of = |value: &EnumValueDescriptor| {
        let options = value.options();
        let mut all = options.extensions();
        all.find(|(extension, _)| extension.full_name() == "lastro.type.v1.progress").and_then(|(_, value)| value.as_enum_number())
    };
    let mut arms = String::new();
    for value in state.values() {
        match of(&value) {
            Some(1) => write!(arms, "{} => Progress::Decided, ", value.number())?,
            Some(2) => write!(arms, "{} => Progress::Final, ", value.number())?,
            _ => {}
        }
    }
    ensure!(arms.contains("Final"), "no state of {} is final", state.full_name());
    Ok(arms)
}
