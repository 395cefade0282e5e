//! `lastro deployment`: the files outside of Rust that depend on which services there are, written from the list of services. They are kept in the
//! tree, and a test fails when one of them is stale.

use std::fs;
use std::path::Path;

use anyhow::{Context as _, Result};
use minijinja::value::Serde;
use minijinja::{Environment, context};
use prost::Message as _;
use prost_types::{FileDescriptorProto, FileDescriptorSet};
use serde_json::json;

use crate::print;
use crate::services::{IDENTITY, SERVICES, called_by, offered_over_rest};

/// Where each file goes, and what it is made from.
const FILES: [(&str, &str); 4] = [
    ("compose.yaml", include_str!("../templates/compose.yaml")),
    ("nginx/lastro.conf.template", include_str!("../templates/nginx.conf")),
    ("docs/EVENTS.md", include_str!("../templates/EVENTS.md")),
    ("tools/services", include_str!("../templates/services.sh")),
];

/// Writes the files into a checkout.
pub fn write(dir: &Path) -> Result<()> {
    for (name, template) in FILES {
        let path = dir.join(name);
        fs::write(&path, render(name, template)?)
            .with_context(|| format!("{} cannot be written; DIR must be the folder of a checkout", path.display()))?;
    }
    Ok(())
}

/// Prints what whoever deploys services needs to know of them.
pub fn list() {
    print::line(format_args!("{:#}", json!({ "services": services(), "gateway": { "name": lastro_gateway::NAME, "calls": offered_over_rest() } })));
}

fn services() -> serde_json::Value {
    let one = |(place, service): (usize, &&lastro_service::Service)| {
        let database = service.database_name();
        json!({
            "name": service.name,
            "about": service.about,
            "packages": service.packages,
            "calls": called_by(service),
            "database": database,
            "roles": [format!("{database}_owner"), database],
            "keeps_keys": service.name != IDENTITY,
            "subnet": 10 * place,
        })
    };
    (1..).zip(SERVICES).map(one).collect()
}

/// Every topic with its events, as the contracts say.
fn topics() -> Result<serde_json::Value> {
    let contracts = FileDescriptorSet::decode(lastro_proto::DESCRIPTORS)?;
    let published = SERVICES.iter().flat_map(|service| service.publishes.iter().map(|store| (service.name, store)));
    let topic = |(publisher, store): (&'static str, &lastro_events::EventStore)| {
        let (file, index) = message_of(&contracts, store.message).with_context(|| format!("no contract has the message {}", store.message))?;
        let readers: Vec<&str> = SERVICES.iter().filter(|service| service.reads.contains(&store.topic)).map(|service| service.name).collect();
        // What happened is one of several; what stands beside them is told with each.
        let fields = || (0..).zip(&file.message_type[index].field);
        let with_each: Vec<serde_json::Value> = fields()
            .filter(|(_, field)| field.oneof_index.is_none())
            .map(|(place, field)| json!({ "name": field.name(), "about": comment(file, &[4, index as i32, 2, place]) }))
            .collect();
        let events: Vec<serde_json::Value> = fields()
            .filter(|(_, field)| field.oneof_index.is_some())
            .map(|(place, event)| {
                let (of, at) = message_of(&contracts, event.type_name().trim_start_matches('.')).context("an event's message")?;
                let fields: Vec<serde_json::Value> = (0..)
                    .zip(&of.message_type[at].field)
                    .map(|(place, field)| json!({ "name": field.name(), "about": comment(of, &[4, at as i32, 2, place]) }))
                    .collect();
                Ok(json!({ "name": of.message_type[at].name(), "about": comment(file, &[4, index as i32, 2, place]), "fields": fields }))
            })
            .collect::<Result<_>>()?;
        Ok(json!({
            "name": store.topic, "publisher": publisher, "table": store.table, "message": store.message, "file": file.name(), "readers": readers,
            "about": comment(file, &[4, index as i32]), "events": events, "with_each": with_each,
        }))
    };
    published.map(topic).collect()
}

/// The file and the place of a message, by its full name.
fn message_of<'a>(contracts: &'a FileDescriptorSet, name: &str) -> Option<(&'a FileDescriptorProto, usize)> {
    let (package, message) = name.rsplit_once('.')?;
    contracts
        .file
        .iter()
        .filter(|file| file.package() == package)
        .find_map(|file| Some((file, file.message_type.iter().position(|one| one.name() == message)?)))
}

/// What a contract says above the thing at a path of its file, in one line.
fn comment(file: &FileDescriptorProto, path: &[i32]) -> String {
    let all = file.source_code_info.iter().flat_map(|info| &info.location);
    let said = all
        .into_iter()
        .find(|location| location.path == path)
        .map(|location| location.leading_comments().split_whitespace().collect::<Vec<_>>().join(" "));
    said.unwrap_or_default()
}

fn render(name: &str, template: &str) -> Result<String> {
    let mut environment = Environment::new();
    environment.set_undefined_behavior(minijinja::UndefinedBehavior::Strict);
    let values = context! { services => Serde(services()), topics => Serde(topics()?), gateway_calls => offered_over_rest().to_vec() };
    // The engine leaves out the last line break of a template.
    Ok(environment.render_named_str(name, template, values).with_context(|| format!("the template of {name} cannot be filled in"))? + "\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_file_is_stale() {
        let checkout = Path::new(env!("CARGO_MANIFEST_DIR")).parent().expect("the checkout");
        for (name, template) in FILES {
            let there = fs::read_to_string(checkout.join(name)).expect("a file of the checkout");
            assert!(there == render(name, template).expect("a template that can be filled in"), "{name} is stale; `make deployment` writes it anew");
        }
    }
}
