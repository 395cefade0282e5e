//! `lastro.reports.v1.ReportsService`: unwrap, call one use case, wrap.

mod orders;

use std::sync::Arc;

use lastro_mesh::call::Call;
use lastro_mesh::freshness;
use lastro_mesh::page::Page;
use lastro_mesh::status::Problem;
use lastro_money::{Currency, format_sum};
use lastro_proto::reports::v1::reports_service_server::{ReportsService, ReportsServiceServer};
use lastro_proto::reports::v1::{
    DailyBalance, GetOrderAnalyticsRequest, GetSalesRequest, GetStatementRequest, GetTransactionReportRequest, ListCustomerOrdersRequest,
    ListDailyBalancesRequest, ListDailyBalancesResponse, ListOrdersRequest, ListOrdersResponse, OrderAnalytics, Sales, SearchOrdersRequest,
    Statement, StatementEntry, TransactionReport, TransactionReportRow,
};
use lastro_proto::time::timestamp;
use lastro_proto::transactions::v1::transaction;
use lastro_proto::r#type::v1::Money;
use tonic::service::Routes;
use tonic::{Request, Response, Status};

use crate::app::App;
use crate::app::freshness::{SeesBy, wait_until_seen};
use crate::app::get_order_analytics::get_order_analytics;
use crate::app::get_sales::get_sales;
use crate::app::get_statement::{self, get_statement};
use crate::app::get_transaction_report::get_transaction_report;
use crate::app::list_daily_balances::{self, list_daily_balances};
use crate::app::list_orders::{self, list_orders};
use crate::domain::operation::{Counts, CountsOf, Entry};
use crate::domain::total::Total;

/// What it serves.
pub fn routes(app: &Arc<App>) -> Routes {
    Routes::new(ReportsServiceServer::new(Reports(app.clone())))
}

struct Reports(Arc<App>);

impl Reports {
    /// The call, once what its caller has written is seen here.
    async fn fresh_call<T>(&self, request: &Request<T>) -> Result<(Call, Option<SeesBy>), Status> {
        let call = Call::of(request)?.clone();
        let sees_by = wait_until_seen(&self.0, &call, &freshness::asked(request.metadata())?).await?;
        Ok((call, sees_by))
    }
}

#[tonic::async_trait]
impl ReportsService for Reports {
    async fn list_daily_balances(&self, request: Request<ListDailyBalancesRequest>) -> Result<Response<ListDailyBalancesResponse>, Status> {
        let (call, sees_by) = self.fresh_call(&request).await?;
        let message = request.into_inner();
        let wanted = list_daily_balances::Wanted {
            account_id: message.account_id.as_deref(),
            currency_code: message.currency_code.as_deref(),
            from: message.from.as_deref(),
            to: message.to.as_deref(),
            as_of_us: message.as_of.map(|time| time_us("as_of", time)).transpose()?,
        };
        let found = list_daily_balances(&self.0, &call, wanted, sees_by.as_ref()).await?;
        let days = found.days.iter().map(|day| wire_day(day, found.currency)).collect();
        let time_zone = self.0.edition.get().calendar.name().to_owned();
        Ok(Response::new(ListDailyBalancesResponse { days, as_of_time: found.as_of_us.map(timestamp), time_zone }))
    }

    async fn get_statement(&self, request: Request<GetStatementRequest>) -> Result<Response<Statement>, Status> {
        let (call, sees_by) = self.fresh_call(&request).await?;
        let message = request.into_inner();
        let wanted = get_statement::Wanted {
            account_id: &message.account_id,
            from: message.from.as_deref(),
            to: message.to.as_deref(),
            page_size: message.page_size,
            page_token: &message.page_token,
        };
        let found = get_statement(&self.0, &call, wanted, sees_by.as_ref()).await?;
        let entries = found.entries.into_iter().map(|(entry, balance)| wire_entry(entry, balance, found.currency)).collect();
        Ok(Response::new(Statement { entries, next_page_token: found.next_page_token, as_of_time: found.as_of_us.map(timestamp) }))
    }

    async fn get_transaction_report(&self, request: Request<GetTransactionReportRequest>) -> Result<Response<TransactionReport>, Status> {
        let (call, _sees_by) = self.fresh_call(&request).await?;
        let message = request.into_inner();
        let rows = get_transaction_report(&self.0, &call, message.from.as_deref(), message.to.as_deref()).await?;
        let newest_us = rows.iter().map(|(_, counts)| counts.newest_us).max();
        let rows = rows.into_iter().map(|(of, counts)| wire_row(of, &counts)).collect();
        let time_zone = self.0.edition.get().calendar.name().to_owned();
        Ok(Response::new(TransactionReport { rows, as_of_time: newest_us.map(timestamp), time_zone }))
    }

    async fn list_orders(&self, request: Request<ListOrdersRequest>) -> Result<Response<ListOrdersResponse>, Status> {
        let (call, _sees_by) = self.fresh_call(&request).await?;
        let message = request.into_inner();
        let page = Page::read(message.page_size, &message.page_token)?;
        let found = list_orders(&self.0, &call, orders::wanted(&message), page).await?;
        Ok(Response::new(orders::wire_page(found)))
    }

    async fn list_customer_orders(&self, request: Request<ListCustomerOrdersRequest>) -> Result<Response<ListOrdersResponse>, Status> {
        let (call, _sees_by) = self.fresh_call(&request).await?;
        let message = request.into_inner();
        let page = Page::read(message.page_size, &message.page_token)?;
        let wanted = list_orders::Wanted { customer_id: Some(&message.customer_id), ..list_orders::Wanted::default() };
        Ok(Response::new(orders::wire_page(list_orders(&self.0, &call, wanted, page).await?)))
    }

    async fn search_orders(&self, request: Request<SearchOrdersRequest>) -> Result<Response<ListOrdersResponse>, Status> {
        let (call, _sees_by) = self.fresh_call(&request).await?;
        let message = request.into_inner();
        let page = Page::read(message.page_size, &message.page_token)?;
        let wanted = list_orders::Wanted { text: Some(&message.q), ..list_orders::Wanted::default() };
        Ok(Response::new(orders::wire_page(list_orders(&self.0, &call, wanted, page).await?)))
    }

    async fn get_order_analytics(&self, request: Request<GetOrderAnalyticsRequest>) -> Result<Response<OrderAnalytics>, Status> {
        let (call, _sees_by) = self.fresh_call(&request).await?;
        let message = request.into_inner();
        let found = get_order_analytics(&self.0, &call, message.from.as_deref(), message.to.as_deref()).await?;
        Ok(Response::new(orders::wire_analytics(found, self.0.edition.get().calendar.name().to_owned())))
    }

    async fn get_sales(&self, request: Request<GetSalesRequest>) -> Result<Response<Sales>, Status> {
        let (call, sees_by) = self.fresh_call(&request).await?;
        let message = request.into_inner();
        let (account, from, to) = (&message.account_id, message.from.as_deref(), message.to.as_deref());
        let rows = get_sales(&self.0, &call, account, from, to, sees_by.as_ref()).await?;
        let time_zone = self.0.edition.get().calendar.name().to_owned();
        Ok(Response::new(orders::wire_sales(rows, time_zone)))
    }
}

fn time_us(field: &str, time: lastro_proto::time::Timestamp) -> Result<i64, Problem> {
    lastro_proto::time::micros(&time).ok_or_else(|| Problem::field(field, "must be an RFC 3339 time such as 2026-01-31T12:00:00Z"))
}

fn money(total: Total, currency: Currency) -> Option<Money> {
    Some(Money { currency_code: currency.code().to_owned(), amount: format_sum(total.minor_units(), currency) })
}

/// In a currency that is told by its code; None for one that there is not.
fn money_in(currency_code: &str, total: Total) -> Option<Money> {
    money(total, Currency::from_code(currency_code)?)
}

fn wire_day(day: &list_daily_balances::DailyBalance, currency: Currency) -> DailyBalance {
    DailyBalance {
        date: day.day.to_string(),
        opening: money(day.opening, currency),
        credits: money(day.flow.credits, currency),
        debits: money(day.flow.debits, currency),
        closing: money(day.closing, currency),
    }
}

fn wire_entry(entry: Entry, balance: Total, currency: Currency) -> StatementEntry {
    StatementEntry {
        transaction_id: entry.transaction_id.to_string(),
        r#type: type_name(entry.kind),
        effective_time: Some(timestamp(entry.effective_us)),
        record_time: Some(timestamp(entry.posted.record_us)),
        description: entry.description,
        amount: money(Total::of(entry.posted.amount), currency),
        balance: money(balance, currency),
    }
}

/// As the contract shows counts.
fn shown(count: i64) -> i32 {
    i32::try_from(count).unwrap_or(i32::MAX)
}

fn wire_row(of: CountsOf, counts: &Counts) -> TransactionReportRow {
    let decided = counts.completed + counts.rejected;
    TransactionReportRow {
        date: of.day.to_string(),
        r#type: type_name(of.kind),
        amount: money_in(&of.currency_code, counts.amount),
        currency_code: of.currency_code,
        count: shown(counts.accepted),
        completed: shown(counts.completed),
        rejected: shown(counts.rejected),
        released: shown(counts.released),
        success_rate: if decided > 0 { rate(counts.completed, decided) } else { String::new() },
        processing_ms_mean: (decided > 0).then(|| shown((counts.processing_us / decided + 500) / 1_000)),
    }
}

/// A part of a whole that is more than nothing, with four digits: cut, so that 1 means all.
fn rate(part: i64, whole: i64) -> String {
    let ten_thousandths = i128::from(part) * 10_000 / i128::from(whole);
    format!("{}.{:04}", ten_thousandths / 10_000, ten_thousandths % 10_000)
}

/// As the contract of transactions has it; a type that is newer than we are by its number.
fn type_name(kind: i64) -> String {
    let known = i32::try_from(kind).ok().and_then(|kind| transaction::Type::try_from(kind).ok());
    known.map_or_else(|| kind.to_string(), |known| known.as_str_name().to_owned())
}
