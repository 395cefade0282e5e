//! The first administrator: `admin.json` in the data folder, written before the user is made, so that a crash in between loses nothing.

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
