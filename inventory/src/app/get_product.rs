//! One product, for everybody.

use uuid::Uuid;

use super::App;
use crate::Error;
use crate::domain::product::Product;
use crate::store::products;

/// Whether it is active or not.
pub async fn get_product(app: &App, id: &str) -> Result<Product, Error> {
    let id = Uuid::parse_str(id).map_err(|_| Error::ProductNotFound { field: None })?;
    products::get(app.database.reader(), id).await?.ok_or(Error::ProductNotFound { field: None })
}
