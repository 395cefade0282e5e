//! `lastro.transactions.v1.TransactionsService`.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::sync::Arc;

use futures_util::StreamExt as _;
use futures_util::stream::{BoxStream, try_unfold};
use lastro_events::Event;
use lastro_mesh::call::Call;
use lastro_mesh::identity::User as Caller;
use lastro_mesh::page::Page;
use lastro_mesh::status::Problem;
use lastro_proto::time::{Timestamp, micros, timestamp};
use lastro_proto::transactions::events::v1::OperationEvent;
use lastro_proto::transactions::v1::transaction::Settlement;
use lastro_proto::transactions::v1::transactions_service_server::TransactionsService;
use lastro_proto::transactions::v1::{
    CreateTransactionRequest, GetTransactionRequest, ListTransactionEventsRequest, ListTransactionEventsResponse, ListTransactionsRequest,
    ListTransactionsResponse, Transaction, TransactionEvent, WatchTransactionRequest, WatchTransactionResponse,
};
use tonic::{Request, Response, Status};
use uuid::Uuid;

use super::money;
use crate::app::App;
use crate::app::create_transaction::create_transaction;
use crate::app::get_transaction::get_transaction;
use crate::app::list_transaction_events::list_transaction_events;
use crate::app::list_transactions::list_transactions;
use crate::app::watch_transaction::watch_transaction;
use crate::contract::{state_to_wire, states_from_wire, type_from_wire, type_to_wire};
use crate::domain::operation::Operation;
use crate::domain::submission;
use crate::store::operations::Filter;

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
            let answer = WatchTransactionResponse { event_id: change.event_id.to_string(), transaction: Some(wire(change.operation, &caller)) };
            Ok(Some((answer, (watch, caller))))
        });
        Ok(Response::new(changes.boxed()))
    }

    async fn create_transaction(&self, request: Request<CreateTransactionRequest>) -> Result<Response<Transaction>, Status> {
        let call = Call::of(&request)?.clone();
        let caller = call.user()?;
        let accepted = create_transaction(&self.0, &call, caller, read(request.into_inner())?).await?;
        Ok(Response::new(Transaction { replayed: accepted.replayed, ..wire(accepted.operation, caller) }))
    }

    async fn get_transaction(&self, request: Request<GetTransactionRequest>) -> Result<Response<Transaction>, Status> {
        let caller = Call::of(&request)?.user()?;
        let operation = get_transaction(&self.0, caller, &request.get_ref().id).await?;
        Ok(Response::new(wire(operation, caller)))
    }

    async fn list_transactions(&self, request: Request<ListTransactionsRequest>) -> Result<Response<ListTransactionsResponse>, Status> {
        let (call, message) = (Call::of(&request)?, request.get_ref());
        let caller = call.user()?;
        let page = Page::read(message.page_size, &message.page_token)?;
        let filter = filter(message)?;
        let _turn = self.0.list_turn(call, caller.id, page, !filter.is_empty()).await?;
        let given = |text: &'_ Option<String>| text.as_deref().filter(|text| !text.is_empty()).map(str::to_owned);
        let (account_id, external_id) = (given(&message.account_id), given(&message.external_id));
        let listed = list_transactions(&self.0, caller, account_id.as_deref(), external_id.as_deref(), &filter, page);
        let (operations, next_page_token) = listed.await?;
        let transactions = operations.into_iter().map(|operation| wire(operation, caller)).collect();
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
    let (hold, external) = (request.hold, request.settlement() == Settlement::External);
    let given = |text: Option<String>| text.filter(|text| !text.is_empty());
    let amount = request.amount.unwrap_or_default();
    Ok(submission::Request {
        external_id: request.external_id,
        kind,
        source: given(request.source_account_id),
        destination: given(request.destination_account_id),
        currency_code: amount.currency_code,
        amount: amount.amount,
        description: request.description,
        metadata: request.metadata,
        effective_time: request.effective_time.map(|time| (time.seconds, time.nanos)),
        wait: request.wait.map(|wait| (wait.seconds, wait.nanos)),
        hold,
        external,
    })
}

/// Which transactions a list is to have.
fn filter(message: &ListTransactionsRequest) -> Result<Filter, Problem> {
    let time = |field: &'static str, time: &Option<Timestamp>| {
        let us = |time| micros(time).ok_or_else(|| Problem::field(field, "must be a time of the years 1 to 9999"));
        time.as_ref().map(us).transpose()
    };
    let (from_us, to_us) = (time("from", &message.from)?, time("to", &message.to)?);
    if from_us.zip(to_us).is_some_and(|(from, to)| from > to) {
        return Err(Problem::field("to", "must not be before from"));
    }
    Ok(Filter { states: states_from_wire(message.state()), kind: type_from_wire(message.r#type()), from_us, to_us })
}

fn wire(operation: Operation, caller: &Caller) -> Transaction {
    let id = |id: Option<Uuid>| id.map(|id| id.to_string()).unwrap_or_default();
    let own = operation.owner_id == caller.id;
    Transaction {
        id: operation.id.to_string(),
        external_id: if own { operation.external_id } else { String::new() },
        r#type: type_to_wire(operation.kind) as i32,
        state: state_to_wire(operation.state) as i32,
        reason: operation.reason.map(|reason| reason.name().to_owned()).unwrap_or_default(),
        amount: money(operation.amount.minor(), operation.amount.currency()),
        source_account_id: id(operation.source),
        destination_account_id: id(operation.destination),
        description: operation.description,
        metadata: if own { operation.metadata } else { BTreeMap::new() },
        effective_time: Some(timestamp(operation.effective_time_us)),
        settlement: Settlement::Internal as i32,
        create_time: Some(timestamp(operation.create_time_us)),
        update_time: Some(timestamp(operation.update_time_us)),
        replayed: false,
    }
}

fn wire_event((event, payload): (Event, OperationEvent)) -> TransactionEvent {
    let mut hash = String::with_capacity(64);
    event.hash.iter().for_each(|byte| {
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
