//! The URL of a PostgreSQL server, read once for both drivers: each is told by its own setters what was read here, so that they cannot read it
//! differently and money cannot end up where nobody looks for it. What one of the two cannot do is refused by name.
//!
//! `postgres://user:password@host:port/name?application_name=…&options=…`, as libpq has it:
//! <https://www.postgresql.org/docs/15/libpq-connect.html#LIBPQ-CONNSTRING>. Host and port may stand in the query instead, and a host that begins
//! with `/` is the folder of a Unix socket. No environment variable changes it.

use std::borrow::Cow;
use std::str::FromStr;

use percent_encoding::percent_decode_str;
use sqlx::postgres::{PgConnectOptions, PgSslMode};

const PORT_DEFAULT: u16 = 5432;

/// Settings of a session that Lastro counts on. A URL must not set them.
pub(crate) const SESSION: [(&str, &str); 3] = [("idle_in_transaction_session_timeout", "2s"), ("lock_timeout", "1s"), ("statement_timeout", "5s")];
/// As [`SESSION`], of the connections that money waits for: every statement of a batch names its rows by key, and a planner that has no statistics
/// yet would read a small table whole instead. The plan is the same however many rows a batch has, so that it is made once a connection.
pub(crate) const BY_KEY: [(&str, &str); 4] =
    [("enable_seqscan", "off"), ("enable_hashjoin", "off"), ("enable_mergejoin", "off"), ("plan_cache_mode", "force_generic_plan")];

/// Where a server is, and as whom to talk to it.
#[derive(Clone, PartialEq, Eq)]
pub struct PostgresUrl {
    user: String,
    password: Option<String>,
    host: Host,
    port: u16,
    application_name: String,
    /// Settings for every session, from `options`.
    settings: Vec<(String, String)>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
enum Host {
    /// A name or an address.
    Tcp(String),
    /// The folder of a Unix socket.
    Unix(String),
}

/// Shows no password.
impl std::fmt::Debug for PostgresUrl {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter.debug_struct("PostgresUrl").field("user", &self.user).field("host", &self.host).field("port", &self.port).finish_non_exhaustive()
    }
}

/// What is wrong with a URL. Never repeats a password.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum UrlError {
    /// Another scheme, or none.
    #[error("must begin with postgres:// or postgresql://")]
    Scheme,
    /// No user.
    #[error("names no user; write postgres://user:password@host:port")]
    NoUser,
    /// More than one host.
    #[error("names several hosts, which one of the two drivers cannot do; give one name or address, which may stand for several")]
    SeveralHosts,
    /// A port that is none.
    #[error("the port must be a number from 1 to 65535")]
    Port,
    /// A part that is not percent-encoded UTF-8.
    #[error("{0} must be percent-encoded UTF-8")]
    Encoding(&'static str),
    /// A parameter that comes twice, or once in the query and once before it.
    #[error("the parameter {0} is given twice")]
    Twice(String),
    /// A parameter that not both drivers can honour.
    #[error("the parameter {name} is not offered: {why}")]
    NotOffered {
        /// As it was given.
        name: String,
        /// What to do.
        why: &'static str,
    },
    /// `options` that cannot be read.
    #[error("the parameter options must be settings such as -c search_path=name, with blanks and backslashes escaped by a backslash")]
    Options,
    /// A setting that is ours to set.
    #[error("the setting {0} in the parameter options is Lastro's own to set; leave it out")]
    OwnSetting(String),
}

impl FromStr for PostgresUrl {
    type Err = UrlError;

    fn from_str(text: &str) -> Result<Self, UrlError> {
        let rest = text.strip_prefix("postgres://").or_else(|| text.strip_prefix("postgresql://")).ok_or(UrlError::Scheme)?;
        let (rest, query) = rest.split_once('?').unwrap_or((rest, ""));
        // The name of a database in it is for tools: each service has a database of its own.
        let authority = rest.split_once('/').map_or(rest, |(authority, _)| authority);
        let (credentials, place) = authority.rsplit_once('@').unwrap_or(("", authority));
        let (user, password) = credentials.split_once(':').map_or((credentials, None), |(user, password)| (user, Some(password)));
        let (host, port) = split_place(place)?;
        let mut given = Given {
            user: set(decode(user, "the user")?),
            password: password.map(|password| decode(password, "the password")).transpose()?,
            host: set(decode(host, "the host")?),
            port: set(port.to_owned()),
            ..Given::default()
        };
        for pair in query.split('&').filter(|pair| !pair.is_empty()) {
            let (name, value) = pair.split_once('=').unwrap_or((pair, ""));
            given.take(&decode(name, "a parameter's name")?, decode(value, "a parameter's value")?)?;
        }
        given.check()
    }
}

/// The host and the port, which may be missing, of `host:port` or `[::1]:port`.
fn split_place(place: &str) -> Result<(&str, &str), UrlError> {
    if place.contains(',') {
        return Err(UrlError::SeveralHosts);
    }
    if let Some(literal) = place.strip_prefix('[') {
        let (address, rest) = literal.split_once(']').ok_or(UrlError::Port)?;
        let port = if rest.is_empty() { "" } else { rest.strip_prefix(':').ok_or(UrlError::Port)? };
        return Ok((address, port));
    }
    let (host, port) = place.split_once(':').unwrap_or((place, ""));
    // An IPv6 address without its brackets cannot be told from a port.
    if port.contains(':') { Err(UrlError::Port) } else { Ok((host, port)) }
}

fn decode(text: &str, what: &'static str) -> Result<String, UrlError> {
    let escapes_are_whole = text.split('%').skip(1).all(|escape| escape.len() >= 2 && escape.bytes().take(2).all(|byte| byte.is_ascii_hexdigit()));
    let decoded = escapes_are_whole.then(|| percent_decode_str(text).decode_utf8().ok()).flatten();
    decoded.map(Cow::into_owned).ok_or(UrlError::Encoding(what))
}

fn set(text: String) -> Option<String> {
    (!text.is_empty()).then_some(text)
}

/// The parts of a URL, wherever in it they stand.
#[derive(Default)]
struct Given {
    user: Option<String>,
    password: Option<String>,
    host: Option<String>,
    port: Option<String>,
    dbname: Option<String>,
    application_name: Option<String>,
    options: Option<String>,
    encoding: Option<String>,
    sslmode: Option<String>,
}

impl Given {
    fn take(&mut self, name: &str, value: String) -> Result<(), UrlError> {
        let not_offered = |why| Err(UrlError::NotOffered { name: name.to_owned(), why });
        let place = match name {
            "user" => &mut self.user,
            "password" => &mut self.password,
            "host" => &mut self.host,
            "port" => &mut self.port,
            "dbname" => &mut self.dbname,
            "application_name" => &mut self.application_name,
            "options" => &mut self.options,
            "client_encoding" if value.eq_ignore_ascii_case("utf8") || value.eq_ignore_ascii_case("utf-8") => &mut self.encoding,
            "client_encoding" => return not_offered("Lastro speaks UTF-8"),
            "sslmode" if ["disable", "allow", "prefer"].contains(&value.as_str()) => &mut self.sslmode,
            name if name.starts_with("ssl") => {
                return not_offered(
                    "Lastro does not speak TLS to PostgreSQL; keep both in a network of their own, or put a TLS proxy before the server",
                );
            }
            "hostaddr" => return not_offered("give the address as the host"),
            "target_session_attrs" | "load_balance_hosts" => return not_offered("give one host, which takes writes"),
            "connect_timeout" | "tcp_user_timeout" | "keepalives" | "keepalives_idle" | "keepalives_interval" | "keepalives_retries" => {
                return not_offered("Lastro has timeouts of its own, which its answers within a deadline depend on");
            }
            _ => return not_offered("one of the two drivers does not know it; remove it"),
        };
        match place.replace(value) {
            Some(_) => Err(UrlError::Twice(name.to_owned())),
            None => Ok(()),
        }
    }

    fn check(self) -> Result<PostgresUrl, UrlError> {
        let host = self.host.unwrap_or_else(|| "localhost".to_owned());
        if host.contains(',') {
            return Err(UrlError::SeveralHosts);
        }
        let port = self.port.map_or(Ok(PORT_DEFAULT), |port| port.parse().ok().filter(|port| *port > 0).ok_or(UrlError::Port))?;
        Ok(PostgresUrl {
            user: self.user.ok_or(UrlError::NoUser)?,
            password: self.password,
            host: if host.starts_with('/') { Host::Unix(host) } else { Host::Tcp(host) },
            port,
            application_name: self.application_name.unwrap_or_else(|| "lastro".to_owned()),
            settings: settings(self.options.as_deref().unwrap_or_default())?,
        })
    }
}

/// Reads `-c name=value`, `-cname=value` and `--name=value`, apart by blanks; a backslash keeps the character after it.
fn settings(options: &str) -> Result<Vec<(String, String)>, UrlError> {
    let mut words = Vec::new();
    let (mut word, mut begun, mut characters) = (String::new(), false, options.chars());
    while let Some(character) = characters.next() {
        match character {
            ' ' if begun => {
                words.push(std::mem::take(&mut word));
                begun = false;
            }
            ' ' => {}
            '\\' => {
                word.push(characters.next().ok_or(UrlError::Options)?);
                begun = true;
            }
            other => {
                word.push(other);
                begun = true;
            }
        }
    }
    if begun {
        words.push(word);
    }
    let (mut settings, mut words) = (Vec::new(), words.into_iter());
    while let Some(word) = words.next() {
        let setting = match (word.strip_prefix("--"), word.strip_prefix("-c")) {
            (Some(setting), _) => setting.to_owned(),
            (None, Some("")) => words.next().ok_or(UrlError::Options)?,
            (None, Some(setting)) => setting.to_owned(),
            (None, None) => return Err(UrlError::Options),
        };
        let (name, value) = setting.split_once('=').filter(|(name, _)| !name.is_empty()).ok_or(UrlError::Options)?;
        let name = name.replace('-', "_").to_lowercase();
        if SESSION.iter().chain(&BY_KEY).any(|(own, _)| *own == name) {
            return Err(UrlError::OwnSetting(name));
        }
        if settings.iter().any(|(known, _)| *known == name) {
            return Err(UrlError::Options);
        }
        settings.push((name, value.to_owned()));
    }
    Ok(settings)
}

impl PostgresUrl {
    /// The same server, as another role.
    #[must_use]
    pub fn with_role(&self, user: &str, password: &str) -> Self {
        Self { user: user.to_owned(), password: Some(password.to_owned()), ..self.clone() }
    }

    /// The same server, with settings of every session: each counts instead of one of this name in the URL.
    #[must_use]
    pub(crate) fn with_settings(&self, settings: &[(&str, &str)]) -> Self {
        let mut all = self.settings.clone();
        all.retain(|(name, _)| settings.iter().all(|(new, _)| new != name));
        all.extend(settings.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())));
        Self { settings: all, ..self.clone() }
    }

    /// For sqlx, without any setting of ours. Everything that its defaults take from the environment is set here.
    pub(crate) fn for_sqlx(&self, database: &str) -> PgConnectOptions {
        let options = PgConnectOptions::new_without_pgpass()
            .username(&self.user)
            .password(self.password.as_deref().unwrap_or_default())
            .port(self.port)
            .database(database)
            .ssl_mode(PgSslMode::Disable)
            .application_name(&self.application_name)
            .options(self.settings.iter().map(|(name, value)| (name.as_str(), value.as_str())));
        match &self.host {
            Host::Tcp(host) => options.host(host),
            Host::Unix(folder) => options.socket(folder),
        }
    }

    /// For the driver of the pipelined connections.
    pub(crate) fn for_pipelined(&self, database: &str) -> tokio_postgres::Config {
        let mut config = tokio_postgres::Config::new();
        config.user(&self.user).port(self.port).dbname(database).application_name(&self.application_name);
        config.ssl_mode(tokio_postgres::config::SslMode::Disable);
        match &self.host {
            Host::Tcp(host) => config.host(host),
            Host::Unix(folder) => config.host_path(folder),
        };
        if let Some(password) = &self.password {
            config.password(password);
        }
        let own = SESSION.iter().chain(&BY_KEY).map(|(name, value)| ((*name).to_owned(), (*value).to_owned()));
        let escape = |value: &str| value.replace('\\', "\\\\").replace(' ', "\\ ");
        let all: Vec<String> = self.settings.iter().cloned().chain(own).map(|(name, value)| format!("-c {name}={}", escape(&value))).collect();
        config.options(all.join(" "));
        config
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(text: &str) -> Result<PostgresUrl, UrlError> {
        text.parse()
    }

    #[test]
    fn both_drivers_are_told_the_same() {
        for (text, host, port, user, password) in [
            ("postgres://u:p@h:1/x", "h", 1, "u", Some("p")),
            ("postgresql://u@h", "h", 5432, "u", None),
            ("postgres://u:p%40%2F@[::1]:7", "::1", 7, "u", Some("p@/")),
            ("postgres://u@[fe80::1]", "fe80::1", 5432, "u", None),
            ("postgres://u@/?host=h&port=3", "h", 3, "u", None),
            ("postgres://?user=u&password=a%20b", "localhost", 5432, "u", Some("a b")),
            ("postgres://u@h?sslmode=prefer&client_encoding=UTF8&application_name=x", "h", 5432, "u", None),
        ] {
            let url = read(text).unwrap_or_else(|error| panic!("{text}: {error}"));
            let (sqlx, other) = (url.for_sqlx("d"), url.for_pipelined("d"));
            assert_eq!((sqlx.get_host(), sqlx.get_port(), sqlx.get_username(), sqlx.get_database()), (host, port, user, Some("d")), "{text}");
            assert_eq!((other.get_hosts(), other.get_ports()), (&[tokio_postgres::config::Host::Tcp(host.to_owned())][..], &[port][..]), "{text}");
            assert_eq!((other.get_user(), other.get_password(), other.get_dbname()), (Some(user), password.map(str::as_bytes), Some("d")), "{text}");
            assert_eq!(sqlx.get_application_name(), other.get_application_name(), "{text}");
        }
        for text in ["postgres://u@%2Frun%2Fpg:9", "postgres://u@?host=/run/pg&port=9"] {
            let url = read(text).expect(text);
            assert_eq!(url.for_sqlx("d").get_socket(), Some(&"/run/pg".into()));
            assert_eq!(url.for_pipelined("d").get_hosts(), [tokio_postgres::config::Host::Unix("/run/pg".into())]);
        }
    }

    #[test]
    fn settings_reach_both_and_ours_stay() {
        let url = read("postgres://u@h?options=-c%20search_path%3Dten%5C%20ant%20--work-mem%3D4MB%20-cjit%3Doff").expect("good options");
        let expected = "-c search_path=ten\\ ant -c work_mem=4MB -c jit=off";
        assert_eq!(url.for_sqlx("d").get_options(), Some(expected));
        let pipelined = url.for_pipelined("d");
        let options = pipelined.get_options().expect("options");
        assert!(
            options.starts_with(expected) && options.contains("-c statement_timeout=5s") && options.contains("-c enable_seqscan=off"),
            "{options}"
        );
    }

    #[test]
    fn what_not_both_can_do_is_refused_by_name() {
        for (text, named) in [
            ("mysql://u@h", "postgres://"),
            ("postgres://h", "user"),
            ("postgres://u@a,b", "several hosts"),
            ("postgres://u@a:1,b:2/x", "several hosts"),
            ("postgres://u@?host=a,b", "several hosts"),
            ("postgres://u@::1", "port"),
            ("postgres://u@h:0", "port"),
            ("postgres://u@h:x", "port"),
            ("postgres://u@h?sslmode=require", "sslmode"),
            ("postgres://u@h?sslrootcert=/x", "sslrootcert"),
            ("postgres://u@h?client_encoding=LATIN1", "client_encoding"),
            ("postgres://u@h?target_session_attrs=read-write", "target_session_attrs"),
            ("postgres://u@h?connect_timeout=3", "connect_timeout"),
            ("postgres://u@h?foo=1", "foo"),
            ("postgres://u@h?user=v", "user is given twice"),
            ("postgres://u@h?application_name=a&application_name=b", "application_name is given twice"),
            ("postgres://u@h?options=-c%20statement_timeout%3D0", "statement_timeout"),
            ("postgres://u@h?options=-c%20Lock-Timeout%3D0", "lock_timeout"),
            ("postgres://u@h?options=search_path", "options"),
            ("postgres://u:%zz@h", "the password must be"),
        ] {
            let error = read(text).expect_err(text).to_string();
            assert!(error.contains(named), "{text}: {error}");
        }
        assert!(!format!("{:?}", read("postgres://u:secret@h").expect("good")).contains("secret"));
    }
}
