//! What an operator may set of customers.

use std::num::NonZeroU32;

use clap::Args;
use lastro_mesh::config::{Problems, Setting};
use lastro_service::ReadSettings;

/// How long things live, in seconds, and how many there may be.
#[derive(Debug, Clone)]
pub struct Settings {
    /// An access token.
    pub access_ttl_s: i64,
    /// A refresh token.
    pub refresh_ttl_s: i64,
    /// Failed logins of one account until it has to wait.
    pub login_failures_max: i64,
    /// How long it has to wait then.
    pub login_pause_s: i64,
    /// Failed logins from one address in a minute.
    pub login_failures_per_address: u32,
    /// Registrations from one address in a minute.
    pub registrations_per_minute: NonZeroU32,
    /// Registrations from one address at once, when it has made none for a while.
    pub registrations_burst: NonZeroU32,
    /// The refresh token that was traded last may be traded again for so long, since the answer may have been lost.
    pub refresh_reuse_grace_s: i64,
    /// Sessions that a user has at once; the oldest go.
    pub sessions_per_user_max: u32,
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            access_ttl_s: 5 * 3600,
            refresh_ttl_s: 7 * 24 * 3600,
            login_failures_max: 10,
            login_pause_s: 60,
            login_failures_per_address: 100,
            registrations_per_minute: const { NonZeroU32::new(60).unwrap() },
            registrations_burst: const { NonZeroU32::new(100).unwrap() },
            refresh_reuse_grace_s: 10,
            sessions_per_user_max: 1000,
        }
    }
}

/// What customers is told of tokens and logins.
#[derive(Args)]
pub struct CustomersGroup {
    /// Seconds that an access token lives, 1 to 86400.
    #[arg(long, env = "LASTRO_ACCESS_TOKEN_TTL", value_name = "SECONDS", default_value = "18000")]
    access_token_ttl: Setting,
    /// Seconds that a refresh token lives, 1 to 31536000.
    #[arg(long, env = "LASTRO_REFRESH_TOKEN_TTL", value_name = "SECONDS", default_value = "604800")]
    refresh_token_ttl: Setting,
    /// Failed logins of one account until it has to wait, 1 to 1000.
    #[arg(long, env = "LASTRO_LOGIN_FAILURES_MAX", value_name = "N", default_value = "10")]
    login_failures_max: Setting,
    /// Registrations from one address in a minute, of IPv6 from one /64, 1 to 1000000. Each replica counts for itself.
    #[arg(long, env = "LASTRO_REGISTRATIONS_PER_MINUTE", value_name = "N", default_value = "60")]
    registrations_per_minute: Setting,
    /// Registrations from one address at once, after a while without any, 1 to 1000000.
    #[arg(long, env = "LASTRO_REGISTRATIONS_BURST", value_name = "N", default_value = "100")]
    registrations_burst: Setting,
    /// Seconds within which the refresh token that was traded last may be traded again, since the answer may have been lost, 0 to 60. What it costs:
    /// a thief who has the token within these seconds gets a session that its owner does not notice.
    #[arg(long, env = "LASTRO_REFRESH_REUSE_GRACE", value_name = "SECONDS", default_value = "10")]
    refresh_reuse_grace: Setting,
    /// Sessions that one user has at once, 1 to 100000; a login beyond ends the oldest.
    #[arg(long, env = "LASTRO_SESSIONS_PER_USER_MAX", value_name = "N", default_value = "1000")]
    sessions_per_user_max: Setting,
}

impl ReadSettings for CustomersGroup {
    type Settings = Settings;

    fn read(&self, problems: &mut Problems) -> Option<Settings> {
        let access_ttl_s = problems.take_within("--access-token-ttl", &self.access_token_ttl, 1..=86_400);
        let refresh_ttl_s = problems.take_within("--refresh-token-ttl", &self.refresh_token_ttl, 1..=31_536_000);
        let login_failures_max = problems.take_within("--login-failures-max", &self.login_failures_max, 1..=1000);
        let registrations_per_minute =
            problems.take_within("--registrations-per-minute", &self.registrations_per_minute, 1..=1_000_000).and_then(NonZeroU32::new);
        let registrations_burst = problems.take_within("--registrations-burst", &self.registrations_burst, 1..=1_000_000).and_then(NonZeroU32::new);
        let refresh_reuse_grace_s = problems.take_within("--refresh-reuse-grace", &self.refresh_reuse_grace, 0..=60);
        let sessions_per_user_max = problems.take_within("--sessions-per-user-max", &self.sessions_per_user_max, 1..=100_000);
        Some(Settings {
            access_ttl_s: access_ttl_s?,
            refresh_ttl_s: refresh_ttl_s?,
            login_failures_max: login_failures_max?,
            registrations_per_minute: registrations_per_minute?,
            registrations_burst: registrations_burst?,
            refresh_reuse_grace_s: refresh_reuse_grace_s?,
            sessions_per_user_max: sessions_per_user_max?,
            ..Settings::default()
        })
    }
}
