//! What an operator may set of transactions.

use std::path::PathBuf;

use clap::Args;
use lastro_mesh::config::{Problems, Setting};
use lastro_money::Minor;
use lastro_service::ReadSettings;

use crate::provider::Url;

/// What an operator may change.
#[derive(Debug, Clone)]
pub struct Settings {
    /// What one transaction moves at most, in minor units of its currency.
    pub amount_minor_max: Minor,
    /// Who charges cards.
    pub payment_provider: PaymentProvider,
}

/// Who charges cards.
#[derive(Debug, Clone)]
pub enum PaymentProvider {
    /// Nothing was said: the sandbox with the embedded database, which is for trying things out, and nobody elsewhere.
    ByDatabase,
    /// Nobody: cards are not taken.
    Nobody,
    /// The sandbox, which moves no money.
    Sandbox,
    /// A provider that speaks HTTP, what we call it, and the secret that it knows us by.
    Http { name: String, url: Url, secret: Option<String> },
}

impl Default for Settings {
    /// 10^15: ten million million of a currency with two digits. Far above what anybody pays, and far below what fills a balance of 64 bits.
    fn default() -> Self {
        Self { amount_minor_max: Minor::new(1_000_000_000_000_000), payment_provider: PaymentProvider::ByDatabase }
    }
}

/// What transactions is told of money.
#[derive(Args)]
pub struct TransactionsGroup {
    /// What one transaction moves at most, in minor units of its currency, 1 to 1000000000000000000.
    #[arg(long, env = "LASTRO_AMOUNT_MINOR_MAX", value_name = "N", default_value = "1000000000000000")]
    amount_minor_max: Setting,
    /// Who charges cards: `sandbox`, `none`, or the URL of a provider that keeps docs/PROVIDER.md. Not given: the sandbox in `lastro up` with the embedded
    /// database, none elsewhere.
    #[arg(long, env = "LASTRO_PAYMENT_PROVIDER", value_name = "PROVIDER")]
    payment_provider: Option<String>,
    /// What the payment provider is called in the ledger, 1 to 200 characters. Charges are refunded by whom they were made, so that a provider that moves to
    /// another URL keeps its name. Not given: its URL.
    #[arg(long, env = "LASTRO_PAYMENT_PROVIDER_NAME", value_name = "NAME")]
    payment_provider_name: Option<String>,
    /// A file with the secret that the payment provider knows us by, sent as a bearer token.
    #[arg(long, env = "LASTRO_PAYMENT_PROVIDER_SECRET_FILE", value_name = "FILE")]
    payment_provider_secret_file: Option<PathBuf>,
}

impl TransactionsGroup {
    fn payment_provider(&self, problems: &mut Problems) -> Option<PaymentProvider> {
        let secret = match &self.payment_provider_secret_file {
            None => None,
            Some(file) => match std::fs::read_to_string(file) {
                Ok(secret) => Some(secret.trim().to_owned()).filter(|secret| !secret.is_empty()),
                Err(error) => {
                    problems.add(format!("--payment-provider-secret-file {}: {error}", file.display()));
                    return None;
                }
            },
        };
        let name = self.payment_provider_name.as_deref();
        if name.is_some_and(|name| name.is_empty() || name.chars().count() > 200 || ["sandbox", "none"].contains(&name)) {
            problems.add("--payment-provider-name: must have 1 to 200 characters, and be neither sandbox nor none");
            return None;
        }
        match (self.payment_provider.as_deref(), secret) {
            (None | Some("none" | "sandbox"), _) if name.is_some() => {
                problems.add("--payment-provider-name: only with --payment-provider and a URL");
                None
            }
            (None | Some("none" | "sandbox"), Some(_)) => {
                problems.add("--payment-provider-secret-file: only with --payment-provider and a URL");
                None
            }
            (None, None) => Some(PaymentProvider::ByDatabase),
            (Some("none"), None) => Some(PaymentProvider::Nobody),
            (Some("sandbox"), None) => Some(PaymentProvider::Sandbox),
            (Some(url), secret) => match url.parse::<Url>() {
                Ok(url) => Some(PaymentProvider::Http { name: name.unwrap_or(url.as_str()).to_owned(), url, secret }),
                Err(error) => {
                    problems.add(format!("--payment-provider {url:?}: {error}, or sandbox, or none"));
                    None
                }
            },
        }
    }
}

impl ReadSettings for TransactionsGroup {
    type Settings = Settings;

    fn read(&self, problems: &mut Problems) -> Option<Settings> {
        let amount_minor_max = problems.take_within("--amount-minor-max", &self.amount_minor_max, 1..=1_000_000_000_000_000_000);
        let payment_provider = self.payment_provider(problems);
        Some(Settings { amount_minor_max: Minor::new(amount_minor_max?), payment_provider: payment_provider? })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_largest_amount_is_the_operators() {
        let read = |text: &str| {
            let mut problems = Problems::default();
            let amount_minor_max = text.parse().expect("any text");
            let group =
                TransactionsGroup { amount_minor_max, payment_provider: None, payment_provider_name: None, payment_provider_secret_file: None };
            let read = group.read(&mut problems).map(|settings| settings.amount_minor_max.get());
            (read, problems.check().is_ok())
        };
        assert_eq!(read("1"), (Some(1), true));
        assert_eq!(read("1000000000000000000"), (Some(1_000_000_000_000_000_000), true));
        assert_eq!(read("0"), (None, false));
        assert_eq!(read("1000000000000000001"), (None, false));
        assert_eq!(Settings::default().amount_minor_max.get(), 1_000_000_000_000_000);
    }

    #[test]
    fn a_payment_provider_is_the_operators() {
        let read_named = |text: Option<&str>, name: Option<&str>| {
            let mut problems = Problems::default();
            let amount_minor_max = "1".parse().expect("any text");
            let [payment_provider, payment_provider_name] = [text, name].map(|text| text.map(str::to_owned));
            let group = TransactionsGroup { amount_minor_max, payment_provider, payment_provider_name, payment_provider_secret_file: None };
            group.read(&mut problems).map(|settings| settings.payment_provider).filter(|_| problems.check().is_ok())
        };
        let read = |text: Option<&str>| read_named(text, None);
        assert!(matches!(read(None), Some(PaymentProvider::ByDatabase)));
        assert!(matches!(read(Some("none")), Some(PaymentProvider::Nobody)));
        assert!(matches!(read(Some("sandbox")), Some(PaymentProvider::Sandbox)));
        let url = Some("https://provider.example/v1");
        assert!(matches!(read(url), Some(PaymentProvider::Http { secret: None, name, .. }) if Some(&*name) == url), "by its URL");
        assert!(matches!(read_named(url, Some("acquirer")), Some(PaymentProvider::Http { name, .. }) if name == "acquirer"));
        assert!(read_named(url, Some("")).is_none() && read_named(url, Some("sandbox")).is_none() && read_named(None, Some("acquirer")).is_none());
        assert!(read(Some("")).is_none() && read(Some("Sandbox")).is_none());
    }
}
