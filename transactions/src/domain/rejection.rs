//! Why an operation is refused at settlement. An answer, not an error.

/// As of the registry of reasons.
const SAGA_CANCELLED: &str = "SAGA_CANCELLED";

/// A reason of the registry.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Rejection {
    /// One of the accounts is closed.
    AccountClosed,
    /// The source account is frozen.
    AccountFrozen,
    /// The source account has less available.
    InsufficientFunds,
    /// A balance would leave 64 bits.
    BalanceOverflow,
}

impl Rejection {
    /// Every reason, in the order in which they are checked.
    pub const ALL: [Self; 4] = [Self::AccountClosed, Self::AccountFrozen, Self::InsufficientFunds, Self::BalanceOverflow];

    /// As it is stored and answered.
    pub const fn name(self) -> &'static str {
        match self {
            Self::AccountClosed => "ACCOUNT_CLOSED",
            Self::AccountFrozen => "ACCOUNT_FROZEN",
            Self::InsufficientFunds => "INSUFFICIENT_FUNDS",
            Self::BalanceOverflow => "BALANCE_OVERFLOW",
        }
    }

    /// The reason with this name.
    pub fn from_name(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|rejection| rejection.name() == name)
    }
}

/// Why an operation was refused: by the ledger, or by the provider that was to settle it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Reason {
    /// By the ledger.
    Ledger(Rejection),
    /// By a provider, in its own words.
    Provider(Box<str>),
    /// The saga that asked for it has cancelled it.
    Cancelled,
}

impl Reason {
    /// As it is stored and answered.
    pub fn name(&self) -> &str {
        match self {
            Self::Ledger(rejection) => rejection.name(),
            Self::Provider(reason) => reason,
            Self::Cancelled => SAGA_CANCELLED,
        }
    }

    /// The reason that is stored so. What no rule of the ledger is called, a provider has said.
    pub fn from_name(name: &str) -> Self {
        if name == SAGA_CANCELLED {
            return Self::Cancelled;
        }
        Rejection::from_name(name).map_or_else(|| Self::Provider(name.into()), Self::Ledger)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_reason_reads_back_and_is_in_the_registry() {
        let registry = lastro_proto::reasons::rejections::ALL_REJECTIONS;
        assert_eq!(registry.len(), Rejection::ALL.len());
        for rejection in Rejection::ALL {
            assert_eq!(Rejection::from_name(rejection.name()), Some(rejection));
            assert!(registry.contains(&rejection.name()), "{rejection:?}");
        }
        assert_eq!(Rejection::from_name(""), None);
    }
}
