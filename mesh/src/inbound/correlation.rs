//! Gives every call its correlation id and its trace, opens its span, and answers the id.

use std::convert::Infallible;
use std::net::IpAddr;
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use http::{HeaderMap, Request, Response};
use tonic::body::Body;
use tower::Service;
use tracing::Instrument as _;

use crate::call::{CORRELATION_HEADER, Call, CorrelationId};
use crate::logs::otlp;
use crate::serve::Peer;
use crate::trace::{TRACERESPONSE, TraceContext};

/// Where a call came from, set by a gateway in the same process that saw the client.
#[derive(Debug, Clone, Copy)]
pub struct ClientAddress(pub IpAddr);

#[derive(Clone)]
pub(super) struct Correlation<S> {
    pub inner: S,
    pub service: &'static str,
}

impl<S> Service<Request<Body>> for Correlation<S>
where
    S: Service<Request<Body>, Response = Response<Body>, Error = Infallible>,
    S::Future: Send + 'static,
{
    type Response = Response<Body>;
    type Error = Infallible;
    type Future = Pin<Box<dyn Future<Output = Result<Response<Body>, Infallible>> + Send>>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        self.inner.poll_ready(cx)
    }

    fn call(&mut self, mut request: Request<Body>) -> Self::Future {
        let correlation_id = CorrelationId::accept(request.headers()).unwrap_or_default();
        let span = tracing::info_span!(
            "rpc",
            service = self.service,
            method = request.uri().path(),
            correlationId = correlation_id.as_str(),
            traceId = tracing::field::Empty
        );
        let trace = otlp::join(&span, TraceContext::of(request.headers()));
        if !span.is_disabled() {
            span.record("traceId", format!("{:032x}", trace.trace_id).as_str());
        }
        let call = Call {
            trace,
            principal: None,
            address: address(&request),
            correlation_id: correlation_id.clone(),
            // The deadline layer, next, knows better.
            ..Call::start(Duration::from_hours(24))
        };
        request.extensions_mut().insert(call);
        let answer = span.in_scope(|| self.inner.call(request));
        Box::pin(
            async move {
                let mut response = answer.await?;
                response.headers_mut().insert(CORRELATION_HEADER, correlation_id.to_header());
                response.headers_mut().insert(TRACERESPONSE, trace.to_header());
                Ok(response)
            }
            .instrument(span),
        )
    }
}

/// The header in which a proxy tells the client's address.
pub const FORWARDED_FOR: &str = "x-forwarded-for";

/// The client's address: of the other end, or what it tells if it is one that we believe.
fn address<B>(request: &Request<B>) -> Option<IpAddr> {
    let near = request.extensions().get::<ClientAddress>().map(|address| address.0);
    near.or_else(|| request.extensions().get::<Peer>().map(|peer| client_address(peer, request.headers())))
}

/// As above. The last address is the one that the proxy itself saw; those before it are what its client claims, unless that is a proxy as well that is
/// believed by its address.
pub fn client_address(peer: &Peer, headers: &HeaderMap) -> IpAddr {
    let mut client = peer.address.ip().to_canonical();
    if !peer.caller.as_ref().is_some_and(|caller| caller.forwards_address) && !peer.proxies.has(client) {
        return client;
    }
    let lists = headers.get_all(FORWARDED_FOR).iter().rev().map(|value| value.to_str().unwrap_or_default());
    for told in lists.flat_map(|list| list.rsplit(',')) {
        let Ok(address) = told.trim().parse::<IpAddr>() else { break };
        client = address.to_canonical();
        if !peer.proxies.has(client) {
            break;
        }
    }
    client
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::identity::policy::Policy;
    use crate::serve::{Proxies, Receiving, ReceivingLimits};

    #[test]
    fn only_a_proxy_that_the_policy_names_is_believed_and_only_in_what_it_saw_itself() {
        let policy = Policy::parse(r#"{"edge": {"may_call": [], "forwards_address": true}, "service": {"may_call": []}}"#).expect("a policy");
        let receiving = std::sync::Arc::new(Receiving::new(ReceivingLimits::default()));
        let peer = |name: &str| Peer {
            address: ([10, 0, 0, 1], 1).into(),
            caller: policy.caller(name),
            proxies: Proxies::default(),
            receiving: receiving.clone(),
        };
        let address = |peer: &Peer, told: &[&'static str]| {
            let headers = told.iter().map(|value| (FORWARDED_FOR.parse().expect("a name"), value.parse().expect("a value"))).collect();
            client_address(peer, &headers).to_string()
        };
        assert_eq!(address(&peer("edge"), &["192.0.2.1"]), "192.0.2.1");
        assert_eq!(address(&peer("edge"), &["198.51.100.7", "203.0.113.9, 192.0.2.1"]), "192.0.2.1", "what stands before is the client's word");
        assert_eq!(address(&peer("edge"), &["nonsense"]), "10.0.0.1");
        assert_eq!(address(&peer("edge"), &["::ffff:192.0.2.1"]), "192.0.2.1");
        for silent in [peer("service"), peer("nobody")] {
            assert_eq!(address(&silent, &["192.0.2.1"]), "10.0.0.1");
        }
        // Proxies by address: from the last one back to the first that is none.
        let proxies = Proxies::parse(["10.0.0.0/8", "2001:db8::1"]).expect("networks");
        let proxied = Peer { proxies, ..peer("nobody") };
        assert_eq!(address(&proxied, &["192.0.2.1"]), "192.0.2.1");
        assert_eq!(address(&proxied, &["198.51.100.7, 192.0.2.1, 10.7.7.7"]), "192.0.2.1");
        assert_eq!(address(&proxied, &["192.0.2.1", "2001:db8::1,10.7.7.7"]), "192.0.2.1");
        assert_eq!(address(&proxied, &["192.0.2.1, nonsense"]), "10.0.0.1");
        assert_eq!(address(&proxied, &[]), "10.0.0.1");
        let elsewhere = Peer { address: ([192, 168, 0, 1], 1).into(), ..proxied };
        assert_eq!(address(&elsewhere, &["192.0.2.1"]), "192.168.0.1");
        assert!(Proxies::parse(["10.0.0.0/33"]).is_err());
    }
}
