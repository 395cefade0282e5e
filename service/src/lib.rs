//! What a service is to the process that runs it: one [`Service`] each, in its own crate, from which everything else follows: commands and
//! `--help`, `lastro up`, storage, `lastro migrate` with roles and grants, certificates and the policy of who may call what, health, and the channels
//! to other services. `lastro/src/services.rs` has the list of all. Knows nothing of payments.

pub mod events;
mod jobs;
mod problem;
mod reads;
mod settings;

use std::collections::HashMap;
use std::pin::Pin;

use lastro_database::Database;
use lastro_events::bus::Bus;
use lastro_events::replay::Projector;
use lastro_events::{EventStore, Topic};
use lastro_mesh::identity::{KeySource, Revocations};
use lastro_mesh::outbound::Outbound;
use lastro_migrations::Migrator;
use tonic::service::Routes;

pub use jobs::Job;
pub use problem::database_problem;
pub use reads::ReadTurns;
pub use settings::{Read as ReadSettings, Settings, SettingsGroup};

/// What is done once, such as starting a service.
pub type Done<T> = Pin<Box<dyn Future<Output = anyhow::Result<T>> + Send>>;

/// One service, as it registers itself.
pub struct Service {
    /// Its name: of its command, database (`lastro_<name>`), certificate, flag (`--<name>`), in logs, metrics and on the network.
    pub name: &'static str,
    /// What it does, for `--help`: "accounts, the ledger, the operation pipeline".
    pub about: &'static str,
    /// Where it serves gRPC on this machine if it is not told otherwise; each service has another one.
    pub port: u16,
    /// The packages of the contracts that it serves to everybody.
    pub packages: &'static [&'static str],
    /// The packages that it serves to other services alone.
    pub internal: &'static [&'static str],
    /// The services that it calls, apart from where the keys of tokens come from.
    pub needs: &'static [Need],
    /// The event stores that it publishes.
    pub publishes: &'static [EventStore],
    /// The topics that it reads, of other services.
    pub reads: &'static [&'static str],
    /// Tables to which its role only adds rows, beside its event stores.
    pub append_only: &'static [&'static str],
    /// Tables that its role only reads, since commands write them.
    pub read_only: &'static [&'static str],
    /// Makes its tables.
    pub migrator: Migrator,
    /// What its database needs beside tables before the service can start. Done as the database's owner; doing it again changes nothing.
    pub prepare: fn(Database) -> Done<()>,
    /// Its own settings.
    pub settings: SettingsGroup,
    /// How its tables are made anew, where all of them are made from events.
    pub replay: Option<Replay>,
    /// Starts it on its migrated database.
    pub start: fn(Given) -> Done<Running>,
}

/// Another service that a service calls.
pub struct Need {
    /// Its name.
    pub service: &'static str,
    /// What for, for `--help`: "closes the accounts of who is deleted".
    pub why: &'static str,
    /// The paths that it calls, `*` at the end for all that begin so. What is not listed is refused by the policy.
    pub calls: &'static [&'static str],
}

/// How the tables of a service are made anew from the events of others.
pub struct Replay {
    /// What the command is told beside where the databases are.
    pub settings: SettingsGroup,
    /// Begins in empty tables, and says what fills them.
    pub start: fn(Replaying) -> Done<Vec<Box<dyn Projector>>>,
}

/// What a service is given when its tables are made anew.
pub struct Replaying {
    /// The tables that it works with.
    pub live: Database,
    /// The new ones, empty.
    pub new: Database,
    /// As the settings of its [`Replay`] read them.
    pub settings: Settings,
    /// The topics that it reads, from the event stores themselves.
    pub topics: HashMap<&'static str, Topic>,
}

impl Replaying {
    /// A topic that was registered as read.
    pub fn topic(&self, topic: &str) -> anyhow::Result<Topic> {
        topic_of(&self.topics, topic)
    }
}

fn topic_of(topics: &HashMap<&'static str, Topic>, topic: &str) -> anyhow::Result<Topic> {
    topics.get(topic).cloned().ok_or_else(|| anyhow::anyhow!("the topic {topic} is read and is not among those that the service reads"))
}

/// What a service is given when it starts.
pub struct Given {
    /// Its database.
    pub database: Database,
    /// Where events come from and go to.
    pub bus: Bus,
    /// The tokens that are dead: the verifier of the service's callers looks at them.
    pub revoked: Revocations,
    /// As its [`SettingsGroup`] read them.
    pub settings: Settings,
    /// The ways to the services that it needs.
    pub channels: HashMap<&'static str, Outbound>,
    /// The topics that it reads.
    pub topics: HashMap<&'static str, Topic>,
}

impl Given {
    /// The way to a service that was registered as needed.
    pub fn channel(&self, service: &str) -> anyhow::Result<Outbound> {
        self.channels.get(service).cloned().ok_or_else(|| anyhow::anyhow!("{service} is called and is not among the needs of the service"))
    }

    /// A topic that was registered as read.
    pub fn topic(&self, topic: &str) -> anyhow::Result<Topic> {
        topic_of(&self.topics, topic)
    }
}

/// A service that has started.
pub struct Running {
    /// What everybody may call.
    pub public: Routes,
    /// As `public`, with what only services may call.
    pub all: Routes,
    /// The keys that verify tokens, where the service has them itself. Else it asks for them.
    pub keys: Option<KeySource>,
    /// Whether its own jobs keep [`Given::revoked`] up to date. Else the process does, by asking every second.
    pub learns_revocations: bool,
    /// Its background work.
    pub jobs: Vec<Job>,
}

impl Running {
    /// A service with nothing but routes.
    pub fn new(public: Routes, all: Routes) -> Self {
        Self { public, all, keys: None, learns_revocations: false, jobs: Vec::new() }
    }

    /// The same, with background work.
    pub fn with_jobs(self, jobs: Vec<Job>) -> Self {
        Self { jobs, ..self }
    }
}

impl Service {
    /// For [`prepare`](Self::prepare), where there is nothing to do.
    pub fn nothing_to_prepare(_: Database) -> Done<()> {
        Box::pin(std::future::ready(Ok(())))
    }

    /// The service's own database on a PostgreSQL server, which is also the name of its role.
    pub fn database_name(&self) -> String {
        format!("lastro_{}", self.name)
    }
}
