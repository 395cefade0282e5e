//! The first administrator: `admin.json` in the data folder, written before the user is made, so that a crash in between loses nothing.

use std::path::Path;

use anyhow::{Context as _, Result};
use lastro_customers::{Administrator, Customers};
use serde::{Deserialize, Serialize};

use crate::data_dir::DataDir;

const FILE: &str = "admin.json";

#[derive(Serialize, Deserialize)]
struct Kept {
    email: String,
    password: String,
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
    let kept = Kept { email: administrator.email.clone(), password: administrator.password.clone() };
    data.write(FILE, &serde_json::to_vec_pretty(&kept)?)?;
    customers.create_administrator(&administrator).await?;
    Ok(Some(administrator))
}
