//! How far a reader of an event store has come, and the clusters that a store has lived in.
//!
//! A PostgreSQL cluster counts its own transactions. After dump and restore into another cluster the rows still name the transactions of the old one,
//! and new rows have other, perhaps lower, ids. So a cursor names the cluster that it belongs to, and a store remembers its clusters in the order in
//! which it lived in them: everything of an earlier cluster comes before everything of a later one. What belongs to which is told by the sequence of
//! the table, which a dump takes along.

use std::fmt;
use std::str::FromStr;
use std::time::Duration;

use lastro_database::{Database, Error, all, execute, one};
use sea_orm::FromQueryResult;
use tokio::time::{Instant, sleep};

/// How long a replica waits for another one that finds out which events were stored in which cluster.
const MOVE_WAIT_MAX: Duration = Duration::from_secs(5);
const MOVE_LOOK_EVERY: Duration = Duration::from_millis(50);

/// How far a reader has come. Cursors are ordered as the events are.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Default, Hash, FromQueryResult)]
pub struct Cursor {
    /// Which of the store's clusters, counted from 0.
    pub incarnation: i64,
    /// PostgreSQL's transaction id; 0 on SQLite.
    pub xid: i64,
    /// The table's sequence.
    pub seq: i64,
    /// The cluster's system identifier; 0 on SQLite, and where nothing was read yet.
    pub cluster: i64,
}

impl fmt::Display for Cursor {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "{}.{}.{}.{}", self.incarnation, self.cluster, self.xid, self.seq)
    }
}

impl FromStr for Cursor {
    type Err = NoCursor;

    fn from_str(text: &str) -> Result<Self, NoCursor> {
        let numbers: Vec<i64> = text.split('.').map(str::parse).collect::<Result<_, _>>().map_err(|_| NoCursor)?;
        let [incarnation, cluster, xid, seq] = numbers[..] else { return Err(NoCursor) };
        // Whoever made it up must not make the database compare with what its types do not have.
        if incarnation < 0 || xid < 0 || seq < 0 {
            return Err(NoCursor);
        }
        Ok(Self { incarnation, xid, seq, cluster })
    }
}

/// The text is no cursor.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("is no cursor of an event store")]
pub struct NoCursor;

/// A cluster that a store has lived in.
#[derive(Debug, Clone, Copy, PartialEq, Eq, FromQueryResult)]
pub(crate) struct Lived {
    pub incarnation: i64,
    pub cluster: i64,
    /// The sequence of the first event that was stored there.
    pub first_seq: i64,
    /// No event that was stored there names a transaction before this one.
    pub first_xid: i64,
}

#[derive(Clone, Copy, FromQueryResult)]
struct Row {
    incarnation: Option<i64>,
    cluster: Option<i64>,
    first_seq: Option<i64>,
    first_xid: Option<i64>,
    current: i64,
    next_xid: i64,
    oldest_running: i64,
}

/// The clusters that a store has lived in.
pub(crate) struct Clusters {
    /// The one in which it lives now is the last.
    pub lived: Vec<Lived>,
    /// No transaction there has a higher id than this one.
    next_xid: i64,
    /// No transaction there that has a lower id than this one is under way any more.
    pub oldest_running: i64,
}

impl Clusters {
    /// The place of a cursor: the index of its cluster, and transaction and sequence there. None for one that is of no cluster in which the store
    /// ever lived, or ahead of all that the last one has done, since that was set back to an earlier state.
    pub fn place(&self, cursor: Cursor) -> Option<(usize, (i64, i64))> {
        // Cursors of before clusters were noted name none, and are of the first.
        let is_unnamed = cursor.incarnation == 0 && cursor.cluster == 0;
        let index = self.lived.iter().position(|lived| lived.incarnation == cursor.incarnation && (lived.cluster == cursor.cluster || is_unnamed))?;
        let is_ahead = index + 1 == self.lived.len() && cursor.xid > self.next_xid;
        (!is_ahead).then_some((index, (cursor.xid, cursor.seq)))
    }
}

/// The clusters that a store has lived in. The one in which it lives now is noted here when it is new.
pub(crate) async fn clusters(database: &Database, table: &str) -> Result<Clusters, Error> {
    // An outer join: a row also where none is noted yet.
    let sql = "SELECT c.incarnation, c.cluster, c.first_seq, c.first_xid, s.system_identifier AS current, \
               pg_snapshot_xmax(pg_current_snapshot())::text::bigint AS next_xid, pg_snapshot_xmin(pg_current_snapshot())::text::bigint AS oldest_running \
               FROM pg_control_system() s LEFT JOIN event_clusters c ON c.event_table = $1 ORDER BY c.incarnation";
    let (since, mut turns) = (Instant::now(), 0);
    loop {
        let rows: Vec<Row> = all(database.reader(), sql, [table.into()]).await?;
        let Some(Row { current, next_xid, oldest_running, .. }) = rows.first().copied() else {
            return Err(Error::corrupt("the cluster has no identifier"));
        };
        let lived =
            |row: Row| Some(Lived { incarnation: row.incarnation?, cluster: row.cluster?, first_seq: row.first_seq?, first_xid: row.first_xid? });
        let known: Vec<Lived> = rows.into_iter().filter_map(lived).collect();
        if known.last().is_some_and(|last| last.cluster == current) {
            return Ok(Clusters { lived: known, next_xid, oldest_running });
        }
        if note_move(database, table, known.last().copied(), current).await? {
            turns += 1;
            if turns > 2 {
                return Err(Error::corrupt("the cluster of an event store changes all the time"));
            }
        } else if since.elapsed() < MOVE_WAIT_MAX {
            // Without a connection meanwhile: in a large store it takes long, and others want theirs.
            sleep(MOVE_LOOK_EVERY).await;
        } else {
            return Err(Error::busy("another replica is finding out which events were stored in which cluster"));
        }
    }
}

#[derive(FromQueryResult)]
struct Found {
    /// The last event that another cluster stored.
    foreign_seq: Option<i64>,
    /// The first transaction of this one that stored one, or that may.
    first_xid: i64,
}

#[derive(FromQueryResult)]
struct Turn {
    is_ours: bool,
}

/// Notes that a store lives in a cluster in which it did not live before; false while somebody else does.
async fn note_move(database: &Database, table: &str, last: Option<Lived>, current: i64) -> Result<bool, Error> {
    let tx = database.begin().await?;
    let turn = "SELECT pg_try_advisory_xact_lock(hashtext('clusters of ' || $1)) AS is_ours";
    if !one::<Turn>(&tx, turn, [table.into()]).await?.is_some_and(|turn| turn.is_ours) {
        return Ok(false);
    }
    // It looks at the whole table, once for each move.
    execute(&tx, "SET LOCAL statement_timeout = 0", []).await?;
    // A row that was stored here names the transaction that stored it. One that was restored names another cluster's, and PostgreSQL itself the one
    // that restored it.
    let sql = format!(
        "SELECT max(seq) FILTER (WHERE is_foreign) AS foreign_seq, \
         least(min(xid) FILTER (WHERE NOT is_foreign), pg_snapshot_xmin(pg_current_snapshot())::text::bigint) AS first_xid \
         FROM (SELECT seq, xid::text::bigint AS xid, xmin::text::bigint <> xid::text::bigint & 4294967295 AS is_foreign FROM {table}) e"
    );
    let found = one::<Found>(&tx, &sql, []).await?.ok_or_else(|| Error::corrupt("no answer"))?;
    let (foreign, first_xid) = (found.foreign_seq, found.first_xid);
    let note = async |incarnation: i64, cluster: i64, first_seq: i64, first_xid: i64| {
        let sql =
            "INSERT INTO event_clusters (event_table, incarnation, cluster, first_seq, first_xid) VALUES ($1, $2, $3, $4, $5) ON CONFLICT DO NOTHING";
        execute(&tx, sql, [table.into(), incarnation.into(), cluster.into(), first_seq.into(), first_xid.into()]).await
    };
    match (last, foreign) {
        (None, None) => note(0, current, 0, 0).await?,
        (None, Some(foreign)) => {
            // It moved before anybody took note of clusters. 0 is a cluster whose name nobody knows.
            note(0, 0, 0, 0).await?;
            note(1, current, foreign + 1, first_xid).await?
        }
        (Some(last), foreign) => {
            tracing::warn!(table, "the event store lives in another cluster now; its readers read on there");
            let first_seq = foreign.map_or(last.first_seq, |foreign| foreign + 1).max(last.first_seq);
            note(last.incarnation + 1, current, first_seq, first_xid).await?
        }
    };
    tx.commit().await?;
    Ok(true)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_cursor_reads_back_and_nothing_else_does() {
        let cursor = Cursor { incarnation: 1, xid: 7, seq: 9, cluster: -8 };
        assert_eq!(cursor.to_string().parse(), Ok(cursor));
        for text in ["", "1.2.3", "1.2.3.4.5", "a.0.0.0", "-1.0.0.0", "0.0.-1.0", "0.0.0.-1", "0.0.99999999999999999999.0"] {
            assert_eq!(text.parse::<Cursor>(), Err(NoCursor), "{text}");
        }
    }

    #[test]
    fn a_cursor_that_the_store_cannot_have_given_has_no_place() {
        let lived = |incarnation, cluster| Lived { incarnation, cluster, first_seq: 0, first_xid: 0 };
        let clusters = Clusters { lived: vec![lived(0, 5), lived(1, 4)], next_xid: 700, oldest_running: 700 };
        let cursor = |incarnation, cluster, xid| Cursor { incarnation, xid, seq: 1, cluster };
        assert_eq!(clusters.place(Cursor::default()), Some((0, (0, 0))));
        assert_eq!(clusters.place(cursor(0, 0, 900)), Some((0, (900, 1))), "of before clusters were noted");
        assert_eq!(clusters.place(cursor(0, 5, 900)), Some((0, (900, 1))));
        assert_eq!(clusters.place(cursor(1, 4, 700)), Some((1, (700, 1))));
        for unknown in [cursor(1, 4, 701), cursor(1, 5, 1), cursor(0, 4, 1), cursor(2, 4, 1)] {
            assert_eq!(clusters.place(unknown), None, "{unknown}");
        }
    }

    #[test]
    fn a_later_cluster_comes_after_an_earlier_one_whatever_its_transactions_are() {
        let before = Cursor { incarnation: 0, xid: 1_000_000, seq: 90, cluster: 5 };
        let after = Cursor { incarnation: 1, xid: 700, seq: 91, cluster: 4 };
        assert!(before < after);
    }
}
