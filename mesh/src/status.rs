//! Errors on the wire: a [`Problem`] names a [`Reason`] of the registry and becomes a `google.rpc.Status` with `ErrorInfo`,
//! `BadRequest` per field and `RetryInfo`. What an operator must know stays in the log.

use std::collections::{BTreeMap, HashMap};
use std::time::Duration;

use tonic::{Code, Status};
use tonic_types::{ErrorDetails, FieldViolation, StatusExt as _};

/// Names the service that is away, where the one that answers UNAVAILABLE is not: its callers must not give up on it.
pub const DEPENDENCY_HEADER: &str = "x-lastro-dependency";

/// On a refusal of the outbound stack itself: nobody was asked, since calls to the service pause, or too many wait for it.
pub const NOT_ASKED_HEADER: &str = "x-lastro-not-asked";

/// In [`DEPENDENCY_HEADER`] where nobody is away: there are too many callers.
const CALLERS: &str = "callers";

/// The domain of every `ErrorInfo`.
pub const DOMAIN: &str = "lastro";

/// Who can do something about a problem.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fixer {
    /// The caller, by another request.
    Caller,
    /// Nobody needs to: the same request works later.
    Time,
    /// Who runs the system.
    Operator,
}

/// One entry of the registry: why a call was refused.
#[derive(Debug, PartialEq, Eq)]
pub struct Reason {
    /// `UPPER_SNAKE_CASE`, in `ErrorInfo.reason` and in the problem's `reason`.
    pub name: &'static str,
    /// The gRPC status.
    pub code: Code,
    /// The HTTP status over REST.
    pub http_status: u16,
    /// Who may fix it.
    pub fixer: Fixer,
    /// One sentence, the `title` over REST.
    pub title: &'static str,
}

/// Declares a registry of reasons: `NAME: GrpcCode, http status, who may fix it, "title";` each.
#[macro_export]
macro_rules! reasons {
    ($($(#[$doc:meta])* $name:ident: $code:ident, $http:literal, $fixer:ident, $title:literal;)*) => {
        $($(#[$doc])* pub const $name: $crate::status::Reason = $crate::status::Reason {
            name: stringify!($name), code: $crate::status::ReasonCode::$code, http_status: $http,
            fixer: $crate::status::Fixer::$fixer, title: $title,
        };)*
        /// Every reason above.
        pub const ALL: &[&$crate::status::Reason] = &[$(&$name),*];
    };
}
#[doc(hidden)]
pub use tonic::Code as ReasonCode;

reasons! {
    /// A field breaks a rule; the answer names it.
    INVALID_ARGUMENT: InvalidArgument, 400, Caller, "A field of the request breaks a rule";
    /// The bytes are no message of the method's request type.
    MALFORMED_MESSAGE: InvalidArgument, 400, Caller, "The request cannot be read";
    /// No token, or none that holds.
    UNAUTHENTICATED: Unauthenticated, 401, Caller, "A valid access token is needed";
    /// The policy does not let the caller call this.
    PERMISSION_DENIED: PermissionDenied, 403, Caller, "The caller may not call this";
    /// The token does not carry the permission that the method needs; the metadata names it.
    PERMISSION_MISSING: PermissionDenied, 403, Caller, "The permission is missing";
    /// There is no such thing, or it is somebody else's.
    NOT_FOUND: NotFound, 404, Caller, "There is no such thing";
    /// The deadline passed before the answer.
    DEADLINE_EXCEEDED: DeadlineExceeded, 504, Time, "The deadline passed; the outcome is unknown";
    /// Too many calls at once, or a service is away.
    UNAVAILABLE: Unavailable, 503, Time, "The service is busy or away";
    /// Too many calls from one caller.
    RATE_LIMITED: ResourceExhausted, 429, Time, "Too many requests";
    /// A defect, or something that broke below.
    INTERNAL: Internal, 500, Operator, "Internal error";
    /// The method does not exist, or is not offered yet.
    UNIMPLEMENTED: Unimplemented, 501, Operator, "Not offered";
    /// The request is larger than its method takes.
    BODY_TOO_LARGE: OutOfRange, 413, Caller, "The request body is too large";
    /// The request did not come within 10 s.
    BODY_TOO_SLOW: DeadlineExceeded, 408, Caller, "The request body did not come in time";
    /// The reader of a stream did not take what came for half a minute.
    SLOW_READER: ResourceExhausted, 429, Caller, "The stream was read too slowly";
    /// The caller went away.
    CANCELLED: Cancelled, 499, Caller, "The caller cancelled";
}

/// A refusal, with what the caller may read of it.
#[derive(Debug, Clone)]
pub struct Problem {
    /// Which entry of the registry.
    pub reason: &'static Reason,
    /// One sentence for this occurrence.
    pub detail: String,
    /// The fields at fault: proto field path and what to do about it.
    pub fields: Vec<FieldViolation>,
    /// When to try again.
    pub retry_after: Option<Duration>,
    /// Which other service is to blame, for the breakers on the way back.
    pub dependency: Option<&'static str>,
    /// What a program needs to know: in `ErrorInfo.metadata`, beside the first of the fields.
    pub metadata: BTreeMap<String, String>,
}

impl Problem {
    /// A refusal for this reason.
    pub fn new(reason: &'static Reason, detail: impl Into<String>) -> Self {
        let retry_after = matches!(reason.code, Code::Unavailable).then_some(Duration::from_secs(1));
        Self { reason, detail: detail.into(), fields: Vec::new(), retry_after, dependency: None, metadata: BTreeMap::new() }
    }

    /// INVALID_ARGUMENT for one field.
    pub fn field(field: impl Into<String>, description: impl Into<String>) -> Self {
        Self::fields(vec![FieldViolation::new(field, description)])
    }

    /// INVALID_ARGUMENT for several fields.
    pub fn fields(fields: Vec<FieldViolation>) -> Self {
        let fields = bounded(fields);
        let detail = detail_of(&fields);
        Self { fields, ..Self::new(&INVALID_ARGUMENT, detail) }
    }

    /// UNAVAILABLE because too many want something at once. That is no failure of the service, and whoever calls through the mesh does not take it
    /// for one: its breakers must not close the way to everybody because one caller comes in a crowd.
    pub fn crowded(detail: impl Into<String>) -> Self {
        Self::new(&UNAVAILABLE, detail).because_of(CALLERS).retry_after(Duration::from_millis(250))
    }

    /// PERMISSION_MISSING.
    pub fn permission(permission: &str, detail: impl Into<String>) -> Self {
        Self::new(&PERMISSION_MISSING, detail).with("permission", permission)
    }

    /// The same, with something for programs: the `permission` that is missing, the `limit` that was reached.
    pub fn with(mut self, name: &'static str, value: impl Into<String>) -> Self {
        self.metadata.insert(name.to_owned(), value.into());
        self
    }

    /// The same, to be tried again after so long.
    pub fn retry_after(self, after: Duration) -> Self {
        Self { retry_after: Some(after), ..self }
    }
}

/// Fields that one answer names, and bytes of their names and descriptions together. What a caller is told must fit into the headers of an answer,
/// wherever it passes: who provokes more must not look like a service that is broken.
const FIELDS_MAX: usize = 20;
const FIELDS_BYTES_MAX: usize = 4096;
/// Bytes of the one sentence.
const DETAIL_BYTES_MAX: usize = 1024;

/// At most [`FIELDS_MAX`] fields and [`FIELDS_BYTES_MAX`] bytes; the last one says how many were left out, if any were.
fn bounded(fields: Vec<FieldViolation>) -> Vec<FieldViolation> {
    let (total, mut bytes, mut kept) = (fields.len(), 0, Vec::new());
    for one in fields {
        let one = FieldViolation::new(cut(one.field, FIELDS_BYTES_MAX / 8), cut(one.description, FIELDS_BYTES_MAX / 8));
        bytes += one.field.len() + one.description.len();
        if kept.len() == FIELDS_MAX - 1 && total > FIELDS_MAX || bytes > FIELDS_BYTES_MAX {
            break;
        }
        kept.push(one);
    }
    if kept.len() < total {
        kept.push(FieldViolation::new("", format!("and {} more", total - kept.len())));
    }
    kept
}

/// At most so many bytes of a text; what was cut ends in an ellipsis.
pub fn cut(mut text: String, bytes_max: usize) -> String {
    if text.len() > bytes_max {
        let end = (0..=bytes_max - '…'.len_utf8()).rev().find(|end| text.is_char_boundary(*end)).unwrap_or_default();
        text.truncate(end);
        text.push('…');
    }
    text
}

/// What is wrong with each of these fields, in one line.
pub fn detail_of(fields: &[FieldViolation]) -> String {
    let named: Vec<String> = fields.iter().map(|one| format!("{} {}", one.field, one.description)).collect();
    named.join("; ")
}

impl Problem {
    /// The same, because another service is away.
    pub fn because_of(self, dependency: &'static str) -> Self {
        Self { dependency: Some(dependency), ..self }
    }
}

impl std::fmt::Display for Problem {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(formatter, "{}: {}", self.reason.name, self.detail)
    }
}

impl std::error::Error for Problem {}

impl From<Problem> for Status {
    fn from(problem: Problem) -> Self {
        let mut details = ErrorDetails::new();
        let first = problem.fields.first().map(|first| ("field", cut(first.field.clone(), FIELDS_BYTES_MAX / 8)));
        let metadata: HashMap<_, _> = problem.metadata.into_iter().chain(first.map(|(name, value)| (name.to_owned(), value))).collect();
        details.set_error_info(problem.reason.name, DOMAIN, metadata);
        if !problem.fields.is_empty() {
            details.set_bad_request(bounded(problem.fields));
        }
        if let Some(after) = problem.retry_after {
            details.set_retry_info(Some(after));
        }
        let mut status = Self::with_error_details(problem.reason.code, cut(problem.detail, DETAIL_BYTES_MAX), details);
        if let Some(dependency) = problem.dependency.and_then(|name| name.parse().ok()) {
            status.metadata_mut().insert(DEPENDENCY_HEADER, dependency);
        }
        if let Some(after) = problem.retry_after
            && let Ok(millis) = after.as_millis().to_string().parse()
        {
            // gRFC A6: what a client's retry policy reads.
            status.metadata_mut().insert("grpc-retry-pushback-ms", millis);
        }
        status
    }
}

/// The reason that a status names, if it comes from one of our services.
pub fn reason_name(status: &Status) -> Option<String> {
    status.get_details_error_info().filter(|info| info.domain == DOMAIN).map(|info| info.reason)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn whatever_a_caller_provokes_fits_into_the_headers_of_an_answer() {
        for (count, length) in [(1, 10), (20, 10), (21, 10), (60, 70), (10_000, 70), (3, 100_000), (1000, 1)] {
            let fields = (0..count).map(|n| FieldViolation::new(format!("metadata[{}{n}]", "k".repeat(length)), "é".repeat(length))).collect();
            let status = Status::from(Problem::fields(fields));
            let told = status.get_error_details().bad_request().map(|bad| bad.field_violations.clone()).unwrap_or_default();
            assert!(told.len() <= FIELDS_MAX, "{}", told.len());
            let cut = told.len() < count;
            assert_eq!(told.last().is_some_and(|last| last.description.starts_with("and ")), cut, "{count} {length}");
            let headers =
                status.into_http::<tonic::body::Body>().headers().iter().map(|(name, value)| name.as_str().len() + value.len() + 32).sum::<usize>();
            assert!(headers < 14_000, "{headers} bytes of headers for {count} fields of {length}");
        }
    }

    #[test]
    fn what_programs_need_to_know_is_in_the_metadata() {
        let of = |problem: Problem| Status::from(problem).get_error_details().error_info().map(|info| info.metadata.clone()).unwrap_or_default();
        assert_eq!(of(Problem::permission("read:accounts", "missing"))["permission"], "read:accounts");
        assert_eq!(of(Problem::new(&RATE_LIMITED, "too many").with("limit", "streams"))["limit"], "streams");
        assert!(of(Problem::new(&UNAVAILABLE, "away")).is_empty());
    }

    #[test]
    fn a_problem_travels_as_a_rich_status() {
        let status = Status::from(Problem::field("amount.amount", "must be more than zero").retry_after(Duration::from_millis(1500)));
        let details = status.get_error_details();
        assert_eq!(status.code(), Code::InvalidArgument);
        assert_eq!(details.error_info().map(|info| (info.reason.as_str(), info.domain.as_str())), Some(("INVALID_ARGUMENT", "lastro")));
        assert_eq!(details.error_info().and_then(|info| info.metadata.get("field").cloned()).as_deref(), Some("amount.amount"));
        assert_eq!(details.bad_request().map(|bad| bad.field_violations[0].field.as_str()), Some("amount.amount"));
        assert_eq!(details.retry_info().and_then(|info| info.retry_delay), Some(Duration::from_millis(1500)));
        assert_eq!(status.metadata().get("grpc-retry-pushback-ms").map(|value| value.to_str().expect("digits")), Some("1500"));
    }
}
