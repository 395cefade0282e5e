//! Adds a product to the catalogue.

use lastro_database::Kind;
use lastro_mesh::call::Call;
use lastro_mesh::clock;
use lastro_mesh::identity::User as Caller;
use lastro_proto::inventory::v1::CreateProductRequest;
use sha2::{Digest as _, Sha256};

use super::{App, confirm_merchant, id, read_price};
use crate::Error;
use crate::domain::product::Product;
use crate::store::products::{self, Key, PRODUCT_EVENTS};

/// A product, and whether an earlier call added it.
pub struct Created {
    pub product: Product,
    pub replayed: bool,
}

/// Active at once. The same key of the same caller: the same product.
pub async fn create_product(app: &App, call: &Call, caller: &Caller, request: CreateProductRequest) -> Result<Created, Error> {
    let price = read_price(request.price.as_ref())?;
    let merchant_account_id = id(&request.merchant_account_id, "merchant_account_id")?;
    let now_us = clock::now_us();
    let product = Product {
        id: clock::new_id(),
        name: request.name,
        description: request.description,
        price,
        merchant_account_id,
        active: true,
        create_time_us: now_us,
        update_time_us: now_us,
    };
    let key = (!request.external_id.is_empty()).then(|| Key { external_id: request.external_id, request_hash: request_hash(&product) });
    if let Some(created) = created_before(app, caller, key.as_ref()).await? {
        return Ok(created);
    }
    confirm_merchant(app, call, merchant_account_id, price.currency()).await?;
    let tx = app.database.begin().await?;
    match products::insert(&tx, &product, caller.id, key.as_ref(), call.correlation_id.as_str()).await {
        Err(error) if error.kind == Kind::Unique => {
            tx.rollback().await.map_err(lastro_database::Error::from)?;
            return created_before(app, caller, key.as_ref()).await?.ok_or(Error::Database(error));
        }
        inserted => inserted?,
    }
    tx.commit().await.map_err(lastro_database::Error::from)?;
    app.bus.wake(PRODUCT_EVENTS.topic);
    app.cache.forget(&[product.id]);
    Ok(Created { product, replayed: false })
}

async fn created_before(app: &App, caller: &Caller, key: Option<&Key>) -> Result<Option<Created>, Error> {
    let Some(key) = key else { return Ok(None) };
    let Some((product, request_hash)) = products::by_key(app.database.reader(), caller.id, &key.external_id).await? else { return Ok(None) };
    if request_hash == key.request_hash { Ok(Some(Created { product, replayed: true })) } else { Err(Error::IdempotencyKeyReused) }
}

fn request_hash(product: &Product) -> [u8; 32] {
    let mut hash = Sha256::new();
    for text in [product.name.as_str(), &product.description, product.price.currency().code()] {
        hash.update((text.len() as u64).to_be_bytes());
        hash.update(text);
    }
    hash.update(product.price.minor().get().to_be_bytes());
    hash.update(product.merchant_account_id);
    hash.finalize().into()
}
