//! What every service quota on the wire: the inbound and the outbound stack, identity, status, configuration, telemetry, health
//! and shutdown. Knows nothing of payments.

pub mod call;
pub mod clock;
pub mod codec;
pub mod config;
pub mod endable;
pub mod freshness;
pub mod health;
pub mod identity;
pub mod inbound;
pub mod logs;
pub mod metrics;
pub mod outbound;
pub mod outcome;
pub mod page;
pub mod private_headers;
pub mod quota;
pub mod serve;
pub mod shutdown;
pub mod status;
pub mod supervise;
pub mod tls;
pub mod trace;
pub mod turns;
