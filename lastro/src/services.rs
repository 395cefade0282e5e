//! The list of services, and what follows from it. Everything that depends on which services there are reads this list: commands, `lastro up`,
//! storage, `lastro migrate`, certificates and policy, and the files that `lastro deployment` writes.

pub mod gateway;
pub mod policy;
mod revocations;
pub mod run;

use std::collections::HashMap;
use std::sync::LazyLock;

use lastro_events::bus::Bus;
use lastro_events::{EventStore, Source, Topic};
use lastro_mesh::outbound::Outbound;
use lastro_migrations::Rights;
use lastro_proto::methods::{METHODS, Method};
use lastro_service::Service;
use lastro_service::events::PACKAGE;

/// Every service, in the order in which they start in one process.
#[rustfmt::skip] // A line each.
pub static SERVICES: &[&Service] = &[
    &lastro_customers::SERVICE,
    &lastro_transactions::SERVICE,
    &lastro_inventory::SERVICE,
    &lastro_orders::SERVICE,
    &lastro_reports::SERVICE,
];

/// Where the keys of tokens come from, and the revocations.
pub const IDENTITY: &str = lastro_customers::NAME;

/// The service with this name.
pub fn by_name(name: &str) -> Option<&'static Service> {
    SERVICES.iter().copied().find(|service| service.name == name)
}

/// Who publishes a topic, and where it is stored.
pub fn publisher_of(topic: &str) -> Option<(&'static Service, EventStore)> {
    let stores = SERVICES.iter().flat_map(|service| service.publishes.iter().map(|store| (*service, *store)));
    stores.into_iter().find(|(_, store)| store.topic == topic)
}

/// The topics that a service reads, with a way to the event store of each publisher.
pub fn topics_of(service: &'static Service, bus: &Bus, source: impl Fn(&'static Service, EventStore) -> Source) -> HashMap<&'static str, Topic> {
    let published = service.reads.iter().filter_map(|topic| publisher_of(topic));
    let topic = |(publisher, store): (&'static Service, EventStore)| Topic {
        name: store.topic,
        reader: service.name,
        source: source(publisher, store),
        bus: bus.clone(),
    };
    published.map(topic).map(|topic| (topic.name, topic)).collect()
}

/// The services that read a topic.
pub fn readers_of(topic: &str) -> Vec<&'static str> {
    SERVICES.iter().filter(|service| service.reads.contains(&topic)).map(|service| service.name).collect()
}

/// The services that a service calls: those that it needs, those whose events it reads, and the one that has the keys of tokens.
pub fn called_by(service: &Service) -> Vec<&'static str> {
    let needed = service.needs.iter().map(|need| need.service);
    let read = service.reads.iter().filter_map(|topic| publisher_of(topic)).map(|(publisher, _)| publisher.name);
    let mut called: Vec<&'static str> = needed.chain(read).chain([IDENTITY]).filter(|name| *name != service.name).collect();
    called.sort_unstable();
    called.dedup();
    called
}

/// The methods of a service, public and internal, and what every service has that publishes or reads events.
pub fn methods_of(service: &'static Service) -> impl Iterator<Item = &'static Method> + Clone {
    let has_events = !service.publishes.is_empty() || !service.reads.is_empty();
    let packages = move || service.packages.iter().chain(service.internal).copied().chain(has_events.then_some(PACKAGE));
    METHODS.iter().filter(move |method| packages().any(|package| method.service.rsplit_once('.').is_some_and(|(of, _)| of == package)))
}

/// The names of the services that REST offers methods of.
pub fn offered_over_rest() -> &'static [&'static str] {
    static NAMES: LazyLock<Vec<&str>> = LazyLock::new(|| {
        let offered = SERVICES.iter().filter(|service| methods_of(service).any(|method| !method.http_path.is_empty()));
        offered.map(|service| service.name).collect()
    });
    &NAMES
}

/// The gateway's ways to the packages that services serve, by the ways to the services.
pub fn channels_of_gateway(channel: impl Fn(&'static str) -> Outbound) -> HashMap<&'static str, Outbound> {
    let offered = SERVICES.iter().filter(|service| offered_over_rest().contains(&service.name));
    let of_one = |service: &&'static Service| {
        let channel = channel(service.name);
        service.packages.iter().map(move |package| (*package, channel.clone())).collect::<Vec<_>>()
    };
    offered.flat_map(of_one).collect()
}

/// What the role of a service may do with its tables.
pub fn rights_of(service: &Service) -> Rights {
    let event_tables = service.publishes.iter().map(|store| store.table);
    Rights { append_only: event_tables.chain(service.append_only.iter().copied()).collect(), read_only: service.read_only.to_vec() }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    #[test]
    fn every_method_is_served_by_one_service() {
        for method in METHODS {
            let served = SERVICES.iter().filter(|service| methods_of(service).any(|one| one.path == method.path)).count();
            let shared = method.service.starts_with(PACKAGE);
            assert!(served == 1 || (shared && served > 0), "{}: the packages of how many services have it", method.path);
        }
    }

    #[test]
    fn what_services_say_of_each_other_is_there() {
        for service in SERVICES {
            for need in service.needs {
                let needed = by_name(need.service).unwrap_or_else(|| panic!("{} needs {}, which is no service", service.name, need.service));
                for call in need.calls {
                    let begins = call.trim_end_matches('*');
                    assert!(
                        methods_of(needed).any(|method| method.path.starts_with(begins)),
                        "{} calls {call}, which {} does not serve",
                        service.name,
                        need.service
                    );
                }
            }
            for topic in service.reads {
                let (publisher, _) = publisher_of(topic).unwrap_or_else(|| panic!("{} reads {topic}, which nobody publishes", service.name));
                assert_ne!(publisher.name, service.name, "{topic}");
            }
        }
    }

    #[test]
    fn names_ports_topics_and_tables_are_each_given_once() {
        fn once<T: Ord + std::fmt::Debug>(all: impl Iterator<Item = T>) {
            let mut seen = BTreeSet::new();
            all.for_each(|one| assert!(!seen.contains(&one) && seen.insert(one), "given twice"));
        }
        once(SERVICES.iter().map(|service| service.name));
        once(SERVICES.iter().map(|service| service.port));
        once(SERVICES.iter().flat_map(|service| service.publishes).map(|store| store.topic));
        for service in SERVICES {
            once(service.publishes.iter().map(|store| store.table));
            // They are taken: by commands, certificates, files beside them, and what compose runs.
            let taken = [
                "admin",
                "ca",
                "certs",
                "dead-letters",
                "deployment",
                "edge",
                "gateway",
                "help",
                "load",
                "migrate",
                "nginx",
                "operator",
                "policy",
                "postgres",
                "process",
                "proto",
                "redis",
                "services",
                "up",
            ];
            assert!(!taken.contains(&service.name), "{} is the name of something else", service.name);
            // It becomes part of names in SQL, shell, YAML and nginx.
            assert!(service.name.bytes().all(|byte| byte.is_ascii_lowercase()), "{}", service.name);
        }
    }

    #[test]
    fn the_gateway_reaches_every_method_that_rest_offers() {
        for method in METHODS.iter().filter(|method| !method.http_path.is_empty()) {
            let (package, _) = method.service.rsplit_once('.').expect("a package");
            let serves = |service: &&&Service| service.packages.contains(&package);
            let serving = SERVICES.iter().find(serves).unwrap_or_else(|| panic!("{}: nobody serves its package to clients", method.path));
            assert!(offered_over_rest().contains(&serving.name), "{}", method.path);
        }
    }
}
