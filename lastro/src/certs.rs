//! `lastro certs`: an authority and certificates for development, and the policy of who may call what. A deployment brings its own, with
//! the same names in them.

use std::fs::{self, OpenOptions};
use std::io::Write as _;
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::Path;

use anyhow::{Context as _, Result};
use lastro_mesh::clock;
use lastro_mesh::tls::NAME_PREFIX;
use rcgen::{
    BasicConstraints, CertificateParams, DistinguishedName, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair, KeyUsagePurpose, SanType,
};
use serde_json::Value;

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

/// Writes the policy, or adds to the one that is there what this version's services need: a service that is new must be able to call.
fn write_policy(path: &Path) -> Result<()> {
    let shown = path.display();
    let before = if path.exists() { fs::read_to_string(path).with_context(|| format!("{shown} cannot be read"))? } else { "{}".to_owned() };
    let mut there: Value = serde_json::from_str(&before).with_context(|| format!("{shown} is not JSON"))?;
    let needed = policy();
    for (caller, may) in needed.as_object().into_iter().flatten() {
        if there[caller].is_null() {
            there[caller] = may.clone();
        } else if let (Some(has), Some(needs)) = (there[caller]["may_call"].as_array_mut(), may["may_call"].as_array()) {
            let lacking: Vec<Value> = needs.iter().filter(|path| !has.contains(path)).cloned().collect();
            has.extend(lacking);
        }
    }
    let after = format!("{there:#}\n");
    if after == before {
        return Ok(());
    }
    let mut draft = path.as_os_str().to_owned();
    draft.push(".draft");
    fs::write(&draft, after).and_then(|()| fs::rename(&draft, path)).with_context(|| format!("{shown} cannot be written"))
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
    fn a_policy_that_is_there_gets_what_it_lacks_and_keeps_what_it_has() {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("policy.json");
        fs::write(&path, r#"{"gateway": {"may_call": ["/mine.*"], "forwards_address": true}, "mine": {"may_call": ["/a"]}}"#).expect("written");
        write(folder.path(), &[]).expect("written");
        let policy = Policy::read(&path).expect("a policy");
        assert!(policy.caller("gateway").expect("listed").may_call("/mine.x") && policy.caller("mine").expect("listed").may_call("/a"));
        for (caller, method) in
            [("gateway", "/lastro.customers.v1.AuthService/Login"), ("customers", "/lastro.internal.transactions.v1.OwnersService/CloseAccounts")]
        {
            assert!(policy.caller(caller).expect("listed").may_call(method), "{caller} {method}");
        }
        let before = fs::read(&path).expect("there");
        write(folder.path(), &[]).expect("written");
        assert_eq!(fs::read(&path).expect("there"), before, "nothing is lacking any more");
    }
}
