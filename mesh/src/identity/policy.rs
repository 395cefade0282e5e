//! Which service may call what: a file that says, for each name in a client certificate, the methods and paths that it may call.

use std::collections::HashMap;
use std::path::Path;
use std::sync::Arc;

use serde::Deserialize;

use crate::status::{PERMISSION_DENIED, Problem};

/// The callers that a listener knows; whoever is not listed may not even finish its handshake.
#[derive(Debug, Clone)]
pub struct Policy {
    callers: HashMap<String, Arc<Caller>>,
}

/// A caller by the name in its certificate.
#[derive(Debug, PartialEq, Eq)]
pub struct Caller {
    /// As in the certificate.
    pub name: Arc<str>,
    may_call: Vec<String>,
    /// Whether the client address that it tells in `x-forwarded-for` is believed.
    pub forwards_address: bool,
}

impl Caller {
    /// Another process on this machine, where a setting lets services talk in plain text: nothing proves who it is, so it may call all.
    pub fn on_loopback() -> Arc<Self> {
        Arc::new(Self { name: "loopback".into(), may_call: vec!["/*".to_owned()], forwards_address: true })
    }

    /// Whether it may call a method, by its path on the wire.
    pub fn may_call(&self, path: &str) -> bool {
        self.may_call.iter().any(|pattern| match pattern.strip_suffix('*') {
            Some(prefix) => path.starts_with(prefix),
            None => path == pattern,
        })
    }
}

/// What a caller is told that calls what the policy does not list for it.
pub fn not_allowed(caller: &str) -> Problem {
    Problem::new(&PERMISSION_DENIED, format!("the policy does not let {caller} call this method"))
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Entry {
    may_call: Vec<String>,
    #[serde(default)]
    forwards_address: bool,
}

impl Policy {
    /// Reads `{"<name>": {"may_call": ["/package.Service/Method", "/package.*"], "forwards_address": false}, …}`. A pattern is a path, or
    /// the beginning of one and `*`.
    pub fn read(path: &Path) -> Result<Self, String> {
        let shown = path.display();
        let text = std::fs::read_to_string(path).map_err(|error| format!("{shown} cannot be read: {error}"))?;
        Self::parse(&text).map_err(|error| format!("{shown}: {error}"))
    }

    /// Reads the JSON.
    pub fn parse(text: &str) -> Result<Self, String> {
        let entries: HashMap<String, Entry> = serde_json::from_str(text).map_err(|error| error.to_string())?;
        let caller = |(name, entry): (String, Entry)| {
            if let Some(odd) = entry.may_call.iter().find(|pattern| !pattern.starts_with('/') || pattern.trim_end_matches('*').contains('*')) {
                return Err(format!("{name}: {odd:?} must begin with / and may have one * at its end"));
            }
            let caller = Caller { name: name.as_str().into(), may_call: entry.may_call, forwards_address: entry.forwards_address };
            Ok((name, Arc::new(caller)))
        };
        Ok(Self { callers: entries.into_iter().map(caller).collect::<Result<_, _>>()? })
    }

    /// The caller with this name, if it is one.
    pub fn caller(&self, name: &str) -> Option<Arc<Caller>> {
        self.callers.get(name).cloned()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_caller_may_call_what_is_listed_and_nothing_else() {
        let text = r#"{"edge": {"may_call": ["/lastro.customers.v1.*", "/x.Y/Z"], "forwards_address": true}, "quiet": {"may_call": []}}"#;
        let policy = Policy::parse(text).expect("a policy");
        let edge = policy.caller("edge").expect("listed");
        assert!(edge.forwards_address && edge.may_call("/lastro.customers.v1.AuthService/Login") && edge.may_call("/x.Y/Z"));
        assert!(!edge.may_call("/x.Y/Zz") && !edge.may_call("/lastro.internal.customers.v1.IdentityService/ConfirmOwner"));
        let quiet = policy.caller("quiet").expect("listed");
        assert!(!quiet.forwards_address && !quiet.may_call("/x.Y/Z"));
        assert_eq!(policy.caller("stranger"), None);
    }

    #[test]
    fn a_policy_that_cannot_be_meant_is_refused() {
        for text in
            ["", "[]", r#"{"edge": {}}"#, r#"{"edge": {"may_call": ["*"]}}"#, r#"{"edge": {"may_call": ["/a*b*"]}}"#, r#"{"edge": {"may_cal": []}}"#]
        {
            assert!(Policy::parse(text).is_err(), "{text}");
        }
    }
}
