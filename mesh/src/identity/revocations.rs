//! Tokens that are dead before they expire: those of one session, or all that a user had up to some version. Each service keeps the set in its
//! database and looks it up here, in memory. The set decides who gets in, so that nothing but its own expiry ever takes something out of it.

use std::collections::HashMap;
use std::sync::{Arc, PoisonError, RwLock};

use uuid::Uuid;

use super::User;

/// Tokens that are dead, until the Unix second after which none of them can live anyway.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Revocation {
    /// The tokens of one session.
    Session {
        /// Claim `sid`.
        session_id: Uuid,
        /// Unix seconds.
        forget_after_s: i64,
    },
    /// The tokens of a user whose version is lower.
    User {
        /// Claim `sub`.
        user_id: Uuid,
        /// Claim `ver` of the first tokens that live.
        token_version: i64,
        /// Unix seconds.
        forget_after_s: i64,
    },
}

#[derive(Debug, Default)]
struct Sets {
    sessions: HashMap<Uuid, i64>,
    /// The version, and when it may be forgotten.
    users: HashMap<Uuid, (i64, i64)>,
}

/// The revocations that still matter. Cheap to clone; all clones are one set.
#[derive(Debug, Clone, Default)]
pub struct Revocations(Arc<RwLock<Sets>>);

impl Revocations {
    /// Whether the token that proved this user is dead.
    pub fn covers(&self, user: &User) -> bool {
        let sets = self.0.read().unwrap_or_else(PoisonError::into_inner);
        sets.sessions.contains_key(&user.session_id) || sets.users.get(&user.id).is_some_and(|(version, _)| user.token_version < *version)
    }

    /// Whether this is known already.
    pub fn contains(&self, revocation: &Revocation) -> bool {
        let sets = self.0.read().unwrap_or_else(PoisonError::into_inner);
        match revocation {
            Revocation::Session { session_id, .. } => sets.sessions.contains_key(session_id),
            Revocation::User { user_id, token_version, .. } => sets.users.get(user_id).is_some_and(|(version, _)| version >= token_version),
        }
    }

    /// Remembers them. What is known of a user is never replaced by something older.
    pub fn insert(&self, revocations: impl IntoIterator<Item = Revocation>) {
        let mut sets = self.0.write().unwrap_or_else(PoisonError::into_inner);
        for revocation in revocations {
            match revocation {
                Revocation::Session { session_id, forget_after_s } => {
                    let known = sets.sessions.entry(session_id).or_insert(forget_after_s);
                    *known = forget_after_s.max(*known);
                }
                Revocation::User { user_id, token_version, forget_after_s } => {
                    let known = sets.users.entry(user_id).or_insert((token_version, forget_after_s));
                    *known = (token_version.max(known.0), forget_after_s.max(known.1));
                }
            }
        }
    }

    /// Forgets those that no longer matter.
    pub fn forget_before(&self, now_s: i64) {
        let mut sets = self.0.write().unwrap_or_else(PoisonError::into_inner);
        sets.sessions.retain(|_, forget_after_s| *forget_after_s >= now_s);
        sets.users.retain(|_, (_, forget_after_s)| *forget_after_s >= now_s);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_session_dies_alone_and_one_mark_ends_all_that_a_user_had() {
        let revocations = Revocations::default();
        let user = |id: u128, session: u128, token_version| User {
            id: Uuid::from_u128(id),
            session_id: Uuid::from_u128(session),
            expires_s: 0,
            permissions: Vec::new(),
            token_version,
        };
        revocations.insert([Revocation::Session { session_id: Uuid::from_u128(11), forget_after_s: 5 }]);
        assert!(revocations.covers(&user(1, 11, 0)) && !revocations.covers(&user(1, 12, 0)));
        let mark = |token_version| Revocation::User { user_id: Uuid::from_u128(1), token_version, forget_after_s: 7 };
        revocations.insert([mark(2), mark(1)]);
        assert!(revocations.covers(&user(1, 12, 1)) && !revocations.covers(&user(1, 13, 2)) && !revocations.covers(&user(2, 14, 0)));
        assert!(revocations.contains(&mark(1)) && revocations.contains(&mark(2)) && !revocations.contains(&mark(3)));
        revocations.forget_before(6);
        assert!(!revocations.covers(&user(3, 11, 0)) && revocations.covers(&user(1, 12, 1)));
        revocations.forget_before(8);
        assert!(!revocations.covers(&user(1, 12, 1)));
    }
}
