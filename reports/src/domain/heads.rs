//! How far the postings of an account have come. Each posting has a version of its account, from 1 without a gap. Those of different transactions may be
//! applied in any order; what counts is what has come without a gap.

/// How far an account has come.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Head {
    /// Of the last posting before which none is missing.
    pub version: i64,
    /// How many postings are stored that are ahead of a gap.
    pub ahead: i64,
    /// The balance after the last posting before which none is missing.
    pub balance: i64,
    /// When that was recorded, Unix microseconds.
    pub record_us: i64,
}

/// A posting, as far as the head of its account is concerned.
pub trait Follows {
    /// The version of its account.
    fn version(&self) -> i64;
    /// In minor units.
    fn amount(&self) -> i64;
    /// The balance after it, as the ledger has told.
    fn balance(&self) -> i64;
    /// When it was recorded, Unix microseconds.
    fn record_us(&self) -> i64;
}

/// What the ledger cannot have told.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Contradiction {
    /// There is a posting with this version already.
    #[error("version {0} of an account was posted twice")]
    Repeated(i64),
    /// The balance after it is not the one before it plus its amount.
    #[error("the balance after version {0} of an account does not follow from the one before")]
    Balance(i64),
}

impl Head {
    /// Adds new postings: the head afterwards, and those that count now. Those behind a gap are not among them: the caller stores them, and `ahead` says how many
    /// there are. Refuses a version that is known or given twice, and a balance that is not the one before plus the amount.
    pub fn advance<T: Follows>(self, mut new: Vec<T>) -> Result<(Self, Vec<T>), Contradiction> {
        new.sort_by_key(Follows::version);
        let repeated = new.windows(2).find(|pair| pair[0].version() == pair[1].version()).map(|pair| pair[0].version());
        let known = new.first().map(Follows::version).filter(|version| *version <= self.version);
        if let Some(version) = repeated.or(known) {
            return Err(Contradiction::Repeated(version));
        }
        let total = new.len();
        let (head, counts) = self.follow(new)?;
        Ok((Self { ahead: self.ahead + (total - counts.len()) as i64, ..head }, counts))
    }

    /// Adds those postings that were stored ahead of a gap which is closed now, sorted by version.
    pub fn catch_up<T: Follows>(self, stored: Vec<T>) -> Result<(Self, Vec<T>), Contradiction> {
        let (head, counts) = self.follow(stored)?;
        Ok((Self { ahead: self.ahead - counts.len() as i64, ..head }, counts))
    }

    fn follow<T: Follows>(self, sorted: Vec<T>) -> Result<(Self, Vec<T>), Contradiction> {
        let (mut head, mut counts) = (self, Vec::new());
        for posting in sorted {
            if posting.version() != head.version + 1 {
                break;
            }
            if head.balance.checked_add(posting.amount()) != Some(posting.balance()) {
                return Err(Contradiction::Balance(posting.version()));
            }
            head = Self { version: posting.version(), balance: posting.balance(), record_us: posting.record_us(), ..head };
            counts.push(posting);
        }
        Ok((head, counts))
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[derive(Debug, Clone, Copy, PartialEq, Eq)]
    struct Posting(i64);

    /// Of 10 each.
    impl Follows for Posting {
        fn version(&self) -> i64 {
            self.0
        }
        fn amount(&self) -> i64 {
            10
        }
        fn balance(&self) -> i64 {
            10 * self.0
        }
        fn record_us(&self) -> i64 {
            1_000 + self.0
        }
    }

    #[test]
    fn what_cannot_be_is_refused() {
        let head = Head { version: 2, ahead: 0, balance: 20, record_us: 1_002 };
        assert_eq!(head.advance(vec![Posting(2)]), Err(Contradiction::Repeated(2)));
        assert_eq!(head.advance(vec![Posting(4), Posting(4)]), Err(Contradiction::Repeated(4)));
        assert_eq!(Head { balance: 21, ..head }.advance(vec![Posting(3)]), Err(Contradiction::Balance(3)));
        assert_eq!(Head { balance: 21, ahead: 1, ..head }.catch_up(vec![Posting(3)]), Err(Contradiction::Balance(3)));
    }

    proptest! {
        #[test]
        fn in_whichever_order_postings_come_all_count_once(order in Just((1..=30_i64).collect::<Vec<_>>()).prop_shuffle(), size in 1..8_usize) {
            let (mut head, mut stored, mut counted) = (Head::default(), Vec::new(), Vec::new());
            for batch in order.chunks(size) {
                let new: Vec<Posting> = batch.iter().copied().map(Posting).collect();
                stored.extend(new.iter().copied());
                let (after, counts) = head.advance(new).expect("nothing is wrong");
                counted.extend(counts.iter().map(|posting| posting.0));
                // What is stored is read three at a time.
                let mut window = counts.len();
                head = after;
                while head.ahead > 0 && window > 0 {
                    let mut next: Vec<Posting> = stored.iter().copied().filter(|posting| posting.0 > head.version).collect();
                    next.sort_unstable_by_key(|posting| posting.0);
                    next.truncate(3);
                    let (after, counts) = head.catch_up(next).expect("nothing is wrong");
                    counted.extend(counts.iter().map(|posting| posting.0));
                    (head, window) = (after, counts.len());
                }
                prop_assert_eq!(head.ahead, stored.iter().filter(|posting| posting.0 > head.version).count() as i64);
                prop_assert_eq!(&counted, &(1..=head.version).collect::<Vec<_>>());
            }
            prop_assert_eq!(head, Head { version: 30, ahead: 0, balance: 300, record_us: 1_030 });
        }
    }
}
