//! Adds pieces of a product to a store, or takes some away.

use lastro_mesh::call::Call;
use lastro_mesh::clock;
use lastro_mesh::codec::Violation;
use lastro_mesh::identity::User as Caller;
use lastro_mesh::status::Problem;
use lastro_proto::inventory::v1::AdjustStockRequest;
use lastro_proto::reasons;
use sha2::{Digest as _, Sha256};

use super::{App, id, stored};
use crate::Error;
use crate::batches::{NewAdjustment, Refused, adjustment_id};
use crate::domain::stock::stock_id;
use crate::store::adjustments::Adjustment;

/// What it has made. The same key of the same caller: what it made then.
pub async fn adjust_stock(app: &App, call: &Call, caller: &Caller, request: AdjustStockRequest) -> Result<Adjustment, Error> {
    if request.external_id.is_empty() {
        return Err(Problem::field("external_id", "is required, here or as the header Idempotency-Key").into());
    }
    if request.quantity == 0 {
        return Err(Problem::field("quantity", "must not be 0: more than 0 adds pieces, less takes some away").into());
    }
    let product_id = id(&request.product_id, "product_id")?;
    app.cache.get(product_id).await?.ok_or(Error::ProductNotFound { field: None })?;
    let new = NewAdjustment {
        id: adjustment_id(caller.id, &request.external_id),
        call_id: clock::new_id(),
        request_hash: request_hash(&request),
        product_id,
        stock_id: stock_id(product_id, &request.store_id),
        store_id: request.store_id,
        quantity: i64::from(request.quantity),
        expected_version: request.expected_version.map(i64::from),
        correlation_id: call.correlation_id.to_string(),
    };
    match stored(call, app.batches.adjust(new)).await {
        Ok(adjustment) => {
            app.cache.told(&[product_id]).await;
            Ok(adjustment)
        }
        Err(Refused::OutOfStock(short)) => {
            let available = short.first().map_or(0, |short| short.available);
            let text = format!("only {available} pieces are there that are not reserved");
            let fields = vec![Violation::new("quantity", text.clone())];
            Err(Problem { fields, ..Problem::new(&reasons::OUT_OF_STOCK, text) }.with("productIds", product_id.to_string()).into())
        }
        Err(refused) => Err(refused.into()),
    }
}

fn request_hash(request: &AdjustStockRequest) -> [u8; 32] {
    let mut hash = Sha256::new();
    hash.update(request.product_id.to_lowercase());
    hash.update(b"\0");
    hash.update(&request.store_id);
    hash.update(b"\0");
    hash.update(request.quantity.to_be_bytes());
    hash.update(request.expected_version.unwrap_or(-1).to_be_bytes());
    hash.finalize().into()
}
