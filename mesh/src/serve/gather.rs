//! Small answers go out together (docs/adr/0019): a commit answers many callers at the same moment, and each answer by itself would be a system call and a
//! TCP segment.

use std::pin::Pin;
use std::task::{Context, Poll};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

/// A write of fewer bytes lets others run once before it.
const SMALL_BYTES: usize = 8 * 1024;

/// A connection on which small writes are gathered.
pub(super) struct Gather<I> {
    inner: I,
    /// The write that comes next has let others run before it.
    has_waited: bool,
}

impl<I> Gather<I> {
    pub(super) fn new(inner: I) -> Self {
        Self { inner, has_waited: false }
    }
}

impl<I: AsyncRead + Unpin> AsyncRead for Gather<I> {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buffer: &mut ReadBuf<'_>) -> Poll<std::io::Result<()>> {
        Pin::new(&mut self.inner).poll_read(cx, buffer)
    }
}

impl<I: AsyncWrite + Unpin> AsyncWrite for Gather<I> {
    /// A small write lets every other task that is ready run once before it, so that what those are about to write goes out with it. On an idle system no
    /// other task is ready, and it is written at once. What is written again and again, as a large body is, waits for nobody.
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<std::io::Result<usize>> {
        if bytes.len() < SMALL_BYTES && !std::mem::replace(&mut self.has_waited, true) {
            cx.waker().wake_by_ref();
            return Poll::Pending;
        }
        let written = Pin::new(&mut self.inner).poll_write(cx, bytes);
        self.has_waited = written.is_pending();
        written
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<std::io::Result<()>> {
        Pin::new(&mut self.inner).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<std::io::Result<()>> {
        Pin::new(&mut self.inner).poll_shutdown(cx)
    }

    /// With vectored writes h2 writes every message of more than 256 bytes by itself; without, it gathers messages of up to 1,024 bytes, which is what most
    /// answers have: <https://docs.rs/h2>, `CHAIN_THRESHOLD` in `codec/framed_write.rs`.
    fn is_write_vectored(&self) -> bool {
        false
    }
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _, duplex};

    use super::*;

    /// Polls a write once; whether it was done.
    fn poll_once(gather: &mut Gather<tokio::io::DuplexStream>, bytes: &[u8]) -> bool {
        let mut cx = Context::from_waker(std::task::Waker::noop());
        Pin::new(gather).poll_write(&mut cx, bytes).is_ready()
    }

    #[tokio::test]
    async fn a_small_write_waits_once_and_a_large_one_does_not() {
        let (near, _far) = duplex(1 << 20);
        let mut gather = Gather::new(near);
        let (small, large) = (vec![0; SMALL_BYTES - 1], vec![0; SMALL_BYTES]);
        assert!(!poll_once(&mut gather, &small) && poll_once(&mut gather, &small), "once, and then it is written");
        assert!(!poll_once(&mut gather, &small), "and so is the next one");
        assert!(poll_once(&mut gather, &large) && poll_once(&mut gather, &large));
    }

    #[tokio::test]
    async fn nothing_is_lost_where_the_other_side_is_slow() {
        let (near, mut far) = duplex(16);
        let mut gather = Gather::new(near);
        let sent: Vec<u8> = (0..=255).cycle().take(5000).collect();
        let expected = sent.clone();
        let writer = tokio::spawn(async move {
            for part in sent.chunks(7) {
                gather.write_all(part).await.expect("written");
            }
        });
        let mut received = vec![0; expected.len()];
        far.read_exact(&mut received).await.expect("read");
        writer.await.expect("ended");
        assert_eq!(received, expected);
    }
}
