//! What an operator may set of transactions.

use clap::Args;
use lastro_mesh::config::{Problems, Setting};
use lastro_money::Minor;
use lastro_service::ReadSettings;

/// What an operator may change.
#[derive(Debug, Clone)]
pub struct Settings {
    /// What one transaction moves at most, in minor units of its currency.
    pub amount_minor_max: Minor,
}

impl Default for Settings {
    /// 10^15: ten million million of a currency with two digits. Far above what anybody pays, and far below what fills a balance of 64 bits.
    fn default() -> Self {
        Self { amount_minor_max: Minor::new(1_000_000_000_000_000) }
    }
}

/// What transactions is told of money.
#[derive(Args)]
pub struct TransactionsGroup {
    /// What one transaction moves at most, in minor units of its currency, 1 to 1000000000000000000.
    #[arg(long, env = "LASTRO_AMOUNT_MINOR_MAX", value_name = "N", default_value = "1000000000000000")]
    amount_minor_max: Setting,
}

impl ReadSettings for TransactionsGroup {
    type Settings = Settings;

    fn read(&self, problems: &mut Problems) -> Option<Settings> {
        let amount_minor_max = problems.take_within("--amount-minor-max", &self.amount_minor_max, 1..=1_000_000_000_000_000_000);
        Some(Settings { amount_minor_max: Minor::new(amount_minor_max?) })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_largest_amount_is_the_operators() {
        let read = |text: &str| {
            let mut problems = Problems::default();
            let group = TransactionsGroup { amount_minor_max: text.parse().expect("any text") };
            let read = group.read(&mut problems).map(|settings| settings.amount_minor_max.get());
            (read, problems.check().is_ok())
        };
        assert_eq!(read("1"), (Some(1), true));
        assert_eq!(read("1000000000000000000"), (Some(1_000_000_000_000_000_000), true));
        assert_eq!(read("0"), (None, false));
        assert_eq!(read("1000000000000000001"), (None, false));
        assert_eq!(Settings::default().amount_minor_max.get(), 1_000_000_000_000_000);
    }
}
