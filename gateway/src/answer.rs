//! The bodies of answers: whole, or streams of events.

use std::io;

use bytes::Bytes;
use http::{Response, StatusCode};
use http_body_util::combinators::UnsyncBoxBody;
use http_body_util::{Either, Full};

/// The body of an answer.
pub type Body = Either<Full<Bytes>, UnsyncBoxBody<Bytes, io::Error>>;

/// An answer that is there whole.
pub fn full(answer: Response<Bytes>) -> Response<Body> {
    answer.map(|body| Either::Left(Full::new(body)))
}

/// An answer without a body.
pub fn empty(status: StatusCode) -> Response<Body> {
    let mut response = full(Response::new(Bytes::new()));
    *response.status_mut() = status;
    response
}

/// An answer whose body comes bit by bit. One that fails is broken off, so that nobody takes what has come for all of it.
pub fn stream(body: impl http_body::Body<Data = Bytes, Error = io::Error> + Send + 'static) -> Response<Body> {
    Response::new(Either::Right(UnsyncBoxBody::new(body)))
}
