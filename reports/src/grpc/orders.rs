//! Orders, sales and analytics on the wire.

use lastro_proto::orders::v1::{Order, OrderItem, order as wire, order_payment};
use lastro_proto::reports::v1::{ListOrdersRequest, ListOrdersResponse, OrderAnalytics, OrderDay, Sales, SalesRow, TopProduct};
use lastro_proto::time::timestamp;

use super::{money_in, rate, shown};
use crate::app::{get_order_analytics, list_orders};
use crate::domain::order::{self, OrderCounts, Sale, SaleOf, Status, TopProduct as Top};
use crate::domain::total::Total;

pub fn wanted(request: &ListOrdersRequest) -> list_orders::Wanted<'_> {
    list_orders::Wanted {
        status: request.status.and_then(|status| Status::of_number(status.into())),
        customer_id: request.customer_id.as_deref(),
        product_id: request.product_id.as_deref(),
        min_total: request.min_total.as_deref(),
        max_total: request.max_total.as_deref(),
        from: request.from.as_deref(),
        to: request.to.as_deref(),
        text: None,
    }
}

pub fn wire_page(page: list_orders::Listed) -> ListOrdersResponse {
    let newest_us = page.orders.iter().map(|order| order.updated_us).max();
    ListOrdersResponse {
        orders: page.orders.into_iter().map(wire_order).collect(),
        next_page_token: page.next_page_token,
        as_of_time: newest_us.map(timestamp),
    }
}

fn wire_order(order: order::Order) -> Order {
    let amount = |minor: i64| money_in(&order.currency_code, Total::of(minor));
    let item = |item: order::Item| OrderItem {
        product_id: item.product_id.to_string(),
        product_name: item.product_name,
        quantity: shown(item.quantity),
        price: amount(item.price),
    };
    let method = order_payment::Method::from_str_name(&order.payment_method).unwrap_or(order_payment::Method::Unspecified);
    Order {
        id: order.id.to_string(),
        customer_id: order.customer_id.to_string(),
        external_id: order.external_id,
        status: status(order.status) as i32,
        reason: order.reason,
        detail: order.detail,
        items: order.items.into_iter().map(item).collect(),
        total_amount: amount(order.total),
        payment_method: method as i32,
        payment_id: if order.payment_id.is_nil() { String::new() } else { order.payment_id.to_string() },
        store_id: order.store_id,
        create_time: Some(timestamp(order.created_us)),
        update_time: Some(timestamp(order.updated_us)),
        replayed: false,
    }
}

const fn status(status: Status) -> wire::Status {
    match status {
        Status::Pending => wire::Status::Pending,
        Status::Completed => wire::Status::Completed,
        Status::Shipped => wire::Status::Shipped,
        Status::Delivered => wire::Status::Delivered,
        Status::Cancelled => wire::Status::Cancelled,
        Status::Failed => wire::Status::Failed,
    }
}

pub fn wire_analytics(found: get_order_analytics::Analytics, time_zone: String) -> OrderAnalytics {
    let newest = |times: &mut dyn Iterator<Item = i64>| times.max();
    let of_days = newest(&mut found.days.iter().map(|day| day.counts.newest_us));
    let newest_us = of_days.max(newest(&mut found.top_products.iter().map(|product| product.newest_us)));
    OrderAnalytics {
        days: found.days.into_iter().map(wire_day).collect(),
        top_products: found.top_products.into_iter().map(wire_product).collect(),
        as_of_time: newest_us.map(timestamp),
        time_zone,
    }
}

fn wire_day(day: get_order_analytics::OrderDay) -> OrderDay {
    let ms = |us: i64| shown(us.saturating_add(500) / 1_000);
    let count = |status| shown(day.counts.of(status));
    let OrderCounts { decided, compensated, took_us, revenue, .. } = day.counts;
    OrderDay {
        date: day.of.day.to_string(),
        orders: shown(day.counts.orders()),
        pending: count(Status::Pending),
        completed: count(Status::Completed),
        shipped: count(Status::Shipped),
        delivered: count(Status::Delivered),
        cancelled: count(Status::Cancelled),
        failed: count(Status::Failed),
        revenue: money_in(&day.of.currency_code, revenue),
        currency_code: day.of.currency_code,
        compensated: shown(compensated),
        compensation_rate: if decided > 0 { rate(compensated, decided) } else { String::new() },
        saga_ms_mean: (decided > 0).then(|| ms(took_us / decided)),
        saga_ms_p95: day.p95_us.map(ms),
    }
}

fn wire_product(product: Top) -> TopProduct {
    TopProduct {
        product_id: product.product_id.to_string(),
        name: product.name,
        quantity: shown(product.quantity),
        revenue: money_in(&product.currency_code, product.revenue),
        currency_code: product.currency_code,
    }
}

pub fn wire_sales(rows: Vec<(SaleOf, Sale)>, time_zone: String) -> Sales {
    let newest_us = rows.iter().map(|(_, sale)| sale.newest_us).max();
    Sales { rows: rows.into_iter().map(wire_sale).collect(), as_of_time: newest_us.map(timestamp), time_zone }
}

fn wire_sale((of, sale): (SaleOf, Sale)) -> SalesRow {
    let amount = |total: Total| money_in(&sale.currency_code, total);
    SalesRow {
        date: of.day.to_string(),
        product_id: of.product_id.to_string(),
        sold: shown(sale.sold),
        paid: amount(sale.paid),
        returned: shown(sale.returned),
        refunded: amount(sale.refunded),
        product_name: sale.product_name.clone(),
    }
}
