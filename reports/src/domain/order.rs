//! What the events of one order come to: the order as it stands, and what days, sales and times of sagas change by.

use std::collections::BTreeMap;

use uuid::Uuid;

use super::calendar::{Calendar, Day};
use super::total::Total;

/// Where an order stands, by the number that it has in the contract.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Status {
    /// It is accepted, and not decided yet.
    Pending = 1,
    /// It is paid for, and the pieces are the buyer's.
    Completed = 2,
    /// The pieces are on their way.
    Shipped = 3,
    /// The pieces have arrived.
    Delivered = 4,
    /// It was cancelled, and everything is given back.
    Cancelled = 5,
    /// It could not be carried out.
    Failed = 6,
}

impl Status {
    /// All of them.
    pub const ALL: [Self; 6] = [Self::Pending, Self::Completed, Self::Shipped, Self::Delivered, Self::Cancelled, Self::Failed];

    /// As events and answers name it. None for a name that is newer than we are.
    pub fn named(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|status| status.name() == name)
    }

    /// Its name.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Pending => "PENDING",
            Self::Completed => "COMPLETED",
            Self::Shipped => "SHIPPED",
            Self::Delivered => "DELIVERED",
            Self::Cancelled => "CANCELLED",
            Self::Failed => "FAILED",
        }
    }

    /// As it is stored.
    pub const fn number(self) -> i64 {
        self as i64
    }

    /// Its place in [`Self::ALL`].
    const fn place(self) -> usize {
        self as usize - 1
    }

    /// Whether what was paid for it is revenue.
    const fn is_revenue(self) -> bool {
        matches!(self, Self::Completed | Self::Shipped | Self::Delivered)
    }

    /// As it was stored.
    pub fn of_number(number: i64) -> Option<Self> {
        Self::ALL.into_iter().find(|status| status.number() == number)
    }
}

/// Pieces of a product that were ordered.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Item {
    /// The product.
    pub product_id: Uuid,
    /// What it was called.
    pub product_name: String,
    /// How many pieces.
    pub quantity: i64,
    /// What one piece cost, in minor units.
    pub price: i64,
    /// The account that is credited.
    pub merchant_account_id: Uuid,
}

impl Item {
    fn amount(&self) -> Total {
        // A price times a quantity is far from what a total holds.
        Total::of_product(self.price, self.quantity)
    }
}

/// An order, as its events tell so far.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Order {
    /// Its id.
    pub id: Uuid,
    /// Of its last event.
    pub version: i64,
    /// Who placed it.
    pub customer_id: Uuid,
    /// The buyer's own key for it.
    pub external_id: String,
    /// Where it stands.
    pub status: Status,
    /// Why it failed or was undone; empty where it was not.
    pub reason: String,
    /// The same for a person.
    pub detail: String,
    /// What was ordered.
    pub items: Vec<Item>,
    /// ISO 4217 alphabetic code.
    pub currency_code: String,
    /// What all of it costs, in minor units.
    pub total: i64,
    /// ACCOUNT or CARD.
    pub payment_method: String,
    /// The transaction that pays for it; nil where there is none.
    pub payment_id: Uuid,
    /// The store that the pieces come from; empty: any.
    pub store_id: String,
    /// When it was accepted, Unix microseconds.
    pub created_us: i64,
    /// When its last event was recorded, Unix microseconds.
    pub updated_us: i64,
}

/// Something that happened to an order after it was accepted.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Happened {
    /// Its status was changed.
    StatusUpdated {
        /// To this one.
        to: Status,
    },
    /// It was paid for.
    Paid {
        /// The transaction.
        transaction_id: Uuid,
    },
    /// It could not be paid for, or what was paid could not be given back.
    NotPaid {
        /// Why.
        reason: String,
        /// The same for a person.
        detail: String,
        /// The transaction that was to pay, if there is one.
        transaction_id: Option<Uuid>,
    },
    /// It is carried out.
    Completed,
    /// It could not be carried out.
    Failed {
        /// Why.
        reason: String,
        /// The same for a person.
        detail: String,
    },
    /// It was cancelled, and everything is given back.
    Cancelled {
        /// Whether it had been completed before.
        was_completed: bool,
        /// Why.
        reason: String,
        /// The same for a person.
        detail: String,
    },
    /// Something of which reports tells nothing.
    Else,
}

/// Which row of the counts of orders.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct DayOf {
    /// The day on which they were accepted.
    pub day: Day,
    /// ISO 4217 alphabetic code.
    pub currency_code: String,
}

/// The orders that were accepted on a day in a currency; or what a batch of events changes that by.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct OrderCounts {
    /// How many stand where, in the order of [`Status::ALL`].
    pub by_status: [i64; Status::ALL.len()],
    /// What those cost that are COMPLETED, SHIPPED or DELIVERED.
    pub revenue: Total,
    /// How many were decided: COMPLETED, FAILED or CANCELLED for the first time.
    pub decided: i64,
    /// How many of those were not carried out, so that what had been done was undone.
    pub compensated: i64,
    /// From acceptance until the decision: the sum, in microseconds.
    pub took_us: i64,
    /// The latest of the record times of what happened to these orders, Unix microseconds.
    pub newest_us: i64,
}

impl OrderCounts {
    /// How many stand there.
    pub const fn of(&self, status: Status) -> i64 {
        self.by_status[status.place()]
    }

    /// All of them.
    pub fn orders(&self) -> i64 {
        self.by_status.iter().sum()
    }
}

/// Which row of sales.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct SaleOf {
    /// The merchant's account.
    pub account_id: Uuid,
    /// The day on which it was carried out, or given back.
    pub day: Day,
    /// The product.
    pub product_id: Uuid,
}

/// What was sold of a product on a day, and given back.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Sale {
    /// What it is called in the latest of what is counted here; of two at the same instant, the greater name.
    pub product_name: String,
    /// ISO 4217 alphabetic code.
    pub currency_code: String,
    /// Pieces of orders that were completed.
    pub sold: i64,
    /// What was paid for them.
    pub paid: Total,
    /// Pieces of orders that were cancelled after they had been completed.
    pub returned: i64,
    /// What was given back for them.
    pub refunded: Total,
    /// The latest of the record times of what is counted here, Unix microseconds.
    pub newest_us: i64,
}

/// A product that sold well.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TopProduct {
    /// The product.
    pub product_id: Uuid,
    /// What it was called.
    pub name: String,
    /// ISO 4217 alphabetic code.
    pub currency_code: String,
    /// Pieces that were sold, less those that came back.
    pub quantity: i64,
    /// What was paid for them, less what was given back.
    pub revenue: Total,
    /// The latest of the record times of what is counted here, Unix microseconds.
    pub newest_us: i64,
}

/// What a batch of events changes beside the orders themselves.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Changes {
    /// Orders by day and currency.
    pub days: BTreeMap<DayOf, OrderCounts>,
    /// What was sold and given back.
    pub sales: BTreeMap<SaleOf, Sale>,
    /// How many sagas took so long, by [`bucket_of`].
    pub times: BTreeMap<(DayOf, i64), i64>,
}

/// The first place of those that were accepted at this time, Unix microseconds, or later.
pub fn first_place_at(us: i64) -> Uuid {
    place_at(us, 0)
}

fn place_at(us: i64, among_them: u64) -> Uuid {
    Uuid::from_u64_pair(us.max(0).unsigned_abs(), among_them)
}

/// Steps of a bucket between one power of two and the next: a bucket's end is at most an eighth above its begin.
const STEPS: u32 = 8;

/// The bucket of a time in microseconds: such that whoever knows only the buckets knows each time to an eighth.
pub fn bucket_of(us: i64) -> i64 {
    let us = us.max(0).unsigned_abs();
    if us < u64::from(STEPS) {
        return us as i64;
    }
    let power = us.ilog2();
    let step = (us >> (power - STEPS.ilog2())) - u64::from(STEPS);
    i64::from((power - STEPS.ilog2() + 1) * STEPS) + step as i64
}

/// The largest time that a bucket has, in microseconds.
pub fn end_of_bucket(bucket: i64) -> i64 {
    let (steps, bucket) = (u64::from(STEPS), bucket.max(0).unsigned_abs());
    if bucket < steps {
        return bucket as i64;
    }
    let (power, step) = (bucket / steps - 1, bucket % steps);
    let end = u128::from(steps + step + 1) << power.min(64);
    i64::try_from(end - 1).unwrap_or(i64::MAX)
}

impl Order {
    /// Its place in lists: by when it was accepted, and then by its id. Clocks of those who make ids may differ from those who accept.
    pub fn place(&self) -> Uuid {
        place_at(self.created_us, self.id.as_u64_pair().1)
    }

    /// Applies what happened, and notes what that changes.
    pub fn apply(&mut self, happened: Happened, version: i64, recorded_us: i64, calendar: &Calendar, changes: &mut Changes) {
        (self.version, self.updated_us) = (version, recorded_us);
        changes.day(self, calendar);
        match happened {
            Happened::StatusUpdated { to } => {
                changes.count(self, -1, calendar);
                self.status = to;
                changes.count(self, 1, calendar);
            }
            Happened::Paid { transaction_id } => self.payment_id = transaction_id,
            Happened::NotPaid { reason, detail, transaction_id } => {
                (self.reason, self.detail) = (reason, detail);
                self.payment_id = transaction_id.unwrap_or(self.payment_id);
            }
            Happened::Completed => {
                changes.decide(self, recorded_us, false, calendar);
                changes.sell(self, recorded_us, false, calendar);
            }
            Happened::Failed { reason, detail } => {
                (self.reason, self.detail) = (reason, detail);
                changes.decide(self, recorded_us, true, calendar);
            }
            Happened::Cancelled { was_completed, reason, detail } => {
                (self.reason, self.detail) = (reason, detail);
                if was_completed {
                    changes.sell(self, recorded_us, true, calendar);
                } else {
                    changes.decide(self, recorded_us, true, calendar);
                }
            }
            Happened::Else => {}
        }
    }
}

impl DayOf {
    fn order(order: &Order, calendar: &Calendar) -> Self {
        Self { day: calendar.day_of(order.created_us), currency_code: order.currency_code.clone() }
    }
}

impl Changes {
    /// It was accepted.
    pub fn accepted(&mut self, order: &Order, calendar: &Calendar) {
        self.count(order, 1, calendar);
    }

    /// The counts of its day, to which something happens.
    fn day(&mut self, order: &Order, calendar: &Calendar) -> &mut OrderCounts {
        let counts = self.days.entry(DayOf::order(order, calendar)).or_default();
        counts.newest_us = counts.newest_us.max(order.updated_us);
        counts
    }

    /// One more, or one less, of those that stand where it stands.
    fn count(&mut self, order: &Order, orders: i64, calendar: &Calendar) {
        let counts = self.day(order, calendar);
        counts.by_status[order.status.place()] += orders;
        if order.status.is_revenue() {
            counts.revenue += Total::of_product(order.total, orders);
        }
    }

    /// It is decided, if it was not: an undo that failed may be resumed, and the order be cancelled after it has failed.
    fn decide(&mut self, order: &Order, at_us: i64, is_compensated: bool, calendar: &Calendar) {
        if order.status != Status::Pending {
            return;
        }
        let took_us = at_us.saturating_sub(order.created_us).max(0);
        let counts = self.day(order, calendar);
        counts.decided += 1;
        counts.compensated += i64::from(is_compensated);
        counts.took_us = counts.took_us.saturating_add(took_us);
        *self.times.entry((DayOf::order(order, calendar), bucket_of(took_us))).or_default() += 1;
    }

    fn sell(&mut self, order: &Order, at_us: i64, is_refund: bool, calendar: &Calendar) {
        let day = calendar.day_of(at_us);
        for item in &order.items {
            let sale = self.sales.entry(SaleOf { account_id: item.merchant_account_id, day, product_id: item.product_id }).or_default();
            if (at_us, &item.product_name) > (sale.newest_us, &sale.product_name) {
                sale.product_name.clone_from(&item.product_name);
            }
            sale.currency_code.clone_from(&order.currency_code);
            sale.newest_us = sale.newest_us.max(at_us);
            if is_refund {
                sale.returned += item.quantity;
                sale.refunded += item.amount();
            } else {
                sale.sold += item.quantity;
                sale.paid += item.amount();
            }
        }
    }
}

/// The time that so many of a hundred take at most, from how many there are in each bucket, in microseconds: at most an eighth too much. None of nothing.
pub fn percentile_us(buckets: &BTreeMap<i64, i64>, percent: i64) -> Option<i64> {
    let all: i64 = buckets.values().sum();
    let wanted = (i128::from(all) * i128::from(percent)).div_euclid(100) + i128::from(i128::from(all) * i128::from(percent) % 100 != 0);
    let mut counted = 0;
    let reached = |(bucket, count): (&i64, &i64)| {
        counted += i128::from(*count);
        (counted >= wanted).then_some(end_of_bucket(*bucket))
    };
    if all > 0 { buckets.iter().find_map(reached) } else { None }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn a_bucket_has_each_time_to_an_eighth(us in 0_i64..i64::MAX / 2) {
            let end = end_of_bucket(bucket_of(us));
            prop_assert!(end >= us && end - us <= us / 8 + 1, "{us} is in a bucket that ends with {end}");
            prop_assert!(bucket_of(us + 1) >= bucket_of(us));
            prop_assert_eq!(bucket_of(end), bucket_of(us));
            prop_assert_eq!(bucket_of(end + 1), bucket_of(us) + 1);
        }
    }

    fn order() -> Order {
        Order {
            id: Uuid::from_u128(1),
            version: 1,
            customer_id: Uuid::from_u128(2),
            external_id: "key".to_owned(),
            status: Status::Pending,
            reason: String::new(),
            detail: String::new(),
            items: vec![Item {
                product_id: Uuid::from_u128(3),
                product_name: "coffee".to_owned(),
                quantity: 2,
                price: 500,
                merchant_account_id: Uuid::from_u128(4),
            }],
            currency_code: "BRL".to_owned(),
            total: 1_000,
            payment_method: "ACCOUNT".to_owned(),
            payment_id: Uuid::nil(),
            store_id: String::new(),
            created_us: 0,
            updated_us: 0,
        }
    }

    #[test]
    fn whatever_becomes_of_it_an_order_counts_once() {
        let calendar = Calendar::named("UTC").expect("there is one");
        let reason = || "CANCELLED".to_owned();
        let completed = [Happened::Completed, Happened::StatusUpdated { to: Status::Completed }];
        let failed = [Happened::Failed { reason: reason(), detail: String::new() }, Happened::StatusUpdated { to: Status::Failed }];
        let cancelled = |was_completed| {
            [Happened::Cancelled { was_completed, reason: reason(), detail: String::new() }, Happened::StatusUpdated { to: Status::Cancelled }]
        };
        for (history, status, sale, sagas) in [
            (completed.to_vec(), Status::Completed, Some((2, 0)), (1, 0)),
            ([failed.to_vec(), cancelled(false).to_vec()].concat(), Status::Cancelled, None, (1, 1)),
            (cancelled(false).to_vec(), Status::Cancelled, None, (1, 1)),
            ([completed, cancelled(true)].concat(), Status::Cancelled, Some((2, 2)), (1, 0)),
        ] {
            let (mut order, mut changes) = (order(), Changes::default());
            changes.accepted(&order, &calendar);
            for (version, happened) in (2..).zip(history) {
                order.apply(happened, version, 7, &calendar, &mut changes);
            }
            let counts = changes.days.values().next().expect("it is counted");
            let revenue = if status == Status::Completed { Total::of(order.total) } else { Total::ZERO };
            assert_eq!((order.status, counts.of(status), counts.orders(), counts.revenue), (status, 1, 1, revenue));
            assert_eq!(changes.sales.values().next().map(|sale| (sale.sold, sale.returned)), sale);
            assert_eq!((counts.decided, counts.compensated, counts.newest_us), (sagas.0, sagas.1, 7));
            assert_eq!(changes.times.values().sum::<i64>(), 1);
        }
    }

    #[test]
    fn so_many_of_a_hundred_take_at_most_so_long() {
        let buckets = |times: &[i64]| {
            let mut buckets = BTreeMap::new();
            times.iter().for_each(|us| *buckets.entry(bucket_of(*us)).or_default() += 1);
            buckets
        };
        assert_eq!(percentile_us(&buckets(&[]), 95), None);
        assert_eq!(percentile_us(&buckets(&[3]), 95), Some(3));
        let times: Vec<i64> = (1..=100).map(|number| number * 1_000).collect();
        let found = percentile_us(&buckets(&times), 95).expect("there are some");
        assert!((95_000..=95_000 * 9 / 8).contains(&found), "{found}");
    }
}
