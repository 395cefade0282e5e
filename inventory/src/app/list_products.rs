//! The catalogue.

use lastro_mesh::page::Page;

use super::App;
use crate::Error;
use crate::domain::product::Product;
use crate::store::products;

/// A page of it, newest first, with the token of the next one.
pub async fn list_products(app: &App, active: Option<bool>, page: Page) -> Result<(Vec<Product>, String), Error> {
    let mut found = products::list(app.database.reader(), active, page).await?;
    let next = page.cut(&mut found, |product| product.id, |product| 400 + product.name.len() + product.description.len());
    Ok((found, next))
}
