//! `lastro certs`: an authority and certificates for development, and the policy of who may call what. A deployment brings its own, with
//! the same names in them.

use std::fs::{self, OpenOptions, Permissions};
use std::io::Write as _;
use std::os::unix::fs::{OpenOptionsExt as _, PermissionsExt as _};
use std::path::Path;

use anyhow::{Context as _, Result};
use lastro_mesh::clock;
use lastro_mesh::tls::NAME_PREFIX;
use lastro_service::Service;
use rcgen::{
    BasicConstraints, CertificateParams, DistinguishedName, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair, KeyUsagePurpose, SanType,
};
use serde_json::{Map, Value};

use crate::print;
use crate::services::SERVICES;
use crate::services::policy::policy;

/// nginx: its certificate serves both ends, for clients and towards the services.
pub const EDGE: &str = "edge";
/// Whoever operates the mesh.
pub const OPERATOR: &str = "operator";
const CA_DAYS: i64 = 3650;
/// Clients refuse certificates that live longer.
const CERTIFICATE_DAYS: i64 = 820;

/// Makes what is missing in a folder.
pub fn write(dir: &Path, hosts: &[String]) -> Result<()> {
    fs::create_dir_all(dir).with_context(|| format!("{} cannot be made", dir.display()))?;
    if !dir.join("ca.pem").exists() {
        let (pem, key) = authority()?;
        put(dir, "ca.key", &key.serialize_pem())?;
        put(dir, "ca.pem", &pem)?;
    }
    let read = |name: &str| fs::read_to_string(dir.join(name)).with_context(|| format!("{} cannot be read", dir.join(name).display()));
    let ca = Issuer::from_ca_cert_pem(&read("ca.pem")?, KeyPair::from_pem(&read("ca.key")?)?).context("ca.pem and ca.key cannot be used")?;
    for name in names() {
        if !dir.join(format!("{name}.pem")).exists() {
            let key = KeyPair::generate()?;
            let certificate = certificate(name, hosts)?.signed_by(&key, &ca)?;
            put(dir, &format!("{name}.key"), &key.serialize_pem())?;
            put(dir, &format!("{name}.pem"), &certificate.pem())?;
        }
    }
    write_policy(&dir.join("policy.json"))
}

/// Writes the policy. To one that is there, which may be narrower by intent, it adds what services need that are not in it yet: the services
/// themselves, their public methods for who passes calls on, and what a service calls that is in it. It says what it added.
fn write_policy(path: &Path) -> Result<()> {
    let shown = path.display();
    let before = if path.exists() { fs::read_to_string(path).with_context(|| format!("{shown} cannot be read"))? } else { "{}".to_owned() };
    let mut there: Value = serde_json::from_str(&before).with_context(|| format!("{shown} is not JSON"))?;
    let needed = policy();
    let new: Vec<&Service> = SERVICES.iter().copied().filter(|service| there[service.name].is_null()).collect();
    let is_of_new = |path: &Value| {
        let packages = new.iter().flat_map(|service| service.packages);
        path.as_str().is_some_and(|path| packages.into_iter().any(|package| path == format!("/{package}.*")))
    };
    let (mut added, is_first) = (Vec::new(), there.as_object().is_some_and(Map::is_empty));
    for (caller, may) in needed.as_object().into_iter().flatten() {
        if there[caller].is_null() {
            there[caller] = may.clone();
            added.push(caller.clone());
        } else if let (Some(has), Some(needs)) = (there[caller]["may_call"].as_array_mut(), may["may_call"].as_array()) {
            let is_service = SERVICES.iter().any(|service| service.name == caller);
            let allowed = |path: &Value| has.iter().filter_map(Value::as_str).any(|pattern| covers(pattern, path.as_str().unwrap_or_default()));
            let lacking: Vec<Value> = needs.iter().filter(|path| (is_service || is_of_new(path)) && !allowed(path)).cloned().collect();
            added.extend(lacking.iter().map(|path| format!("{caller} may call {}", path.as_str().unwrap_or_default())));
            has.extend(lacking);
        }
    }
    if added.is_empty() {
        return Ok(());
    }
    if !is_first {
        print::line(format_args!("{shown}: added {}", added.join("; ")));
    }
    let after = format!("{there:#}\n");
    let mut draft = path.as_os_str().to_owned();
    draft.push(".draft");
    let mode = fs::metadata(path).map_or(0o644, |there| there.permissions().mode());
    let file = OpenOptions::new().write(true).create(true).truncate(true).mode(mode).open(&draft);
    let written = file.and_then(|mut file| file.write_all(after.as_bytes()));
    written
        .and_then(|()| fs::set_permissions(&draft, Permissions::from_mode(mode)))
        .and_then(|()| fs::rename(&draft, path))
        .with_context(|| format!("{shown} cannot be written"))
}

/// Whether a pattern of the policy allows at least what another one does.
fn covers(pattern: &str, other: &str) -> bool {
    pattern.strip_suffix('*').map_or(pattern == other, |beginning| other.starts_with(beginning))
}

/// Each has a certificate of its own.
fn names() -> impl Iterator<Item = &'static str> {
    SERVICES.iter().map(|service| service.name).chain([lastro_gateway::NAME, EDGE, OPERATOR])
}

fn authority() -> Result<(String, KeyPair)> {
    let mut params = CertificateParams::default();
    name(&mut params, "Lastro development authority");
    params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    live(&mut params, CA_DAYS)?;
    let key = KeyPair::generate()?;
    Ok((params.self_signed(&key)?.pem(), key))
}

/// The DNS name is what callers verify, the URI what it proves as a caller.
fn certificate(service: &str, hosts: &[String]) -> Result<CertificateParams> {
    let mut names = vec![service.to_owned()];
    if service == EDGE {
        names.extend(["localhost", "127.0.0.1", "::1", "nginx"].map(str::to_owned));
        names.extend(hosts.iter().cloned());
    }
    let mut params = CertificateParams::new(names).context("--host must be host names or addresses")?;
    params.subject_alt_names.push(SanType::URI(format!("{NAME_PREFIX}{service}").try_into()?));
    name(&mut params, service);
    params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
    params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth];
    live(&mut params, CERTIFICATE_DAYS)?;
    Ok(params)
}

fn name(params: &mut CertificateParams, name: &str) {
    params.distinguished_name = DistinguishedName::new();
    params.distinguished_name.push(DnType::CommonName, name);
}

/// From yesterday, since clocks differ.
fn live(params: &mut CertificateParams, days: i64) -> Result<()> {
    const DAY_S: i64 = 86_400;
    let date = |s: i64| -> Result<_> {
        let date = jiff::Timestamp::from_second(s)?.to_zoned(jiff::tz::TimeZone::UTC).date();
        Ok(rcgen::date_time_ymd(i32::from(date.year()), date.month().cast_unsigned(), date.day().cast_unsigned()))
    };
    params.not_before = date(clock::now_s() - DAY_S)?;
    params.not_after = date(clock::now_s() + days * DAY_S)?;
    Ok(())
}

/// Keys are for their owner alone.
fn put(dir: &Path, name: &str, text: &str) -> Result<()> {
    let path = dir.join(name);
    let mode = if path.extension().is_some_and(|extension| extension == "key") { 0o600 } else { 0o644 };
    let file = OpenOptions::new().write(true).create_new(true).mode(mode).open(&path);
    let written = file.and_then(|mut file| file.write_all(text.as_bytes()));
    written.with_context(|| format!("{} cannot be written", path.display()))
}

#[cfg(test)]
mod tests {
    use lastro_mesh::identity::Policy;
    use lastro_mesh::tls::{Tls, TlsFiles};

    use super::*;

    #[test]
    fn what_it_writes_can_be_used_and_stays() {
        let folder = tempfile::tempdir().expect("a folder");
        let dir = folder.path();
        write(dir, &[]).expect("written");
        let before = fs::read(dir.join("ca.pem")).expect("there");
        fs::remove_file(dir.join("gateway.pem")).and_then(|()| fs::remove_file(dir.join("gateway.key"))).expect("were there");
        write(dir, &["lastro.example".to_owned()]).expect("what is missing");
        assert_eq!(fs::read(dir.join("ca.pem")).expect("there"), before);
        for name in names() {
            let files = TlsFiles { cert: dir.join(format!("{name}.pem")), key: dir.join(format!("{name}.key")), ca: dir.join("ca.pem") };
            Tls::load(files).map(|_| ()).expect(name);
        }
    }

    #[test]
    fn a_policy_that_is_there_gets_what_new_services_need_and_keeps_what_somebody_made_narrower() {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("policy.json");
        let there = r#"{"gateway": {"may_call": ["/mine.*", "/lastro.customers.v1.UsersService/*"]}, "mine": {"may_call": ["/a"]},
                        "customers": {"may_call": []}}"#;
        fs::write(&path, there).expect("written");
        fs::set_permissions(&path, Permissions::from_mode(0o640)).expect("changed");
        write(folder.path(), &[]).expect("written");
        let policy = Policy::read(&path).expect("a policy");
        let may = |caller: &str, method: &str| policy.caller(caller).expect("listed").may_call(method);
        assert!(may("gateway", "/mine.x") && may("mine", "/a"), "what was there");
        assert!(may("customers", "/lastro.internal.transactions.v1.OwnersService/CloseAccounts"), "what a service calls");
        assert!(may("gateway", "/lastro.transactions.v1.AccountsService/GetAccount"), "of a service that was not there");
        assert!(!may("gateway", "/lastro.customers.v1.AuthService/Login"), "of one that was");
        assert_eq!(fs::metadata(&path).expect("there").permissions().mode() & 0o777, 0o640);
        let before = fs::read(&path).expect("there");
        write(folder.path(), &[]).expect("written");
        assert_eq!(fs::read(&path).expect("there"), before, "nothing is lacking any more");
    }
}
