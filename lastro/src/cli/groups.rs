//! Groups of settings that `lastro up` and the processes of single services have in common.

use std::num::NonZeroU32;
use std::time::Duration;

use clap::Args;
use lastro_database::PostgresUrl;
use lastro_mesh::config::{Problems, Setting};
use lastro_mesh::serve::{ConnectionLimits, Proxies, ReceivingLimits};

/// How many connections a listener holds.
#[derive(Args)]
pub struct ConnectionsGroup {
    /// Connections from one address, of IPv6 from one /64, 1 to 1000000. Not counted where callers prove who they are by certificates: there an
    /// address stands for many, and the proxy before it has limits of its own.
    #[arg(long, env = "LASTRO_CONNECTIONS_PER_ADDRESS", value_name = "N", default_value = "1000")]
    connections_per_address: Setting,
    /// Connections in all, 1 to 1000000.
    #[arg(long, env = "LASTRO_CONNECTIONS_MAX", value_name = "N", default_value = "8000")]
    connections_max: Setting,
    /// Calls at once on one HTTP/2 connection, 1 to 100000.
    #[arg(long, env = "LASTRO_STREAMS_PER_CONNECTION", value_name = "N", default_value = "256")]
    streams_per_connection: Setting,
    /// Requests from one address whose message has not come whole, 1 to 1000000.
    #[arg(long, env = "LASTRO_INCOMPLETE_PER_ADDRESS", value_name = "N", default_value = "1024")]
    incomplete_per_address: Setting,
    /// Those in all, 1 to 1000000.
    #[arg(long, env = "LASTRO_INCOMPLETE_MAX", value_name = "N", default_value = "4096")]
    incomplete_max: Setting,
    /// Calls that stream, such as health watches, from one address, 1 to 1000000.
    #[arg(long, env = "LASTRO_STREAMING_PER_ADDRESS", value_name = "N", default_value = "64")]
    streaming_per_address: Setting,
    /// Those in all, 1 to 1000000.
    #[arg(long, env = "LASTRO_STREAMING_MAX", value_name = "N", default_value = "512")]
    streaming_max: Setting,
    /// Mebibytes of requests above 4 KiB that are held at once, of one address a quarter, from their first byte until they are answered, 2 to 65536.
    #[arg(long, env = "LASTRO_REQUESTS_MEBIBYTES_MAX", value_name = "MIB", default_value = "32")]
    requests_mebibytes_max: Setting,
    /// Seconds that a message may take to come whole, 1 to 300.
    #[arg(long, env = "LASTRO_RECEIVE_TIMEOUT", value_name = "SECONDS", default_value = "10")]
    receive_timeout: Setting,
    /// Proxies before this process that are no part of the mesh, as addresses or networks such as 10.0.0.0/8: they are believed when they tell a
    /// client's address in x-forwarded-for, and not counted as one client. May be given several times. Name only what clients cannot be.
    #[arg(long, env = "LASTRO_TRUSTED_PROXIES", value_name = "CIDR", value_delimiter = ',')]
    trusted_proxies: Vec<String>,
}

impl ConnectionsGroup {
    /// The limits, or None with every mistake in `problems`.
    pub fn read(&self, problems: &mut Problems) -> Option<ConnectionLimits> {
        let per_address = problems.take_within("--connections-per-address", &self.connections_per_address, 1..=1_000_000);
        let in_all = problems.take_within("--connections-max", &self.connections_max, 1..=1_000_000);
        let streams = problems.take_within("--streams-per-connection", &self.streams_per_connection, 1..=100_000);
        let incomplete_per_address = problems.take_within("--incomplete-per-address", &self.incomplete_per_address, 1..=1_000_000);
        let incomplete_max = problems.take_within("--incomplete-max", &self.incomplete_max, 1..=1_000_000);
        let mebibytes = problems.take_within::<usize>("--requests-mebibytes-max", &self.requests_mebibytes_max, 2..=65_536);
        let proxies = Proxies::parse(self.trusted_proxies.iter().map(String::as_str));
        let proxies =
            proxies.map_err(|wrong| problems.add(format!("--trusted-proxies {wrong:?}: must be an address or a network, such as 10.0.0.0/8"))).ok();
        let streaming_per_address = problems.take_within("--streaming-per-address", &self.streaming_per_address, 1..=1_000_000);
        let streaming_max = problems.take_within("--streaming-max", &self.streaming_max, 1..=1_000_000);
        let receive_timeout = problems.take_within("--receive-timeout", &self.receive_timeout, 1..=300);
        let receiving = ReceivingLimits {
            per_address: incomplete_per_address?,
            in_all: incomplete_max?,
            streams_per_address: streaming_per_address?,
            streams_in_all: streaming_max?,
            bytes: mebibytes? * 1024 * 1024,
            timeout: Duration::from_secs(receive_timeout?),
        };
        Some(ConnectionLimits { per_address: per_address?, in_all: in_all?, streams: streams?, proxies: proxies?, receiving })
    }
}

/// How much Redis keeps.
#[derive(Args)]
pub struct BusGroup {
    /// Mebibytes of events that Redis keeps of each topic, 4 to 65536; readers that are further behind read from the service itself.
    #[arg(long, env = "LASTRO_TOPIC_MEBIBYTES_MAX", value_name = "MIB", default_value = "32")]
    topic_mebibytes_max: Setting,
}

impl BusGroup {
    /// The bytes, or None with every mistake in `problems`.
    pub fn read(&self, problems: &mut Problems) -> Option<u64> {
        problems.take_within::<u64>("--topic-mebibytes-max", &self.topic_mebibytes_max, 4..=65_536).map(|mebibytes| mebibytes * 1024 * 1024)
    }
}

/// A PostgreSQL URL, or None with what is wrong with it in `problems`. The value may hold a password, so it is not repeated.
pub fn read_postgres_url(problems: &mut Problems, name: &str, url: &str) -> Option<PostgresUrl> {
    // One of the two drivers reads it and cannot be told not to: then the two would differ.
    if std::env::vars_os().any(|(variable, _)| variable == "PGOPTIONS") {
        problems.add("the environment variable PGOPTIONS is set; unset it, and write what it says into the parameter options of the URL");
    }
    url.parse().map_err(|error| problems.add(format!("{name}: {error}"))).ok()
}

/// Whether a browser can send this as `Origin` (RFC 6454, 6.2): in lower case, without a path, and without the port that the scheme has anyway.
fn is_origin(text: &str) -> bool {
    if text == "*" {
        return true;
    }
    let Some((scheme, host)) = text.split_once("://") else { return false };
    let usual_port = match scheme {
        "http" => ":80",
        "https" => ":443",
        _ => return false,
    };
    let (name, port) = match host.rsplit_once(':') {
        Some((name, port)) if !port.ends_with(']') => (name, Some(port)),
        _ => (host, None),
    };
    let is_name = |name: &str| name.bytes().all(|byte| byte.is_ascii_lowercase() || byte.is_ascii_digit() || b"-._".contains(&byte));
    let is_v6 =
        |name: &str| name.strip_prefix('[').and_then(|rest| rest.strip_suffix(']')).is_some_and(|v6| v6.parse::<std::net::Ipv6Addr>().is_ok());
    let good_port = port.is_none_or(|port| port.parse::<u16>().is_ok_and(|number| number > 0 && number.to_string() == port));
    !name.is_empty() && (is_name(name) || is_v6(name)) && good_port && !host.ends_with(usual_port)
}

/// What the gateway is told of its callers.
#[derive(Args)]
pub struct GatewayGroup {
    /// REST requests per second from one address, 1 to 10000000.
    #[arg(long, env = "LASTRO_RATE_LIMIT_PER_ADDRESS", value_name = "N", default_value = "100000")]
    rate_limit_per_address: Setting,
    /// REST requests per second by one user, 1 to 10000000.
    #[arg(long, env = "LASTRO_RATE_LIMIT_PER_USER", value_name = "N", default_value = "100000")]
    rate_limit_per_user: Setting,
    /// Web origins whose scripts may call REST, such as https://app.example; * for all. May be given several times.
    #[arg(long, env = "LASTRO_CORS_ORIGINS", value_name = "ORIGIN", value_delimiter = ',')]
    pub cors_origins: Vec<String>,
}

impl GatewayGroup {
    /// The limits, or None with every mistake in `problems`.
    pub fn read_limits(&self, problems: &mut Problems) -> Option<lastro_gateway::Limits> {
        let per_address = problems.take_within("--rate-limit-per-address", &self.rate_limit_per_address, 1..=10_000_000).and_then(NonZeroU32::new);
        let per_user = problems.take_within("--rate-limit-per-user", &self.rate_limit_per_user, 1..=10_000_000).and_then(NonZeroU32::new);
        for origin in &self.cors_origins {
            if !is_origin(origin) {
                problems.add(format!(
                    "--cors-origins {origin:?}: must be * or an origin: scheme, host and port as a browser sends them, such as https://app.example"
                ));
            }
        }
        Some(lastro_gateway::Limits { per_address: per_address?, per_user: per_user? })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_origin_is_what_a_browser_sends() {
        for good in ["*", "https://app.example", "http://localhost:3000", "https://a-b.example:8443", "http://[::1]:3000", "http://127.0.0.1"] {
            assert!(is_origin(good), "{good}");
        }
        for bad in [
            "",
            "app.example",
            "https://app.example/",
            "https://app.example/path",
            "https://App.example",
            "ftp://app.example",
            "https://",
            "https://a:0",
            "https://a:99999",
            "https://a:443",
            "http://a:80",
            "https://a b",
            "https://a:x",
            "null",
            "https://user@a",
            "https://a?x",
        ] {
            assert!(!is_origin(bad), "{bad}");
        }
    }
}
