//! Receives the message of a request whole before anything is done for it, within its size and its time. A message that is there with its headers
//! costs nothing; one that is not yet takes a place among the incomplete ones, of which an address has so many and a listener so many. What is large
//! takes from a budget that all requests of a listener share, until it is answered. So neither half messages nor large ones fill the memory.

use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use futures_util::FutureExt as _;
use http_body::Body;
use http_body_util::BodyExt as _;
use tokio::time::{Instant, timeout_at};

use super::limited_address;
use crate::quota::{Permit, Quota};

/// What is only thrown away is not waited for so long.
const DISCARD_TIMEOUT: Duration = Duration::from_secs(2);
/// Messages up to this size do not take from the budget.
const SMALL_BYTES: usize = 4 * 1024;

/// How many requests a listener holds whose message has not come whole, and how much of it.
#[derive(Debug, Clone, Copy)]
pub struct ReceivingLimits {
    /// Incomplete requests from one address; of IPv6 from one /64.
    pub per_address: usize,
    /// Those in all.
    pub in_all: usize,
    /// Calls that stream, from one address, and in all. Apart from the others: they last as long as their caller likes.
    pub streams_per_address: usize,
    /// See above.
    pub streams_in_all: usize,
    /// Bytes of messages above 4 KiB together, from their first byte until they are answered; of one address a quarter.
    pub bytes: usize,
    /// A message that does not come within this time, from when its headers were there, is given up.
    pub timeout: Duration,
}

impl Default for ReceivingLimits {
    fn default() -> Self {
        Self {
            per_address: 1024,
            in_all: 4096,
            streams_per_address: 64,
            streams_in_all: 512,
            bytes: 32 * 1024 * 1024,
            timeout: Duration::from_secs(10),
        }
    }
}

/// What a listener is receiving.
#[derive(Debug)]
pub struct Receiving {
    limits: ReceivingLimits,
    incomplete: Arc<Quota<IpAddr>>,
    streams: Arc<Quota<IpAddr>>,
    /// In units of [`SMALL_BYTES`].
    budget: Arc<Quota<IpAddr>>,
}

/// A whole message, with what it holds of the budget until it is dropped.
#[derive(Debug)]
pub struct Received {
    /// The message.
    pub message: Bytes,
    /// To be kept until the request is answered.
    pub held: Vec<Permit<IpAddr>>,
}

/// Why a message was not received.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum NotReceived {
    /// It is larger than its method takes.
    TooLarge,
    /// It ended before its end.
    EndedEarly,
    /// It did not come within this time.
    Late(Duration),
    /// Too many incomplete or large ones are here already.
    NoRoom,
}

impl Receiving {
    /// Within these limits.
    pub fn new(limits: ReceivingLimits) -> Self {
        let units = limits.bytes.div_ceil(SMALL_BYTES);
        Self {
            limits,
            incomplete: Quota::new(limits.per_address, limits.in_all),
            streams: Quota::new(limits.streams_per_address, limits.streams_in_all),
            budget: Quota::new(units.div_ceil(4), units),
        }
    }

    /// A place for a call from an address that streams, if there is one.
    pub fn stream(&self, address: Option<IpAddr>) -> Option<Permit<IpAddr>> {
        self.streams.take(address.map(limited_address), 1)
    }

    /// Receives a message of at most so many bytes from an address.
    pub async fn receive<B>(&self, mut body: B, bytes_max: usize, address: Option<IpAddr>) -> Result<Received, NotReceived>
    where
        B: Body<Data = Bytes> + Unpin,
    {
        let (mut first, mut rest, mut held) = (Bytes::new(), BytesMut::new(), Vec::new());
        let mut waiting: Option<(Permit<IpAddr>, Instant)> = None;
        loop {
            let frame = match body.frame().now_or_never() {
                Some(frame) => frame,
                None => {
                    let (_, until) = match &waiting {
                        Some(waiting) => waiting,
                        None => {
                            let place = self.incomplete.take(address.map(limited_address), 1).ok_or(NotReceived::NoRoom)?;
                            waiting.insert((place, Instant::now() + self.limits.timeout))
                        }
                    };
                    timeout_at(*until, body.frame()).await.map_err(|_| NotReceived::Late(self.limits.timeout))?
                }
            };
            let Some(frame) = frame else { break };
            let Ok(data) = frame.map_err(|_| NotReceived::EndedEarly)?.into_data() else { continue };
            let total = first.len() + rest.len() + data.len();
            if total > bytes_max {
                return Err(NotReceived::TooLarge);
            }
            self.budget_for(total, address, &mut held)?;
            if first.is_empty() {
                first = data;
            } else {
                rest.extend_from_slice(&data);
            }
        }
        if rest.is_empty() {
            return Ok(Received { message: first, held });
        }
        let mut whole = BytesMut::with_capacity(first.len() + rest.len());
        whole.extend_from_slice(&first);
        whole.extend_from_slice(&rest);
        Ok(Received { message: whole.freeze(), held })
    }

    /// Reads at most so many bytes of a message from an address and throws them away, within a time of their own and the places of those that are received.
    pub async fn discard<B>(&self, mut body: B, bytes_max: usize, address: Option<IpAddr>)
    where
        B: Body<Data = Bytes> + Unpin,
    {
        let Some(_place) = self.incomplete.take(address.map(limited_address), 1) else { return };
        let read = async {
            let mut total = 0;
            while let Some(Ok(frame)) = body.frame().await {
                total += frame.data_ref().map_or(0, Bytes::len);
                if total > bytes_max {
                    break;
                }
            }
        };
        let _ = timeout_at(Instant::now() + DISCARD_TIMEOUT, read).await;
    }

    /// Puts a message in place of the one that was received, as when that was compressed.
    pub fn replace(&self, received: &mut Received, message: Bytes, address: Option<IpAddr>) -> Result<(), NotReceived> {
        self.budget_for(message.len(), address, &mut received.held)?;
        received.message = message;
        Ok(())
    }

    /// Takes what a message of so many bytes needs beyond what it holds already.
    fn budget_for(&self, bytes: usize, address: Option<IpAddr>, held: &mut Vec<Permit<IpAddr>>) -> Result<(), NotReceived> {
        let units = if bytes > SMALL_BYTES { bytes.div_ceil(SMALL_BYTES) } else { 0 };
        let missing = units.saturating_sub(held.iter().map(Permit::count).sum());
        if missing > 0 {
            held.push(self.budget.take(address.map(limited_address), missing).ok_or(NotReceived::NoRoom)?);
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use std::convert::Infallible;

    use futures_util::StreamExt as _;
    use http_body::Frame;
    use http_body_util::StreamBody;

    use super::*;

    fn pieces(sizes: &'static [usize], ends: bool) -> impl Body<Data = Bytes, Error = Infallible> + Unpin + Send {
        let frames = futures_util::stream::iter(sizes.iter().map(|size| Ok(Frame::data(Bytes::from(vec![0; *size])))));
        let end = futures_util::stream::once(async move { if ends { None } else { std::future::pending().await } });
        StreamBody::new(Box::pin(frames.chain(end.filter_map(std::future::ready))))
    }

    fn address(text: &str) -> Option<IpAddr> {
        Some(text.parse().expect("an address"))
    }

    fn limits(per_address: usize, in_all: usize, bytes: usize) -> Arc<Receiving> {
        Arc::new(Receiving::new(ReceivingLimits { per_address, in_all, bytes, ..ReceivingLimits::default() }))
    }

    fn is_empty(receiving: &Receiving) -> bool {
        [&receiving.incomplete, &receiving.budget].iter().all(|quota| quota.is_unused())
    }

    #[tokio::test(start_paused = true)]
    async fn a_message_comes_whole_or_not_at_all() {
        let receiving = limits(10, 10, 1 << 20);
        for (sizes, expected) in [
            (&[10][..], Ok(10)),
            (&[5000, 5000], Ok(10_000)),
            (&[], Ok(0)),
            (&[10_001], Err(NotReceived::TooLarge)),
            (&[9000, 1001], Err(NotReceived::TooLarge)),
        ] {
            let received = receiving.receive(pieces(sizes, true), 10_000, address("10.0.0.1")).await;
            assert_eq!(received.map(|received| received.message.len()), expected, "{sizes:?}");
        }
        let started = Instant::now();
        let late = receiving.receive(pieces(&[10], false), 10_000, address("10.0.0.1")).await;
        assert_eq!((late.map(|_| ()), started.elapsed().as_secs()), (Err(NotReceived::Late(Duration::from_secs(10))), 10));
        assert!(is_empty(&receiving), "everything is given back");
    }

    #[tokio::test(start_paused = true)]
    async fn incomplete_requests_of_an_address_are_bounded_and_complete_ones_need_no_place() {
        let receiving = limits(3, 5, 1 << 20);
        let half = |from: &str| {
            let (receiving, from) = (receiving.clone(), address(from));
            tokio::spawn(async move { receiving.receive(pieces(&[10], false), 10_000, from).await.map(|_| ()) })
        };
        let waiting: Vec<_> = ["10.0.0.1", "10.0.0.1", "10.0.0.1", "10.0.0.2", "10.0.0.2"].map(half).into_iter().collect();
        tokio::time::sleep(Duration::from_secs(1)).await;
        for from in ["10.0.0.1", "10.0.0.3"] {
            assert_eq!(half(from).await.expect("no panic"), Err(NotReceived::NoRoom), "three of an address, five in all");
            assert!(receiving.receive(pieces(&[10], true), 10_000, address(from)).await.is_ok());
        }
        for one in waiting {
            assert_eq!(one.await.expect("no panic"), Err(NotReceived::Late(Duration::from_secs(10))));
        }
        assert!(is_empty(&receiving));
    }

    #[tokio::test(start_paused = true)]
    async fn one_address_has_a_quarter_of_what_large_messages_share() {
        let receiving = limits(100, 100, 20 * SMALL_BYTES);
        let (one, other) = (address("10.0.0.1"), address("10.0.0.2"));
        let first = receiving.receive(pieces(&[9000], true), 10_000, one).await.expect("three of five units");
        assert_eq!(receiving.receive(pieces(&[9000], true), 10_000, one).await.map(|_| ()), Err(NotReceived::NoRoom));
        assert!(receiving.receive(pieces(&[9000], true), 10_000, other).await.is_ok());
        drop(first);
        assert!(receiving.receive(pieces(&[9000], true), 10_000, one).await.is_ok());
        assert!(is_empty(&receiving));
    }

    #[test]
    fn calls_that_stream_are_counted_apart() {
        let receiving = Receiving::new(ReceivingLimits { streams_per_address: 2, streams_in_all: 3, ..ReceivingLimits::default() });
        let held = [receiving.stream(address("10.0.0.1")).expect("room"), receiving.stream(address("10.0.0.1")).expect("room")];
        assert!(receiving.stream(address("10.0.0.1")).is_none());
        let _other = receiving.stream(address("10.0.0.2")).expect("room");
        assert!(receiving.stream(address("10.0.0.3")).is_none(), "three in all");
        assert!(is_empty(&receiving), "whoever streams takes no place of those who send");
        drop(held);
        assert!(receiving.stream(address("10.0.0.1")).is_some());
    }

    #[tokio::test(start_paused = true)]
    async fn large_messages_share_a_budget_until_they_are_answered_and_small_ones_do_not() {
        let receiving = limits(100, 100, 10 * SMALL_BYTES);
        let answered: Vec<_> = futures_util::future::join_all((0..3).map(|_| receiving.receive(pieces(&[9000], true), 10_000, None))).await;
        assert!(answered.iter().all(Result::is_ok));
        let large = receiving.receive(pieces(&[9000], true), 10_000, None).await;
        assert_eq!(large.map(|_| ()), Err(NotReceived::NoRoom));
        assert!(receiving.receive(pieces(&[300], true), 10_000, None).await.is_ok());
        drop(answered);
        assert!(receiving.receive(pieces(&[9000], true), 10_000, None).await.is_ok());
        assert!(is_empty(&receiving));
    }
}
