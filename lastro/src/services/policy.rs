//! Who may call what, by the name in a caller's certificate: what the registrations of the services say, and nothing else.

use lastro_mesh::identity::Policy;
use serde_json::{Map, Value, json};

use super::{IDENTITY, SERVICES, methods_of};
use crate::certs::{EDGE, OPERATOR};

/// Every token is verified by whoever gets it.
const KEYS: &str = "/lastro.customers.v1.AuthService/GetJwks";
/// How a service that keeps none of them itself learns which tokens are dead.
const REVOCATIONS: &str = "/lastro.internal.customers.v1.IdentityService/ListRevocations";
/// For whoever reads the events of another service.
const EVENTS: &str = "/lastro.internal.events.v1.EventsService/*";

/// The policy as `lastro certs` writes it.
pub fn policy() -> Value {
    let public = |rest_only: bool| {
        let services = SERVICES.iter().filter(move |service| !rest_only || methods_of(service).any(|method| !method.http_path.is_empty()));
        services.flat_map(|service| service.packages).map(|package| format!("/{package}.*"))
    };
    let mut policy = Map::new();
    let edge = public(false).chain(["/grpc.reflection.*", "/grpc.health.v1.*", "/api/*"].map(str::to_owned));
    policy.insert(EDGE.to_owned(), json!({ "may_call": edge.collect::<Vec<_>>(), "forwards_address": true }));
    policy.insert(lastro_gateway::NAME.to_owned(), json!({ "may_call": public(true).collect::<Vec<_>>(), "forwards_address": true }));
    for service in SERVICES {
        let mut calls: Vec<&str> = service.needs.iter().flat_map(|need| need.calls).copied().collect();
        if service.name != IDENTITY {
            calls.extend([KEYS, REVOCATIONS]);
        }
        if !service.reads.is_empty() {
            calls.push(EVENTS);
        }
        policy.insert(service.name.to_owned(), json!({ "may_call": calls }));
    }
    policy.insert(OPERATOR.to_owned(), json!({ "may_call": ["/*"] }));
    Value::Object(policy)
}

/// The same, as listeners read it.
pub fn parsed_policy() -> anyhow::Result<Policy> {
    Policy::parse(&policy().to_string()).map_err(anyhow::Error::msg)
}

#[cfg(test)]
mod tests {
    use lastro_proto::methods::METHODS;

    use super::*;

    #[test]
    fn outsiders_get_the_public_methods_alone() {
        let policy = Policy::parse(&policy().to_string()).expect("a policy");
        for method in METHODS {
            let internal = method.service.starts_with("lastro.internal.");
            assert_eq!(policy.caller(EDGE).expect("listed").may_call(method.path), !internal, "{}", method.path);
            if !method.http_path.is_empty() {
                assert!(policy.caller(lastro_gateway::NAME).expect("listed").may_call(method.path), "{}", method.path);
            }
        }
    }

    #[test]
    fn a_service_may_call_what_it_registered_and_no_more() {
        let policy = Policy::parse(&policy().to_string()).expect("a policy");
        let may = |caller: &str, path: &str| policy.caller(caller).expect("listed").may_call(path);
        for path in [KEYS, REVOCATIONS] {
            assert!(METHODS.iter().any(|method| method.path == path), "{path}");
        }
        assert!(may("customers", "/lastro.internal.transactions.v1.OwnersService/CloseAccounts"));
        assert!(!may("customers", "/lastro.transactions.v1.TransactionsService/CreateTransaction"));
        assert!(may("transactions", "/lastro.internal.customers.v1.IdentityService/ConfirmOwner") && may("transactions", KEYS));
        assert!(!may("transactions", "/lastro.customers.v1.UsersService/DeleteUser"));
    }
}
