//! Lists of operations, newest first: whose, filtered by what, page by page.

use lastro_database::{Database, Error, select_all};
use lastro_mesh::page::{BYTES_MAX, Page};
use sea_orm::sea_query::{Alias, Expr, ExprTrait as _, JoinType, Order, Query, SelectStatement, SimpleExpr, UnionType};
use uuid::Uuid;

use super::row::{COLUMN_NAMES, Row};
use crate::domain::operation::{Operation, State, Type};

/// Whose operations a list has.
#[derive(Debug, Clone, Copy)]
pub enum Of {
    /// Those of all.
    Everybody,
    /// Those that debit or credit an account of a user.
    Owner(Uuid),
    /// Those that debit or credit an account.
    Account(Uuid),
}

/// Which of them a list has.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Filter {
    /// In one of these states; empty: in any.
    pub states: Vec<State>,
    /// Of this kind.
    pub kind: Option<Type>,
    /// Accepted then or later, Unix microseconds.
    pub from_us: Option<i64>,
    /// Accepted before.
    pub to_us: Option<i64>,
    pub metadata: Option<MetadataFilter>,
}

/// Submitted by somebody with this in its metadata, which nobody else sees.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct MetadataFilter {
    pub submitter_id: Uuid,
    pub key: String,
    /// None: any.
    pub value: Option<String>,
}

impl MetadataFilter {
    fn has(&self, operation: &Operation) -> bool {
        let value = operation.metadata.get(&self.key).filter(|_| operation.owner_id == self.submitter_id);
        value.is_some_and(|value| self.value.as_ref().is_none_or(|asked| asked == value))
    }
}

/// An id begins with the time at which it was made. It may differ from the time that is stored as that of acceptance by as much as the clock was set back
/// meanwhile, since ids never go back.
const ID_SLACK_US: i64 = 60_000_000;

impl Filter {
    /// Whether it leaves anything out.
    pub fn is_empty(&self) -> bool {
        *self == Self::default()
    }

    /// Whether an operation fits.
    pub fn has(&self, operation: &Operation) -> bool {
        (self.states.is_empty() || self.states.contains(&operation.state))
            && self.kind.is_none_or(|kind| kind == operation.kind)
            && self.from_us.is_none_or(|from| from <= operation.create_time_us)
            && self.to_us.is_none_or(|to| operation.create_time_us < to)
            && self.metadata.as_ref().is_none_or(|metadata| metadata.has(operation))
    }

    /// The ids between which everything lies that fits, the first one included: ids begin with the time at which they were made.
    fn ids(&self) -> (Uuid, Uuid) {
        let from = self.from_us.map_or(Uuid::nil(), |from| first_id_at(from.saturating_sub(ID_SLACK_US)));
        (from, self.to_us.map_or(Uuid::max(), |to| first_id_at(to.saturating_add(ID_SLACK_US))))
    }

    /// The conditions of the partial indexes that have everything that fits, written as there, so that a planner sees that it is the same. What else the
    /// filter says is looked at in each row: a statement for each combination would stay prepared in every session.
    fn rare(&self) -> impl Iterator<Item = &'static str> {
        let undone = (!self.states.is_empty() && !self.states.contains(&State::Completed)).then_some("state <> 4");
        let unusual = self.kind.is_some_and(|kind| kind != Type::Transfer).then_some("kind <> 3");
        undone.into_iter().chain(unusual)
    }
}

/// The least UUIDv7 of a time (RFC 9562: it begins with 48 bits of Unix milliseconds).
fn first_id_at(us: i64) -> Uuid {
    let ms = us.div_euclid(1000).clamp(0, (1 << 48) - 1).unsigned_abs();
    Uuid::from_u128(u128::from(ms) << 80)
}

/// Rows to a statement: of what is far larger than the page may be, so many are read in vain at most. The first statement of a page, and each further.
const ROWS_AT_FIRST: u64 = 64;
const ROWS_AT_ONCE: u64 = 256;
/// Rows that one page looks at: who filters out nearly everything gets short pages, and goes on by their tokens.
const SCANNED_MAX: usize = 2_000;

/// A page, before it is cut.
pub struct Listed {
    pub operations: Vec<Operation>,
    /// Where the next page goes on although this one is not full: so far was looked.
    pub scanned_to: Option<Uuid>,
}

/// The operations of a page, newest first: up to its limit, or until the page is full by bytes. One look into one index a side, read from its end, so
/// that a page costs the same however long the history is and however many accounts its owner has. A filter looks at [`SCANNED_MAX`] rows at most.
pub async fn list(database: &Database, of: Of, filter: &Filter, page: Page) -> Result<Listed, Error> {
    let (from, to) = filter.ids();
    let (mut found, mut bytes, mut scanned, mut before) = (Vec::new(), 0, 0, page.before.map_or(to, |before| Ord::min(before, to)));
    while page.limit() > found.len() as u64 && bytes <= BYTES_MAX {
        if scanned >= SCANNED_MAX && !filter.is_empty() {
            return Ok(Listed { operations: found, scanned_to: Some(before) });
        }
        let limit = match (filter.is_empty(), scanned) {
            (true, _) => Ord::min(ROWS_AT_FIRST, page.limit() - found.len() as u64),
            (false, 0) => ROWS_AT_FIRST,
            (false, _) => ROWS_AT_ONCE,
        };
        let select = newest(of, filter, (from, before), limit);
        let rows = match database.read_by_index(&select).await {
            Some(rows) => rows?.iter().map(Row::from_postgres).collect::<Result<Vec<_>, _>>()?,
            None => select_all(database.reader(), &select).await?,
        };
        let is_last = (rows.len() as u64) < limit;
        scanned += rows.len();
        for row in rows {
            let operation = row.read()?;
            before = operation.id;
            if filter.has(&operation) {
                bytes += operation.answer_bytes();
                found.push(operation);
            }
        }
        if is_last {
            break;
        }
    }
    Ok(Listed { operations: found, scanned_to: None })
}

/// The newest rows of a range of ids, the first one included, that a filter's indexes have.
fn newest(of: Of, filter: &Filter, (from, before): (Uuid, Uuid), limit: u64) -> SelectStatement {
    let one_side = |is_its: Option<SimpleExpr>| {
        let mut side = Query::select();
        let id = || Expr::col(Alias::new("id"));
        side.columns(COLUMN_NAMES.map(Alias::new)).from(Alias::new("operations")).cond_where(id().lt(before)).and_where(id().gte(from));
        if let Some(is_its) = is_its {
            side.and_where(is_its);
        }
        for rare in filter.rare() {
            side.and_where(Expr::cust(rare));
        }
        side.order_by(Alias::new("id"), Order::Desc).limit(limit).take()
    };
    let (columns, id) = match of {
        Of::Everybody => return one_side(None),
        Of::Owner(id) => (["source_owner_id", "destination_owner_id"], id),
        Of::Account(id) => (["source_account_id", "destination_account_id"], id),
    };
    // No operation is in two of the three: an owner of both sides is the source's, an account is never both, and of several legs the row names no account,
    // and one owner, who is no party again.
    let [debits, credits] = columns.map(|column| {
        let side = one_side(Some(Expr::col(Alias::new(column)).eq(id)));
        Query::select().columns(COLUMN_NAMES.map(Alias::new)).from_subquery(side, Alias::new(column)).take()
    });
    let mut all = debits;
    all.union(UnionType::All, credits)
        .union(UnionType::All, of_several_legs(id, (from, before), limit))
        .order_by(Alias::new("id"), Order::Desc)
        .limit(limit)
        .take()
}

/// The newest operations of several legs that have a party, whatever else a filter asks for: each row is one look into each of two indexes.
fn of_several_legs(party_id: Uuid, (from, before): (Uuid, Uuid), limit: u64) -> SelectStatement {
    let party = |name: &str| Expr::col((Alias::new("p"), Alias::new(name)));
    let mut newest = Query::select();
    newest
        .columns(COLUMN_NAMES.map(|name| (Alias::new("o"), Alias::new(name))))
        .from_as(Alias::new("operation_parties"), Alias::new("p"))
        .join_as(JoinType::InnerJoin, Alias::new("operations"), Alias::new("o"), party("operation_id").equals((Alias::new("o"), Alias::new("id"))))
        .and_where(party("party_id").eq(party_id))
        .and_where(party("operation_id").lt(before))
        .and_where(party("operation_id").gte(from))
        .order_by((Alias::new("p"), Alias::new("operation_id")), Order::Desc)
        .limit(limit);
    Query::select().columns(COLUMN_NAMES.map(Alias::new)).from_subquery(newest, Alias::new("several_legs")).take()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_id_of_a_time_is_before_those_that_are_made_then() {
        let now_us = 1_700_000_000_123_456;
        let made = |us: i64| Uuid::new_v7(uuid::Timestamp::from_unix(uuid::NoContext, us.unsigned_abs() / 1_000_000, (us % 1_000_000) as u32 * 1000));
        assert!(first_id_at(now_us) <= made(now_us) && made(now_us) < first_id_at(now_us + 1000));
        assert_eq!((first_id_at(-1), first_id_at(i64::MAX).as_u128() >> 80), (Uuid::nil(), (1 << 48) - 1));
    }
}
