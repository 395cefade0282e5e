//! A row of the table `operations`: how an operation is written in it, and read from it.

use std::collections::BTreeMap;
use std::sync::LazyLock;

use lastro_database::Error;
use lastro_money::{Amount, Currency, Minor};
use sea_orm::FromQueryResult;
use uuid::Uuid;

use crate::domain::account::SYSTEM_OWNER;
use crate::domain::operation::{Head, Hold, Movement, Operation, OperationLeg, Party, Settlement, State, Type, is_terminal};
use crate::domain::rejection::Reason;
use crate::store::legs;

/// The numbers of kinds in the table.
pub(in crate::store) const fn type_number(kind: Type) -> i64 {
    match kind {
        Type::Deposit => 1,
        Type::Withdrawal => 2,
        Type::Transfer => 3,
        Type::Payment => 4,
        Type::Refund => 5,
        Type::Reversal => 6,
    }
}

const TYPES: [Type; 6] = [Type::Deposit, Type::Withdrawal, Type::Transfer, Type::Payment, Type::Refund, Type::Reversal];

/// The numbers of states in the table. 1 and 2 are what workers have to settle: an index has them alone.
pub(in crate::store) const fn state_number(state: State) -> i64 {
    match state {
        State::Pending => 1,
        State::Retrying => 2,
        State::Authorized => 3,
        State::Completed => 4,
        State::Rejected => 5,
        State::Voided => 6,
        State::Expired => 7,
        State::Waiting => 8,
    }
}

const STATES: [State; 8] =
    [State::Pending, State::Retrying, State::Authorized, State::Completed, State::Rejected, State::Voided, State::Expired, State::Waiting];

/// A reason in the table, where none is an empty text.
pub(in crate::store) fn reason_text(operation: &Operation) -> &str {
    operation.reason.as_ref().map_or("", Reason::name)
}

/// A row of it; both databases read it.
#[derive(FromQueryResult, sqlx::FromRow)]
pub(in crate::store) struct Row {
    id: Uuid,
    owner_id: Uuid,
    external_id: String,
    request_hash: Vec<u8>,
    kind: i64,
    state: i64,
    reason: String,
    currency_code: String,
    amount: i64,
    source_account_id: Option<Uuid>,
    destination_account_id: Option<Uuid>,
    source_owner_id: Option<Uuid>,
    destination_owner_id: Option<Uuid>,
    description: String,
    metadata: String,
    effective_time_us: i64,
    create_time_us: i64,
    update_time_us: i64,
    version: i64,
    hash: Vec<u8>,
    attempts: i64,
    legs: Option<Vec<u8>>,
    hold_expire_us: Option<i64>,
    captured_amount: Option<i64>,
    rejected_leg: Option<i64>,
    original_id: Option<Uuid>,
    reversal_id: Option<Uuid>,
    balances_after: Option<Vec<u8>>,
    external: bool,
    refunded: Option<Vec<u8>>,
}

/// In this order everywhere: what is read by place, written by place, and copied.
pub(in crate::store) const COLUMN_NAMES: [&str; 30] = [
    "id",
    "owner_id",
    "external_id",
    "request_hash",
    "kind",
    "state",
    "reason",
    "currency_code",
    "amount",
    "source_account_id",
    "destination_account_id",
    "source_owner_id",
    "destination_owner_id",
    "description",
    "metadata",
    "effective_time_us",
    "create_time_us",
    "update_time_us",
    "version",
    "hash",
    "attempts",
    "legs",
    "hold_expire_us",
    "captured_amount",
    "rejected_leg",
    "original_id",
    "reversal_id",
    "balances_after",
    "external",
    "refunded",
];

pub(in crate::store) static COLUMNS: LazyLock<String> = LazyLock::new(|| COLUMN_NAMES.join(", "));

impl Row {
    pub(in crate::store) fn id(&self) -> Uuid {
        self.id
    }

    /// Of a row with [`COLUMNS`].
    pub(in crate::store) fn from_postgres(row: &lastro_database::pipelined::Row) -> Result<Self, Error> {
        Ok(Self {
            id: row.get(0)?,
            owner_id: row.get(1)?,
            external_id: row.get(2)?,
            request_hash: row.get(3)?,
            kind: row.get(4)?,
            state: row.get(5)?,
            reason: row.get(6)?,
            currency_code: row.get(7)?,
            amount: row.get(8)?,
            source_account_id: row.get(9)?,
            destination_account_id: row.get(10)?,
            source_owner_id: row.get(11)?,
            destination_owner_id: row.get(12)?,
            description: row.get(13)?,
            metadata: row.get(14)?,
            effective_time_us: row.get(15)?,
            create_time_us: row.get(16)?,
            update_time_us: row.get(17)?,
            version: row.get(18)?,
            hash: row.get(19)?,
            attempts: row.get(20)?,
            legs: row.get(21)?,
            hold_expire_us: row.get(22)?,
            captured_amount: row.get(23)?,
            rejected_leg: row.get(24)?,
            original_id: row.get(25)?,
            reversal_id: row.get(26)?,
            balances_after: row.get(27)?,
            external: row.get(28)?,
            refunded: row.get(29)?,
        })
    }

    pub(in crate::store) fn read(self) -> Result<Operation, Error> {
        let hash = |bytes: Vec<u8>| bytes.try_into().map_err(|_| Error::corrupt("a hash that has not 32 bytes"));
        let kind = TYPES.into_iter().find(|kind| type_number(*kind) == self.kind).ok_or_else(|| Error::corrupt("a kind that is none"))?;
        let state = STATES.into_iter().find(|state| state_number(*state) == self.state).ok_or_else(|| Error::corrupt("a state that is none"))?;
        let reason = match self.reason.as_str() {
            "" => None,
            name => Some(Reason::from_name(name)),
        };
        let rejected_leg = self.rejected_leg.map(usize::try_from).transpose().map_err(Error::corrupt)?;
        let movement = match &self.legs {
            Some(legs) => Movement::Legs(legs::from_bytes(legs)?),
            None => Movement::Single(self.single()?),
        };
        Ok(Operation {
            id: self.id,
            owner_id: self.owner_id,
            request_hash: hash(self.request_hash)?,
            kind,
            state,
            reason,
            rejected_leg,
            movement,
            hold: self.hold_expire_us.map(|expire_time_us| Hold { expire_time_us, captured: self.captured_amount.map(Minor::new) }),
            original_id: self.original_id,
            reversal_id: self.reversal_id,
            balances_after: self.balances_after.as_deref().map(legs::minors_from_bytes).transpose()?,
            settlement: if self.external { Settlement::External } else { Settlement::Internal },
            refunded: self.refunded.as_deref().map(legs::minors_from_bytes).transpose()?,
            external_id: self.external_id,
            description: self.description,
            metadata: metadata_from_text(&self.metadata)?,
            effective_time_us: self.effective_time_us,
            // Where nothing was given, it is the time of acceptance until it is posted, and nobody asks any more then.
            has_effective_time: self.effective_time_us != self.create_time_us,
            create_time_us: self.create_time_us,
            update_time_us: self.update_time_us,
            head: Some(Head { version: self.version, hash: hash(self.hash)? }),
            attempts: self.attempts,
        })
    }

    fn single(&self) -> Result<OperationLeg, Error> {
        let currency = Currency::from_code(&self.currency_code).ok_or_else(|| Error::corrupt("a currency that is none"))?;
        // Of an account whose owner an older version did not note, nobody is the owner.
        let party = |account_id, owner_id: Option<Uuid>| Party { account_id, owner_id: owner_id.unwrap_or(SYSTEM_OWNER) };
        Ok(OperationLeg {
            source: self.source_account_id.map(|id| party(id, self.source_owner_id)),
            destination: self.destination_account_id.map(|id| party(id, self.destination_owner_id.or(self.source_owner_id))),
            amount: Amount::new(Minor::new(self.amount), currency),
            description: String::new(),
        })
    }
}

/// The columns in which a list looks for an operation's accounts and owners.
pub(in crate::store) struct Sides {
    pub source: Option<Uuid>,
    pub destination: Option<Uuid>,
    pub source_owner: Option<Uuid>,
    /// None where it is the source's owner, so that who owns both finds the operation once.
    pub destination_owner: Option<Uuid>,
}

/// Those of an operation. One of several legs has its accounts, and their other owners, in `operation_parties`.
pub(in crate::store) fn sides(operation: &Operation) -> Sides {
    let parties = |leg: &OperationLeg| (leg.source, leg.destination);
    match &operation.movement {
        Movement::Single(leg) => {
            let (source, destination) = parties(leg);
            let source_owner = source.map(|party| party.owner_id);
            Sides {
                source: source.map(|party| party.account_id),
                destination: destination.map(|party| party.account_id),
                source_owner,
                destination_owner: destination.map(|party| party.owner_id).filter(|owner| source_owner != Some(*owner)),
            }
        }
        Movement::Legs(_) => {
            let first = operation.movement.parties().next();
            Sides { source: None, destination: None, source_owner: first.map(|party| party.owner_id), destination_owner: None }
        }
    }
}

/// The amount that stands in the row: of several legs that of the first, which nobody reads.
pub(in crate::store) fn row_amount(operation: &Operation) -> Option<Amount> {
    operation.movement.legs().first().map(|leg| leg.amount)
}

/// Several legs, as they are stored.
pub(in crate::store) fn legs_bytes(operation: &Operation) -> Option<Vec<u8>> {
    match &operation.movement {
        Movement::Single(_) => None,
        Movement::Legs(legs) => Some(legs::to_bytes(legs)),
    }
}

/// What was captured of a hold of a single leg.
pub(in crate::store) fn captured(operation: &Operation) -> Option<i64> {
    operation.hold?.captured.map(Minor::get)
}

/// At most 100 legs.
pub(in crate::store) fn rejected_leg(operation: &Operation) -> Option<i64> {
    operation.rejected_leg.and_then(|leg| i64::try_from(leg).ok())
}

/// The posted balances after it, as they are stored.
pub(in crate::store) fn balances_after(operation: &Operation) -> Option<Vec<u8>> {
    operation.balances_after.as_deref().map(legs::minors_to_bytes)
}

/// What was refunded of a payment, as it is stored.
pub(in crate::store) fn refunded(operation: &Operation) -> Option<Vec<u8>> {
    operation.refunded.as_deref().map(legs::minors_to_bytes)
}

/// Whether a provider settles it.
pub(in crate::store) fn is_external(operation: &Operation) -> bool {
    operation.settlement == Settlement::External
}

/// A row of `operation_parties`.
pub(in crate::store) struct PartyRow {
    pub party_id: Uuid,
    pub operation_id: Uuid,
    /// It was not at its end when it was stored.
    pub stored_open: bool,
}

/// Those of an operation that is to be stored: of several legs every account, and every owner but the one whom its row names.
pub(in crate::store) fn party_rows(operation: &Operation) -> Vec<PartyRow> {
    if operation.movement.single().is_some() {
        return Vec::new();
    }
    let named = sides(operation).source_owner;
    let mut parties: Vec<Uuid> = operation.movement.parties().flat_map(|party| [party.account_id, party.owner_id]).collect();
    parties.sort_unstable();
    parties.dedup();
    parties.retain(|party| Some(*party) != named);
    let stored_open = !is_terminal(operation.state);
    parties.into_iter().map(|party_id| PartyRow { party_id, operation_id: operation.id, stored_open }).collect()
}

/// Metadata as it is stored: a JSON object, or nothing.
pub fn metadata_to_text(metadata: &BTreeMap<String, String>) -> String {
    if metadata.is_empty() {
        return String::new();
    }
    let object: serde_json::Map<String, serde_json::Value> = metadata.iter().map(|(key, value)| (key.clone(), value.clone().into())).collect();
    serde_json::Value::Object(object).to_string()
}

/// Metadata as it was stored.
pub fn metadata_from_text(text: &str) -> Result<BTreeMap<String, String>, Error> {
    if text.is_empty() { Ok(BTreeMap::new()) } else { serde_json::from_str(text).map_err(Error::corrupt) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::domain::operation::is_to_be_settled;

    #[test]
    fn every_kind_and_state_has_a_number_of_its_own_and_workers_claim_what_is_to_be_settled() {
        assert_eq!(TYPES.map(type_number), [1, 2, 3, 4, 5, 6]);
        let mut numbers = STATES.map(state_number);
        assert!(STATES.iter().all(|state| is_to_be_settled(*state) == [1, 2].contains(&state_number(*state))));
        numbers.sort_unstable();
        assert_eq!(numbers, [1, 2, 3, 4, 5, 6, 7, 8]);
    }
}
