//! How the columns `legs`, `balances_after` and `refunded` of the table `operations` are written.

use lastro_database::Error;
use lastro_money::{Amount, Currency, Minor};
use prost::Message;
use smallvec::SmallVec;
use uuid::Uuid;

use crate::domain::operation::{OperationLeg, Party};

#[derive(Clone, PartialEq, Message)]
struct StoredLegs {
    #[prost(message, repeated, tag = "1")]
    legs: Vec<StoredLeg>,
}

/// Ids are 16 bytes; empty: the clearing account, which has no owner.
#[derive(Clone, PartialEq, Message)]
struct StoredLeg {
    #[prost(bytes = "vec", tag = "1")]
    source: Vec<u8>,
    #[prost(bytes = "vec", tag = "2")]
    source_owner: Vec<u8>,
    #[prost(bytes = "vec", tag = "3")]
    destination: Vec<u8>,
    #[prost(bytes = "vec", tag = "4")]
    destination_owner: Vec<u8>,
    #[prost(string, tag = "5")]
    currency_code: String,
    #[prost(int64, tag = "6")]
    amount: i64,
    #[prost(string, tag = "7")]
    description: String,
}

/// As they are stored.
pub fn to_bytes(legs: &[OperationLeg]) -> Vec<u8> {
    let id = |party: Option<Party>, of: fn(Party) -> Uuid| party.map(|party| of(party).as_bytes().to_vec()).unwrap_or_default();
    let stored = |leg: &OperationLeg| StoredLeg {
        source: id(leg.source, |party| party.account_id),
        source_owner: id(leg.source, |party| party.owner_id),
        destination: id(leg.destination, |party| party.account_id),
        destination_owner: id(leg.destination, |party| party.owner_id),
        currency_code: leg.amount.currency().code().to_owned(),
        amount: leg.amount.minor().get(),
        description: leg.description.clone(),
    };
    StoredLegs { legs: legs.iter().map(stored).collect() }.encode_to_vec()
}

/// As they were stored.
pub fn from_bytes(bytes: &[u8]) -> Result<Vec<OperationLeg>, Error> {
    let stored = StoredLegs::decode(bytes).map_err(Error::corrupt)?;
    let read = |leg: StoredLeg| {
        let currency = Currency::from_code(&leg.currency_code).ok_or_else(|| Error::corrupt("a leg in a currency that is none"))?;
        Ok(OperationLeg {
            source: party(&leg.source, &leg.source_owner)?,
            destination: party(&leg.destination, &leg.destination_owner)?,
            amount: Amount::new(Minor::new(leg.amount), currency),
            description: leg.description,
        })
    };
    stored.legs.into_iter().map(read).collect()
}

fn party(account_id: &[u8], owner_id: &[u8]) -> Result<Option<Party>, Error> {
    if account_id.is_empty() {
        return Ok(None);
    }
    let id = |bytes: &[u8]| Uuid::from_slice(bytes).map_err(Error::corrupt);
    Ok(Some(Party { account_id: id(account_id)?, owner_id: id(owner_id)? }))
}

/// Amounts, as they are stored: 8 bytes each, the most significant first.
pub fn minors_to_bytes(minors: &[Minor]) -> Vec<u8> {
    minors.iter().flat_map(|minor| minor.get().to_be_bytes()).collect()
}

/// As they were stored.
pub fn minors_from_bytes<const N: usize>(bytes: &[u8]) -> Result<SmallVec<[Minor; N]>, Error> {
    let (minors, rest) = bytes.as_chunks::<8>();
    if !rest.is_empty() {
        return Err(Error::corrupt("amounts that do not have 8 bytes each"));
    }
    Ok(minors.iter().map(|minor| Minor::new(i64::from_be_bytes(*minor))).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn legs_and_balances_read_back_as_they_were() {
        let brl = Currency::from_code("BRL").expect("a currency");
        let party = |number: u128| Some(Party { account_id: Uuid::from_u128(number), owner_id: Uuid::from_u128(number + 100) });
        let leg = |source, destination, minor: i64| OperationLeg {
            source,
            destination,
            amount: Amount::new(Minor::new(minor), brl),
            description: "é".to_owned(),
        };
        let legs = vec![leg(party(1), party(2), 5), leg(None, party(2), i64::MAX), leg(party(1), None, 1)];
        assert_eq!(from_bytes(&to_bytes(&legs)).expect("they read"), legs);
        let minors = [Minor::MIN, Minor::ZERO, Minor::MAX, Minor::new(-1)];
        assert_eq!(minors_from_bytes::<2>(&minors_to_bytes(&minors)).expect("they read").as_slice(), minors);
        assert!(minors_from_bytes::<2>(&[0; 9]).is_err());
    }
}
