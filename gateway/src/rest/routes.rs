//! Which method a request is for, and which methods a path takes: for 405 with `Allow`, and to tell it from 404.

use std::collections::HashMap;
use std::pin::Pin;

use http::{Method as Verb, Response};
use lastro_mesh::outbound::Outbound;
use lastro_mesh::status::Problem;
use lastro_proto::methods::Method;
use lastro_proto::rest_methods::{RestMethod, Visitor, visit};
use percent_encoding::percent_decode_str;
use serde_json::{Map, Value};

use super::{MethodCall, no_resource, streaming, unary};
use crate::answer::Body;

/// Makes the call of a method, and answers.
type Handler = fn(Outbound, MethodCall) -> Pin<Box<dyn Future<Output = Result<Response<Body>, Problem>> + Send>>;

/// Every route.
pub struct Routes(Vec<Route>);

/// The method behind a route, and the route's path in its parts, taken apart once.
pub struct Route {
    pub method: &'static Method,
    pub handle: Handler,
    /// The way to the service that serves it.
    pub channel: Outbound,
    parts: Vec<Part>,
}

enum Part {
    /// `users`, as it stands.
    Literal(&'static str),
    /// `{id}`, which is any one part, or `{id}:verb`, which is one that ends in `:verb`.
    Variable { name: &'static str, verb: &'static str },
}

/// Collects the routes of the methods whose service can be reached.
struct Collect<'a> {
    channels: &'a HashMap<&'static str, Outbound>,
    routes: Vec<Route>,
}

impl Collect<'_> {
    fn add(&mut self, method: &'static Method, handle: Handler) {
        let package = method.service.rsplit_once('.').map_or("", |(package, _)| package);
        let Some(channel) = self.channels.get(package) else { return };
        let parts = method.http_path.split('/').map(Part::of).collect();
        self.routes.push(Route { method, handle, channel: channel.clone(), parts });
    }
}

impl Visitor for Collect<'_> {
    fn unary<M: RestMethod>(&mut self) {
        self.add(M::METHOD, |channel, input| Box::pin(unary::answer::<M>(channel, input)));
    }

    fn streaming<M: RestMethod>(&mut self) {
        self.add(M::METHOD, |channel, input| Box::pin(streaming::answer::<M>(channel, input)));
    }
}

/// A path in its usual form (RFC 3986, 6.2.2.2): letters, digits and `-._~` stand for themselves, escaped or not. None where it is in it already.
pub fn usual(path: &str) -> Option<String> {
    let mut usual = String::with_capacity(path.len());
    let mut rest = path;
    while let Some(at) = rest.find('%') {
        usual.push_str(&rest[..at]);
        let escape = rest[at..].get(..3);
        let byte = escape.and_then(|escape| u8::from_str_radix(escape.get(1..)?, 16).ok());
        let plain = byte.filter(|byte| byte.is_ascii_alphanumeric() || b"-._~".contains(byte));
        match (plain, escape) {
            (Some(byte), Some(escape)) => {
                usual.push(char::from(byte));
                rest = &rest[at + escape.len()..];
            }
            _ => {
                usual.push('%');
                rest = &rest[at + 1..];
            }
        }
    }
    usual.push_str(rest);
    (usual != path).then_some(usual)
}

impl Routes {
    /// Of the methods of these packages.
    pub fn new(channels: &HashMap<&'static str, Outbound>) -> Self {
        let mut collect = Collect { channels, routes: Vec::new() };
        visit(&mut collect);
        Self(collect.routes)
    }

    /// The methods of the routes that this path fits, or none.
    pub fn allowed(&self, path: &str) -> Vec<&'static str> {
        let mut allowed: Vec<&str> = self.fitting(path).map(|route| route.method.http_method).collect();
        if self.fitting(path).any(|route| route.takes(&Verb::HEAD)) {
            allowed.push("HEAD");
        }
        allowed.sort_unstable();
        allowed.dedup();
        allowed
    }

    /// The route of a request, and what stands in its path: fields of the message, or why they cannot be read.
    pub fn find(&self, verb: &Verb, path: &str) -> Option<(&Route, Result<Map<String, Value>, Problem>)> {
        let route = self.fitting(path).find(|route| route.takes(verb))?;
        Some((route, route.read(path)))
    }

    /// A name that a route spells out is that route's alone: `/users/me` is no id.
    fn fitting<'a, 'p>(&'a self, path: &'p str) -> impl Iterator<Item = &'a Route> + use<'a, 'p> {
        let spelled_out = self.0.iter().any(|route| route.method.http_path == path);
        let given: Vec<&str> = path.split('/').collect();
        let fits = move |route: &&Route| if spelled_out { route.method.http_path == path } else { route.fits(&given) };
        self.0.iter().filter(fits)
    }
}

impl Route {
    /// HEAD is GET without a body; of a stream there would be nothing left.
    fn takes(&self, verb: &Verb) -> bool {
        self.method.http_method == verb.as_str() || (verb == Verb::HEAD && self.method.http_method == "GET" && !self.method.streams)
    }

    fn fits(&self, given: &[&str]) -> bool {
        self.parts.len() == given.len() && self.parts.iter().zip(given).all(|(part, given)| part.fits(given))
    }

    /// The fields of the message that stand in the path.
    fn read(&self, path: &str) -> Result<Map<String, Value>, Problem> {
        let mut fields = Map::new();
        for (part, given) in self.parts.iter().zip(path.split('/')) {
            let Part::Variable { name, verb } = part else { continue };
            let value = given.strip_suffix(verb).unwrap_or(given);
            // What is not UTF-8 names nothing that there is.
            let value = percent_decode_str(value).decode_utf8().map_err(|_| no_resource())?;
            fields.insert((*name).to_owned(), value.into_owned().into());
        }
        Ok(fields)
    }
}

impl Part {
    fn of(text: &'static str) -> Self {
        match text.strip_prefix('{').and_then(|text| text.split_once('}')) {
            Some((name, verb)) => Self::Variable { name, verb },
            None => Self::Literal(text),
        }
    }

    fn fits(&self, given: &str) -> bool {
        match self {
            Self::Literal(text) => *text == given,
            Self::Variable { verb, .. } => given.len() > verb.len() && given.ends_with(verb) && (!verb.is_empty() || !given.contains(':')),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::convert::Infallible;

    use lastro_proto::methods::METHODS;
    use tonic::body::Body as GrpcBody;
    use tower::util::BoxCloneSyncService;

    use super::*;

    fn routes() -> Routes {
        let nowhere = BoxCloneSyncService::new(tower::service_fn(|_: http::Request<GrpcBody>| async {
            Ok::<_, Infallible>(tonic::Status::unavailable("").into_http())
        }));
        let packages = METHODS.iter().filter_map(|method| method.service.rsplit_once('.').map(|(package, _)| package));
        Routes::new(&packages.map(|package| (package, nowhere.clone())).collect())
    }

    #[test]
    fn what_is_escaped_without_need_is_the_same_path() {
        for (given, meant) in [
            ("/api/v1/users/%6d%65", Some("/api/v1/users/me")),
            ("/%61pi%2Fv1/%2D%2e%5f%7E", Some("/api%2Fv1/-._~")),
            ("/a%20b%2F%zz%4", None),
            ("/%+1%é%C3%A9", None),
            ("/plain", None),
        ] {
            assert_eq!(usual(given).as_deref(), meant, "{given}");
        }
    }

    #[test]
    fn knows_what_a_path_takes() {
        let routes = routes();
        let allowed = |path| routes.allowed(path);
        assert_eq!(allowed("/api/v1/users"), ["GET", "HEAD", "POST"]);
        assert_eq!(allowed("/api/v1/users/0190b3a2"), ["DELETE", "GET", "HEAD", "PATCH"]);
        assert_eq!(allowed("/api/v1/users/me"), ["GET", "HEAD"]);
        assert_eq!(allowed("/api/v1/users/me:changePassword"), ["POST"]);
        assert_eq!(allowed("/api/v1/nothing"), [""; 0]);
        assert_eq!(allowed("/api/v1/users/"), [""; 0]);
    }
    #[test]
    fn what_stands_in_the_path_is_read() {
        let routes = routes();
        let read = |verb: Verb, path: &str| {
            routes.find(&verb, path).map(|(route, fields)| (route.method.name, fields.map(|fields| fields["id"].clone()).ok()))
        };
        assert_eq!(read(Verb::GET, "/api/v1/users/a%2Fb"), Some(("GetUser", Some("a/b".into()))));
        assert_eq!(read(Verb::HEAD, "/api/v1/users/x"), Some(("GetUser", Some("x".into()))));
        assert_eq!(read(Verb::PATCH, "/api/v1/users/%ff"), Some(("UpdateUser", None)));
        assert_eq!(read(Verb::PUT, "/api/v1/users/x"), None);
    }
}
