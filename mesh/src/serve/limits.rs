//! How many connections a listener holds, in all and from one address, and the end of those that say nothing.

use std::collections::HashMap;
use std::net::IpAddr;
use std::pin::Pin;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll};
use std::time::{Duration, Instant};

use super::{Proxies, ReceivingLimits};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

/// The limits of a listener.
#[derive(Debug, Clone)]
pub struct ConnectionLimits {
    /// Connections from one address; of IPv6 from one /64.
    pub per_address: usize,
    /// Connections in all.
    pub in_all: usize,
    /// HTTP/2 streams of one connection.
    pub streams: u32,
    /// Proxies: each stands for many clients, so that only the limit in all counts for them.
    pub proxies: Proxies,
    /// Requests whose message has not come whole.
    pub receiving: ReceivingLimits,
}

impl Default for ConnectionLimits {
    fn default() -> Self {
        Self { per_address: 1000, in_all: 8000, streams: 256, proxies: Proxies::default(), receiving: ReceivingLimits::default() }
    }
}

/// Whom a limit counts: an address, or the /64 of an IPv6 address, since whoever has one of them has all.
pub fn limited_address(address: IpAddr) -> IpAddr {
    match address.to_canonical() {
        IpAddr::V6(address) => {
            let [a, b, c, d, ..] = address.segments();
            IpAddr::V6([a, b, c, d, 0, 0, 0, 0].into())
        }
        address @ IpAddr::V4(_) => address,
    }
}

/// The connections of a listener, counted. Cheap to clone; all clones are one.
#[derive(Clone)]
pub(super) struct Connections {
    limits: ConnectionLimits,
    open: Arc<Mutex<HashMap<IpAddr, usize>>>,
    in_all: Arc<AtomicUsize>,
    refused: Arc<Mutex<Refused>>,
}

/// The connections that were refused since that was last said.
#[derive(Default)]
struct Refused {
    count: u64,
    said: Option<Instant>,
}

/// A flood of connections is not to become a flood of log lines.
const SAY_REFUSED_EVERY: Duration = Duration::from_secs(10);

/// One of them; its end makes room.
pub(super) struct Counted {
    address: IpAddr,
    connections: Connections,
}

impl Connections {
    pub(super) fn new(limits: ConnectionLimits) -> Self {
        Self { limits, open: Arc::default(), in_all: Arc::default(), refused: Arc::default() }
    }

    /// A place for a connection from an address, if there is one.
    pub(super) fn take(&self, address: IpAddr) -> Option<Counted> {
        let per_address = if self.limits.proxies.has(address) { self.limits.in_all } else { self.limits.per_address };
        let address = limited_address(address);
        let mut open = self.open.lock().unwrap_or_else(PoisonError::into_inner);
        let from_it = open.get(&address).copied().unwrap_or_default();
        if from_it >= per_address || self.in_all.load(Ordering::Relaxed) >= self.limits.in_all {
            drop(open);
            self.say_refused(address);
            return None;
        }
        open.insert(address, from_it + 1);
        self.in_all.fetch_add(1, Ordering::Relaxed);
        Some(Counted { address, connections: self.clone() })
    }

    fn say_refused(&self, address: IpAddr) {
        let mut refused = self.refused.lock().unwrap_or_else(PoisonError::into_inner);
        refused.count += 1;
        if refused.said.is_none_or(|said| said.elapsed() >= SAY_REFUSED_EVERY) {
            tracing::warn!(%address, count = refused.count, "connections were refused: there are too many, in all or from this address");
            *refused = Refused { count: 0, said: Some(Instant::now()) };
        }
    }
}

impl Drop for Counted {
    fn drop(&mut self) {
        let mut open = self.connections.open.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(count) = open.get_mut(&self.address) {
            *count -= 1;
            if *count == 0 {
                open.remove(&self.address);
            }
        }
        self.connections.in_all.fetch_sub(1, Ordering::Relaxed);
    }
}

/// What HTTP/2 begins with, in bytes (RFC 9113, 3.4). Whoever has sent as much has begun to speak, and other timeouts apply.
pub(super) const PREFACE_BYTES: usize = 24;

/// Counts what was read.
pub(super) struct ReadCount<I> {
    inner: I,
    read: Arc<AtomicUsize>,
}

impl<I> ReadCount<I> {
    pub(super) fn new(inner: I) -> (Self, Arc<AtomicUsize>) {
        let read = Arc::new(AtomicUsize::new(0));
        (Self { inner, read: read.clone() }, read)
    }
}

impl<I: AsyncRead + Unpin> AsyncRead for ReadCount<I> {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buffer: &mut ReadBuf<'_>) -> Poll<std::io::Result<()>> {
        let before = buffer.filled().len();
        let polled = Pin::new(&mut self.inner).poll_read(cx, buffer);
        let read = buffer.filled().len() - before;
        if read > 0 && self.read.load(Ordering::Relaxed) < PREFACE_BYTES {
            self.read.fetch_add(read, Ordering::Relaxed);
        }
        polled
    }
}

impl<I: AsyncWrite + Unpin> AsyncWrite for ReadCount<I> {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<std::io::Result<usize>> {
        Pin::new(&mut self.inner).poll_write(cx, bytes)
    }
    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<std::io::Result<()>> {
        Pin::new(&mut self.inner).poll_flush(cx)
    }
    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<std::io::Result<()>> {
        Pin::new(&mut self.inner).poll_shutdown(cx)
    }
    fn poll_write_vectored(mut self: Pin<&mut Self>, cx: &mut Context<'_>, slices: &[std::io::IoSlice<'_>]) -> Poll<std::io::Result<usize>> {
        Pin::new(&mut self.inner).poll_write_vectored(cx, slices)
    }
    fn is_write_vectored(&self) -> bool {
        self.inner.is_write_vectored()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn connections_are_counted_by_address_and_in_all() {
        let connections = Connections::new(ConnectionLimits { per_address: 2, in_all: 3, ..ConnectionLimits::default() });
        let address = |text: &str| text.parse::<IpAddr>().expect("an address");
        let first = connections.take(address("127.0.0.1")).expect("room");
        let _second = connections.take(address("::ffff:127.0.0.1")).expect("room");
        assert!(connections.take(address("127.0.0.1")).is_none());
        let _other = connections.take(address("2001:db8::1")).expect("room");
        assert!(connections.take(address("10.0.0.1")).is_none(), "three in all");
        drop(first);
        let _next = connections.take(address("2001:db8::ffff:2")).expect("room");
        assert!(connections.take(address("2001:db8::3")).is_none(), "one /64 is one");
    }
}
