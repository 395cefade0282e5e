//! A transaction on the wire, as its reader may see it.

use std::collections::BTreeMap;

use lastro_mesh::identity::User as Caller;
use lastro_money::Minor;
use lastro_proto::permissions::Permission;
use lastro_proto::time::timestamp;
use lastro_proto::transactions::v1::{Transaction, TransactionLeg, TransactionPosting};
use uuid::Uuid;

use super::money;
use crate::contract::{settlement_to_wire, state_to_wire, type_to_wire};
use crate::domain::operation::{Operation, OperationLeg, Party};

/// The key and the metadata are the submitter's; whoever did not submit it sees the legs of its own accounts alone; postings are those of the reader's own
/// accounts. An administrator sees the legs and postings of all.
pub fn transaction(operation: Operation, caller: &Caller) -> Transaction {
    let (is_own, sees_all) = (operation.owner_id == caller.id, caller.may(Permission::ReadAll));
    let postings = postings(&operation, |owner_id| sees_all || owner_id == caller.id);
    let single = operation.movement.single();
    let legs = operation.movement.legs().iter().filter(|leg| single.is_none() && (is_own || sees_all || leg.concerns(caller.id)));
    // Which of the legs it was is told to whoever sees them all.
    let rejected_leg = operation.rejected_leg.filter(|_| is_own || sees_all);
    let captured = single.zip(operation.hold.and_then(|hold| hold.captured));
    Transaction {
        id: operation.id.to_string(),
        external_id: if is_own { operation.external_id } else { String::new() },
        r#type: type_to_wire(operation.kind) as i32,
        state: state_to_wire(operation.state) as i32,
        reason: operation.reason.as_ref().map(|reason| reason.name().to_owned()).unwrap_or_default(),
        rejected_leg: rejected_leg.and_then(|leg| i32::try_from(leg).ok()),
        amount: single.and_then(|leg| money(leg.amount.minor(), leg.amount.currency())),
        source_account_id: account_id(single.and_then(|leg| leg.source)),
        destination_account_id: account_id(single.and_then(|leg| leg.destination)),
        legs: legs.map(leg).collect(),
        postings,
        hold: operation.hold.is_some(),
        hold_expire_time: operation.hold.map(|hold| timestamp(hold.expire_time_us)),
        captured_amount: captured.and_then(|(leg, captured)| money(captured, leg.amount.currency())),
        original_id: id(operation.original_id),
        reversal_id: id(operation.reversal_id),
        description: operation.description,
        metadata: if is_own { operation.metadata } else { BTreeMap::new() },
        effective_time: Some(timestamp(operation.effective_time_us)),
        settlement: settlement_to_wire(operation.settlement) as i32,
        create_time: Some(timestamp(operation.create_time_us)),
        update_time: Some(timestamp(operation.update_time_us)),
        replayed: false,
    }
}

fn leg(leg: &OperationLeg) -> TransactionLeg {
    TransactionLeg {
        source_account_id: account_id(leg.source),
        destination_account_id: account_id(leg.destination),
        amount: money(leg.amount.minor(), leg.amount.currency()),
        description: leg.description.clone(),
    }
}

/// The postings of those accounts of users whose owners the reader may see, in the order of the ledger.
fn postings(operation: &Operation, is_seen: impl Fn(Uuid) -> bool) -> Vec<TransactionPosting> {
    let Some(balances_after) = &operation.balances_after else { return Vec::new() };
    let legs = operation.movement.legs().iter().zip(operation.moved());
    let sides = legs.flat_map(|(leg, moved)| [(leg.source, moved.checked_neg(), leg), (leg.destination, Some(moved), leg)]);
    let posting = |((party, amount, leg), balance): ((Option<Party>, Option<Minor>, &OperationLeg), &Minor)| {
        let (party, currency) = (party.filter(|party| is_seen(party.owner_id))?, leg.amount.currency());
        Some(TransactionPosting {
            account_id: party.account_id.to_string(),
            amount: money(amount?, currency),
            balance_after: money(*balance, currency),
        })
    };
    sides.zip(balances_after).filter_map(posting).collect()
}

fn account_id(party: Option<Party>) -> String {
    id(party.map(|party| party.account_id))
}

fn id(id: Option<Uuid>) -> String {
    id.map(|id| id.to_string()).unwrap_or_default()
}
