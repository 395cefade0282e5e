//! Settings: flags are clap's, each also an environment variable. A setting keeps its text until [`Problems::take`] reads it, so that
//! every mistake is reported at once instead of the first.

use std::fmt;
use std::net::{SocketAddr, ToSocketAddrs as _};
use std::str::FromStr;

/// A setting as it was given: read by [`Problems::take`].
#[derive(Debug, Clone)]
pub struct Setting(pub String);

impl FromStr for Setting {
    type Err = std::convert::Infallible;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        Ok(Self(text.to_owned()))
    }
}

/// Collects what is wrong with the settings.
#[derive(Debug, Default)]
pub struct Problems(Vec<String>);

impl Problems {
    /// Reads one setting; a mistake is remembered with the setting's name and value.
    pub fn take<T: FromStr<Err: fmt::Display>>(&mut self, name: &str, setting: &Setting) -> Option<T> {
        setting.0.parse().map_err(|error| self.0.push(format!("{name} {:?}: {error}", setting.0))).ok()
    }

    /// An address to listen on: IP and port, or a name of this machine and port, such as localhost:8080.
    pub fn take_address(&mut self, name: &str, setting: &Setting) -> Option<SocketAddr> {
        if let Ok(address) = setting.0.parse() {
            return Some(address);
        }
        let found = setting.0.to_socket_addrs().map(Iterator::collect::<Vec<_>>).unwrap_or_default();
        // Of localhost the IPv4 address, which is what everybody expects to be served.
        let found = found.iter().find(|address| address.is_ipv4()).or(found.first()).copied();
        if found.is_none() {
            self.0.push(format!("{name} {:?}: must be an address and a port of this machine, such as 127.0.0.1:8080 or localhost:8080", setting.0));
        }
        found
    }

    /// As [`take`](Self::take), within bounds.
    pub fn take_within<T>(&mut self, name: &str, setting: &Setting, range: std::ops::RangeInclusive<T>) -> Option<T>
    where
        T: FromStr<Err: fmt::Display> + PartialOrd + fmt::Display,
    {
        let value = self.take::<T>(name, setting)?;
        if range.contains(&value) {
            return Some(value);
        }
        self.0.push(format!("{name} {value}: must be between {} and {}", range.start(), range.end()));
        None
    }

    /// Remembers a mistake that no single setting makes.
    pub fn add(&mut self, problem: impl Into<String>) {
        self.0.push(problem.into());
    }

    /// All mistakes, or nothing.
    pub fn check(self) -> Result<(), Invalid> {
        if self.0.is_empty() { Ok(()) } else { Err(Invalid(self.0)) }
    }
}

/// Every mistake in the settings.
#[derive(Debug, PartialEq, Eq)]
pub struct Invalid(pub Vec<String>);

impl fmt::Display for Invalid {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "these settings are wrong:")?;
        self.0.iter().try_for_each(|problem| write!(formatter, "\n  {problem}"))
    }
}

impl std::error::Error for Invalid {}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_mistake_is_reported_at_once() {
        let mut problems = Problems::default();
        let text = |text: &str| Setting(text.to_owned());
        assert_eq!(problems.take::<u16>("--good", &text("7")), Some(7));
        assert_eq!(problems.take_address("--ops", &text("localhost:1")), Some(SocketAddr::from(([127, 0, 0, 1], 1))));
        assert_eq!(problems.take_address("--rest", &text("localhost")), None);
        assert_eq!(problems.take_within::<u32>("--limit", &text("0"), 1..=10), None);
        let Invalid(all) = problems.check().expect_err("two mistakes");
        assert_eq!(all.len(), 2);
        assert!(all[0].starts_with("--rest \"localhost\"") && all[1].contains("between 1 and 10"), "{all:?}");
    }
}
