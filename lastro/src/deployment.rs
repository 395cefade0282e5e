//! `lastro deployment`: the files outside of Rust that depend on which services there are, written from the list of services. They are kept in the
//! tree, and a test fails when one of them is stale.

use std::fs;
use std::path::Path;

use anyhow::{Context as _, Result};
use minijinja::value::Serde;
use minijinja::{Environment, context};
use serde_json::json;

use crate::services::{IDENTITY, SERVICES, called_by};

/// Where each file goes, and what it is made from.
const FILES: [(&str, &str); 3] = [
    ("compose.yaml", include_str!("../templates/compose.yaml")),
    ("nginx/lastro.conf.template", include_str!("../templates/nginx.conf")),
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
#[allow(clippy::print_stdout, reason = "what the command was asked for")]
pub fn list() {
    println!("{:#}", json!({ "services": services(), "gateway": { "name": lastro_gateway::NAME, "calls": lastro_gateway::NEEDS } }));
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

fn render(name: &str, template: &str) -> Result<String> {
    let mut environment = Environment::new();
    environment.set_undefined_behavior(minijinja::UndefinedBehavior::Strict);
    let values = context! { services => Serde(services()), gateway_calls => lastro_gateway::NEEDS };
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
