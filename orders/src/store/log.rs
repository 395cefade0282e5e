//! How what was placed, and what has happened to the steps of a saga, are stored: as protobuf in a column, since nobody but orders reads them, and always whole.

use lastro_database::Error;
use lastro_money::Minor;
use prost::Message;
use uuid::Uuid;

use crate::domain::order::Item;
use crate::domain::saga::{Record, Saga, StepState, Trouble};

#[derive(Clone, PartialEq, Message)]
struct StoredItems {
    #[prost(message, repeated, tag = "1")]
    items: Vec<StoredItem>,
}

#[derive(Clone, PartialEq, Message)]
struct StoredItem {
    #[prost(bytes = "vec", tag = "1")]
    product_id: Vec<u8>,
    #[prost(string, tag = "2")]
    product_name: String,
    #[prost(int64, tag = "3")]
    quantity: i64,
    #[prost(int64, tag = "4")]
    price: i64,
    #[prost(bytes = "vec", tag = "5")]
    merchant_account_id: Vec<u8>,
}

#[derive(Clone, PartialEq, Message)]
struct StoredLog {
    #[prost(message, repeated, tag = "1")]
    steps: Vec<StoredRecord>,
    #[prost(message, repeated, tag = "2")]
    undos: Vec<StoredRecord>,
}

#[derive(Clone, PartialEq, Message)]
struct StoredRecord {
    /// 0 of an undo that is not needed.
    #[prost(uint32, tag = "1")]
    state: u32,
    #[prost(uint32, tag = "2")]
    attempts: u32,
    #[prost(uint32, tag = "3")]
    trouble: u32,
    #[prost(uint32, tag = "4")]
    in_a_row: u32,
    #[prost(string, tag = "5")]
    last_error: String,
    #[prost(int64, optional, tag = "6")]
    start_us: Option<i64>,
    #[prost(int64, optional, tag = "7")]
    end_us: Option<i64>,
    #[prost(int64, optional, tag = "8")]
    next_attempt_us: Option<i64>,
}

const STEP_STATES: [StepState; 4] = [StepState::Waiting, StepState::Running, StepState::Done, StepState::Failed];
const TROUBLES: [Trouble; 4] = [Trouble::None, Trouble::Pending, Trouble::Refused, Trouble::Unanswered];

/// The place of a value among all, counted from 1.
fn number<T: PartialEq>(all: &[T], one: &T) -> u32 {
    all.iter().position(|other| other == one).map_or(0, |place| place as u32 + 1)
}

fn of_number<T: Copy>(all: &[T], number: u32) -> Option<T> {
    all.get((number as usize).checked_sub(1)?).copied()
}

pub fn items_to_bytes(items: &[Item]) -> Vec<u8> {
    let item = |item: &Item| StoredItem {
        product_id: item.product_id.as_bytes().to_vec(),
        product_name: item.product_name.clone(),
        quantity: item.quantity,
        price: item.price.get(),
        merchant_account_id: item.merchant_account_id.as_bytes().to_vec(),
    };
    StoredItems { items: items.iter().map(item).collect() }.encode_to_vec()
}

pub fn items_of_bytes(bytes: &[u8]) -> Result<Vec<Item>, Error> {
    let id = |bytes: &[u8]| Uuid::from_slice(bytes).map_err(Error::corrupt);
    let item = |item: StoredItem| {
        Ok(Item {
            product_id: id(&item.product_id)?,
            product_name: item.product_name,
            quantity: item.quantity,
            price: Minor::new(item.price),
            merchant_account_id: id(&item.merchant_account_id)?,
        })
    };
    StoredItems::decode(bytes).map_err(Error::corrupt)?.items.into_iter().map(item).collect()
}

pub fn log_to_bytes(saga: &Saga) -> Vec<u8> {
    let record = |record: &Record| StoredRecord {
        state: number(&STEP_STATES, &record.state),
        attempts: record.attempts,
        trouble: number(&TROUBLES, &record.trouble),
        in_a_row: record.in_a_row,
        last_error: record.last_error.clone(),
        start_us: record.start_us,
        end_us: record.end_us,
        next_attempt_us: record.next_attempt_us,
    };
    let undo = |undo: &Option<Record>| undo.as_ref().map(record).unwrap_or_default();
    StoredLog { steps: saga.steps.iter().map(record).collect(), undos: saga.undos.iter().map(undo).collect() }.encode_to_vec()
}

/// The steps, and the undos.
pub fn log_of_bytes(bytes: &[u8]) -> Result<([Record; 3], [Option<Record>; 3]), Error> {
    let corrupt = || Error::corrupt("the log of a saga that does not read");
    let record = |stored: StoredRecord| {
        Some(Record {
            state: of_number(&STEP_STATES, stored.state)?,
            attempts: stored.attempts,
            trouble: of_number(&TROUBLES, stored.trouble)?,
            in_a_row: stored.in_a_row,
            last_error: stored.last_error,
            start_us: stored.start_us,
            end_us: stored.end_us,
            next_attempt_us: stored.next_attempt_us,
        })
    };
    let undo = |stored: StoredRecord| if stored.state == 0 { Some(None) } else { record(stored).map(Some) };
    let stored = StoredLog::decode(bytes).map_err(Error::corrupt)?;
    let steps: Vec<Record> = stored.steps.into_iter().map(record).collect::<Option<_>>().ok_or_else(corrupt)?;
    let undos: Vec<Option<Record>> = stored.undos.into_iter().map(undo).collect::<Option<_>>().ok_or_else(corrupt)?;
    Ok((steps.try_into().map_err(|_| corrupt())?, undos.try_into().map_err(|_| corrupt())?))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::domain::saga::{Direction, Now, Outcome, Step};

    #[test]
    fn what_is_stored_reads_back() {
        let mut saga = Saga::start(5);
        let now = Now { us: 10, jitter_permille: 0, is_taken_over: false };
        saga.note(Step::Reserve, Direction::Do, Outcome::Done, now);
        saga.note(Step::Pay, Direction::Do, Outcome::Unanswered { error: "é".to_owned() }, now);
        saga.cancel(20);
        saga.note(Step::Pay, Direction::Undo, Outcome::Pending, now);
        assert_eq!(log_of_bytes(&log_to_bytes(&saga)).expect("reads"), (saga.steps.clone(), saga.undos.clone()));
        let items = vec![Item {
            product_id: Uuid::from_u128(7),
            product_name: "Café".to_owned(),
            quantity: 3,
            price: Minor::new(1050),
            merchant_account_id: Uuid::from_u128(9),
        }];
        assert_eq!(items_of_bytes(&items_to_bytes(&items)).expect("reads"), items);
        assert!(log_of_bytes(&[1, 2, 3]).is_err() && log_of_bytes(&[]).is_err());
    }
}
