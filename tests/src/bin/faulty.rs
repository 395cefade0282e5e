//! Lastro, with something between orders and those that it calls that fails as it is told: the program is the same, and so are its commands.
//!
//! What is to happen to the sagas of a buyer stands in the file `LASTRO_FAULTS/<buyer>`: a method, a fault and how often, a line each. Each time that it has
//! happened a line is added to `<buyer>.hits`, which is also how it is known how often it has.

#![allow(clippy::print_stderr, clippy::disallowed_methods, reason = "a program of the tests")]

use std::collections::HashMap;
use std::convert::Infallible;
use std::fs;
use std::io::Write as _;
use std::path::PathBuf;
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use http_body_util::{BodyExt as _, Full};
use lastro::Way;
use lastro_mesh::status::reason_name;
use prost::Message;
use tonic::Status;
use tonic::body::Body;
use tonic::codegen::http::request::Parts;
use tonic::codegen::http::{Request, Response};
use tower::util::BoxCloneSyncService;
use tower::{Service, ServiceExt as _};

/// What comes late comes after whoever asked has asked again, or has given up.
const LATE: Duration = Duration::from_millis(2_500);

fn main() -> std::process::ExitCode {
    lastro::main_with(Some(|caller, _, way| if caller == "orders" { BoxCloneSyncService::new(Faulty(way)) } else { way }))
}

#[derive(Clone)]
struct Faulty(Way);

/// Of every call of a saga, whatever else it has.
#[derive(Clone, PartialEq, Message)]
struct AnyCall {
    #[prost(message, optional, tag = "1")]
    call: Option<OnBehalf>,
}

#[derive(Clone, PartialEq, Message)]
struct OnBehalf {
    #[prost(string, tag = "1")]
    on_behalf_of: String,
}

impl Service<Request<Body>> for Faulty {
    type Response = Response<Body>;
    type Error = Infallible;
    type Future = Pin<Box<dyn Future<Output = Result<Response<Body>, Infallible>> + Send>>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        self.0.poll_ready(cx)
    }

    fn call(&mut self, request: Request<Body>) -> Self::Future {
        let clone = self.0.clone();
        let mut way = std::mem::replace(&mut self.0, clone);
        let path = request.uri().path().to_owned();
        if !path.contains("ReservationsService/") && !path.contains("OrderPaymentsService/") {
            return way.call(request);
        }
        Box::pin(async move {
            let (parts, body) = request.into_parts();
            let Ok(collected) = body.collect().await else { return Ok(Status::internal("a body that breaks").into_http()) };
            let bytes = collected.to_bytes();
            // Behind the five bytes of the frame.
            let asked = bytes.get(5..).and_then(|message| AnyCall::decode(message).ok()).and_then(|asked| asked.call);
            let buyer = asked.map(|call| call.on_behalf_of).unwrap_or_default();
            let again = || request_of(&parts, bytes.clone());
            let Some(fault) = due(&buyer, &path) else { return ask(&mut way, again()).await };
            match fault.as_str() {
                "refuses" => Ok(Status::failed_precondition("refused, as the test says").into_http()),
                "away" => Ok(Status::unavailable("away, as the test says").into_http()),
                "loses_answer" => {
                    read_whole(ask(&mut way, again()).await?).await;
                    Ok(Status::unavailable("the answer is lost, as the test says").into_http())
                }
                "repeats" => {
                    read_whole(ask(&mut way, again()).await?).await;
                    ask(&mut way, again()).await
                }
                "comes_late" => {
                    let late = again();
                    tokio::spawn(async move {
                        tokio::time::sleep(LATE).await;
                        let Ok(response) = ask(&mut way, late).await;
                        read_whole(response).await;
                    });
                    Ok(Status::unavailable("it is under way, as the test says").into_http())
                }
                "paused_before" => {
                    let (late, told) = (again(), format!("{path} told "));
                    // On its own: whoever asked may have given up when it wakes up.
                    let asked = tokio::spawn(async move {
                        paused(&buyer).await;
                        let Ok(response) = ask(&mut way, late).await;
                        let status = Status::from_header_map(response.headers());
                        note(&buyer, &format!("{told}{}", what_is_told(status.as_ref())));
                        response
                    });
                    Ok(asked.await.unwrap_or_else(|_| Status::internal("a task that panicked").into_http()))
                }
                "killed_before" => killed().await,
                "killed_after" => {
                    read_whole(ask(&mut way, again()).await?).await;
                    killed().await
                }
                other => Ok(Status::internal(format!("no fault is called {other}")).into_http()),
            }
        })
    }
}

/// The reason of a refusal; where it has none, its code and its words.
fn what_is_told(status: Option<&Status>) -> String {
    let Some(status) = status else { return "no refusal".to_owned() };
    reason_name(status).unwrap_or_else(|| format!("{:?}: {}", status.code(), status.message().replace('\n', " ")))
}

async fn ask(way: &mut Way, request: Request<Body>) -> Result<Response<Body>, Infallible> {
    way.ready().await?.call(request).await
}

fn request_of(parts: &Parts, bytes: tonic::codegen::Bytes) -> Request<Body> {
    Request::from_parts(parts.clone(), Body::new(Full::new(bytes)))
}

/// Its status comes at its end.
async fn read_whole(response: Response<Body>) {
    let _ = response.into_body().collect().await;
}

/// At once, as a crash: nothing is written, nobody is told.
async fn killed() -> Result<Response<Body>, Infallible> {
    let _ = std::process::Command::new("kill").args(["-9", &std::process::id().to_string()]).status();
    std::future::pending().await
}

/// As a process that gets no time, until the journey has seen another replica go on with the saga, and says so by a file.
async fn paused(buyer: &str) {
    let Some(taken_over) = std::env::var_os("LASTRO_FAULTS").map(|folder| PathBuf::from(folder).join(format!("{buyer}.taken_over"))) else { return };
    // A second process stops this one, and wakes it up: when it has ended, both have happened.
    let looks = "for look in $(seq 600); do [ -e \"$1\" ] && break; sleep 0.1; done";
    let script = format!("kill -STOP $0; {looks}; kill -CONT $0");
    let _ = tokio::process::Command::new("sh").args(["-c", &script, &std::process::id().to_string()]).arg(taken_over).status().await;
}

fn note(buyer: &str, line: &str) {
    let Some(folder) = std::env::var_os("LASTRO_FAULTS").map(PathBuf::from) else { return };
    if let Ok(mut file) = fs::OpenOptions::new().create(true).append(true).open(folder.join(format!("{buyer}.hits"))) {
        let _ = writeln!(file, "{line}");
    }
}

/// The fault that a call is to have now; that it had it is written down.
fn due(buyer: &str, path: &str) -> Option<String> {
    let folder = PathBuf::from(std::env::var_os("LASTRO_FAULTS")?);
    let plan = fs::read_to_string(folder.join(buyer)).ok()?;
    let hits_file = folder.join(format!("{buyer}.hits"));
    let mut hits: HashMap<String, usize> = HashMap::new();
    for line in fs::read_to_string(hits_file).unwrap_or_default().lines() {
        *hits.entry(line.to_owned()).or_default() += 1;
    }
    let fault = plan.lines().find_map(|line| {
        let mut words = line.split(' ');
        let (of_path, fault, times) = (words.next()?, words.next()?, words.next()?.parse::<usize>().ok()?);
        let had = hits.get(&format!("{of_path} {fault}")).copied().unwrap_or_default();
        (of_path == path && had < times).then(|| fault.to_owned())
    })?;
    note(buyer, &format!("{path} {fault}"));
    Some(fault)
}
