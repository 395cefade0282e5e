//! `lastro.transactions.v1.TransactionsService`.

use std::fmt::Write as _;
use std::sync::Arc;

use futures_util::StreamExt as _;
use futures_util::stream::{BoxStream, try_unfold};
use lastro_mesh::call::Call;
use lastro_mesh::codec::{Checked as _, Violation};
use lastro_mesh::identity::User as Caller;
use lastro_mesh::page::Page;
use lastro_mesh::status::{Problem, cut, detail_of};
use lastro_proto::json::camel_case;
use lastro_proto::time::{Timestamp, micros, timestamp};
use lastro_proto::transactions::v1::transaction::Settlement;
use lastro_proto::transactions::v1::transactions_service_server::TransactionsService;
use lastro_proto::transactions::v1::{
    BatchCreateTransactionsRequest, BatchCreateTransactionsResponse, BatchError, BatchErrorField, BatchResult, CaptureTransactionRequest,
    CreateTransactionRequest, GetTransactionRequest, LegRequest, ListTransactionEventsRequest, ListTransactionEventsResponse,
    ListTransactionsRequest, ListTransactionsResponse, ReverseTransactionRequest, Transaction, TransactionEvent, VoidTransactionRequest,
    WatchTransactionRequest, WatchTransactionResponse,
};
use lastro_proto::r#type::v1::Money;
use tonic::{Request, Response, Status};
use uuid::Uuid;

use super::fresh;
use super::transaction::transaction;
use crate::Error;
use crate::app::App;
use crate::app::batch_create_transactions::{Terms, batch_create_transactions};
use crate::app::create_transaction::create_transaction;
use crate::app::get_transaction::{get_transaction, get_transaction_by_key};
use crate::app::list_transaction_events::{ShownEvent, list_transaction_events};
use crate::app::list_transactions::list_transactions;
use crate::app::resolve_hold::{CaptureRequest, capture_transaction, void_transaction};
use crate::app::reverse_transaction::reverse_transaction;
use crate::app::watch_transaction::watch_transaction;
use crate::contract::{states_from_wire, type_from_wire};
use crate::domain::submission;
use crate::pipeline::Accepted;
use crate::store::operations::{Filter, MetadataFilter};

/// Requests of one batch.
const BATCH_MAX: usize = 1000;
/// What is told of one request that is refused: the first fields, and so many bytes of each text.
const ERROR_FIELDS_MAX: usize = 3;
const ERROR_TEXT_MAX: usize = 300;

pub struct Transactions(pub Arc<App>);

#[tonic::async_trait]
impl TransactionsService for Transactions {
    type WatchTransactionStream = BoxStream<'static, Result<WatchTransactionResponse, Status>>;

    async fn watch_transaction(&self, request: Request<WatchTransactionRequest>) -> Result<Response<Self::WatchTransactionStream>, Status> {
        let caller = Call::of(&request)?.user()?.clone();
        let message = request.into_inner();
        let watch = watch_transaction(&self.0, &caller, &message.id, message.last_event_id.as_deref()).await?;
        let changes = try_unfold((watch, caller), |(mut watch, caller)| async {
            let Some(change) = watch.next().await? else { return Ok(None) };
            let transaction = Some(transaction(change.operation, &caller));
            let answer = WatchTransactionResponse { event_id: change.event_id.to_string(), transaction };
            Ok(Some((answer, (watch, caller))))
        });
        Ok(Response::new(changes.boxed()))
    }

    async fn create_transaction(&self, request: Request<CreateTransactionRequest>) -> Result<Response<Transaction>, Status> {
        let call = Call::of(&request)?.clone();
        let caller = call.user()?;
        let request = request.into_inner();
        let validate_only = request.validate_only;
        let accepted = create_transaction(&self.0, &call, caller, read(request)?).await?;
        let marks = told(&accepted, validate_only);
        Ok(fresh::of_operations(accepted_transaction(accepted, caller, validate_only), marks))
    }

    async fn batch_create_transactions(
        &self,
        request: Request<BatchCreateTransactionsRequest>,
    ) -> Result<Response<BatchCreateTransactionsResponse>, Status> {
        let call = Call::of(&request)?.clone();
        let (caller, message) = (call.user()?, request.into_inner());
        let wait = message.wait.map(|wait| submission::wait((wait.seconds, wait.nanos))).transpose().map_err(Error::from)?;
        match message.requests.len() {
            0 => return Err(Problem::field("requests", "must have 1 item at least").into()),
            1..=BATCH_MAX => {}
            _ => return Err(Problem::field("requests", format!("must have {BATCH_MAX} items at most")).into()),
        }
        let terms = Terms { atomic: message.atomic, wait: wait.unwrap_or_default(), validate_only: message.validate_only };
        let requests = message.requests.into_iter().map(read_in_batch).collect();
        let results = batch_create_transactions(&self.0, &call, caller, requests, terms).await?;
        let marks = results.iter().flatten().filter_map(|accepted| told(accepted, terms.validate_only)).collect();
        let results = results.into_iter().map(|result| batch_result(result, caller, terms.validate_only)).collect();
        Ok(fresh::of_many_operations(&self.0, BatchCreateTransactionsResponse { results }, marks).await)
    }

    async fn capture_transaction(&self, request: Request<CaptureTransactionRequest>) -> Result<Response<Transaction>, Status> {
        let call = Call::of(&request)?.clone();
        let (caller, message) = (call.user()?, request.into_inner());
        let validate_only = message.validate_only;
        let CaptureTransactionRequest { id, external_id, amount, .. } = message;
        let asked = CaptureRequest { id, external_id, amount: amount.map(read_money), validate_only };
        let accepted = capture_transaction(&self.0, &call, caller, asked).await?;
        let marks = told(&accepted, validate_only);
        Ok(fresh::of_operations(accepted_transaction(accepted, caller, validate_only), marks))
    }

    async fn void_transaction(&self, request: Request<VoidTransactionRequest>) -> Result<Response<Transaction>, Status> {
        let call = Call::of(&request)?.clone();
        let (caller, message) = (call.user()?, request.into_inner());
        let accepted = void_transaction(&self.0, &call, caller, &message.id, message.external_id).await?;
        let marks = told(&accepted, false);
        Ok(fresh::of_operations(accepted_transaction(accepted, caller, false), marks))
    }

    async fn reverse_transaction(&self, request: Request<ReverseTransactionRequest>) -> Result<Response<Transaction>, Status> {
        let call = Call::of(&request)?.clone();
        let (caller, message) = (call.user()?, request.into_inner());
        let accepted = reverse_transaction(&self.0, &call, caller, &message.id, message.external_id).await?;
        let marks = told(&accepted, false);
        Ok(fresh::of_operations(accepted_transaction(accepted, caller, false), marks))
    }

    async fn get_transaction(&self, request: Request<GetTransactionRequest>) -> Result<Response<Transaction>, Status> {
        let caller = Call::of(&request)?.user()?;
        let message = request.get_ref();
        let operation = match (message.id.as_str(), message.external_id.as_deref()) {
            ("" | "-", None) => return Err(Problem::field("id", "is required, or the idempotency key in its place").into()),
            ("" | "-", Some(external_id)) => get_transaction_by_key(&self.0, caller, external_id).await?,
            (_, Some(_)) => return Err(Problem::field("external_id", "must not be given together with an id").into()),
            (id, None) => get_transaction(&self.0, caller, id).await?,
        };
        Ok(Response::new(transaction(operation, caller)))
    }

    async fn list_transactions(&self, request: Request<ListTransactionsRequest>) -> Result<Response<ListTransactionsResponse>, Status> {
        let (call, message) = (Call::of(&request)?, request.get_ref());
        let caller = call.user()?;
        let page = Page::read(message.page_size, &message.page_token)?;
        let filter = filter(message, caller)?;
        let _turn = self.0.list_turn(call, caller.id, page, !filter.is_empty()).await?;
        let given = |text: &'_ Option<String>| text.as_deref().filter(|text| !text.is_empty()).map(str::to_owned);
        let (account_id, external_id) = (given(&message.account_id), given(&message.external_id));
        let listed = list_transactions(&self.0, caller, account_id.as_deref(), external_id.as_deref(), &filter, page);
        let (operations, next_page_token) = listed.await?;
        let transactions = operations.into_iter().map(|operation| transaction(operation, caller)).collect();
        Ok(Response::new(ListTransactionsResponse { transactions, next_page_token }))
    }

    async fn list_transaction_events(
        &self,
        request: Request<ListTransactionEventsRequest>,
    ) -> Result<Response<ListTransactionEventsResponse>, Status> {
        let caller = Call::of(&request)?.user()?;
        let events = list_transaction_events(&self.0, caller, &request.get_ref().id).await?;
        Ok(Response::new(ListTransactionEventsResponse { events: events.into_iter().map(wire_event).collect() }))
    }
}

/// What is asked for, in the words of the domain; its rules are checked there.
fn read(request: CreateTransactionRequest) -> Result<submission::Request, Problem> {
    let kind = type_from_wire(request.r#type()).ok_or_else(|| Problem::field("type", "must be DEPOSIT, WITHDRAWAL or TRANSFER"))?;
    let external = request.settlement() == Settlement::External;
    let given = |text: Option<String>| text.filter(|text| !text.is_empty());
    let leg = |leg: LegRequest| submission::LegRequest {
        source: leg.source_account_id,
        destination: leg.destination_account_id,
        amount: leg.amount.map(read_money),
        description: leg.description,
    };
    Ok(submission::Request {
        external_id: request.external_id,
        kind,
        source: given(request.source_account_id),
        destination: given(request.destination_account_id),
        amount: request.amount.map(read_money),
        legs: request.legs.into_iter().map(leg).collect(),
        description: request.description,
        metadata: request.metadata,
        effective_time: request.effective_time.map(|time| (time.seconds, time.nanos)),
        wait: request.wait.map(|wait| (wait.seconds, wait.nanos)),
        hold: request.hold,
        hold_expiry: request.hold_expiry.map(|expiry| (expiry.seconds, expiry.nanos)),
        external,
        validate_only: request.validate_only,
    })
}

fn read_money(money: Money) -> submission::Money {
    submission::Money { currency_code: money.currency_code, amount: money.amount }
}

/// One request of a batch: the rules of its message are judged here, so that one that breaks them does not stop the others.
fn read_in_batch(request: CreateTransactionRequest) -> Result<submission::Request, Problem> {
    let broken = request.violations();
    if !broken.is_empty() {
        return Err(Problem::fields(broken));
    }
    if request.settlement() == Settlement::External {
        return Err(Problem::field("settlement", "must not be EXTERNAL in a batch"));
    }
    read(request)
}

/// Which transactions a list is to have.
fn filter(message: &ListTransactionsRequest, caller: &Caller) -> Result<Filter, Problem> {
    let time = |field: &'static str, time: &Option<Timestamp>| {
        let us = |time| micros(time).ok_or_else(|| Problem::field(field, "must be a time of the years 1 to 9999"));
        time.as_ref().map(us).transpose()
    };
    let (from_us, to_us) = (time("from", &message.from)?, time("to", &message.to)?);
    if from_us.zip(to_us).is_some_and(|(from, to)| from > to) {
        return Err(Problem::field("to", "must not be before from"));
    }
    let metadata = match (&message.metadata_key, &message.metadata_value) {
        (None, None) => None,
        (None, Some(_)) => return Err(Problem::field("metadata_value", "must only be given with a metadata_key")),
        (Some(key), value) => Some(MetadataFilter { submitter_id: caller.id, key: key.clone(), value: value.clone() }),
    };
    Ok(Filter { states: states_from_wire(message.state()), kind: type_from_wire(message.r#type()), from_us, to_us, metadata })
}

/// What an answer tells of how far it has come; a dry run stores nothing.
fn told(accepted: &Accepted, validate_only: bool) -> Option<(Uuid, i64)> {
    fresh::mark(&accepted.operation).filter(|_| !validate_only)
}

/// What would happen has no id, and repeats nothing.
fn accepted_transaction(accepted: Accepted, caller: &Caller, validate_only: bool) -> Transaction {
    let answer = transaction(accepted.operation, caller);
    if validate_only { Transaction { id: String::new(), ..answer } } else { Transaction { replayed: accepted.replayed, ..answer } }
}

fn batch_result(result: Result<Accepted, Error>, caller: &Caller, validate_only: bool) -> BatchResult {
    match result {
        Ok(accepted) => BatchResult { transaction: Some(accepted_transaction(accepted, caller, validate_only)), error: None },
        Err(error) => {
            let problem = Problem::from(error);
            // As the gateway writes them for a single call.
            let named: Vec<Violation> = problem.fields.iter().map(|one| Violation::new(camel_case(&one.field), &one.description)).collect();
            let only_names_fields = problem.detail == detail_of(&problem.fields);
            let message = cut(if only_names_fields { detail_of(&named) } else { problem.detail }, ERROR_TEXT_MAX);
            let field = |one: Violation| BatchErrorField { field: cut(one.field, ERROR_TEXT_MAX), description: cut(one.description, ERROR_TEXT_MAX) };
            let fields = named.into_iter().take(ERROR_FIELDS_MAX).map(field).collect();
            let error = BatchError { reason: problem.reason.name.to_owned(), message, fields };
            BatchResult { transaction: None, error: Some(error) }
        }
    }
}

fn wire_event(ShownEvent { event, payload, is_whole }: ShownEvent) -> TransactionEvent {
    let mut hash = String::with_capacity(64);
    let shown = if is_whole { event.hash.as_slice() } else { &[] };
    shown.iter().for_each(|byte| {
        let _ = write!(hash, "{byte:02x}");
    });
    TransactionEvent {
        id: event.id.to_string(),
        version: event.version,
        r#type: event.kind,
        create_time: Some(timestamp(event.recorded_us)),
        correlation_id: event.correlation_id,
        causation_id: event.causation_id.map(|id| id.to_string()).unwrap_or_default(),
        hash,
        payload: Some(payload),
    }
}
