//! The table `provider_events`: what providers have reported, and what became of it.

use std::collections::BTreeMap;

use lastro_database::{Error, all, execute, one};
use sea_orm::{ConnectionTrait, FromQueryResult};
use uuid::Uuid;

use super::operations::{metadata_from_text, metadata_to_text};
use crate::domain::report::{ReportOutcome, ReportType};

/// Something that a provider has reported.
#[derive(Debug, Clone)]
pub struct ProviderEvent {
    pub id: Uuid,
    pub provider_id: Uuid,
    /// The provider's own key.
    pub external_id: String,
    pub report: ReportType,
    pub payload: BTreeMap<String, String>,
    /// SHA-256 of type and payload: the same report again is a duplicate.
    pub digest: [u8; 32],
    pub correlation_id: String,
    pub create_time_us: i64,
    /// None as long as it waits for its transaction.
    pub outcome: Option<ReportOutcome>,
}

/// A report that is to be applied.
pub struct WaitingReport {
    pub id: Uuid,
    pub report: ReportType,
    pub payload: BTreeMap<String, String>,
    pub correlation_id: String,
}

/// Of one key, in the order in which they came.
pub(super) const WAITING: &str = "SELECT id, kind, payload, correlation_id FROM provider_events WHERE provider_id = $1 AND external_id = $2 \
                                  AND outcome = 0 ORDER BY id";

impl WaitingReport {
    pub(super) fn read(id: Uuid, kind: i64, payload: String, correlation_id: String) -> Result<Self, Error> {
        Ok(Self { id, report: report_of(kind)?, payload: metadata_from_text(&payload)?, correlation_id })
    }
}

const REPORTS: [ReportType; 3] = [ReportType::Submitted, ReportType::Settled, ReportType::Failed];
const OUTCOMES: [ReportOutcome; 3] = [ReportOutcome::Applied, ReportOutcome::PassedOver, ReportOutcome::Contradicts];

/// The number of a type of report in the table.
pub const fn report_number(report: ReportType) -> i64 {
    match report {
        ReportType::Submitted => 1,
        ReportType::Settled => 2,
        ReportType::Failed => 3,
    }
}

fn report_of(number: i64) -> Result<ReportType, Error> {
    REPORTS.into_iter().find(|report| report_number(*report) == number).ok_or_else(|| Error::corrupt("a report of a type that is none"))
}

/// The number of an outcome in the table, where 0 is none yet.
pub(super) const fn outcome_number(outcome: ReportOutcome) -> i64 {
    match outcome {
        ReportOutcome::Applied => 1,
        ReportOutcome::PassedOver => 2,
        ReportOutcome::Contradicts => 3,
    }
}

fn outcome_of(number: i64) -> Result<Option<ReportOutcome>, Error> {
    if number == 0 {
        return Ok(None);
    }
    let outcome = OUTCOMES.into_iter().find(|outcome| outcome_number(*outcome) == number);
    outcome.ok_or_else(|| Error::corrupt("an outcome of a report that is none")).map(Some)
}

/// Stores a report; false where the same one was stored before.
pub async fn insert(on: &impl ConnectionTrait, event: &ProviderEvent) -> Result<bool, Error> {
    let sql = "INSERT INTO provider_events (id, provider_id, external_id, kind, payload, digest, correlation_id, create_time_us, outcome) \
               VALUES ($1, $2, $3, $4, $5, $6, $7, $8, 0) ON CONFLICT (provider_id, external_id, digest) DO NOTHING";
    let values = [
        event.id.into(),
        event.provider_id.into(),
        event.external_id.clone().into(),
        report_number(event.report).into(),
        metadata_to_text(&event.payload).into(),
        event.digest.to_vec().into(),
        event.correlation_id.clone().into(),
        event.create_time_us.into(),
    ];
    Ok(execute(on, sql, values).await? == 1)
}

#[derive(FromQueryResult)]
struct Row {
    id: Uuid,
    kind: i64,
    payload: String,
    digest: Vec<u8>,
    correlation_id: String,
    create_time_us: i64,
    outcome: i64,
}

/// What a provider has reported under one of its keys, in the order in which it came.
pub async fn of_key(on: &impl ConnectionTrait, (provider_id, external_id): (Uuid, &str)) -> Result<Vec<ProviderEvent>, Error> {
    let sql = "SELECT id, kind, payload, digest, correlation_id, create_time_us, outcome FROM provider_events \
               WHERE provider_id = $1 AND external_id = $2 ORDER BY id";
    let rows: Vec<Row> = all(on, sql, [provider_id.into(), external_id.into()]).await?;
    let read = |row: Row| {
        Ok(ProviderEvent {
            id: row.id,
            provider_id,
            external_id: external_id.to_owned(),
            report: report_of(row.kind)?,
            payload: metadata_from_text(&row.payload)?,
            digest: row.digest.try_into().map_err(|_| Error::corrupt("a digest that has not 32 bytes"))?,
            correlation_id: row.correlation_id,
            create_time_us: row.create_time_us,
            outcome: outcome_of(row.outcome)?,
        })
    };
    rows.into_iter().map(read).collect()
}

/// Whether something was reported under a key that waits to be applied.
pub async fn any_waiting(on: &impl ConnectionTrait, (provider_id, external_id): (Uuid, &str)) -> Result<bool, Error> {
    #[derive(FromQueryResult)]
    struct Found {
        outcome: i64,
    }
    let sql = "SELECT outcome FROM provider_events WHERE provider_id = $1 AND external_id = $2 AND outcome = 0 LIMIT 1";
    Ok(one::<Found>(on, sql, [provider_id.into(), external_id.into()]).await?.is_some_and(|found| found.outcome == 0))
}

/// The waiting reports after one of them, at most so many, each with its transaction, where that is there.
pub async fn waiting_after(on: &impl ConnectionTrait, after: Uuid, limit: u32) -> Result<Vec<(Uuid, Option<Uuid>)>, Error> {
    #[derive(FromQueryResult)]
    struct Found {
        id: Uuid,
        operation_id: Option<Uuid>,
    }
    let sql = format!(
        "SELECT e.id AS id, o.id AS operation_id FROM (SELECT id, provider_id, external_id FROM provider_events WHERE outcome = 0 AND id > $1 \
         ORDER BY id LIMIT {limit}) e LEFT JOIN operations o ON o.owner_id = e.provider_id AND o.external_id = e.external_id ORDER BY e.id"
    );
    let found: Vec<Found> = all(on, &sql, [after.into()]).await?;
    Ok(found.into_iter().map(|one| (one.id, one.operation_id)).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_report_and_outcome_has_a_number_of_its_own() {
        assert!(REPORTS.iter().all(|report| report_of(report_number(*report)).is_ok_and(|read| read == *report)));
        assert!(OUTCOMES.iter().all(|outcome| outcome_of(outcome_number(*outcome)).is_ok_and(|read| read == Some(*outcome))));
        assert!(report_of(0).is_err() && outcome_of(0).is_ok_and(|none| none.is_none()) && outcome_of(4).is_err());
    }
}
