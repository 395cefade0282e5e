//! Administrators: the first one, in `admin.json` of the data folder, which is written before the user is made, so that a crash in between loses
//! nothing; and `lastro admin`.

use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result, bail, ensure};
use lastro_customers::{Administrator, Customers, SERVICE};
use lastro_database::Database;
use lastro_events::bus::Bus;
use lastro_events::bus::embedded::EmbeddedBus;
use lastro_mesh::identity::Caller;
use lastro_mesh::outbound::Late;
use serde::{Deserialize, Serialize};

use crate::cli::{AdminCommand, ResetArgs};
use crate::data_dir::{DataDir, write_private};
use crate::print;
use crate::routes::outbound;

const FILE: &str = "admin.json";

#[derive(Serialize, Deserialize)]
struct Kept {
    email: String,
    password: String,
}

/// Customers for a command that serves nobody: what it tells is in its event table, for the service's relay to publish, and nobody is deleted.
pub async fn customers_of(database: Database) -> Result<Customers> {
    let nobody = Bus::Embedded(EmbeddedBus::default());
    let transactions = outbound(SERVICE.name, lastro_transactions::NAME, Late::default().called_by(SERVICE.name, Caller::on_loopback()), 1);
    Ok(Customers::for_command(database, nobody, transactions).await?)
}

/// `lastro admin`.
pub async fn admin(command: AdminCommand) -> Result<()> {
    match command {
        AdminCommand::Reset(args) => reset(args).await,
    }
}

/// Gives the administrator a new password and writes it where a start would: beside the one of before until the database has it, so that the one that holds is known in any case.
async fn reset(args: ResetArgs) -> Result<()> {
    // Held to the end: nobody else may have the folder's database open.
    let mut folder = None;
    let database = match args.database.url()? {
        Some(url) => Database::connect_postgres(&url, "lastro_customers", 4).context("the database lastro_customers cannot be opened")?,
        None => {
            let file = args.data.join("customers.db");
            ensure!(file.exists(), "{} is not there; --data names the folder of `lastro up`, --database-url a PostgreSQL server", file.display());
            let data = folder.insert(DataDir::open(&args.data)?);
            Database::open_sqlite(&data.private_file("customers.db")?).await.with_context(|| format!("{} cannot be opened", file.display()))?
        }
    };
    let missing = SERVICE.migrator.missing(&database).await.context("the tables of customers cannot be seen")?;
    ensure!(missing.is_empty(), "the tables of customers lack {}; start this version first, or run `lastro migrate`", missing.join(", "));
    let customers = customers_of(database.clone()).await?;
    let known = customers.administrators().await?;
    let email = match (args.email, known.as_slice()) {
        (Some(email), _) if customers.is_administrator(&email).await? => email.trim().to_lowercase(),
        (Some(email), _) => bail!("--email {email:?}: no administrator who may log in has this address; there are {}", known.join(", ")),
        (None, [only]) => only.clone(),
        (None, []) => bail!("there is no administrator who may log in; the next start, or `lastro migrate --admin-file`, makes one"),
        (None, _) => bail!("there are several administrators; say which one by --email: {}", known.join(", ")),
    };
    let administrator = Administrator::with_random_password(email);
    let path = args.admin_file.unwrap_or_else(|| args.data.join(FILE));
    if let Some(other) = email_in(&path).filter(|other| *other != administrator.email) {
        bail!("{} holds the password of {other}; name another file by --admin-file", path.display());
    }
    // Beside it first: what is known so far stays until the new one holds.
    let mut new = path.clone().into_os_string();
    new.push(".new");
    let new = PathBuf::from(new);
    write_private(&new, &kept(&administrator)?).context("--admin-file, or the folder of --data, is where the new password goes")?;
    customers.reset_administrator(&administrator).await.with_context(|| format!("whether {} holds is not known", new.display()))?;
    std::fs::rename(&new, &path).with_context(|| format!("the new password is in {}", new.display()))?;
    database.close().await;
    {
        print::line(format_args!("{} has a new password, kept in {}; the sessions of before have ended", administrator.email, path.display()));
    }
    drop(folder);
    Ok(())
}

fn email_in(path: &Path) -> Option<String> {
    serde_json::from_slice::<Kept>(&std::fs::read(path).ok()?).ok().map(|kept| kept.email)
}

fn kept(administrator: &Administrator) -> Result<Vec<u8>> {
    Ok(serde_json::to_vec_pretty(&Kept { email: administrator.email.clone(), password: administrator.password.clone() })?)
}

/// Makes the administrator whom a file names, unless there is one already.
pub async fn ensure_from_file(customers: &Customers, path: &Path) -> Result<()> {
    if customers.has_administrator().await? {
        return Ok(());
    }
    let kept = std::fs::read(path).with_context(|| format!("{} cannot be read", path.display()))?;
    let kept: Kept = serde_json::from_slice(&kept).with_context(|| format!("{} must be {{\"email\": …, \"password\": …}}", path.display()))?;
    anyhow::ensure!(kept.password.len() >= 12, "{}: the administrator's password needs 12 characters at least", path.display());
    Ok(customers.create_administrator(&Administrator { email: kept.email, password: kept.password }).await?)
}

/// Makes the administrator unless there is one; who it is, if it was made now.
pub async fn ensure(customers: &Customers, data: &DataDir) -> Result<Option<Administrator>> {
    if customers.has_administrator().await? {
        return Ok(None);
    }
    let administrator = match std::fs::read(data.file(FILE)) {
        Ok(kept) => {
            let kept: Kept = serde_json::from_slice(&kept).with_context(|| format!("{FILE} in the data folder cannot be read"))?;
            Administrator { email: kept.email, password: kept.password }
        }
        Err(_) => Administrator::generate(),
    };
    data.write(FILE, &kept(&administrator)?)?;
    customers.create_administrator(&administrator).await?;
    Ok(Some(administrator))
}
