//! A table in place of JSON, for `Accept: text/csv` (RFC 4180): one row of names, and one for each message of the field that the annotation of the method
//! names. A method that answers page by page is asked for one page after the other, each when the client has read the one before, so that a table may be of
//! any length and costs as much as one page. A table that cannot be completed is broken off, which every HTTP client tells as an error.

use std::io;
use std::net::IpAddr;
use std::sync::{Arc, LazyLock};
use std::time::Duration;

use bytes::Bytes;
use futures_util::stream::{self, TryStreamExt as _};
use http::header::{ACCEPT, CONTENT_DISPOSITION, CONTENT_TYPE, VARY};
use http::{HeaderMap, HeaderName, HeaderValue, Response};
use http_body::Frame;
use http_body_util::StreamBody;
use lastro_mesh::call::CorrelationId;
use lastro_mesh::endable::endable;
use lastro_mesh::outbound::Outbound;
use lastro_mesh::quota::Quota;
use lastro_mesh::serve::limited_address;
use lastro_mesh::status::{INTERNAL, Problem};
use lastro_proto::methods::Csv;
use lastro_proto::rest_methods::RestMethod;
use prost::Message as _;
use serde_json::Value;
use tokio::sync::Semaphore;
use tokio::time::sleep;

use super::unary::{call_once, freshness_of};
use super::{MethodCall, TIMEOUT};
use crate::answer::{self, Body};

/// Messages to a page: as many as a method gives at once.
const PAGE: i32 = 1_000;
/// How many pages of tables are fetched at once by this process, apart from the first page of each: long tables wait for each other, and nobody else for them.
static PAGES_AT_ONCE: LazyLock<Semaphore> = LazyLock::new(|| Semaphore::new(4));
/// Tables of several pages that are being read, of one address and of all: each holds two pages while its reader reads nothing.
const TABLES_OF_ADDRESS: usize = 16;
const TABLES: usize = 64;
static BEING_READ: LazyLock<Arc<Quota<IpAddr>>> = LazyLock::new(|| Quota::new(TABLES_OF_ADDRESS, TABLES));
/// How often it is looked whether a table is still read.
const SUPERVISE_EVERY: Duration = Duration::from_secs(1);
/// Tells nginx not to keep a table back, so that the next page is fetched only when the client reads.
const BUFFERING: HeaderName = HeaderName::from_static("x-accel-buffering");

/// Whether a table is asked for rather than JSON (RFC 9110, section 12.5.1): of each of the two the range that names it most exactly says how much it is
/// wished for. Where both are wished for as much as each other that one is answered which is named more exactly, and else JSON.
pub fn is_wanted(headers: &HeaderMap) -> bool {
    let lists = || headers.get_all(ACCEPT).iter().filter_map(|value| value.to_str().ok());
    let wish = |exact: &str, kind: &str| {
        let (mut best, mut quality) = (0, 0.0);
        for range in lists().flat_map(|list| list.split(',')) {
            let mut parts = range.split(';').map(str::trim);
            let named = parts.next().unwrap_or_default().to_ascii_lowercase();
            let exactness = [(exact, 3), (kind, 2), ("*/*", 1)].into_iter().find_map(|(range, exactness)| (named == range).then_some(exactness));
            let Some(exactness) = exactness.filter(|exactness| *exactness >= best) else { continue };
            let asked = parts.find_map(|part| part.strip_prefix("q=").or_else(|| part.strip_prefix("Q=")));
            // What is no number counts as 0.
            let asked: f32 = asked.map_or(1.0, |asked| asked.parse().unwrap_or(0.0));
            quality = if exactness > best { asked } else { asked.max(quality) };
            best = exactness;
        }
        (quality, best)
    };
    let (csv, json) = (wish("text/csv", "text/*"), wish("application/json", "application/*"));
    csv.0 > 0.0 && csv > json
}

/// That the answer depends on what was asked for: caches between us and the client have to know.
pub fn set_vary(headers: &mut HeaderMap) {
    headers.append(VARY, HeaderValue::from_static("accept"));
}

/// Makes the first call, so that what is refused is refused as ever, and answers the table as it is read.
pub async fn answer<M: RestMethod>(channel: Outbound, input: MethodCall, table: Csv) -> Result<Response<Body>, Problem> {
    let mut request: M::Request = input.read::<M>()?;
    if let Some((size, _)) = M::page(&mut request)
        && *size == 0
    {
        *size = PAGE;
    }
    let freshness = freshness_of::<M>(&input.headers)?;
    let mut call = input.call(TIMEOUT);
    call.waits = !freshness.is_empty();
    if call.waits {
        input.slot.release();
    }
    let again = request.encode_to_vec().into();
    let first = call_once::<M>(channel.clone(), &call, request, freshness).await?.into_parts().1;
    let begin = rows::<M>(&first, table, true)?;
    let next = M::next_page_token(&first).to_owned();
    let held = if next.is_empty() { None } else { Some(BEING_READ.take(Some(limited_address(input.context.address)), 1).ok_or_else(too_many)?) };
    let correlation_id = input.context.correlation_id.clone();
    let pages = Pages { channel, input, table, request: again, next };
    let body = stream::try_unfold((Some(begin), pages), |(begin, pages)| async move {
        match begin {
            Some(begin) => Ok(Some((begin, (None, pages)))),
            None => Ok(pages.next::<M>().await?.map(|(page, pages)| (page, (None, pages)))),
        }
    });
    let body = StreamBody::new(Box::pin(body.map_ok(Frame::data)));
    let (body, ender) = endable(body, held, move |problem| Some(Err(broken_off(&problem, M::METHOD.path, &correlation_id))));
    tokio::spawn(async move {
        while ender.end_if_slow() {
            sleep(SUPERVISE_EVERY).await;
        }
    });
    let mut response = answer::stream(body);
    let name = M::METHOD.http_path.rsplit('/').next().unwrap_or_default();
    let headers = response.headers_mut();
    headers.insert(CONTENT_TYPE, HeaderValue::from_static("text/csv; charset=utf-8; header=present"));
    if let Ok(disposition) = HeaderValue::from_str(&format!("attachment; filename=\"{name}.csv\"")) {
        headers.insert(CONTENT_DISPOSITION, disposition);
    }
    headers.insert(BUFFERING, HeaderValue::from_static("no"));
    set_vary(headers);
    Ok(response)
}

fn too_many() -> Problem {
    let rule = format!("{TABLES_OF_ADDRESS} tables are being read from your address, or {TABLES} in all; ask again when one of them is complete");
    Problem::crowded(rule)
}

/// What is left of a table.
struct Pages {
    channel: Outbound,
    input: MethodCall,
    table: Csv,
    /// As it was sent for the first page.
    request: Bytes,
    /// Leads to the next page; empty where there is none.
    next: String,
}

impl Pages {
    /// The rows of the next page. None where there is none.
    async fn next<M: RestMethod>(mut self) -> io::Result<Option<(Bytes, Self)>> {
        if self.next.is_empty() {
            return Ok(None);
        }
        let correlation_id = self.input.context.correlation_id.clone();
        let broken = |problem: &Problem| broken_off(problem, M::METHOD.path, &correlation_id);
        let mut request = M::Request::decode(self.request.clone()).map_err(io::Error::other)?;
        if let Some((_, token)) = M::page(&mut request) {
            *token = std::mem::take(&mut self.next);
        }
        let _turn = PAGES_AT_ONCE.acquire().await.map_err(io::Error::other)?;
        let call = self.input.call(TIMEOUT);
        let answered = call_once::<M>(self.channel.clone(), &call, request, Vec::new()).await.map_err(|problem| broken(&problem))?;
        let answer = answered.into_parts().1;
        let page = rows::<M>(&answer, self.table, false).map_err(|problem| broken(&problem))?;
        M::next_page_token(&answer).clone_into(&mut self.next);
        Ok(Some((page, self)))
    }
}

fn broken_off(problem: &Problem, method: &str, correlation_id: &CorrelationId) -> io::Error {
    tracing::warn!(reason = problem.reason.name, detail = %problem.detail, method, %correlation_id, "a table is broken off");
    io::Error::other(problem.detail.clone())
}

/// The messages of an answer as rows.
fn rows<M: RestMethod>(answer: &M::Answer, table: Csv, with_names: bool) -> Result<Bytes, Problem> {
    let written = serde_json::to_value(answer).map_err(io::Error::other).and_then(|answer| write(&answer[table.rows], table, with_names));
    written.map(Bytes::from).map_err(|error| {
        tracing::error!(%error, method = M::METHOD.path, "an answer cannot be written as a table");
        Problem::new(&INTERNAL, "internal error")
    })
}

fn write(messages: &Value, table: Csv, with_names: bool) -> io::Result<Vec<u8>> {
    let mut writer = csv::WriterBuilder::new().terminator(csv::Terminator::CRLF).from_writer(Vec::new());
    if with_names {
        writer.write_record(table.columns.iter().map(|column| column.name))?;
    }
    for message in messages.as_array().into_iter().flatten() {
        let cell = |path: &[&str]| text(path.iter().fold(message, |value, name| &value[*name]));
        writer.write_record(table.columns.iter().map(|column| cell(column.path)))?;
    }
    writer.into_inner().map_err(|error| io::Error::other(error.to_string()))
}

fn text(value: &Value) -> String {
    match value {
        Value::String(text) => harmless(text),
        Value::Null => String::new(),
        other => other.to_string(),
    }
}

/// Where a spreadsheet would take a part of a text for a formula an apostrophe comes before it, which says "this is text". Numbers are left as they are. A part
/// begins with the text, and after everything that some spreadsheet, of some country, takes for the end of a cell.
/// Source: OWASP, "CSV Injection".
fn harmless(text: &str) -> String {
    if is_number(text) {
        return text.to_owned();
    }
    let (mut harmless, mut begins) = (String::with_capacity(text.len() + 1), true);
    for letter in text.chars() {
        let is_formula = matches!(letter, '=' | '+' | '-' | '@' | '＝' | '＋' | '－' | '＠');
        if begins && is_formula || harmless.is_empty() && matches!(letter, '\t' | '\r' | '\n') {
            harmless.push('\'');
        }
        begins = matches!(letter, ';' | '\t' | '\r' | '\n') || (begins && matches!(letter, ' ' | '"'));
        harmless.push(letter);
    }
    harmless
}

/// Digits, with a sign before and a point in between.
fn is_number(text: &str) -> bool {
    let digits = text.strip_prefix('-').unwrap_or(text);
    let (whole, fraction) = digits.split_once('.').unwrap_or((digits, "0"));
    [whole, fraction].iter().all(|part| !part.is_empty() && part.bytes().all(|byte| byte.is_ascii_digit()))
}

#[cfg(test)]
mod tests {
    use lastro_proto::methods::Column;
    use serde_json::json;

    use super::*;

    #[test]
    fn a_table_is_answered_to_whoever_asks_for_one_rather_than_json() {
        for (accept, wanted) in [
            ("text/csv", true),
            ("Text/CSV; charset=utf-8", true),
            ("text/csv, */*;q=0.1", true),
            ("text/csv, application/json;q=0.9", true),
            ("application/json;q=0.9,text/csv", true),
            ("text/*", true),
            ("text/csv;q=0.5, application/json", false),
            ("text/csv, application/json", false),
            ("text/csv;q=0", false),
            ("text/csv;q=0, text/*", false),
            ("text/csv, */*", true),
            ("text/csv;q=0, */*;q=0", false),
            ("text/csv;q=0.1, */*", false),
            ("*/*, text/csv;q=0.9, application/json;q=0.5", true),
            ("text/csv;q=x", false),
            ("*/*", false),
            ("application/json", false),
            ("text/html", false),
            ("", false),
        ] {
            let headers = HeaderMap::from_iter([(ACCEPT, HeaderValue::from_static(accept))]);
            assert_eq!(is_wanted(&headers), wanted, "{accept}");
        }
        assert!(!is_wanted(&HeaderMap::new()));
    }

    #[test]
    fn messages_are_rows_and_no_cell_is_a_formula() {
        let columns: &[Column] = &[
            Column { name: "description", path: &["description"] },
            Column { name: "amount", path: &["amount", "amount"] },
            Column { name: "count", path: &["count"] },
        ];
        let table = Csv { rows: "entries", columns };
        let row = |description: &str, amount: &str| json!({ "description": description, "amount": { "amount": amount }, "count": 0 });
        let messages = json!([
            row("a \"b\", c", "-1.50"),
            row("=1+1", "10"),
            row("+55", "0.01"),
            row("-1-1", "-"),
            row("@SUM(A1)", "1."),
            row("\t=1", "-2"),
            row("two\r\nlines", "3"),
            row("lunch; \"=A1\"\n+1 - 2;-3", "-4"),
            { "description": null, "count": 7 }
        ]);
        let written = String::from_utf8(write(&messages, table, true).expect("rows")).expect("text");
        let expected = "description,amount,count\r\n\"a \"\"b\"\", c\",-1.50,0\r\n'=1+1,10,0\r\n'+55,0.01,0\r\n'-1-1,'-,0\r\n'@SUM(A1),1.,0\r\n'\t'=1,-2,0\r\n\
                        \"two\r\nlines\",3,0\r\n\"lunch; \"\"'=A1\"\"\n'+1 - 2;'-3\",-4,0\r\n,,7\r\n";
        assert_eq!(written, expected);
        assert_eq!(write(&json!([]), table, true).expect("rows"), b"description,amount,count\r\n");
        assert!(write(&json!([]), table, false).expect("rows").is_empty());
    }
}
