//! Roles and what they allow.

use std::collections::BTreeSet;

use lastro_proto::customers::v1::user::Role;
use lastro_proto::permissions::Permission;

/// A set of roles, stored as bits: 1 << the role's number.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Roles(BTreeSet<i32>);

impl Roles {
    /// Exactly these. ROLE_UNSPECIFIED and numbers that name no role are left out.
    pub fn new(roles: impl IntoIterator<Item = i32>) -> Self {
        Self(roles.into_iter().filter(|role| *role != 0 && Role::try_from(*role).is_ok()).collect())
    }

    /// Just this one.
    pub fn only(role: Role) -> Self {
        Self::new([role as i32])
    }

    /// As stored.
    pub fn from_bits(bits: i64) -> Self {
        Self::new((1..32).filter(|role| bits >> role & 1 == 1))
    }

    /// For storing.
    pub fn bits(&self) -> i64 {
        self.0.iter().fold(0, |bits, role| bits | 1 << role)
    }

    /// Their numbers, ascending.
    pub fn numbers(&self) -> Vec<i32> {
        self.0.iter().copied().collect()
    }

    /// Their names, as tokens carry them.
    pub fn names(&self) -> Vec<String> {
        self.0.iter().filter_map(|role| Role::try_from(*role).ok()).map(|role| role.as_str_name().to_owned()).collect()
    }

    /// Whether it has a role.
    pub fn contains(&self, role: Role) -> bool {
        self.0.contains(&(role as i32))
    }

    /// What these roles allow, ascending, as tokens carry it.
    pub fn permissions(&self) -> Vec<String> {
        let all: BTreeSet<&str> = self.0.iter().filter_map(|role| Role::try_from(*role).ok()).flat_map(permissions).map(|one| one.name()).collect();
        all.into_iter().map(str::to_owned).collect()
    }
}

/// The one table of what a role allows. `read:all` lifts the rule that one sees only one's own; nothing lifts the rule that one debits
/// only one's own, but for a reversal, which `write:reversals` allows.
fn permissions(role: Role) -> &'static [Permission] {
    use Permission::{
        AdministerAccounts, AdministerOrders, AdministerSagas, ReadAccounts, ReadAll, ReadOrders, ReadProducts, ReadProfile, ReadTransactions,
        ReadUsers, WriteAccounts, WriteDeposits, WriteInventory, WriteOperations, WriteOrders, WriteProducts, WriteProfile, WriteReversals,
        WriteTransactions, WriteUsers,
    };
    match role {
        Role::Unspecified => &[],
        Role::User => {
            &[ReadProfile, WriteProfile, ReadAccounts, WriteAccounts, ReadTransactions, WriteTransactions, ReadProducts, ReadOrders, WriteOrders]
        }
        Role::Admin => &[
            ReadProfile,
            WriteProfile,
            ReadAccounts,
            WriteAccounts,
            ReadTransactions,
            WriteTransactions,
            ReadAll,
            ReadUsers,
            WriteUsers,
            WriteDeposits,
            AdministerAccounts,
            WriteReversals,
            ReadProducts,
            WriteProducts,
            WriteInventory,
            ReadOrders,
            WriteOrders,
            AdministerOrders,
            AdministerSagas,
        ],
        Role::Provider => &[ReadProfile, WriteProfile, ReadTransactions, WriteTransactions, WriteDeposits, WriteOperations, ReadProducts],
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bits_read_back() {
        for roles in [Roles::default(), Roles::only(Role::User), Roles::new([1, 2, 3])] {
            assert_eq!(Roles::from_bits(roles.bits()), roles);
        }
        assert_eq!(Roles::new([0, 99, 2]).numbers(), [2]);
    }

    #[test]
    fn only_administrators_and_providers_deposit() {
        let deposits = |role| Roles::only(role).permissions().contains(&"write:deposits".to_owned());
        assert_eq!([Role::User, Role::Admin, Role::Provider].map(deposits), [false, true, true]);
    }

    #[test]
    fn only_administrators_see_what_is_not_theirs() {
        let sees = |role| Roles::only(role).permissions().contains(&"read:all".to_owned());
        assert_eq!([Role::User, Role::Admin, Role::Provider].map(sees), [false, true, false]);
    }
}
