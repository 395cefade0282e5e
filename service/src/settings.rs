//! The settings of a service: flags that are clap's, read by the service itself, handed to it when it starts.

use std::any::Any;
use std::sync::Arc;

use clap::{ArgMatches, Args, Command};
use lastro_mesh::config::Problems;

/// Settings as they were read. Cheap to clone.
#[derive(Clone)]
pub struct Settings(Arc<dyn Any + Send + Sync>);

impl Settings {
    /// Any type.
    pub fn new<T: Send + Sync + 'static>(settings: T) -> Self {
        Self(Arc::new(settings))
    }

    /// The settings as the type that they were read as.
    pub fn get<T: Clone + 'static>(&self) -> anyhow::Result<T> {
        self.0.downcast_ref::<T>().cloned().ok_or_else(|| anyhow::anyhow!("the settings are not {}", std::any::type_name::<T>()))
    }
}

/// The flags of a service, and how they are read.
#[derive(Clone, Copy)]
pub struct SettingsGroup {
    /// Adds the flags to a command.
    pub add_to: fn(Command) -> Command,
    read: fn(&ArgMatches, &mut Problems) -> Option<Settings>,
}

impl SettingsGroup {
    /// No settings.
    pub const NONE: Self = Self { add_to: |command| command, read: |_, _| Some(Settings::new(())) };

    /// The flags of `A`, of which `read_with` makes settings, or None with every mistake told.
    pub const fn of<A: Args + Read>() -> Self {
        Self {
            add_to: |command| A::augment_args(command),
            read: |matches, problems| {
                let given = A::from_arg_matches(matches).map_err(|error| problems.add(error.to_string())).ok()?;
                given.read(problems).map(Settings::new)
            },
        }
    }

    /// The settings, or None with every mistake in `problems`.
    pub fn read(&self, matches: &ArgMatches, problems: &mut Problems) -> Option<Settings> {
        (self.read)(matches, problems)
    }
}

/// Flags that can be read.
pub trait Read {
    /// What they are read as.
    type Settings: Send + Sync + 'static;

    /// The settings, or None with every mistake in `problems`.
    fn read(&self, problems: &mut Problems) -> Option<Self::Settings>;
}
