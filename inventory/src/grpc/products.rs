//! `lastro.inventory.v1.ProductsService`.

use std::sync::Arc;

use lastro_mesh::call::Call;
use lastro_mesh::page::Page;
use lastro_proto::inventory::v1::products_service_server::ProductsService;
use lastro_proto::inventory::v1::{
    CreateProductRequest, GetProductRequest, ListProductsRequest, ListProductsResponse, Product, UpdateProductRequest,
};
use lastro_proto::time::timestamp;
use lastro_proto::r#type::v1::Money;
use tonic::{Request, Response, Status};

use crate::app::App;
use crate::app::create_product::create_product;
use crate::app::get_product::get_product;
use crate::app::list_products::list_products;
use crate::app::update_product::update_product;
use crate::domain::product;

pub struct Products(pub Arc<App>);

#[tonic::async_trait]
impl ProductsService for Products {
    async fn create_product(&self, request: Request<CreateProductRequest>) -> Result<Response<Product>, Status> {
        let call = Call::of(&request)?.clone();
        let created = create_product(&self.0, &call, call.user()?, request.into_inner()).await?;
        Ok(Response::new(Product { replayed: created.replayed, ..wire(created.product) }))
    }

    async fn get_product(&self, request: Request<GetProductRequest>) -> Result<Response<Product>, Status> {
        let product = get_product(&self.0, &request.get_ref().id).await?;
        Ok(Response::new(wire(product)))
    }

    async fn list_products(&self, request: Request<ListProductsRequest>) -> Result<Response<ListProductsResponse>, Status> {
        let message = request.get_ref();
        let page = Page::read(message.page_size, &message.page_token)?;
        let (products, next_page_token) = list_products(&self.0, message.active, page).await?;
        Ok(Response::new(ListProductsResponse { products: products.into_iter().map(wire).collect(), next_page_token }))
    }

    async fn update_product(&self, request: Request<UpdateProductRequest>) -> Result<Response<Product>, Status> {
        let call = Call::of(&request)?.clone();
        let product = update_product(&self.0, &call, request.into_inner()).await?;
        Ok(Response::new(wire(product)))
    }
}

fn wire(product: product::Product) -> Product {
    let currency = product.price.currency();
    let price = Money { currency_code: currency.code().to_owned(), amount: lastro_money::format(product.price.minor(), currency) };
    Product {
        id: product.id.to_string(),
        name: product.name,
        description: product.description,
        price: Some(price),
        merchant_account_id: product.merchant_account_id.to_string(),
        active: product.active,
        create_time: Some(timestamp(product.create_time_us)),
        update_time: Some(timestamp(product.update_time_us)),
        replayed: false,
    }
}
