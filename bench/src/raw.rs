//! A gRPC caller with nothing around it: one HTTP/2 stream a call, by hand. The load generator shares the machine with what it measures, and
//! what a client library does for its caller is not what is measured.

use anyhow::{Context as _, Result};
use bytes::{BufMut as _, Bytes, BytesMut};
use h2::client::SendRequest;
use http::{HeaderMap, HeaderValue, Method, Request, Uri};
use prost::Message;
use tokio::net::TcpStream;

/// A connection that callers share.
#[derive(Clone)]
pub struct Connection {
    send: SendRequest<Bytes>,
    authority: String,
}

impl Connection {
    /// To `host:port`, in plain text.
    pub async fn open(address: &str) -> Result<Self> {
        let stream = TcpStream::connect(address).await?;
        stream.set_nodelay(true)?;
        let (send, connection) =
            h2::client::Builder::new().initial_window_size(1 << 20).initial_connection_window_size(1 << 20).handshake(stream).await?;
        tokio::spawn(connection);
        Ok(Self { send, authority: address.to_owned() })
    }

    /// Where a method is called.
    pub fn uri(&self, path: &'static str) -> Result<Uri> {
        Ok(Uri::builder().scheme("http").authority(self.authority.as_str()).path_and_query(path).build()?)
    }

    /// One unary call.
    pub async fn call<A: Message + Default>(&self, uri: Uri, bearer: &HeaderValue, message: &impl Message) -> Result<A> {
        let mut request = Request::new(());
        *request.method_mut() = Method::POST;
        *request.uri_mut() = uri;
        let headers = request.headers_mut();
        headers.insert(http::header::CONTENT_TYPE, HeaderValue::from_static("application/grpc"));
        headers.insert(http::header::TE, HeaderValue::from_static("trailers"));
        headers.insert(http::header::AUTHORIZATION, bearer.clone());
        let length = message.encoded_len();
        let mut frame = BytesMut::with_capacity(length + 5);
        frame.put_u8(0);
        frame.put_u32(u32::try_from(length)?);
        message.encode(&mut frame)?;

        let mut send = self.send.clone().ready().await?;
        let (response, mut stream) = send.send_request(request, false)?;
        stream.send_data(frame.freeze(), true)?;
        let (head, mut body) = response.await?.into_parts();
        let mut answer = BytesMut::new();
        while let Some(chunk) = body.data().await {
            let chunk = chunk?;
            body.flow_control().release_capacity(chunk.len())?;
            answer.extend_from_slice(&chunk);
        }
        let trailers = body.trailers().await?.unwrap_or_default();
        let status = |headers: &HeaderMap| headers.get("grpc-status").cloned();
        let status = status(&trailers).or_else(|| status(&head.headers)).context("no grpc-status")?;
        anyhow::ensure!(status == "0", "grpc-status {status:?}");
        Ok(A::decode(answer.get(5..).context("no message")?)?)
    }
}
