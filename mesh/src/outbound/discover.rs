//! Finds a service's endpoints: addresses, or names that DNS resolves to several, looked up again and again since replicas come and go.

use std::collections::BTreeSet;
use std::net::SocketAddr;
use std::time::Duration;

use tokio::sync::watch;

use super::balance::Balance;

const LOOK_EVERY: Duration = Duration::from_secs(5);
/// Until something was found at all.
const LOOK_EVERY_AT_FIRST: Duration = Duration::from_millis(200);

/// Keeps the balancer's endpoints true for as long as somebody holds the other end of `found`.
pub(super) async fn follow(balance: &Balance, target: &'static str, places: &[String], found: &watch::Sender<bool>) {
    let mut known = BTreeSet::new();
    while !found.is_closed() {
        let now = resolve(target, places).await;
        // Where nothing answers, what was known is the better guess.
        if !now.is_empty() && now != known {
            tracing::info!(target_service = target, endpoints = ?now, "endpoints");
            balance.set(&now.iter().copied().collect::<Vec<_>>());
            known = now;
            found.send_replace(true);
        }
        tokio::time::sleep(if known.is_empty() { LOOK_EVERY_AT_FIRST } else { LOOK_EVERY }).await;
    }
}

async fn resolve(target: &'static str, places: &[String]) -> BTreeSet<SocketAddr> {
    let mut all = BTreeSet::new();
    for place in places {
        match tokio::net::lookup_host(place).await {
            Ok(addresses) => all.extend(addresses),
            Err(error) => tracing::warn!(target_service = target, place, %error, "a name cannot be resolved"),
        }
    }
    all
}

/// Whether a place can be one: `host:port`.
pub fn check_place(place: &str) -> Result<(), String> {
    let (host, port) = place.rsplit_once(':').ok_or_else(|| format!("{place:?} is not host:port"))?;
    if host.is_empty() || port.parse::<u16>().map_or(true, |port| port == 0) {
        return Err(format!("{place:?} is not host:port"));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn names_and_addresses_are_found() {
        let places = ["127.0.0.1:1".to_owned(), "localhost:2".to_owned(), "no-such-name.invalid:3".to_owned()];
        let found = resolve("test", &places).await;
        assert!(found.contains(&SocketAddr::from(([127, 0, 0, 1], 1))) && found.iter().any(|address| address.port() == 2));
        assert!(!found.iter().any(|address| address.port() == 3));
    }

    #[test]
    fn a_place_has_a_host_and_a_port() {
        for (place, good) in [("customers:50051", true), ("[::1]:1", true), ("customers", false), (":1", false), ("a:0", false), ("a:x", false)] {
            assert_eq!(check_place(place).is_ok(), good, "{place}");
        }
    }
}
