//! The ledger as simple as it can be: a list of accounts, a list of transactions, and the rules of docs/LEDGER.md over both.

/// In minor units.
pub type Minor = i64;

/// Who asks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Caller {
    User(usize),
    Administrator,
}

#[derive(Debug, Clone)]
pub struct Account {
    pub owner: usize,
    pub currency: &'static str,
    pub posted: Minor,
    pub held: Minor,
    pub limit: Minor,
    pub frozen: bool,
    pub closed: bool,
    pub name: String,
}

/// None is the outside world.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Leg {
    pub from: Option<usize>,
    pub to: Option<usize>,
    pub amount: Minor,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum State {
    Authorized,
    Completed,
    Rejected {
        leg: usize,
        reason: &'static str,
    },
    /// By the payment provider.
    Declined {
        reason: &'static str,
    },
    Voided,
    Expired,
}

/// What a transaction is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    Plain,
    Payment,
    Refund,
}

#[derive(Debug, Clone)]
pub struct Transaction {
    pub kind: Kind,
    /// Of a payment: what was given back of each leg.
    pub refunded: Vec<Minor>,
    pub submitter: Caller,
    pub legs: Vec<Leg>,
    /// Whether it was sent as legs.
    pub has_legs: bool,
    pub hold: bool,
    pub state: State,
    /// What was captured of a hold of a single leg.
    pub captured: Option<Minor>,
    pub original: Option<usize>,
    pub reversal: Option<usize>,
    /// Balances after, two a leg; None is the outside world's.
    pub after: Vec<Option<Minor>>,
    /// Who resolved the hold, how, by which key and for which amount.
    pub resolution: Option<(Caller, &'static str, String, Option<Minor>)>,
}

#[derive(Debug, Clone, Default)]
pub struct Ledger {
    pub accounts: Vec<Account>,
    pub transactions: Vec<Transaction>,
}

/// Why a call is refused: the reason of the registry.
pub type Refused = &'static str;

impl Ledger {
    /// What becomes of legs; nothing changes.
    fn judge(&self, legs: &[Leg], hold: bool) -> Result<Vec<Account>, (usize, &'static str)> {
        let mut accounts = self.accounts.clone();
        for (index, leg) in legs.iter().enumerate() {
            if [leg.from, leg.to].into_iter().flatten().any(|account| accounts[account].closed) {
                return Err((index, "ACCOUNT_CLOSED"));
            }
            if let Some(from) = leg.from {
                let from = &mut accounts[from];
                if from.frozen {
                    return Err((index, "ACCOUNT_FROZEN"));
                }
                if from.posted - from.held + from.limit < leg.amount {
                    return Err((index, "INSUFFICIENT_FUNDS"));
                }
                *(if hold { &mut from.held } else { &mut from.posted }) += if hold { leg.amount } else { -leg.amount };
            }
            if let Some(to) = leg.to.filter(|_| !hold) {
                accounts[to].posted += leg.amount;
            }
        }
        Ok(accounts)
    }

    /// The transaction that legs would become.
    pub fn rehearse(&self, submitter: Caller, legs: &[Leg], has_legs: bool, hold: bool) -> Transaction {
        let (state, after) = match self.judge(legs, hold) {
            Err((leg, reason)) => (State::Rejected { leg, reason }, Vec::new()),
            Ok(_) if hold => (State::Authorized, Vec::new()),
            Ok(_) => (State::Completed, self.balances_after(legs, |leg| leg.amount)),
        };
        let (legs, refunded) = (legs.to_vec(), vec![0; legs.len()]);
        let (kind, captured, original, reversal, resolution) = (Kind::Plain, None, None, None, None);
        Transaction { kind, refunded, submitter, legs, has_legs, hold, state, captured, original, reversal, after, resolution }
    }

    /// The posted balances after each leg.
    fn balances_after(&self, legs: &[Leg], moved: impl Fn(&Leg) -> Minor) -> Vec<Option<Minor>> {
        let mut posted: Vec<Minor> = self.accounts.iter().map(|account| account.posted).collect();
        let mut after = Vec::new();
        for leg in legs {
            for (account, amount) in [(leg.from, -moved(leg)), (leg.to, moved(leg))] {
                after.push(account.map(|account| {
                    posted[account] += amount;
                    posted[account]
                }));
            }
        }
        after
    }

    /// Adds a transaction; its place.
    pub fn submit(&mut self, submitter: Caller, legs: &[Leg], has_legs: bool, hold: bool) -> usize {
        let transaction = self.rehearse(submitter, legs, has_legs, hold);
        if let Ok(accounts) = self.judge(legs, hold) {
            self.accounts = accounts;
        }
        self.transactions.push(transaction);
        self.transactions.len() - 1
    }

    /// All of them, or the first that would be refused. Each is legs, whether they are sent as legs, and whether it is a hold.
    pub fn submit_together(&mut self, submitter: Caller, all: &[(Vec<Leg>, bool, bool)]) -> Result<Vec<usize>, (usize, &'static str)> {
        let mut after = self.clone();
        let mut places = Vec::new();
        for (index, (legs, has_legs, hold)) in all.iter().enumerate() {
            let place = after.submit(submitter, legs, *has_legs, *hold);
            if let State::Rejected { reason, .. } = after.transactions[place].state {
                return Err((index, reason));
            }
            places.push(place);
        }
        *self = after;
        Ok(places)
    }

    /// Captures or voids. The same key, verb and amount again: as it was.
    pub fn resolve(&mut self, caller: Caller, place: usize, verb: &'static str, key: &str, amount: Option<Minor>) -> Result<(), Refused> {
        let hold = &self.transactions[place];
        if hold.kind == Kind::Refund {
            return Err("HOLD_NOT_YOURS");
        }
        let may = match verb {
            "capture" => hold.submitter == caller,
            _ => {
                let owns_all = hold.legs.iter().all(|leg| leg.to.is_some_and(|to| Caller::User(self.accounts[to].owner) == caller));
                hold.submitter == caller || owns_all || caller == Caller::Administrator
            }
        };
        if !may {
            return Err("HOLD_NOT_YOURS");
        }
        match (hold.hold, hold.state) {
            (false, _) | (_, State::Rejected { .. } | State::Declined { .. }) => return Err("HOLD_NOT_AUTHORIZED"),
            (_, State::Expired) => return Err("HOLD_EXPIRED"),
            (_, State::Completed | State::Voided) => {
                return match &hold.resolution {
                    Some((by, how, with, what)) if *by == caller && with == key => {
                        if (*how, *what) == (verb, amount) {
                            Ok(())
                        } else {
                            Err("IDEMPOTENCY_KEY_REUSED")
                        }
                    }
                    _ => Err("HOLD_RESOLVED"),
                };
            }
            (_, State::Authorized) => {}
        }
        let legs = hold.legs.clone();
        let moved = |leg: &Leg| amount.unwrap_or(leg.amount);
        if verb == "capture" {
            self.transactions[place].after = self.balances_after(&legs, moved);
            self.transactions[place].captured = (!self.transactions[place].has_legs).then(|| moved(&legs[0]));
            for leg in &legs {
                leg.from.into_iter().for_each(|from| self.accounts[from].posted -= moved(leg));
                leg.to.into_iter().for_each(|to| self.accounts[to].posted += moved(leg));
            }
        }
        self.release(place);
        self.transactions[place].state = if verb == "capture" { State::Completed } else { State::Voided };
        self.transactions[place].resolution = Some((caller, verb, key.to_owned(), amount));
        Ok(())
    }

    fn release(&mut self, place: usize) {
        for leg in self.transactions[place].legs.clone() {
            leg.from.into_iter().for_each(|from| self.accounts[from].held -= leg.amount);
        }
    }

    /// The time of a hold is over.
    pub fn expire(&mut self, place: usize) {
        if self.transactions[place].state == State::Authorized {
            self.release(place);
            self.transactions[place].state = State::Expired;
        }
    }

    /// Moves everything back, the last leg first.
    pub fn reverse(&mut self, caller: Caller, place: usize) -> Result<usize, Refused> {
        let original = &self.transactions[place];
        let moved = |leg: &Leg| original.captured.unwrap_or(leg.amount);
        let back: Vec<Leg> = original.legs.iter().rev().map(|leg| Leg { from: leg.to, to: leg.from, amount: moved(leg) }).collect();
        let owns_all = back.iter().all(|leg| leg.from.is_some_and(|from| Caller::User(self.accounts[from].owner) == caller));
        if !owns_all && caller != Caller::Administrator {
            return Err("REVERSAL_NOT_YOURS");
        }
        if original.state != State::Completed || original.kind != Kind::Plain || original.original.is_some() {
            return Err("NOT_REVERSIBLE");
        }
        if original.reversal.is_some() {
            return Err("ALREADY_REVERSED");
        }
        let has_legs = original.has_legs;
        let reversal = self.submit(caller, &back, has_legs, false);
        self.transactions[reversal].original = Some(place);
        if self.transactions[reversal].state == State::Completed {
            self.transactions[place].reversal = Some(reversal);
        }
        Ok(reversal)
    }

    /// A payment. What a card pays comes from outside, if the provider says so.
    pub fn pay(&mut self, payer: Caller, legs: &[Leg], declined: bool) -> usize {
        // For a closed account no card is charged at all.
        let is_asked = legs.iter().all(|leg| leg.to.is_some_and(|to| !self.accounts[to].closed));
        let place = if declined && is_asked {
            let refused = Transaction {
                state: State::Declined { reason: "CARD_DECLINED" },
                after: Vec::new(),
                ..self.rehearse(payer, legs, legs.len() > 1, false)
            };
            self.transactions.push(refused);
            self.transactions.len() - 1
        } else {
            self.submit(payer, legs, legs.len() > 1, false)
        };
        self.transactions[place].kind = Kind::Payment;
        place
    }

    /// Gives a payment back, or so much of it: each leg its share of what is left, the remainders to the largest of them, and of equals to the first.
    pub fn refund(&mut self, caller: Caller, place: usize, amount: Option<Minor>) -> Result<usize, Refused> {
        let payment = &self.transactions[place];
        let owns_all = payment.legs.iter().all(|leg| leg.to.is_some_and(|to| Caller::User(self.accounts[to].owner) == caller));
        if payment.submitter == caller || !owns_all && caller != Caller::Administrator {
            return Err("REFUND_NOT_YOURS");
        }
        if payment.state != State::Completed {
            return Err("PAYMENT_NOT_CAPTURED");
        }
        let left: Vec<Minor> = payment.legs.iter().zip(&payment.refunded).map(|(leg, refunded)| leg.amount - refunded).collect();
        let all: Minor = left.iter().sum();
        let asked = amount.unwrap_or(all);
        if asked > all || asked <= 0 {
            return Err("REFUND_TOO_MUCH");
        }
        let mut parts: Vec<Minor> = left.iter().map(|left| asked * left / all).collect();
        let mut by_remainder: Vec<usize> = (0..left.len()).collect();
        by_remainder.sort_by_key(|index| (std::cmp::Reverse(asked * left[*index] % all), *index));
        let rest = usize::try_from(asked - parts.iter().sum::<Minor>()).unwrap_or_default();
        by_remainder.into_iter().take(rest).for_each(|index| parts[index] += 1);
        let back: Vec<Leg> = payment
            .legs
            .iter()
            .zip(&parts)
            .filter(|(_, part)| **part > 0)
            .map(|(leg, part)| Leg { from: leg.to, to: leg.from, amount: *part })
            .collect();
        let (by_card, has_legs) = (payment.legs.iter().all(|leg| leg.from.is_none()), payment.has_legs);
        // That of a card is held first: then nobody uses what another leg brings.
        self.judge(&back, by_card).map_err(|(_, reason)| reason)?;
        let refund = self.submit(caller, &back, has_legs, false);
        let given = &mut self.transactions[refund];
        (given.kind, given.original, given.hold) = (Kind::Refund, Some(place), by_card);
        given.captured = (by_card && !has_legs).then_some(asked);
        self.transactions[place].refunded.iter_mut().zip(&parts).for_each(|(refunded, part)| *refunded += part);
        Ok(refund)
    }

    /// Closes an account for its owner.
    pub fn close(&mut self, account: usize) -> Result<(), Refused> {
        let names = |transaction: &Transaction| transaction.legs.iter().any(|leg| leg.from == Some(account) || leg.to == Some(account));
        let in_use = self.transactions.iter().any(|transaction| transaction.state == State::Authorized && names(transaction));
        let one = &mut self.accounts[account];
        match () {
            () if one.closed => Ok(()),
            () if one.posted != 0 || one.held != 0 => Err("ACCOUNT_NOT_EMPTY"),
            () if in_use => Err("ACCOUNT_IN_USE"),
            () => {
                one.closed = true;
                Ok(())
            }
        }
    }
}
