//! `/docs`: the reference of `/openapi.json` in a browser, from files that are in the binary: no network is needed.

use std::sync::{Arc, LazyLock};

use bytes::Bytes;
use http::{HeaderValue, Response, StatusCode, header};
use utoipa_swagger_ui::Config;

static CONFIG: LazyLock<Arc<Config<'static>>> = LazyLock::new(|| Arc::new(Config::from("/openapi.json").try_it_out_enabled(true)));

/// Its scripts and styles come from here; the page itself has styles and images inline.
const POLICY: &str = "default-src 'self'; style-src 'self' 'unsafe-inline'; img-src 'self' data:; frame-ancestors 'none'";

/// The file of the reference at this path.
pub fn page(path: &str) -> Option<Response<Bytes>> {
    if path == "/docs" {
        // Its files are named relative to a folder.
        let mut response = Response::new(Bytes::new());
        *response.status_mut() = StatusCode::PERMANENT_REDIRECT;
        response.headers_mut().insert(header::LOCATION, HeaderValue::from_static("/docs/"));
        return Some(response);
    }
    let file = utoipa_swagger_ui::serve(path.strip_prefix("/docs/")?, CONFIG.clone()).ok()??;
    let mut response = Response::new(Bytes::from(file.bytes.into_owned()));
    response.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_str(&file.content_type).ok()?);
    response.headers_mut().insert(header::CONTENT_SECURITY_POLICY, HeaderValue::from_static(POLICY));
    Some(response)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_page_and_its_files_are_in_the_binary() {
        for path in ["/docs/", "/docs/index.html", "/docs/swagger-ui-bundle.js", "/docs/swagger-ui.css"] {
            let response = page(path).unwrap_or_else(|| panic!("{path}"));
            assert!(!response.body().is_empty(), "{path}");
        }
        assert!(page("/docs/nothing.js").is_none());
        assert!(page("/docsx").is_none());
    }
}
